"""What makes the report's page look and answer: one style sheet, one script."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f8; --card: #ffffff; --ink: #15181c; --muted: #5a636d;
  --grid: #e5e8eb; --line: #dde1e5; --accent: #6a00a8; --soft: #f0f1f4;
  --bad: #a8321f; --warn: #8a5a00; --good: #1c6b4a;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  --scale: 1.16;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0d0f12; --card: #15181c; --ink: #e9ecef; --muted: #9ba4ae;
    --grid: #272c32; --line: #2b3138; --accent: #d28bf0; --soft: #1d2126;
    --bad: #ff8f7a; --warn: #f0b64a; --good: #63d3a0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 var(--sans); font-variant-numeric: tabular-nums;
}
main { max-width: 1240px; margin: 0 auto; padding: 20px 14px 48px; }
h1 {
  font-size: clamp(1.6rem, 1.1rem + 2.2vw, 2.5rem); line-height: 1.15;
  letter-spacing: -0.02em; margin: 4px 0 10px; text-wrap: balance;
  overflow-wrap: anywhere;
}
h2 { font-size: 1.25rem; letter-spacing: -0.01em; margin: 44px 0 4px; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 0 0 10px; max-width: 74ch; text-wrap: pretty; }
.lead { font-size: 1.08rem; }
.over, .quiet { color: var(--muted); }
.over { font-size: .82rem; letter-spacing: .04em; }
a { color: var(--accent); text-underline-offset: 2px; }
code { font: .92em var(--mono); overflow-wrap: anywhere; }
sup { line-height: 0; font-size: .72em; }
small { color: var(--muted); font-size: .8rem; white-space: nowrap; }

.cards { display: grid; gap: 12px; margin: 22px 0 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); }
.card, figure, .box, .note {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.card { padding: 14px 16px 16px; }
.card h3 { color: var(--muted); font-weight: 500; font-size: .9rem; }
.big { font-size: 2rem; font-weight: 650; letter-spacing: -0.02em;
  line-height: 1.35; }
.big sup { font-size: .62em; vertical-align: baseline; position: relative;
  top: -.62em; letter-spacing: 0; }
.range { position: relative; height: 26px; margin: 8px 4px 0; }
.range::before { content: ""; position: absolute; left: 0; right: 0; top: 8px;
  height: 1px; background: var(--line); }
.range span { position: absolute; top: 8px; }
.range .bar { height: 9px; margin-top: -4px; border-radius: 2px;
  background: var(--ink); opacity: .2; }
.range .at { width: 3px; height: 15px; margin: -7px 0 0 -1px;
  background: var(--ink); border-radius: 1px; }
.range .found { width: 12px; height: 12px; margin: -6px 0 0 -6px;
  border: 2.5px solid var(--held); background: var(--card);
  border-radius: 50%; }
.range .mark { width: 0; height: 15px; margin-top: -7px;
  border-left: 1px dashed var(--muted); }
.range .say { top: 14px; transform: translateX(-50%); font-size: .72rem;
  color: var(--muted); white-space: nowrap; }
.equation { font-size: 1.08rem; padding: 14px 16px; }
.equation small { display: block; margin-top: 6px; white-space: normal; }

.notes { display: grid; gap: 8px; margin: 16px 0; padding: 0;
  list-style: none; }
.note { padding: 9px 14px; border-left: 4px solid var(--tone); }
.note b { color: var(--tone); margin-right: 8px; }
.note.refused { --tone: var(--bad); }
.note.warning { --tone: var(--warn); }
.note.aside { --tone: var(--muted); }
details > summary { cursor: pointer; color: var(--accent); padding: 4px 0; }
details > ul { margin-top: 8px; }

.figures { display: grid; gap: 16px; margin-top: 14px;
  grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; padding: 14px 10px 12px; display: flex;
  flex-direction: column; min-width: 0; }
figure h3 { margin-bottom: 8px; }
figcaption { font-size: .92rem; margin-top: 8px; text-wrap: pretty; }
.lacks { margin-top: 14px; overflow-wrap: anywhere; }
.files { font-size: .8rem; margin-top: auto; padding-top: 8px;
  color: var(--muted); }
.plot { display: block; width: 100%; height: auto; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.plot .tip { cursor: default; }
.plot .tip:hover { filter: brightness(1.15); }
.hot use { stroke: var(--ink) !important; stroke-width: 2px !important; }
.hot path { stroke-width: 2.6px !important; opacity: 1 !important;
  stroke-opacity: 1 !important; }
tr.hot > * { background: var(--soft); }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 10px 0 0;
  padding: 0; list-style: none; font-size: .92rem; }
.dot { display: inline-block; width: .72em; height: .72em; border-radius: 50%;
  background: var(--c); border: 2px solid var(--c); margin-right: .4em; }
.dot.held { background: none; }

.box { overflow: auto; margin-top: 12px; max-height: 38rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap;
  vertical-align: top; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--card); z-index: 1;
  font-weight: 600; box-shadow: inset 0 -1px var(--line); }
thead th { border-bottom: 0; }
thead th:first-child { left: 0; z-index: 2; }
tbody th { top: auto; left: 0; box-shadow: none; font-weight: 600;
  min-width: 7rem; max-width: 12rem; white-space: normal;
  overflow-wrap: anywhere; }
tbody td { min-width: 4rem; }
th.text, td.text { text-align: left; }
td.prose { text-align: left; white-space: normal; min-width: 16rem; }
tbody tr:last-child > * { border-bottom: 0; }
td small, th small { display: block; font-weight: 400; }
th[data-sort] { cursor: pointer; user-select: none; }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
.spark { width: 84px; height: 20px; display: block; overflow: visible; }
.spark polyline { fill: none; stroke: var(--c); stroke-width: 1.4; }
.tag { font-size: .75rem; padding: 1px 7px; border-radius: 99px;
  background: var(--soft); color: var(--muted); font-weight: 500; }
.tag.bad { color: var(--bad); }
dl { display: grid; grid-template-columns: minmax(0, 1fr); margin: 12px 0 0;
  font-size: .92rem; }
dt { color: var(--muted); }
dd { margin: 0 0 8px; overflow-wrap: anywhere; }
#tip { position: fixed; z-index: 9; pointer-events: none; max-width: 300px;
  background: var(--ink); color: var(--card); font-size: .84rem;
  line-height: 1.35; padding: 6px 10px; border-radius: 6px; display: none; }
@media (min-width: 640px) {
  dl { grid-template-columns: 11rem minmax(0, 1fr); }
}
@media (min-width: 900px) {
  :root { --scale: .9; }
  main { padding: 36px 32px 64px; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 20px; }
  figure { padding: 18px 20px 14px; }
}
@media print {
  .box { max-height: none; }
  figure, .card { break-inside: avoid; }
}
"""

