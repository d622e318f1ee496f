// The tables of runs, and who beats whom.
const boards = data.tables.map((board) => ({
  ...board,
  columns: [
    { key: "run", heading: "run" },
    ...board.columns.map((place) => ({ ...data.columns[place], place })),
    ...data.costs.map((heading, place) => ({ key: `cost.${place}`, heading, lower: true, cost: place })),
  ].filter((column) => column.place === undefined || board.runs.some((run) => data.runs[run].cells[column.place].v !== null)),
  table: el("table"),
}));

function valueIn(run, column) {
  if (column.key === "run") return data.runs[run].name;
  if (column.cost !== undefined) return data.runs[run].costs[column.cost].v;
  return data.runs[run].cells[column.place].v;
}

function buildLeaderboard() {
  const spread = data.intervals;
  $("board-hint").textContent =
    `${plural(data.counts.good, "good image")} and ${plural(data.counts.defective, "defective image")}, the same for every run. ` +
    `Brackets and bars: 95 % interval from ${spread.samples} bootstrap samples of ${plural(spread.groups, "group")} of images. ` +
    "Bold: the best of a column, and what cannot be told from it beyond chance.";
  const folds = data.runs.some((run) => run.cells.some((cell) => cell.mean !== undefined));
  const notes = [
    "Intervals cover the sampling of images, not of trainings: another seed may move a run further than its interval says.",
    folds ? "Cross-validated: image AUROC, pixel AUROC and AUPRO compare only images that one fold’s model judged; AP and F1max go by ranks in the fold’s val. Below a figure stands the mean ± standard deviation over the folds of the cross-validation, each fold taken by itself." : null,
    "° all bootstrap samples agree: score interval, Newcombe's for an AUROC, Wilson's for everything else; of a difference, one made of those of both runs.",
    "* derived: follows from other predictions of the run, such as an image score from detections, or detections from the map at its pixel threshold.",
    "Oracle: at the threshold only the truth could choose. Accuracy, escape and overkill use thresholds fitted without the test images.",
    "Escape rate: share of defective images that pass as good. Overkill rate: share of good images that are called defective.",
    "Mask IoU and Dice: mean over all defects, each with the one mask that is assigned to it, 0 without one; false alarms cost nothing here.",
    ...new Set(data.runs.flatMap((run) => run.marks.map(([mark, note]) => `${mark} ${note}.`))),
    ...data.runs.map((run) => run.cutNote),
  ];
  const hidden = data.columns.filter((_, place) => data.runs.every((run) => run.cells[place].v === null));
  if (hidden.length) notes.push(`No run has a value of: ${hidden.map((column) => column.heading).join(", ")}.`);
  for (const board of boards) {
    const label = `${board.title || "Leaderboard"}; scrolls sideways`;
    if (board.title) $("board").append(el("h3", { text: board.title }), el("p", { class: "hint", text: board.note }));
    $("board").append(el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label }, board.table));
  }
  replace($("notes"), notes.filter(Boolean).map((text) => el("li", { text })));
  $("metric").append(...compared.map((column) => el("option", { value: column.key, text: column.heading })));
  $("metric").addEventListener("change", () => changed({ metric: $("metric").value }, ["matrix"]));
  if (!compared.length) for (const part of [$("matrix-h"), $("metric").closest(".row")]) part.hidden = true;
  buildByType();
  buildBySeed();
}

function renderBoard() {
  for (const board of boards) renderTable(board);
}

