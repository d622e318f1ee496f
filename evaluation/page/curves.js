// Curves with the operating point of each run, and the sliders that move it.
const CHARTS = [
  {
    name: "roc", title: "ROC", x: "false alarms, share of good images", y: "defects found, share", right: 1,
    points: (run) => run.curves.roc, better: Math.max,
    dot: (n) => [share(n.alarms, n.alarms + n.passed), share(n.found, n.found + n.missed)],
    area: "image.auroc",
  },
  {
    name: "pr", title: "Precision and recall", x: "recall: defects found, share", y: "precision: alarms that are defects", right: 1, steps: true,
    points: (run) => run.curves.pr, better: Math.max,
    dot: (n) => [share(n.found, n.found + n.missed), share(n.found, n.found + n.alarms)],
    area: "image.ap",
  },
  {
    name: "escape", title: "Escape and overkill", x: "false alarms (overkill), share", y: "missed defects (escape), share", right: 1,
    points: (run) => run.curves.roc && run.curves.roc.map(([x, y]) => [x, 1 - y]), better: Math.min,
    dot: (n) => [share(n.alarms, n.alarms + n.passed), share(n.missed, n.found + n.missed)],
    area: "image.auroc",
  },
  {
    name: "pro", title: "PRO, pixels", x: "false-positive rate of pixels", y: "overlap with each defect, mean", right: 0.3,
    points: (run) => run.curves.pro, better: Math.max, dot: null, area: "pixel.aupro_30",
  },
];
const PLOT = { left: 40, top: 10, width: 270, height: 200, full: [320, 250] };
const plots = [];

function share(part, whole) {
  return whole ? part / whole : null;
}

function buildCurves() {
  const folds = data.runs.some((run) => new Set(run.folds).size > 1);
  $("curves-hint").textContent = "Dots: where each run stands at its threshold. Point at a chart to read values."
    + (folds ? " Curves pool all folds under one threshold, scores being ranks in their fold’s val where the run says so, while each image is judged by that of its own fold, so a dot may lie beside its curve." : "");
  $("slider-hint").textContent =
    "The threshold at rest was fitted without the test images (on val, or on good images held back). Moving it shifts the threshold of every image by "
    + "the same amount and steps through every count these images can give; counts, dots and the images below follow. It shows a trade-off; "
    + "a threshold chosen here is chosen on test images, and its figures are too good.";
  for (const chart of CHARTS) $("charts").append(buildChart(chart));
  replace($("sliders"), data.runs.map((_, run) => buildSlider(run)));
}

const place = (chart, x, y) => [PLOT.left + (PLOT.width * x) / chart.right, PLOT.top + PLOT.height * (1 - y)];

function buildChart(chart) {
  const [width, height] = PLOT.full;
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const lines = svg("g");
  const dots = svg("g");
  const rule = svg("line", { class: "rule", y1: PLOT.top, y2: PLOT.top + PLOT.height, x1: -9, x2: -9 });
  const readout = el("p", { class: "readout", "aria-hidden": "true" });
  const about = svg("desc");
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": chart.title },
    about,
    ticks.map((tick) => {
      const [x, y] = place(chart, tick * chart.right, tick);
      return svg("g", { class: "tick" },
        svg("line", { x1: PLOT.left, x2: PLOT.left + PLOT.width, y1: y, y2: y }),
        svg("line", { x1: x, x2: x, y1: PLOT.top, y2: PLOT.top + PLOT.height }),
        svg("text", { x: PLOT.left - 5, y: y + 3.5, "text-anchor": "end", text: trimmed(tick) }),
        svg("text", { x, y: PLOT.top + PLOT.height + 14, "text-anchor": "middle", text: trimmed(tick * chart.right) }));
    }),
    svg("text", { class: "axis", x: PLOT.left + PLOT.width / 2, y: height - 8, "text-anchor": "middle", text: chart.x }),
    svg("text", { class: "axis", x: 0, y: 0, transform: `translate(10 ${PLOT.top + PLOT.height / 2}) rotate(-90)`, "text-anchor": "middle", text: chart.y }),
    rule, lines, dots);
  const numbers = el("div");
  const plot = { chart, picture, lines, dots, rule, readout, about, numbers };
  plots.push(plot);
  picture.addEventListener("pointermove", (event) => readAt(plot, event));
  picture.addEventListener("pointerleave", () => {
    rule.setAttribute("x1", -9);
    rule.setAttribute("x2", -9);
    readout.textContent = "";
  });
  return el("figure", { class: "plot", "data-chart": chart.name },
    el("figcaption", { text: chart.title }), picture, readout,
    el("details", {}, el("summary", { text: `${chart.title} as a table` }), numbers));
}

