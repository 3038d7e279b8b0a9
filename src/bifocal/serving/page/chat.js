// The conversation: what was asked, what one or two models said, and going on from any point of it.
import { call, events, make } from './client.js';
import { Tray, boxed, listen, thumbnail, withBoxes } from './pictures.js';
import { looked } from './looked.js';
import { drawing } from './draw.js';

const by = id => document.getElementById(id);
const number = id => by(id).value === '' ? null : Number(by(id).value);
let turns = []; // { text, pictures, answers: { model: text }, drawn: { model: pictures } }
let tokens; // of a picture, by the models that draw
let running = null;
let tray;
let tell;

export function startChat(say, models) {
  tell = say;
  tokens = new Map(models.filter(model => model.abilities.includes('draw')).map(model => [model.id, model.picture_tokens]));
  by('may-draw-label').hidden = tokens.size === 0;
  tray = new Tray(by('tray'), tell);
  listen(tray, by('drop'));
  by('files').onchange = () => { tray.add([...by('files').files]); by('files').value = ''; };
  by('composer').onsubmit = event => { event.preventDefault(); send(); };
  by('stop').onclick = () => running?.abort();
  by('clear').onclick = () => { running?.abort(); turns = []; by('turns').replaceChildren(); by('empty').hidden = false; };
  const question = by('question');
  question.onkeydown = event => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  };
  question.oninput = () => { question.style.height = 'auto'; question.style.height = `${question.scrollHeight}px`; };
  addEventListener('keydown', event => { if (event.key === 'Escape') running?.abort(); });
  question.focus();
}

function chosen() {
  const models = [by('model-a').value];
  if (by('compare').checked) models.push(by('model-b').value);
  return models;
}

// What a model is told: its own earlier answers where it gave some, with what it drew, else the other's words.
function messages(model, upto) {
  const told = [];
  for (const turn of turns.slice(0, upto + 1)) {
    told.push({ role: 'user', content: [...turn.pictures.map(url => ({ type: 'image_url', image_url: { url } })),
      { type: 'text', text: turn.text }] });
    const said = turn.answers[model] ?? Object.values(turn.answers)[0];
    if (said === undefined) continue;
    const drawn = (turn.drawn[model] ?? []).map(url => ({ type: 'image_url', image_url: { url } }));
    told.push({ role: 'assistant', content: said, ...(drawn.length ? { images: drawn } : {}) });
  }
  return told;
}

// All pictures of what a model is told before its answer, in their order.
function seen(model, index) {
  return turns.slice(0, index + 1).flatMap((turn, at) => [...turn.pictures, ...(at < index ? turn.drawn[model] ?? [] : [])]);
}

function send() {
  const text = by('question').value.trim();
  if (running || (!text && !tray.urls.length)) return;
  by('question').value = ''; by('question').style.height = 'auto';
  turns.push({ text, pictures: tray.take(), answers: {}, drawn: {} });
  answer();
}

// Asks every chosen model the last question.
async function answer() {
  tell('');
  const index = turns.length - 1;
  const turn = turns[index];
  turn.answers = {}; turn.drawn = {};
  by('empty').hidden = true;
  const places = new Map(chosen().map(model => [model, card(model)]));
  const user = make('div', { className: 'turn user' },
    make('div', { className: 'tray' }, ...turn.pictures.map((url, at) => thumbnail(url, at))),
    ...(turn.text ? [make('div', { className: 'said', textContent: turn.text })] : []),
    make('div', {}, button('Edit', () => edit(index)), button('Retry', () => retry(index))));
  const replies = make('div', { className: 'answers' }, ...[...places.values()].map(place => place.element));
  by('turns').append(make('section', { className: 'turn' }, user, replies));
  by('chat').scrollTop = by('chat').scrollHeight;
  running = new AbortController();
  by('send').hidden = true; by('stop').hidden = false;
  await Promise.all([...places].map(([model, place]) => reply(model, place, index, running.signal)));
  running = null;
  by('send').hidden = false; by('stop').hidden = true;
}