function renderTable({ table, runs, columns, title }) {
  const order = [...runs];
  const column = state.sort && columns.find((each) => each.key === state.sort.key);
  if (column) {
    const sign = state.sort.descending ? -1 : 1;
    order.sort((one, other) => {
      const [a, b] = [valueIn(one, column), valueIn(other, column)];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "string" ? a.localeCompare(b) : a - b) || one - other;
    });
  }
  const focused = table.contains(document.activeElement) && document.activeElement.dataset.sort;
  table.style.setProperty("--columns", columns.length);
  replace(table,
    el("caption", { class: "quiet", text: `${title || "Runs and their metrics"}; a heading sorts` }),
    el("thead", {}, el("tr", {}, columns.map((each) => heading(each, column)))),
    el("tbody", {}, order.map((run) => el("tr", { class: state.runs[run] ? null : "off" }, columns.map((each) => boardCell(runs, run, each))))));
  if (focused) table.querySelector(`[data-sort="${CSS.escape(focused)}"]`).focus();
}

function heading(column, sorted) {
  const on = column === sorted;
  const button = el("button", {
    type: "button", "data-sort": column.key, class: "sort",
    on: { click: () => sortBy(column) },
  }, el("span", { text: column.heading }), column.lower && column.cost === undefined ? el("small", { text: "lower is better" }) : null);
  const direction = on ? (state.sort.descending ? "descending" : "ascending") : "none";
  return el("th", { scope: "col", "aria-sort": direction, class: column.key === "run" ? "first" : null }, button);
}

// First the better end, then the other, then as at the start: by the first column that ranks.
function sortBy(column) {
  const bestFirst = column.key !== "run" && !column.lower;
  const now = state.sort && state.sort.key === column.key ? state.sort : null;
  let sort = { key: column.key, descending: bestFirst };
  if (now) sort = now.descending === bestFirst ? { key: column.key, descending: !bestFirst } : null;
  changed({ sort }, ["board"]);
}

function boardCell(runs, run, column) {
  const record = data.runs[run];
  if (column.key === "run") {
    return el("th", { scope: "row", class: "first" }, el("div", { class: "who" }, swatch(run), el("span", { class: "name", text: record.name }),
      el("small", { class: "kind" }, record.approach, record.marks.map(([mark, note]) => el("abbr", { title: note, text: ` ${mark}` })))));
  }
  if (column.cost !== undefined) {
    const cost = record.costs[column.cost];
    return el("td", { class: "number" }, cost.v === null ? absent(cost.why) : cost.text);
  }
  const cell = record.cells[column.place];
  if (cell.v === null) return el("td", { class: "number" }, absent(cell.why));
  const star = cell.d ? el("abbr", { title: "derived from other predictions of the run", text: "*" }) : null;
  return el("td", { class: "number" },
    el(isBest(runs, run, column) ? "strong" : "span", { class: "value", text: short(cell.v) }), star,
    cell.l === null || cell.l === undefined ? null : [el("small", {}, `[${short(cell.l)}, ${short(cell.h)}]`, scoreMark(cell)), bar(cell)],
    cell.mean === undefined ? null : el("small", { class: "folds", text: `${short(cell.mean)}${cell.sd === null ? "" : ` ± ${short(cell.sd)}`}` }));
}

// An interval that is not the bootstrap's.
function scoreMark(cell) {
  return cell.m ? el("abbr", { title: `all bootstrap samples agree: ${cell.m} score interval`, text: "°" }) : null;
}

function bar(cell) {
  const [x, low, high] = [cell.v, cell.l, cell.h].map((share) => 100 * Math.min(1, Math.max(0, share)));
  return svg("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", x: 0, y: 2.5, width: 100, height: 1 }),
    svg("rect", { class: "range", x: low, y: 1, width: Math.max(1, high - low), height: 4 }),
    svg("rect", { class: "point", x: Math.min(98, Math.max(0, x - 1)), y: 0, width: 2, height: 6 }));
}

// Among the runs of its table.
function isBest(runs, run, column) {
  const sign = column.lower ? -1 : 1;
  const values = new Map(runs.map((each) => [each, valueIn(each, column)]).filter(([, value]) => value !== null));
  const top = Math.max(...[...values.values()].map((value) => sign * value));
  const best = runs.find((each) => sign * values.get(each) === top);
  if (sign * values.get(run) === top) return true;
  const pair = pairOf(column.key, run, best);
  return Boolean(pair && pair.p !== null && pair.winner === null);
}

