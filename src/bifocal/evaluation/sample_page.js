const data = JSON.parse(document.getElementById('samples-data').textContent);
const thumbnails = JSON.parse(document.getElementById('samples-pictures').textContent);
const both = data.sides.length > 1;
const colours = both ? ['a', 'b'] : ['alone'];
const list = document.getElementById('samples-list');
const end = document.getElementById('samples-end');
const dialog = document.getElementById('samples-dialog');
const fields = Object.fromEntries(['block', 'slice', 'words'].map(name => [name, document.getElementById('samples-' + name)]));
const AT_ONCE = 24;

// What an answer is worth: [text, verdict, boxes, note, flags]; the verdict is 1, 0 or null.
const right = (row, side) => row.answers[side][1];
const flagged = flag => row => row.answers.some(answer => answer[4].includes(flag));
const outcomes = (both ? [
  ['all', 'all', () => true],
  ['flips', 'only one right', row => right(row, 0) !== null && right(row, 1) !== null && right(row, 0) !== right(row, 1)],
  ['a', 'only ' + data.sides[0] + ' right', row => right(row, 0) === 1 && right(row, 1) === 0],
  ['b', 'only ' + data.sides[1] + ' right', row => right(row, 1) === 1 && right(row, 0) === 0],
  ['right', 'both right', row => right(row, 0) === 1 && right(row, 1) === 1],
  ['wrong', 'both wrong', row => right(row, 0) === 0 && right(row, 1) === 0],
] : [
  ['all', 'all', () => true],
  ['right', 'right', row => right(row, 0) === 1],
  ['wrong', 'wrong', row => right(row, 0) === 0],
]).concat([
  ['unjudged', 'not right or wrong', row => row.answers.some(answer => answer[1] === null && !answer[4].includes('failed'))],
  ['unparsed', 'not parsed', flagged('unparsed')],
  ['cut', 'cut off', flagged('cut off')],
  ['failed', 'request failed', flagged('failed')],
]);

const names = ['block', 'id', 'question', 'truth', 'also', 'slices', 'pictures', 'boxes', 'answers'];
const rows = data.rows.map(values => Object.fromEntries(names.map((name, i) => [name, values[i]])));
const text = row => row.text ??= [row.id, row.question, row.truth, ...row.also, ...row.answers.map(answer => answer[0])]
  .join('\n').toLowerCase();

const state = { outcome: 'all', block: '', slice: '', words: '' };
for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (name in state) state[name] = value;
if (!outcomes.some(([name]) => name === state.outcome)) state.outcome = 'all';

function make(tag, className, content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (content !== undefined) element.textContent = content;
  return element;
}

function rectangle(box, className) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
  const [x1, y1, x2, y2] = box;
  for (const [name, value] of Object.entries({ x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) }))
    element.setAttribute(name, value);
  element.setAttribute('class', className);
  return element;
}

function pictureOf(row, number) {
  const [bytes, width, height] = thumbnails[number];
  const shown = make('button', 'picture');
  shown.type = 'button';
  const image = make('img', Math.max(width, height) < 128 ? 'coarse' : '');
  image.width = width; image.height = height; image.loading = 'lazy'; image.decoding = 'async';
  image.src = 'data:image/webp;base64,' + bytes;
  image.alt = 'picture of ' + row.id;
  shown.append(image);
  const marks = [...row.boxes.map(box => [box, 'truth']),
    ...row.answers.flatMap((answer, side) => answer[2].map(box => [box, colours[side]]))];
  if (marks.length && row.pictures.length === 1) {
    const drawing = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    drawing.setAttribute('viewBox', '0 0 1 1');
    drawing.setAttribute('preserveAspectRatio', 'none');
    for (const [box, className] of marks) drawing.append(rectangle(box, 'under'), rectangle(box, className));
    shown.append(drawing);
  }
  return shown;
}

function wordsOf(row) {
  const words = make('div', 'words');
  if (row.question) words.append(make('p', 'asked', row.question));
  if (row.truth) {
    const truth = make('p');
    truth.append(make('span', 'muted side-name', 'truth'), row.truth);
    if (row.also.length) truth.append(make('span', 'muted', ' · ' + row.also.join(' · ')));
    words.append(truth);
  }
  row.answers.forEach(([said, verdict, , note, flags], side) => {
    const line = make('p');
    if (verdict !== null) line.append(make('b', verdict ? 'good' : 'bad', verdict ? '✓ ' : '✗ '));
    line.append(make('span', 'side-name ' + colours[side], data.sides[side]));
    line.append(said ? said : make('span', 'muted', note ? '' : '(nothing)'));
    if (note) line.append(make('span', 'muted', (said ? ' · ' : '') + note));
    for (const flag of flags) line.append(' ', make('span', 'tag bad', flag));
    words.append(line);
  });
  const meta = make('p', 'meta');
  if (data.blocks.length > 1) meta.append(make('span', 'tag', data.blocks[row.block]));
  for (const slice of row.slices) if (data.slices[slice] !== 'all') meta.append(make('span', 'tag', data.slices[slice]));
  meta.append(make('span', 'muted', ' ' + row.id));
  words.append(meta);
  return words;
}

