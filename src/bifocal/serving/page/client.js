// Speaks to the server that this page came from, and to no other.

let key = sessionStorage.getItem('key') || '';

export class Refused extends Error {}

async function askForKey() {
  const dialog = document.getElementById('key-dialog');
  const field = document.getElementById('key');
  field.value = key = '';
  sessionStorage.removeItem('key'); // the one that failed would fail again after a reload
  dialog.showModal();
  await new Promise(done => dialog.addEventListener('close', done, { once: true }));
  key = field.value;
  sessionStorage.setItem('key', key);
}

export async function call(path, body, signal) {
  for (;;) {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (body) headers['Content-Type'] = 'application/json';
    const method = body ? 'POST' : 'GET';
    let request;
    try {
      request = new Request(path, { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) { // a key that no header can hold
      if (!key) throw error;
      await askForKey(); continue;
    }
    const answer = await fetch(request);
    if (answer.ok) return answer;
    if (answer.status === 401) { await askForKey(); continue; }
    const said = await answer.json().catch(() => null);
    const wait = answer.headers.get('Retry-After');
    throw new Refused((said?.error?.message || `status ${answer.status}`) + (wait ? `; try again in ${wait} s` : ''));
  }
}

// The data of each server-sent event, parsed; an error among them is thrown.
export async function* events(path, body, signal) {
  const answer = await call(path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf('\n\n')) >= 0) {
      const data = rest.slice(0, end).split('\n').filter(line => line.startsWith('data: ')).map(line => line.slice(6)).join('\n');
      rest = rest.slice(end + 2);
      if (data === '[DONE]') return;
      const item = JSON.parse(data);
      if (item.error) throw new Refused(item.error.message);
      yield item;
    }
  }
}

// An element with properties and children; text is only ever set as text.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
