// Every image as a card, worst first, made as one scrolls; filters; keys.
const CARDS_AT_ONCE = 24;
let listed = [];
let made = 0;
let current = 0;

function buildGallery() {
  const select = (id, label, options, name) => el("label", {}, el("span", { text: label }), el("select", {
    id, on: { change: (event) => changed({ [name]: event.target.value }, ["gallery"]) },
  }, options.map(([value, text]) => el("option", { value, text }))));
  const perType = data.types.map((_, type) => images.type.filter((each) => each === type).length);
  const form = $("filters");
  form.append(
    select("type", "Defect type", [["any", "any"], ...data.types.flatMap((type, place) => (perType[place] ? [[type, `${type} (${perType[place]})`]] : []))], "type"),
    select("outcome", "Outcome", [["any", "any"], ...Object.entries(OUTCOMES), ["disagree", "runs disagree"]], "outcome"),
    select("by", "by", [["any", "any run shown"], ["every", "every run shown"], ...data.runs.map((run) => [run.name, run.name])], "by"),
    select("order", "Order", Object.entries(ORDERS), "order"),
    el("label", { class: "find" }, el("span", { text: "File name" }), el("input", {
      id: "text", type: "search", autocomplete: "off", spellcheck: "false",
      on: { input: (event) => changed({ text: event.target.value }, ["gallery"]) },
    })),
    el("button", { type: "button", id: "clear", text: "Clear filters", on: { click: () => changed({ type: "any", outcome: "any", by: "any", text: "" }, ["gallery"]) } }));
  form.addEventListener("submit", (event) => event.preventDefault());
  $("layers").append(layerSwitches("layer"));
  const kept = data.pictures;
  replace($("gallery-help"),
    el("p", { text: "Worst first: an image that any of the runs shown gets wrong comes before one that all get right. Among the wrong ones the score furthest on the wrong side of its threshold comes first, measured in standard deviations of that run’s scores, so that runs of different scales can be compared; among the right ones that with the smallest margin. A run without a threshold is measured from its median score and decides nothing." }),
    el("p", { text: "Keys: in the list the arrow keys, Home and End move, Enter opens. In an open image the left and right arrow go to the previous and next, Escape closes. T, B, M, A and D switch the layers." }),
    el("p", { text: "The address carries what is chosen: runs, filters, layers, thresholds, sorting and the open image. Copy it to show someone the same view of this file." }),
    el("p", { text: `Pictures here are ${kept.px} pixels along the longest side${kept.px < kept.wantedPx ? ` instead of ${kept.wantedPx}, so that the page stays below its limit (--megabytes)` : ""}, maps at most ${kept.mapPx}. Of each image and run the ${kept.detections} highest detections are kept; those below the detection threshold of the image’s fold are shown by “All detections”.` }));
  $("cards").addEventListener("keydown", moveFocus);
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) makeCards(made + CARDS_AT_ONCE);
  }, { rootMargin: "800px" }).observe($("more"));
}

function renderGallery() {
  for (const name of ["type", "outcome", "by", "order", "text"]) if ($(name).value !== state[name]) $(name).value = state[name];
  listed = inOrder(images.id.map((_, image) => image).filter(isWanted));
  $("count").textContent = `${listed.length} of ${plural(COUNT, "image")}${filterWords()}`;
  $("clear").disabled = state.type === "any" && state.outcome === "any" && state.by === "any" && !state.text;
  renderCards();
}

function filterWords() {
  const words = [];
  if (state.type !== "any") words.push(state.type);
  if (state.outcome === "disagree") words.push("runs disagree");
  else if (state.outcome !== "any") {
    const by = { any: "any run shown", every: "every run shown" }[state.by] || state.by;
    words.push(`${OUTCOMES[state.outcome]} by ${by}`);
  }
  if (state.text) words.push(`“${state.text}” in the name`);
  return words.length ? `: ${words.join(", ")}` : "";
}

function isWanted(image) {
  if (state.type !== "any" && data.types[images.type[image]] !== state.type) return false;
  if (state.text && !images.file[image].toLowerCase().includes(state.text.toLowerCase())) return false;
  if (state.outcome === "any") return true;
  const named = data.runs.findIndex((run) => run.name === state.by);
  const judging = named >= 0 ? [named] : chosenRuns();
  const outcomes = judging.map((run) => outcome(run, image));
  if (state.outcome === "disagree") return new Set(chosenRuns().map((run) => called(run, image)).filter((call) => call !== null)).size > 1;
  if (state.by === "every") return outcomes.length > 0 && outcomes.every((each) => each === state.outcome);
  return outcomes.includes(state.outcome);
}

