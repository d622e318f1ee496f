// One image as one run sees it: photo, map, and outlines over them as layers.
function panel(image, run, alt = "") {
  const [width, height] = images.size[image];
  const units = data.pictures.frame / Math.max(width, height);
  const shown = pictures(image);
  const box = el("span", { class: "panel" });
  box.style.aspectRatio = `${width} / ${height}`;
  box.append(el("img", { class: "photo", src: source(shown.p), alt, decoding: "async", draggable: "false" }));
  const of = run === null ? null : shown.r[run];
  if (of && of.m !== null) box.append(el("img", { class: "map", src: source(of.m), alt: "", decoding: "async", draggable: "false" }));
  const found = of ? of.d.filter((each) => each[2] || state.layers.has("all")) : [];
  box.append(svg("svg", { class: "lines", viewBox: `0 0 ${(width * units).toFixed(1)} ${(height * units).toFixed(1)}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("g", { class: "masks" }, found.filter((each) => each[4]).map((each) => cased(each[4], each[2] ? "" : "low"))),
    svg("g", { class: "boxes" }, found.map((each) => framed(each[3], each[2] ? "" : "low"))),
    svg("g", { class: "truth" }, shown.t.map((each) => cased(each[2], "")))));
  return box;
}

function source(base64) {
  return `data:image/${data.pictures.format};base64,${base64}`;
}

// A dark line under a bright one is seen on any photo.
function cased(d, kind) {
  return svg("g", { class: kind }, svg("path", { class: "case", d }), svg("path", { class: "line", d }));
}

function framed([x, y, width, height], kind) {
  const given = { x, y, width, height };
  return svg("g", { class: kind }, svg("rect", { class: "case", ...given }), svg("rect", { class: "line", ...given }));
}

// Runs by the part of their names that differs: "knn" of "bottle-knn-all".
const briefNames = (() => {
  const names = data.runs.map((run) => run.name.split(/(?<=[-_ ])/));
  const least = Math.min(...names.map((parts) => parts.length)) - 1;
  let [head, tail] = [0, 0];
  if (names.length > 1) {
    while (head < least && names.every((parts) => parts[head] === names[0][head])) head += 1;
    while (tail < least - head && names.every((parts) => parts.at(-1 - tail) === names[0].at(-1 - tail))) tail += 1;
  }
  return names.map((parts) => parts.slice(head, parts.length - tail).join("").replace(/[-_ ]+$/, ""));
})();

function byline(run) {
  return el("span", { class: "by", title: data.runs[run].name }, swatch(run), el("span", { class: "name", text: briefNames[run] }));
}

function tag(run, image) {
  const result = outcome(run, image);
  return el("span", { class: `tag ${result || "undecided"}`, text: result ? OUTCOMES[result] : "undecided" });
}

function showLayers() {
  const list = document.documentElement.classList;
  for (const [name] of LAYERS) list.toggle(`no-${name}`, !state.layers.has(name));
  for (const input of document.querySelectorAll("input[data-layer]")) input.checked = state.layers.has(input.dataset.layer);
}

// Once above the gallery and once in the open image; both say the same.
function layerSwitches(where) {
  const blind = !data.runs.some((run) => run.detections.there);
  return el("fieldset", { class: "switches" }, el("legend", { text: "Layers" }), LAYERS.map(([name, label, key]) =>
    el("label", { class: `layer ${name}`, title: `key ${key}` },
      el("input", {
        type: "checkbox", "data-layer": name, id: `${where}-${name}`, checked: state.layers.has(name),
        on: { change: (event) => switchLayer(name, event.target.checked) },
      }),
      el("i", { "aria-hidden": "true" }), el("span", { text: label }))),
  blind ? el("span", { class: "quiet-text", text: "no run has detections" }) : null);
}

function switchLayer(name, on) {
  const layers = new Set(state.layers);
  if (on) layers.add(name);
  else layers.delete(name);
  changed({ layers }, name === "all" ? ["layers", "cards", "viewer"] : ["layers"]);
}