function trimmed(value) {
  return value === 0 || value === 1 ? String(value) : value.toFixed(3).replace(/^0/, "").replace(/0+$/, "");
}

function renderCurves() {
  for (const plot of plots) {
    const { chart } = plot;
    const shown = chosenRuns().filter((run) => (chart.points(data.runs[run]) || []).length);
    replace(plot.lines, shown.map((run) => svg("path", {
      class: `curve run-${run % COLOURS}`, "stroke-dasharray": dashes(run), d: pathOf(chart, chart.points(data.runs[run])), "data-run": data.runs[run].name,
    })));
    if (!shown.length) replace(plot.lines, svg("text", { class: "none", x: PLOT.left + PLOT.width / 2, y: 110, "text-anchor": "middle", text: "none of the runs shown has it" }));
    const column = data.columns.findIndex((each) => each.key === chart.area);
    plot.about.textContent = shown.map((run) => {
      const cell = data.runs[run].cells[column];
      return `${data.runs[run].name}: ${data.columns[column].heading} ${cell.v === null ? "undefined" : short(cell.v)}`;
    }).join("; ");
    const at = [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1].filter((x) => x <= chart.right);
    replace(plot.numbers, table(`${chart.title}: ${chart.y}, at ${chart.x}`, ["run", ...at.map(trimmed)],
      shown.map((run) => [data.runs[run].name, ...at.map((x) => short(valueAt(chart, chart.points(data.runs[run]), x)))])));
  }
  renderDots();
}

function pathOf(chart, points) {
  const spots = points.map(([x, y]) => place(chart, Math.min(x, chart.right), y).map((value) => Number(value.toFixed(1))));
  return spots.map(([x, y], i) => {
    if (!i) return `M${x} ${y}`;
    return chart.steps ? `V${y}H${x}` : `L${x} ${y}`;
  }).join("");
}

function renderDots() {
  for (const plot of plots) {
    if (!plot.chart.dot) continue;
    replace(plot.dots, chosenRuns().flatMap((run) => {
      const now = counts(run);
      const spot = now && plot.chart.dot(now);
      if (!spot || spot.includes(null)) return [];
      const [x, y] = place(plot.chart, ...spot);
      return svg("circle", { class: `dot run-${run % COLOURS}`, cx: x.toFixed(1), cy: y.toFixed(1), r: 4.5, "data-run": data.runs[run].name });
    }));
  }
}

// The curve's value at x: the better end of a vertical stretch, between points along a line or a step.
function valueAt(chart, points, x) {
  const same = points.filter((point) => Math.abs(point[0] - x) < 1e-9).map((point) => point[1]);
  if (same.length) return chart.better(...same);
  const next = points.findIndex((point) => point[0] > x);
  if (next <= 0) return points[next === 0 ? 0 : points.length - 1][1];
  if (chart.steps) return points[next][1];
  const [[x0, y0], [x1, y1]] = [points[next - 1], points[next]];
  return y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
}

function readAt(plot, event) {
  const box = plot.picture.getBoundingClientRect();
  const spot = ((event.clientX - box.left) / box.width) * PLOT.full[0];
  const x = Math.min(1, Math.max(0, (spot - PLOT.left) / PLOT.width)) * plot.chart.right;
  const [line] = place(plot.chart, x, 0);
  plot.rule.setAttribute("x1", line);
  plot.rule.setAttribute("x2", line);
  const values = chosenRuns().filter((run) => (plot.chart.points(data.runs[run]) || []).length)
    .map((run) => el("span", {}, swatch(run), ` ${short(valueAt(plot.chart, plot.chart.points(data.runs[run]), x))} `));
  replace(plot.readout, el("span", { text: `at ${short(x)}: ` }), values);
}