function pairOf(key, one, other) {
  return (data.comparisons[key] || []).find((pair) => (pair.one === one && pair.other === other) || (pair.one === other && pair.other === one));
}

function renderMatrix() {
  if (!compared.length) return;
  $("metric").value = state.metric;
  const metric = data.columns.findIndex((column) => column.key === state.metric);
  replace($("matrix"), data.tables.filter(({ runs, columns }) => runs.length > 1 && columns.includes(metric)).map((board) => matrix(board, data.columns[metric])));
  const pairs = data.comparisons[state.metric];
  const list = el("ul", { class: "sentences" }, pairs.map((pair) => el("li", { class: pair.winner === null ? null : "won", text: pair.sentence })));
  replace($("sentences"), pairs.length > 6
    ? el("details", { open: $("sentences").querySelector("details[open]") !== null }, el("summary", { text: `${pairs.length} pairs in words` }), list)
    : list);
}

function matrix({ runs, title }, metric) {
  const caption = `${title ? `${title}: ` : ""}${metric.heading}: row against column${metric.lower ? " (lower is better)" : ""}, corrected for the number of pairs (Holm)`;
  return el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption }, el("table", {},
    el("caption", { text: caption }),
    el("thead", {}, el("tr", {}, el("td", {}), runs.map((run) => el("th", { scope: "col" }, named(run))))),
    el("tbody", {}, runs.map((row) => el("tr", {},
      el("th", { scope: "row" }, named(row)),
      runs.map((other) => matrixCell(row, other)))))));
}

function named(run) {
  return [swatch(run), el("span", { text: data.runs[run].name })];
}

function matrixCell(row, other) {
  if (row === other) return el("td", { class: "self" }, el("span", { class: "quiet", text: "the same run" }));
  const pair = pairOf(state.metric, row, other);
  if (!pair || pair.p === null) return el("td", {}, absent(pair ? pair.sentence : "not compared"));
  const verdict = pair.winner === row ? "better" : pair.winner === other ? "worse" : "no difference shown";
  const difference = pair.one === row ? pair.d : -pair.d;
  return el("td", { class: `verdict ${verdict.split(" ")[0]}`, title: pair.sentence },
    el("span", { text: verdict }),
    el("small", { text: `${difference > 0 ? "+" : ""}${short(difference)}, p ${pair.p < 0.001 ? "< .001" : short(pair.p)}` }));
}

function buildByType() {
  const types = data.types.slice(1);
  for (const heading of data.byType) {
    const rows = data.tables[0].runs.map((place) => data.runs[place]).map((run) => [run.name, ...types.map((type) => {
      const cell = (run.byType[heading] || {})[type] || { v: null, why: "no such image" };
      if (cell.v === null) return absent(cell.why);
      return el("span", {}, short(cell.v), cell.d ? "*" : "", cell.l === undefined || cell.l === null ? null : el("small", {}, ` [${short(cell.l)}, ${short(cell.h)}]`, scoreMark(cell)));
    })]);
    $("by-type").append(table(`By defect type: share of ${heading}`, ["run", ...types], rows));
  }
}

// Runs that differ by their seed alone: what the intervals do not cover.
function buildBySeed() {
  if (!data.seeds.length) return;
  const shown = data.columns.filter((column) => data.seeds.some((group) => group.columns[column.key]));
  const rows = data.seeds.map((group) => [group.runs.join(", "), ...shown.map((column) => {
    const figures = group.columns[column.key];
    return figures ? `${short(figures[0])} ± ${short(figures[1])}` : absent("not every run has it");
  })]);
  $("by-type").append(table("Over seeds: mean ± standard deviation", ["runs", ...shown.map((column) => column.heading)], rows));
}
