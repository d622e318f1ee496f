// Puts everything together: what changes redraws what shows it, and the link follows.
const PARTS = {
  chooser: renderChooser,
  board: renderBoard,
  matrix: renderMatrix,
  curves: renderCurves,
  cuts: renderCuts,
  layers: showLayers,
  gallery: renderGallery,
  cards: () => renderCards(true),
  viewer: renderViewer,
};

function changed(change, parts) {
  Object.assign(state, change);
  for (const part of parts) PARTS[part]();
  writeLink();
}

function buildHead() {
  const runs = plural(data.runs.length, "run");
  $("title").textContent = `${data.dataset}, ${data.part}`;
  $("lead").textContent = `${runs} on ${plural(COUNT, "image")} of ${data.product}: ${data.counts.good} good, ${data.counts.defective} defective.`;
  $("foot").textContent = `Made by maskbridge ${data.version}. One file, nothing is loaded from elsewhere.`;
  $("chooser").append(el("fieldset", { class: "switches" }, el("legend", { text: "Runs shown" }),
    data.runs.map((run, place) => el("label", {},
      el("input", { type: "checkbox", "data-choose": place, on: { change: (event) => {
        const shown = [...state.runs];
        shown[place] = event.target.checked;
        changed({ runs: shown }, ["chooser", "board", "curves", "cuts", "gallery"]);
      } } }),
      swatch(place), el("span", { text: run.name })))));
  for (const link of document.querySelectorAll("#sections a, a.skip")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const target = $(link.getAttribute("href").slice(1));
      target.scrollIntoView();
      (target.querySelector("h2") && target.id !== "main" ? target.querySelector("h2") : target).focus({ preventScroll: true });
    });
  }
}

function renderChooser() {
  for (const input of document.querySelectorAll("input[data-choose]")) input.checked = state.runs[Number(input.dataset.choose)];
}

function renderAll() {
  for (const part of ["chooser", "board", "matrix", "curves", "cuts", "layers", "gallery", "viewer"]) PARTS[part]();
}

buildHead();
buildLeaderboard();
buildCurves();
buildGallery();
buildViewer();
buildCard();
buildRecords();
buildCommands();
readLink();
renderAll();
addEventListener("hashchange", () => {
  if (readLink()) renderAll();
});
addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input:not([type=checkbox]), select, textarea")) return;
  const layer = LAYERS.find((each) => each[2] === event.key.toLowerCase());
  if (layer) switchLayer(layer[0], !state.layers.has(layer[0]));
});
