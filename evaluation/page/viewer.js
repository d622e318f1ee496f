// One image large, every run shown beside the truth.
const viewer = $("viewer");

function buildViewer() {
  viewer.addEventListener("close", () => {
    if (state.open === null) return;
    const image = state.open;
    changed({ open: null }, []);
    focusCard(listed.indexOf(image));
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=range], select")) return;
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else return;
    event.preventDefault();
  });
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
}

function openImage(image) {
  changed({ open: image }, ["viewer"]);
}

function step(by) {
  const at = listed.indexOf(state.open);
  const next = listed[at < 0 ? 0 : at + by];
  if (next !== undefined) changed({ open: next }, ["viewer"]);
}

function renderViewer() {
  if (state.open === null) {
    if (viewer.open) viewer.close();
    return;
  }
  const image = state.open;
  const at = listed.indexOf(image);
  const [width, height] = images.size[image];
  const focused = viewer.contains(document.activeElement) ? document.activeElement.id : "";
  const go = (id, text, by) => el("button", { type: "button", id, text, disabled: at < 0 || listed[at + by] === undefined, on: { click: () => step(by) } });
  const runs = chosenRuns();
  replace(viewer,
    el("div", { class: "bar" },
      el("h2", { id: "viewer-h", tabindex: -1, text: images.file[image] }),
      el("p", { class: "quiet-text", role: "status", text: `${data.types[images.type[image]]}, ${width} × ${height} pixels, ${plural(pictures(image).t.length, "defect")}; ${at < 0 ? "not among the images filtered" : `${at + 1} of ${listed.length}`}` }),
      el("div", { class: "buttons" }, go("previous", "Previous", -1), go("next", "Next", 1),
        el("button", { type: "button", id: "close", text: "Close", on: { click: () => viewer.close() } })),
      layerSwitches("viewer")),
    el("div", { class: "large" },
      el("figure", {}, el("figcaption", {}, el("strong", { text: "Ground truth" }), el("small", { text: truthWords(image) })),
        panel(image, null, `${images.file[image]}, ${truthWords(image)}`)),
      runs.map((run) => seenBy(run, image))));
  showLayers();
  if (!viewer.open) viewer.showModal();
  const target = focused && $(focused);
  (target && !target.disabled ? target : $("viewer-h")).focus();
}

function truthWords(image) {
  const found = pictures(image).t;
  if (!found.length) return images.bad[image] ? "defective, without a mask" : "no defect";
  const per = new Map();
  for (const [type] of found) per.set(type, (per.get(type) || 0) + 1);
  return [...per].map(([type, count]) => `${count} × ${data.types[type]}`).join(", ");
}

function seenBy(run, image) {
  const record = data.runs[run];
  const judge = judges[run];
  const facts = [];
  if (judge) {
    facts.push([`score${record.ranked ? ", rank in val" : ""}${record.scoresDerived ? " (derived)" : ""}`, figure(record.scores[image])]);
    const shift = state.cuts[run] === null ? null : judge.cuts[state.cuts[run]];
    if (record.cuts) facts.push([`threshold${record.folds[image] === "official" ? "" : `, fold ${record.folds[image]}`}`, figure(record.cuts[image] + shift)]);
    else facts.push(["threshold", shift === null ? absent(record.cutsWhy) : figure(shift)]);
  } else facts.push(["score", absent(record.scoresWhy)]);
  const scale = data.pictures.scales[run] && data.pictures.scales[run][record.folds[image]];
  facts.push(["map", scale ? `${record.maps.derived ? "derived, " : ""}shown from ${figure(scale[0])} to ${figure(scale[1])}` : absent(record.maps.why)]);
  return el("figure", {},
    el("figcaption", {}, byline(run)),
    panel(image, run, `${images.file[image]} as ${record.name} sees it`), tag(run, image), definitions(facts), detectionList(run, image));
}

function detectionList(run, image) {
  const record = data.runs[run];
  if (!record.detections.there) return el("p", { class: "quiet-text", text: `No detections: ${record.detections.why}.` });
  const { d: kept, n: all } = pictures(image).r[run];
  const sure = kept.filter((each) => each[2]).length;
  const words = `${plural(sure, "detection")}${record.detections.derived ? ", derived from the map" : ""}${record.detections.cutWhy ? " (no detection threshold)" : " above the threshold"}, ${all} in all`;
  if (!kept.length) return el("p", { class: "quiet-text", text: words });
  return el("details", {}, el("summary", { text: words }), el("ol", { class: "findings" }, kept.map(([score, type, above]) =>
    el("li", { class: above ? null : "low" }, `${figure(score)} `, el("span", { text: type < 0 ? "type unknown" : data.types[type] }), above ? null : " (below the threshold)"))));
}
