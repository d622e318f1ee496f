// Dataset card, split, runs and commands.
function buildCard() {
  const { card } = data;
  const rows = card.classes.map((each) => [
    each.name + (each.combined ? " (several kinds at once)" : ""), ...each.parts, each.images, each.instances,
    each.area ? `${Math.round(each.area.min)} / ${Math.round(each.area.median)} / ${Math.round(each.area.max)}` : "–",
  ]);
  replace($("card"), el("div", { class: "side" },
    rows.length ? table(`Types of ${data.product}`, ["type", ...card.parts, "images", "instances", "area px: min / median / max"], rows) : null,
    card.folds.length ? table("Split: images of each fold", ["fold", "train", "val", "test"], card.folds.map((fold, place) => [`fold ${place}`, fold.train, fold.val, fold.test])) : null),
    el("details", {}, el("summary", { text: "All of the dataset card" }),
      el("ul", { class: "facts" }, card.facts.map((text) => el("li", { text }))),
      definitions([["written by maskbridge", card.version], ...card.hashes.map(([name, hash]) => [`sha256 of ${name}`, el("code", { text: hash })])])));
}

function buildRecords() {
  replace($("records"), data.runs.map((run, place) => {
    const notUsual = run.options.filter((each) => each[2]);
    return el("details", { class: "record" },
      el("summary", {}, swatch(place), el("strong", { text: run.name }), el("span", { class: "quiet-text", text: ` ${run.approach}` })),
      el("div", { class: "columns" },
        el("div", {}, el("h3", { text: "Run" }), definitions(run.facts)),
        el("div", {}, el("h3", { text: "Options" }),
          el("p", { class: "hint", text: notUsual.length ? "Bold: differs from the default." : "All at their defaults." }),
          run.options.length ? definitions(run.options.map(([name, value, set]) => [name, set ? el("strong", { text: value }) : value])) : el("p", { text: "The approach has none." })),
        el("div", {}, el("h3", { text: "Seconds and memory" }),
          definitions([...run.seconds.map(([name, value]) => [`${name}, s`, value.toFixed(1)]), ...run.memory.map(([name, value]) => [`${name}, peak MB`, value.toFixed(0)])])),
        el("div", {}, el("h3", { text: "Versions" }), definitions(run.versions))),
      thresholdsOf(run));
  }));
}

function thresholdsOf(run) {
  if (!run.thresholds.length) return el("p", { text: "The run has no thresholds." });
  const kinds = [...new Set(run.thresholds.map((each) => each.kind))];
  const folds = [...new Set(run.thresholds.map((each) => each.fold))];
  const cell = (fold, kind) => {
    const found = run.thresholds.find((each) => each.fold === fold && each.kind === kind);
    return found.v === null ? absent(found.text) : figure(found.v);
  };
  const rules = new Set(run.thresholds.filter((each) => each.v !== null).map((each) => `${each.kind}: ${each.text}`));
  return [
    table(`Thresholds of ${run.name}`, ["fold", ...kinds], folds.map((fold) => [fold, ...kinds.map((kind) => cell(fold, kind))])),
    el("ul", { class: "notes" }, [...rules].map((text) => el("li", { text }))),
  ];
}

function buildCommands() {
  replace($("steps"), data.commands.map(([title, lines]) => el("div", { class: "command" },
    el("h3", { text: title }),
    el("pre", { tabindex: 0, role: "group", "aria-label": `Commands: ${title}` }, el("code", { text: lines.join("\n") })))));
}
