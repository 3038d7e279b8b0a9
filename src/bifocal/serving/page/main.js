// Puts the page together: models, tabs, and the two things that can be done.
import { call, make } from './client.js';
import { startChat } from './chat.js';
import { startDrawing } from './draw.js';

const by = id => document.getElementById(id);
const note = by('note');

function tell(message) {
  note.textContent = message; note.hidden = !message;
}

function choose(tab) {
  for (const name of ['chat', 'draw']) {
    const chosen = name === tab;
    by(`tab-${name}`).ariaSelected = String(chosen);
    by(`tab-${name}`).tabIndex = chosen ? 0 : -1;
    by(name).hidden = !chosen;
  }
  by('composer').hidden = tab !== 'chat';
  by('tab-chat').closest('header').querySelector('.models').hidden = tab !== 'chat';
}

for (const name of ['chat', 'draw']) {
  by(`tab-${name}`).onclick = () => choose(name);
  by(`tab-${name}`).onkeydown = event => {
    if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
    const other = name === 'chat' ? 'draw' : 'chat';
    choose(other); by(`tab-${other}`).focus();
  };
}

try {
  const models = (await (await call('/v1/models')).json()).data;
  const talkers = models.filter(model => model.abilities.includes('chat'));
  for (const id of ['model-a', 'model-b']) {
    by(id).replaceChildren(...talkers.map(model => make('option', { textContent: model.id })));
  }
  if (talkers.length > 1) by('model-b').selectedIndex = 1;
  by('compare').disabled = talkers.length < 2;
  by('compare').onchange = () => { by('model-b').hidden = !by('compare').checked; };
  startDrawing(models);
  if (talkers.length) startChat(tell, talkers);
  else { by('empty').textContent = 'None of the models here answers questions.'; by('send').disabled = true; choose('draw'); }
} catch (error) {
  tell(error.message);
}
document.body.dataset.ready = 'yes';
