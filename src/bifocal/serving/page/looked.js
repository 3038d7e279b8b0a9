// Where a model looked while it gave an answer, what else it might have said, and what it saw.
import { make } from './client.js';

// The grid lies over the part of the picture that the model sees, which may be its middle or reach beyond it.
function heat(shares, [rows, columns], [left, top, right, bottom]) {
  const canvas = make('canvas', { width: columns, height: rows });
  const sides = { left, top, width: right - left, height: bottom - top };
  for (const [side, share] of Object.entries(sides)) canvas.style[side] = `${100 * share}%`;
  const paint = canvas.getContext('2d');
  const most = Math.max(...shares, 1e-9);
  shares.forEach((share, place) => {
    // little attention is dark, much is clear
    paint.fillStyle = `rgba(10, 12, 24, ${0.78 * (1 - share / most)})`;
    paint.fillRect(place % columns, Math.floor(place / columns), 1, 1);
  });
  return canvas;
}

function mean(words, picture) {
  const total = new Array(words[0].attention[picture].length).fill(0);
  for (const word of words) word.attention[picture].forEach((share, place) => { total[place] += share / words.length; });
  return total;
}

// Equal codes have equal colours; the golden angle sets neighbours apart.
function codes(grid) {
  const canvas = make('canvas', { className: 'codes', width: grid[0].length, height: grid.length, role: 'img',
    ariaLabel: `Image tokens: ${grid.map(row => row.join(' ')).join('; ')}` });
  const paint = canvas.getContext('2d');
  grid.forEach((row, y) => row.forEach((code, x) => {
    paint.fillStyle = `hsl(${code * 137.508 % 360} 55% ${40 + code * 7 % 35}%)`;
    paint.fillRect(x, y, 1, 1);
  }));
  canvas.onmousemove = event => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * grid[0].length);
    const y = Math.floor((event.clientY - box.top) / box.height * grid.length);
    canvas.title = `row ${y + 1}, column ${x + 1}: code ${grid[y]?.[x]}`;
  };
  return canvas;
}

function view(shown, caption) {
  return make('figure', {}, shown, make('figcaption', { textContent: caption }));
}

export function looked(found, urls) {
  const views = make('div', { className: 'views' });
  const maps = urls.map((url, index) => {
    const image = make('img', { src: url, alt: `Picture ${index + 1}, where it was looked at` });
    const frame = make('span', { className: 'shown looked-at' }, image);
    views.append(view(frame, `Picture ${index + 1}: where it looked`));
    return frame;
  });
  found.seen.forEach((one, index) => {
    const image = make('img', { className: 'pixels', src: `data:image/png;base64,${one.b64_json}` });
    image.alt = `What was seen of picture ${index + 1}`;
    views.append(view(make('span', { className: 'shown' }, image), 'what it saw: the tokens as a picture'));
    views.append(view(codes(one.codes), 'the image tokens, a colour for each code'));
  });
  const table = make('table');
  const show = word => {
    maps.forEach((frame, picture) => {
      frame.querySelector('canvas')?.remove();
      frame.append(heat(word ? word.attention[picture] : mean(found.words, picture), found.grid, found.parts[picture]));
    });
    const rows = word ? word.tokens.flatMap(token => token.alternatives) : [];
    table.replaceChildren(...rows.map(other => make('tr', {}, make('td', { textContent: other.text || '(end)' }),
      make('td', { textContent: `${(100 * other.probability).toFixed(1)}%` }))));
  };
  const words = make('div', { className: 'words', role: 'group', ariaLabel: 'Words of the answer' });
  const choices = [[null, 'all words'], ...found.words.map(word => [word, word.text || '·'])];
  for (const [word, text] of choices) {
    words.append(make('button', { type: 'button', className: 'word', ariaPressed: String(word === null), textContent: text,
      onclick: event => {
        for (const other of words.children) other.ariaPressed = String(other === event.currentTarget);
        show(word);
      } }));
  }
  if (found.words.length) show(null);
  return make('div', { className: 'looked' }, words, views, table);
}
