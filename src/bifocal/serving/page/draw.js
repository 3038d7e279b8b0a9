// Drawing, with news of how far it is.
import { events, make } from './client.js';

const by = id => document.getElementById(id);

export function startDrawing(models) {
  const able = models.filter(model => model.abilities.includes('draw'));
  by('draw-model').replaceChildren(...able.map(model => make('option', { textContent: model.id })));
  by('draw-none').hidden = able.length > 0;
  by('draw-form').hidden = able.length === 0;
  let running = null;
  by('draw-stop').onclick = () => running?.abort();
  by('draw-form').onsubmit = async event => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    const body = { model: by('draw-model').value, prompt: by('prompt').value, stream: true };
    // what a field does not say is left to the server, which knows what is usual for a model
    for (const name of ['n', 'guidance', 'seed']) {
      if (by(`draw-${name}`).value !== '') body[name] = Number(by(`draw-${name}`).value);
    }
    const progress = by('draw-progress');
    const note = by('draw-note');
    progress.hidden = false; progress.value = 0; by('draw-stop').hidden = false; by('draw-go').disabled = true;
    note.textContent = 'waiting for its turn';
    const began = performance.now();
    const fresh = [];
    try {
      for await (const item of events('/v1/images/generations', body, running.signal)) {
        if (item.type === 'image_generation.progress') {
          progress.value = item.done / item.total;
          note.textContent = `${item.done} of ${item.total} image tokens`;
        } else if (item.type === 'image_generation.completed') {
          fresh.push(drawing(`data:image/png;base64,${item.b64_json}`, body.prompt, fresh.length));
        }
      }
      note.textContent = `${fresh.length} in ${((performance.now() - began) / 1000).toFixed(1)} s`;
    } catch (error) {
      note.textContent = error.name === 'AbortError' ? 'stopped' : error.message;
    } finally {
      running = null; progress.hidden = true; by('draw-stop').hidden = true; by('draw-go').disabled = false;
      by('drawings').prepend(...fresh);
    }
  };
}

export function drawing(url, prompt, index) {
  const name = `${prompt.replace(/[^a-z0-9]+/gi, '-').replace(/^-|-$/g, '').slice(0, 40) || 'drawing'}-${index + 1}.png`;
  return make('figure', {}, make('img', { src: url, alt: prompt }),
    make('figcaption', {}, `${prompt} `, make('a', { href: url, download: name, textContent: 'download' })));
}