function inWords(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

function button(text, go) {
  return make('button', { type: 'button', className: 'quiet', textContent: text, onclick: go });
}

function card(model) {
  const said = make('div', { className: 'said' });
  const drawn = make('div', { className: 'drawings' });
  const shown = make('div');
  const about = make('small', { role: 'status' });
  const tools = make('span');
  const element = make('article', { className: 'answer waiting', ariaLabel: `Answer of ${model}` },
    make('div', { className: 'name', textContent: model }), said, drawn, shown, about, tools);
  return { element, said, drawn, shown, about, tools };
}

function forget(index) {
  running?.abort();
  turns = turns.slice(0, index);
  while (by('turns').children.length > index) by('turns').lastChild.remove();
}

function edit(index) {
  const turn = turns[index];
  forget(index);
  tray.set(turn.pictures);
  by('question').value = turn.text;
  by('question').focus();
}

async function retry(index) {
  const turn = turns[index];
  forget(index);
  while (running) await new Promise(done => setTimeout(done, 20)); // what was stopped tidies up first
  turns.push({ ...turn, answers: {}, drawn: {} });
  answer();
}

function request(model, index) {
  const body = { model, messages: messages(model, index), stream: true, stream_options: { include_usage: true },
    temperature: number('temperature') ?? 0, top_p: number('top-p') ?? 1 };
  const draws = by('may-draw').checked && tokens.has(model);
  if (draws) body.modalities = ['text', 'image'];
  // the longest answer is one in words: a picture comes on top
  if (number('max-tokens') !== null) body.max_completion_tokens = number('max-tokens') + (draws ? tokens.get(model) + 2 : 0);
  if (number('seed') !== null) body.seed = number('seed');
  if (by('stop-text').value) body.stop = by('stop-text').value;
  return body;
}

async function reply(model, place, index, signal) {
  const began = performance.now();
  let text = '', first = null, boxes = [], reason = '', usage = null;
  const drawn = [];
  const turn = turns[index];
  const scroller = by('chat');
  let low = true; // whoever has scrolled up to read is left there
  const follow = () => { if (low) scroller.scrollTop = scroller.scrollHeight; };
  for (const part of [place.drawn, place.shown]) part.addEventListener('load', follow, true);
  try {
    for await (const chunk of events('/v1/chat/completions', request(model, index), signal)) {
      usage = chunk.usage ?? usage;
      for (const choice of chunk.choices) {
        if (choice.delta.content) { first ??= performance.now(); text += choice.delta.content; }
        for (const { image_url: { url } } of choice.delta.images ?? []) {
          first ??= performance.now();
          place.drawn.append(drawing(url, turn.text, drawn.length));
          drawn.push(url);
        }
        boxes = choice.delta.boxes ?? boxes;
        reason = choice.finish_reason ?? reason;
      }
      low = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
      place.said.replaceChildren(...withBoxes(text));
      follow();
    }
  } catch (error) {
    reason = error.name === 'AbortError' ? 'stopped' : 'failed';
    if (reason === 'failed') place.shown.append(make('p', { className: 'bad', textContent: error.message }));
  }
  place.element.classList.remove('waiting');
  turn.answers[model] = text;
  turn.drawn[model] = drawn;
  const pictures = seen(model, index);
  const used = [...new Set(boxes.map(box => box.picture))];
  for (const picture of used) {
    const from = boxes.findIndex(box => box.picture === picture);
    place.shown.append(boxed(pictures[picture], boxes.filter(box => box.picture === picture), from));
  }
  const facts = [reason === 'stop' ? '' : reason];
  if (first !== null) facts.push(`first ${text ? 'word' : 'picture'} after ${inWords(first - began)}`);
  if (usage) {
    const taken = performance.now() - began;
    const details = usage.prompt_tokens_details;
    const count = usage.completion_tokens;
    facts.push(`${count} ${count === 1 ? 'token' : 'tokens'} in ${inWords(taken)}`);
    facts.push(`${usage.prompt_tokens} read (${details.image_tokens} of pictures, ${details.cached_tokens} cached)`);
  }
  place.about.textContent = facts.filter(Boolean).join(' · ');
  follow();
  if (pictures.length && text && !drawn.length) {
    place.tools.append(button('Where it looked', event => explain(event.currentTarget, model, place, index, pictures)));
  }
}

async function explain(press, model, place, index, pictures) {
  press.disabled = true;
  try {
    const found = await (await call('/v1/explain', { model, messages: messages(model, index) })).json();
    place.element.append(looked(found, pictures));
    press.remove();
  } catch (error) {
    tell(error.message); press.disabled = false;
  }
}
