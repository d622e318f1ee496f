// Elements and numbers. Elements are made one by one; text is only ever text.
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

// el("td", { class: "number", text: ".98", on: { click: f } }, child, "text", …); null children are left out.
function el(tag, given = {}, ...children) {
  return fill(document.createElement(tag), given, children);
}

function svg(tag, given = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), given, children);
}

function fill(node, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

function replace(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

// .912, 1.000, −.020: a share as the leaderboard writes it.
function short(value, digits = 3) {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? "−" : "") + (Number(text) < 1 ? text.replace(/^0/, "") : text);
}

// A score or threshold, of any size.
function figure(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? size.toExponential(2) : size.toPrecision(4);
  return (value < 0 ? "−" : "") + text;
}

function percent(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(1)} %` : "–";
}

function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

// A dash whose reason is read and shown.
function absent(why) {
  return el("span", { class: "absent", title: why, role: "img", "aria-label": `no value: ${why}`, text: "–" });
}

// The line by which a run is known in charts: colour and dashes.
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "5 2 1 2 1 2", "3 2"];
const COLOURS = 7;
function swatch(run) {
  return svg(
    "svg",
    { class: `swatch run-${run % COLOURS}`, viewBox: "0 0 26 10", width: 26, height: 10, "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 25, y1: 5, y2: 5, "stroke-dasharray": dashes(run) }),
  );
}

function dashes(run) {
  return DASHES[(run + Math.floor(run / COLOURS)) % DASHES.length];
}

function table(caption, headings, rows, given = {}) {
  return el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": `${caption}; scrolls sideways` },
    el("table", given,
      el("caption", { text: caption }),
      el("thead", {}, el("tr", {}, headings.map((text) => el("th", { scope: "col", text })))),
      el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell, place) => asCell(cell, place)))))));
}

function asCell(cell, place) {
  const node = cell instanceof Node ? cell : document.createTextNode(String(cell));
  if (place === 0) return el("th", { scope: "row" }, node);
  return el("td", { class: typeof cell === "number" || /^[−–\d.]/.test(node.textContent) ? "number" : null }, node);
}

function definitions(pairs) {
  return el("dl", {}, pairs.map(([name, value]) => el("div", {},
    el("dt", { text: name }), el("dd", {}, value instanceof Node ? value : document.createTextNode(String(value))))));
}