function inOrder(list) {
  const runs = chosenRuns();
  const named = data.runs.findIndex((run) => run.name === state.by);
  const judging = named >= 0 ? [named] : runs;
  const sorted = (key) => list.map((image) => [key(image), image]).sort((a, b) => compareKeys(a[0], b[0]) || a[1] - b[1]).map((pair) => pair[1]);
  if (state.order === "name") return sorted((image) => [images.file[image]]);
  if (state.order !== "worst") {
    const sign = state.order === "high" ? -1 : 1;
    return sorted((image) => [sign * Math.max(-Infinity, ...judging.filter((run) => judges[run]).map((run) => standardScore(run, image)))]);
  }
  return sorted((image) => {
    const wrong = judging.some((run) => ["missed", "alarm"].includes(outcome(run, image)));
    const far = judging.map((run) => wrongness(run, image)).filter((each) => each !== null);
    return [wrong ? 0 : 1, -Math.max(-Infinity, ...far)];
  });
}

function standardScore(run, image) {
  return (judges[run].margins[image] - judges[run].median) / judges[run].sd;
}

function compareKeys(a, b) {
  for (let i = 0; i < a.length; i += 1) if (a[i] !== b[i]) return a[i] < b[i] ? -1 : 1;
  return 0;
}

// Makes the cards anew; `kept`: the same images again, as many, with the focus where it was.
function renderCards(kept = false) {
  const [many, place] = kept ? [made, current] : [CARDS_AT_ONCE, 0];
  const focused = kept && $("cards").contains(document.activeElement);
  const shown = Math.max(1, chosenRuns().length);
  $("cards").style.setProperty("--panels", Math.min(shown, 5));
  $("cards").classList.toggle("many", shown > 4);
  current = place;
  made = 0;
  $("cards").replaceChildren();
  makeCards(many);
  if (focused) focusCard(place);
}

function makeCards(until) {
  const list = document.createDocumentFragment();
  for (const end = Math.min(until, listed.length); made < end; made += 1) list.append(card(listed[made], made));
  $("cards").append(list);
  $("more").textContent = made < listed.length ? `${listed.length - made} more below` : "";
}

function card(image, place) {
  const runs = chosenRuns();
  const type = data.types[images.type[image]];
  const said = runs.map((run) => `${data.runs[run].name}: ${OUTCOMES[outcome(run, image)] || "undecided"}`).join(", ");
  const button = el("button", {
    type: "button", class: "open", tabindex: place === current ? 0 : -1, "data-place": place,
    "aria-label": `${images.file[image]}, ${type}${said ? `, ${said}` : ""}`,
    on: { click: () => openImage(image), focus: () => setCurrent(place) },
  },
  el("span", { class: "title" }, el("span", { class: "file", text: shortName(images.file[image]) }), el("span", { class: "type", text: type })),
  el("span", { class: "panels" }, (runs.length ? runs : [null]).map((run) => el("span", { class: "seen" },
    run === null ? null : byline(run), panel(image, run), run === null ? null : tag(run, image)))));
  return el("li", { class: "card", "data-image": images.id[image] }, button);
}

function shortName(file) {
  const parts = file.split("/");
  return parts.length > 2 ? `${parts[0]}/…/${parts[parts.length - 1]}` : file;
}

function setCurrent(place) {
  const buttons = $("cards").children;
  if (buttons[current]) buttons[current].firstChild.tabIndex = -1;
  current = place;
  if (buttons[current]) buttons[current].firstChild.tabIndex = 0;
}

function focusCard(place) {
  if (place < 0 || place >= listed.length) return;
  if (place >= made) makeCards(place + CARDS_AT_ONCE);
  setCurrent(place);
  $("cards").children[place].firstChild.focus();
}

function moveFocus(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const cards = [...$("cards").children];
  const across = Math.max(1, cards.findIndex((each) => each.offsetTop !== cards[0].offsetTop));
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across };
  let target = null;
  if (event.key in steps) target = current + steps[event.key];
  else if (event.key === "Home") target = 0;
  else if (event.key === "End") target = listed.length - 1;
  if (target === null) return;
  event.preventDefault();
  focusCard(target);
}
