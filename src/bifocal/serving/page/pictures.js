// Pictures that come in by choice, drop or paste, and boxes over those that went out.
import { make } from './client.js';

const TAKEN = ['image/png', 'image/jpeg', 'image/webp', 'image/gif'];
const SVG = 'http://www.w3.org/2000/svg';

function asDataUrl(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error('the file cannot be read'));
    reader.readAsDataURL(blob);
  });
}

// What the server does not take, though the browser shows it, goes as PNG.
async function readable(file) {
  if (TAKEN.includes(file.type)) return file;
  const bitmap = await createImageBitmap(file).catch(() => { throw new Error(`${file.name || 'this'} is not a picture`); });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext('2d').drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: 'image/png' });
}

export class Tray {
  constructor(element, tell) {
    this.element = element; this.tell = tell; this.urls = [];
  }
  async add(files) {
    for (const file of files) {
      try { this.urls.push(await asDataUrl(await readable(file))); } catch (error) { this.tell(error.message); }
    }
    this.show();
  }
  set(urls) { this.urls = [...urls]; this.show(); }
  take() { const urls = this.urls; this.set([]); return urls; }
  show() {
    this.element.replaceChildren(...this.urls.map((url, index) => thumbnail(url, index,
      make('button', { type: 'button', ariaLabel: `Remove picture ${index + 1}`, textContent: '×',
        onclick: () => { this.urls.splice(index, 1); this.show(); } }))));
  }
}

export function thumbnail(url, index, ...more) {
  return make('figure', { className: 'thumb' }, make('img', { src: url, alt: `Picture ${index + 1}` }), ...more);
}

export function listen(tray, cover) {
  const files = transfer => [...transfer.files].filter(file => file.type.startsWith('image/'));
  let inside = 0;
  addEventListener('dragenter', event => {
    if (event.dataTransfer.types.includes('Files')) { inside += 1; cover.hidden = false; }
  });
  addEventListener('dragleave', () => { inside = Math.max(0, inside - 1); cover.hidden = inside === 0; });
  addEventListener('dragover', event => event.preventDefault());
  addEventListener('drop', event => {
    event.preventDefault(); inside = 0; cover.hidden = true;
    tray.add(files(event.dataTransfer));
  });
  addEventListener('paste', event => {
    const pasted = files(event.clipboardData);
    if (pasted.length) { event.preventDefault(); tray.add(pasted); }
  });
}

// The original picture with the boxes over it, in its own pixels.
export function boxed(url, boxes, offset = 0) {
  const svg = document.createElementNS(SVG, 'svg');
  const image = make('img', { src: url, alt: `Picture with ${boxes.length} boxes` });
  image.onload = () => {
    svg.setAttribute('viewBox', `0 0 ${image.naturalWidth} ${image.naturalHeight}`);
    svg.setAttribute('preserveAspectRatio', 'none');
  };
  boxes.forEach((box, index) => {
    const [x1, y1, x2, y2] = box.pixels;
    const rect = document.createElementNS(SVG, 'rect');
    for (const [name, value] of Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 })) rect.setAttribute(name, value);
    rect.setAttribute('class', `box-${(offset + index) % 4}`);
    svg.append(rect);
  });
  return make('span', { className: 'shown' }, image, svg);
}

// An answer in which the tokens of a box stand as its number, in its colour.
export function withBoxes(text) {
  let count = 0;
  return text.split(/((?:<loc\d{4}>){4})/).filter(Boolean).map(piece => /^<loc/.test(piece) && piece.length === 36
    ? make('span', { className: `tag box-${count % 4}`, title: piece, textContent: `box ${++count}` }) : piece);
}
