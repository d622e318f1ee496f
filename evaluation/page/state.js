// What is chosen, what follows from it, and the link that carries it.
const data = JSON.parse($("data").textContent);
const images = data.images;
const COUNT = images.id.length;
const LAYERS = [
  ["truth", "Ground truth", "t"],
  ["boxes", "Boxes", "b"],
  ["masks", "Masks", "m"],
  ["map", "Anomaly map", "a"],
  ["all", "All detections", "d"],
];
const USUAL_LAYERS = ["truth", "boxes", "masks", "map"];
const OUTCOMES = { missed: "missed", alarm: "false alarm", right: "right" };
const ORDERS = { worst: "worst first", high: "highest score first", low: "lowest score first", name: "file name" };

// Columns on which runs of a table are compared, and the first table that has two.
const compared = data.columns.filter((column) => data.comparisons[column.key].length);
const ranked = data.tables.find((table) => table.runs.length > 1);

// Judgement of each run: margins above the threshold, and the cuts that reach every distinct count.
const judges = data.runs.map((run) => {
  if (!run.scores) return null;
  const margins = Float64Array.from(run.scores, (score, i) => (run.cuts ? score - run.cuts[i] : score));
  const bad = margins.filter((_, i) => images.bad[i]).sort();
  const good = margins.filter((_, i) => !images.bad[i]).sort();
  const scores = Float64Array.from(run.scores);
  const mean = scores.reduce((sum, x) => sum + x / COUNT, 0);
  const sd = Math.sqrt(scores.reduce((sum, x) => sum + (x - mean) ** 2 / COUNT, 0)) || 1;
  const distinct = [...new Set(Float64Array.from(margins).sort())];
  const cuts = [];
  for (let k = 0; k <= distinct.length; k += 1) cuts.push(between(distinct[k - 1], distinct[k], sd, Boolean(run.cuts)));
  const rest = run.cuts ? cuts.indexOf(0) : null;
  return { margins, bad, good, cuts, rest, sd, median: Float64Array.from(margins).sort()[COUNT >> 1] };
});

// The cut above `low` and at most `high`; 0, the fitted threshold, where it lies there.
function between(low, high, sd, fitted) {
  if (fitted && (low === undefined || low < 0) && (high === undefined || high >= 0)) return 0;
  if (low === undefined) return high - sd / 100;
  if (high === undefined) return Math.max(low + sd / 100, low + Math.abs(low) * 1e-9);
  const middle = low + (high - low) / 2;
  return middle > low ? middle : high;
}

const state = usualState();

function usualState() {
  return {
    runs: data.runs.map((_, run) => run < 5),
    metric: ranked ? data.columns[ranked.columns[0]].key : null,
    sort: null,
    layers: new Set(USUAL_LAYERS),
    outcome: "any",
    by: "any",
    type: "any",
    text: "",
    order: "worst",
    open: null,
    cuts: judges.map((judge) => (judge ? judge.rest : null)),
  };
}

function chosenRuns() {
  return state.runs.flatMap((on, run) => (on ? [run] : []));
}

// Whether a run calls an image defective; null without scores or threshold.
function called(run, image) {
  const judge = judges[run];
  if (!judge || state.cuts[run] === null) return null;
  return judge.margins[image] >= judge.cuts[state.cuts[run]];
}

function outcome(run, image) {
  const call = called(run, image);
  if (call === null) return null;
  if (call === Boolean(images.bad[image])) return "right";
  return call ? "alarm" : "missed";
}

function counts(run) {
  const judge = judges[run];
  if (!judge || state.cuts[run] === null) return null;
  const cut = judge.cuts[state.cuts[run]];
  const found = judge.bad.length - below(judge.bad, cut);
  const alarms = judge.good.length - below(judge.good, cut);
  return { found, missed: judge.bad.length - found, alarms, passed: judge.good.length - alarms };
}

function below(sorted, cut) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < cut) low = middle + 1;
    else high = middle;
  }
  return low;
}

// How far a score lies on the wrong side, in standard deviations of the run's scores; negative on the right side.
function wrongness(run, image) {
  const judge = judges[run];
  if (!judge) return null;
  const cut = state.cuts[run] === null ? judge.median : judge.cuts[state.cuts[run]];
  const above = (judge.margins[image] - cut) / judge.sd;
  return images.bad[image] ? -above : above;
}

// The link: only what is not as usual.
function writeLink() {
  const link = new URLSearchParams();
  const usual = usualState();
  if (state.runs.some((on, run) => on !== usual.runs[run])) {
    for (const run of chosenRuns()) link.append("run", data.runs[run].name);
    if (!chosenRuns().length) link.append("run", "");
  }
  for (const name of ["metric", "outcome", "by", "type", "text", "order"]) {
    if (state[name] !== usual[name]) link.set(name === "text" ? "find" : name, state[name]);
  }
  if (state.sort) link.set("sort", `${state.sort.descending ? "-" : "+"}${state.sort.key}`);
  if ([...state.layers].sort().join() !== [...USUAL_LAYERS].sort().join()) link.set("layers", [...state.layers].join("."));
  state.cuts.forEach((cut, run) => {
    if (cut !== usual.cuts[run]) link.append("cut", `${cut}:${data.runs[run].name}`);
  });
  if (state.open !== null) link.set("open", images.id[state.open]);
  const text = link.toString();
  const base = location.href.split("#")[0];
  if (location.hash.slice(1) !== text) history.replaceState(null, "", text ? `${base}#${text}` : base);
}

// A plain anchor carries no state and is left to the browser.
function readLink() {
  const text = location.hash.slice(1);
  if (text && !text.includes("=")) return false;
  const link = new URLSearchParams(text);
  Object.assign(state, usualState());
  const runOf = (key) => data.runs.findIndex((run) => run.name === key);
  if (link.has("run")) state.runs = data.runs.map((run) => link.getAll("run").includes(run.name));
  choose("metric", link.get("metric"), compared.map((column) => column.key));
  choose("outcome", link.get("outcome"), [...Object.keys(OUTCOMES), "disagree"]);
  choose("by", link.get("by"), ["every", ...data.runs.map((run) => run.name)]);
  choose("type", link.get("type"), data.types);
  choose("order", link.get("order"), Object.keys(ORDERS));
  state.text = link.get("find") || "";
  const sort = link.get("sort");
  if (sort) state.sort = { key: sort.slice(1), descending: sort[0] === "-" };
  if (link.has("layers")) {
    const named = link.get("layers").split(".");
    state.layers = new Set(LAYERS.map(([name]) => name).filter((name) => named.includes(name)));
  }
  for (const item of link.getAll("cut")) {
    const [place, run] = [parseInt(item, 10), runOf(item.slice(item.indexOf(":") + 1))];
    if (run >= 0 && judges[run] && place >= 0 && place < judges[run].cuts.length) state.cuts[run] = place;
  }
  const open = images.id.indexOf(Number(link.get("open")));
  state.open = link.has("open") && open >= 0 ? open : null;
  return true;
}

function choose(name, value, allowed) {
  if (value !== null && allowed.includes(value)) state[name] = value;
}

// Pictures stand in blocks that are read when the first of them is shown.
const blocks = new Map();
function pictures(image) {
  const number = Math.floor(image / data.pictures.chunk);
  if (!blocks.has(number)) blocks.set(number, JSON.parse($(`pictures-${number}`).textContent));
  return blocks.get(number)[image % data.pictures.chunk];
}