function card(row, large) {
  const shell = make(large ? 'div' : 'article', large ? '' : 'sample' + (row.pictures.length > 1 ? ' several' : ''));
  const shots = make('div', 'shots');
  for (const number of row.pictures) {
    const shown = pictureOf(row, number);
    shown.addEventListener('click', () => large ? dialog.close() : enlarge(row));
    shots.append(shown);
  }
  shell.append(shots, wordsOf(row));
  return shell;
}

function enlarge(row) {
  dialog.replaceChildren(card(row, true));
  dialog.showModal();
}
dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });

let chosen = [], shown = 0;

// Cards are made for what is in sight and a screen beyond it.
function more() {
  while (shown < chosen.length && (!shown || end.getBoundingClientRect().top < 2 * innerHeight)) {
    const some = chosen.slice(shown, shown + AT_ONCE);
    list.append(...some.map(row => card(row, false)));
    shown += some.length;
  }
  end.textContent = !chosen.length ? 'No sample fits.' : shown < chosen.length ? '…' : 'That was all.';
}
addEventListener('scroll', more, { passive: true });
addEventListener('resize', more);

function fill(field, first, counts) {
  field.replaceChildren(new Option(first, ''), ...counts.map(([value, label, count]) =>
    new Option(label + ' (' + count.toLocaleString('en') + ')', value)));
}

function apply() {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  const inBlock = rows.filter(row => state.block === '' || String(row.block) === state.block);
  const counts = new Map();
  for (const row of inBlock) for (const slice of row.slices) counts.set(slice, (counts.get(slice) ?? 0) + 1);
  const slices = [...counts].filter(([slice]) => data.slices[slice] !== 'all')
    .map(([slice, count]) => [data.slices[slice], data.slices[slice], count]).sort((x, y) => x[0] < y[0] ? -1 : 1);
  if (!slices.some(([name]) => name === state.slice)) state.slice = '';
  fill(fields.slice, 'every kind', slices);
  fields.slice.value = state.slice;
  fields.slice.hidden = !slices.length;
  const wanted = data.slices.indexOf(state.slice);
  const pool = inBlock.filter(row => (state.slice === '' || row.slices.includes(wanted))
    && words.every(word => text(row).includes(word)));
  for (const button of document.querySelectorAll('#samples-outcomes button')) {
    const [name, , fits] = outcomes.find(([name]) => name === button.dataset.outcome);
    const count = name === 'all' ? pool.length : pool.filter(fits).length;
    button.querySelector('b').textContent = count.toLocaleString('en');
    button.setAttribute('aria-pressed', name === state.outcome);
  }
  chosen = pool.filter(outcomes.find(([name]) => name === state.outcome)[2]);
  document.getElementById('samples-count').textContent =
    chosen.length.toLocaleString('en') + ' of ' + rows.length.toLocaleString('en') + ' samples';
  list.replaceChildren();
  shown = 0;
  more();
  const set = Object.entries(state).filter(([name, value]) => value && !(name === 'outcome' && value === 'all'));
  history.replaceState(null, '', set.length ? '#' + new URLSearchParams(set) : '#');
}

const buttons = document.getElementById('samples-outcomes');
for (const [name, label, fits] of outcomes) {
  if (name !== 'all' && !rows.some(fits)) continue;
  const button = make('button', '', label);
  button.type = 'button';
  button.dataset.outcome = name;
  button.append(make('b'));
  button.addEventListener('click', () => { state.outcome = name; apply(); });
  buttons.append(button);
}
if (![...buttons.children].some(button => button.dataset.outcome === state.outcome)) state.outcome = 'all';
fill(fields.block, 'every task', data.blocks.map((name, i) => [String(i), name, rows.filter(row => row.block === i).length]));
fields.block.hidden = data.blocks.length < 2;
if (!data.blocks[state.block]) state.block = '';
fields.block.value = state.block;
fields.words.value = state.words;
let typing;
fields.words.addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(() => { state.words = fields.words.value; apply(); }, 120);
});
for (const name of ['block', 'slice'])
  fields[name].addEventListener('change', () => { state[name] = fields[name].value; apply(); });
apply();