// One row of the threshold table for each run.
const rows = [];
function buildSlider(run) {
  const record = data.runs[run];
  const judge = judges[run];
  const name = el("h4", {}, swatch(run), el("span", { text: record.name }));
  if (!judge) return el("div", { class: "slider", "data-run": record.name }, name, el("p", { class: "quiet-text", text: `No threshold: ${record.scoresWhy}.` }));
  const input = el("input", {
    type: "range", min: 0, max: judge.cuts.length - 1, step: 1, id: `cut-${run}`, "aria-label": `Threshold of ${record.name}`,
    on: { input: () => moveCut(run, Number(input.value)) },
  });
  const shift = el("output", { for: `cut-${run}`, class: "shift" });
  const reset = el("button", { type: "button", on: { click: () => moveCut(run, judge.rest) }, text: record.cuts ? "Back to val" : "Unset" });
  const cells = Object.fromEntries(["found", "missed", "escape", "passed", "alarms", "overkill"].map((key) => [key, el("dd", { "data-count": key })]));
  rows[run] = { input, shift, reset, cells };
  const pair = (label, key, hint) => el("div", { class: key }, el("dt", { title: hint, text: label }), cells[key]);
  return el("div", { class: "slider", "data-run": record.name },
    name,
    el("div", { class: "range" }, input, el("span", { class: "end", "aria-hidden": "true", text: "more false alarms" }), el("span", { class: "end", "aria-hidden": "true", text: "more missed" })),
    el("p", { class: "readout" }, shift, reset),
    el("dl", { class: "counts" },
      pair("found (TP)", "found", "true positives: defective and called defective"), pair("missed (FN)", "missed", "false negatives: defective, passes as good"),
      pair("missed defects", "escape", "escape rate: missed of all defective images"),
      pair("passed (TN)", "passed", "true negatives: good, passes as good"), pair("false alarms (FP)", "alarms", "false positives: good, called defective"),
      pair("good rejected", "overkill", "overkill rate: false alarms of all good images")));
}

let [announcing, following] = [0, 0];
function moveCut(run, cut) {
  state.cuts[run] = cut;
  changed({}, ["cuts"]);
  clearTimeout(following);
  following = setTimeout(renderGallery, 80);
  clearTimeout(announcing);
  announcing = setTimeout(() => { $("counts-live").textContent = `${data.runs[run].name}: ${countSentence(run)}`; }, 500);
}

function countSentence(run) {
  const now = counts(run);
  if (!now) return "no threshold set";
  return `${now.missed} of ${now.missed + now.found} defects missed, ${now.alarms} of ${now.alarms + now.passed} good images rejected`;
}

function renderCuts() {
  data.runs.forEach((record, run) => {
    if (!rows[run]) return;
    const { input, shift, reset, cells } = rows[run];
    const judge = judges[run];
    const cut = state.cuts[run];
    input.value = cut === null ? judge.cuts.length >> 1 : cut;
    input.closest(".slider").classList.toggle("off", !state.runs[run]);
    const atRest = cut === judge.rest;
    reset.disabled = atRest;
    const value = cut === null ? 0 : judge.cuts[cut];
    if (!record.cuts) shift.textContent = cut === null ? `threshold not set: ${record.cutsWhy}` : `threshold ${figure(value)}, chosen here`;
    else shift.textContent = atRest ? "shift 0: as fitted" : `shift ${value > 0 ? "+" : ""}${figure(value)} on every threshold`;
    input.setAttribute("aria-valuetext", `${shift.textContent}; ${countSentence(run)}`);
    const now = counts(run);
    for (const key of ["found", "missed", "alarms", "passed"]) cells[key].textContent = now ? now[key] : "–";
    cells.missed.classList.toggle("some", Boolean(now && now.missed));
    cells.alarms.classList.toggle("some", Boolean(now && now.alarms));
    cells.escape.textContent = now ? percent(now.missed, now.missed + now.found) : "–";
    cells.overkill.textContent = now ? percent(now.alarms, now.alarms + now.passed) : "–";
  });
  renderDots();
}