JS = """
(() => {
  const box = document.getElementById('tip');
  const marks = [...document.querySelectorAll('.tip')];
  for (const mark of marks) {
    const title = mark.querySelector('title');
    if (title) { mark.dataset.tip = title.textContent; title.remove(); }
  }
  const linked = {};
  for (const e of document.querySelectorAll('[data-cell]'))
    (linked[e.dataset.cell] ??= []).push(e);
  let hot = [];
  const leave = () => {
    box.style.display = 'none';
    for (const e of hot) e.classList.remove('hot');
    hot = [];
  };
  const enter = event => {
    leave();
    const mark = event.target.closest('.tip, tr[data-cell]');
    if (!mark) return;
    hot = linked[mark.dataset.cell] ?? [];
    for (const e of hot) e.classList.add('hot');
    if (!mark.dataset.tip) return;
    box.textContent = mark.dataset.tip;
    box.style.display = 'block';
    const wide = box.offsetWidth, high = box.offsetHeight;
    const x = Math.min(event.clientX + 12, innerWidth - wide - 8);
    const above = event.clientY - high - 12;
    box.style.left = Math.max(8, x) + 'px';
    box.style.top = (above < 4 ? event.clientY + 16 : above) + 'px';
  };
  document.addEventListener('pointerover', enter);
  document.addEventListener('pointerdown', enter);
  document.addEventListener('scroll', leave, true);
  const key = (row, at) => {
    const cell = row.cells[at], text = cell.dataset.value;
    if (text === undefined) return cell.textContent;
    return text === '' ? Infinity : Number(text);
  };
  for (const head of document.querySelectorAll('th[data-sort]')) {
    const sort = () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      for (const other of head.parentNode.cells)
        other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const body = head.closest('table').tBodies[0];
      const at = head.cellIndex, rows = [...body.rows];
      rows.sort((a, b) => {
        const x = key(a, at), y = key(b, at);
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      });
      body.append(...rows);
    };
    head.addEventListener('click', sort);
    head.addEventListener('keydown', event => {
      if (event.key === 'Enter') sort();
    });
  }
})();
"""
