for (const box of document.querySelectorAll('.filter')) {
  const rows = [...document.getElementById(box.dataset.table).tBodies[0].rows];
  const texts = rows.map(row => row.textContent.toLowerCase());
  const count = box.parentElement.querySelector('[data-count]');
  const apply = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => { row.hidden = !words.every(w => texts[i].includes(w)); shown += !row.hidden; });
    count.textContent = shown + ' of ' + rows.length + ' rows';
  };
  box.addEventListener('input', apply); apply();
}
for (const group of document.querySelectorAll('[data-choices]')) {
  const cards = [...document.querySelectorAll('#' + group.dataset.choices + ' > [data-tags]')];
  const none = document.querySelector('[data-none=' + group.dataset.choices + ']');
  const apply = () => {
    const pressed = [...group.querySelectorAll('button[aria-pressed=true]')];
    const wanted = pressed.map(button => button.dataset.tag).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const tags = card.dataset.tags.split(' ');
      card.hidden = !wanted.every(tag => tags.includes(tag)); shown += !card.hidden;
    }
    if (none) none.hidden = shown > 0;
  };
  group.addEventListener('click', event => {
    const button = event.target.closest('button'); if (!button) return;
    for (const other of button.parentElement.children) other.setAttribute('aria-pressed', other === button);
    apply();
  });
  apply();
}
