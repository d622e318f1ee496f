"""The report in a real browser, headless Chromium: it opens from disk, does what it says, and everyone can use it.

Debian: apt-get install chromium; and the packages playwright and axe-playwright-python. Skipped where they are missing.
"""

import dataclasses
import re
import shutil
import time
import warnings

import cv2
import numpy as np
import pytest

from evaluation.leaderboard import evaluate_runs
from evaluation.report import ReportOptions, write_report
from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.derive import PredictionView

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
LAPTOP, PHONE = {"width": 1366, "height": 900}, {"width": 390, "height": 844}
HOSTILE = "<img src=x onerror=window.pwned=1>"

playwright = pytest.importorskip("playwright.sync_api", reason="REPORT NOT TESTED IN A BROWSER: playwright is missing")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="REPORT NOT TESTED IN A BROWSER: no chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def kept():
    """The report of this module, once it is made."""
    return {}


@pytest.fixture
def report(kept, masks, new_dataset, new_run, tmp_path_factory):
    """Three runs, one of them without thresholds, on images of which one type is named like markup."""
    if kept:
        return kept
    folder = tmp_path_factory.mktemp("report")
    dataset = new_dataset(folder / "tiles", [(mask, HOSTILE if name == "chip" else name) for mask, name in masks])
    rng = np.random.default_rng(3)
    runs = [
        new_run(folder / "tiles-good-all", dataset, predictions(dataset, rng, 0.3), "crossval", "all"),
        new_run(folder / "tiles-<b>bad&-all", dataset, predictions(dataset, rng, 0.9), "crossval", "all"),
        new_run(
            folder / "tiles-free-all",
            dataset,
            [Prediction(image_id=p.image_id, score=p.score) for p in predictions(dataset, rng, 0.7)],
            "crossval",
            "all",
            thresholds={},
        ),
    ]
    board = evaluate_runs([run.path for run in runs], samples=30)
    write_report(board, folder / "report.html")
    kept.update(board=board, url=(folder / "report.html").as_uri(), names=[row.run for row in board.rows])
    return kept


def predictions(dataset, rng, noise):
    for image in dataset.images:
        mask = dataset.mask(image.id)
        boxes = [tuple(map(float, a["bbox"])) for a in dataset.annotations_by_image[image.id]]
        found = [Detection(box_ltwh=box, score=0.8, category_id=1) for box in boxes]
        unsure = [
            Detection(box_ltwh=(2.0, 3.0, 5.0, 7.0), score=0.2),
            Detection(box_ltwh=(9.0, 3.0, 4.0, 4.0), score=0.1),
        ]
        yield Prediction(
            image_id=image.id,
            score=float(mask.any() + noise * rng.normal()),
            map=(mask + rng.uniform(0, 0.3, mask.shape)).astype(np.float32),
            detections=found + unsure,
        )


@pytest.fixture
def opened(browser, report):
    """Open the page; at the end nothing may have been said on its console, and nothing asked of a network."""
    contexts, said = [], []

    def go(link="", viewport=LAPTOP, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        page.goto(report["url"] + link)
        page.wait_for_selector("#count:not(:empty)")
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []


def until(page, expression):
    """Wait until an expression is true; Playwright's own way needs `eval`, which the page forbids."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def cards(page):
    return page.locator("#cards > li")


def count(page):
    return int(page.locator("#count").inner_text().split(" of ")[0])


def slider(page, name):
    return page.locator(f".slider[data-run={quoted(name)}]")


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def counts(page, name):
    cells = slider(page, name).locator("dd[data-count]")
    return {cell.get_attribute("data-count"): cell.inner_text() for cell in cells.all()}


def state_link(page):
    return "#" + page.url.partition("#")[2]


def test_the_page_opens_from_disk_with_every_section(opened, report):
    page = opened()
    assert page.locator("h1").inner_text() == "tiles, crossval"
    assert page.locator("main section h2").count() == 6
    assert page.locator("#board tbody tr").count() == 3
    assert cards(page).count() == 24, "the first cards are made, the rest when one scrolls there"
    assert page.locator("#charts .plot").count() == 4
    cards(page).last.scroll_into_view_if_needed()
    until(page, "document.querySelectorAll('#cards > li').length === 30")


def test_names_like_markup_stay_text(opened, report):
    page = opened()
    assert page.locator("#board .name", has_text="<b>bad&").count() == 1
    assert page.locator("#cards .type", has_text=HOSTILE).count() > 0
    assert page.evaluate("window.pwned") is None
    assert page.locator("main b, main img[src=x]").count() == 0


def test_a_heading_sorts_by_click_and_by_key_and_says_so(opened, report):
    page = opened()
    head = page.locator("#board thead th", has_text="image AP")
    values = page.locator("#board tbody td:nth-child(3) .value")
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    down = [float(text) for text in values.all_inner_texts()]
    assert down == sorted(down, reverse=True)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in values.all_inner_texts()] == sorted(down)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "none"


def test_an_empty_cell_says_why(opened):
    page = opened()
    cell = page.locator("#board .absent").first
    assert "no value: " in cell.get_attribute("aria-label")
    assert cell.get_attribute("title")


def test_the_matrix_follows_the_metric_and_tells_each_pair_in_words(opened, report):
    page = opened()
    page.select_option("#metric", "image.overkill_rate")
    assert "lower is better" in page.locator("#matrix caption").inner_text()
    wanted = [pair.sentence for pair in report["board"].comparisons["image.overkill_rate"]]
    assert page.locator("#sentences li").all_inner_texts() == wanted
    assert page.locator("#matrix tbody td").count() == 9


def test_counts_at_rest_are_those_of_metrics_json(opened, report):
    page = opened()
    for row in report["board"].rows:
        shown = counts(page, row.run)
        image = row.metrics["image"]
        if row.run == "tiles-free-all":
            assert set(shown.values()) == {"–"}
            continue
        found, missed, alarms, passed = (int(shown[key]) for key in ("found", "missed", "alarms", "passed"))
        assert (found + missed, alarms + passed) == (18, 12)
        assert (found + passed) / 30 == pytest.approx(image["accuracy"]["value"])
        assert found / 18 == pytest.approx(image["recall"]["value"])
        assert shown["escape"] == f"{100 * image['escape_rate']['value']:.1f} %"
        assert shown["overkill"] == f"{100 * image['overkill_rate']['value']:.1f} %"


def test_the_slider_reaches_every_count_and_moves_the_dot_and_the_gallery(opened, report):
    page = opened()
    name = report["names"][0]
    box = slider(page, name)
    knob = box.locator("input")
    at_rest = knob.input_value()
    dot = page.locator(f".plot[data-chart=escape] circle[data-run={quoted(name)}]")
    before = dot.get_attribute("cx"), dot.get_attribute("cy")
    knob.focus()
    page.keyboard.press("Home")
    assert counts(page, name)["missed"] == "0"
    assert counts(page, name)["passed"] == "0"
    assert (dot.get_attribute("cx"), dot.get_attribute("cy")) != before
    called = [30]
    for _ in range(int(knob.get_attribute("max"))):
        page.keyboard.press("ArrowRight")
        shown = counts(page, name)
        called.append(int(shown["found"]) + int(shown["alarms"]))
    assert called == sorted(set(called), reverse=True), "every step changes the counts"
    assert called[-1] == 0
    assert len(called) == len(set(report["board"].evaluations[0].view.scores().value.values())) + 1
    assert "18 of 18 defects missed" in knob.get_attribute("aria-valuetext")
    page.select_option("#outcome", "missed")
    page.select_option("#by", name)
    until(page, "document.querySelector('#count').textContent.startsWith('18 of 30')")
    until(page, "document.querySelector('#counts-live').textContent.includes('18 of 18 defects missed')")
    box.locator("button").click()
    assert knob.input_value() == at_rest
    assert "shift 0" in box.locator("output").inner_text()
    assert "cut" not in page.url


def test_a_run_without_thresholds_has_a_plain_threshold(opened):
    page = opened()
    box = slider(page, "tiles-free-all")
    assert "not set" in box.locator("output").inner_text()
    box.locator("input").focus()
    page.keyboard.press("ArrowRight")
    shown = counts(page, "tiles-free-all")
    assert sum(int(shown[key]) for key in ("found", "missed", "alarms", "passed")) == 30
    assert "chosen here" in box.locator("output").inner_text()


def test_filters_show_what_they_say(opened, report):
    page = opened()
    total = count(page)
    assert total == 30
    page.select_option("#type", "crack")
    types = set(page.locator("#cards .type").all_text_contents())
    assert types == {"crack"}
    page.select_option("#type", "any")
    bad = next(name for name in report["names"] if "bad" in name)
    found = {}
    for outcome, cell in (("missed", "missed"), ("alarm", "alarms")):
        page.select_option("#outcome", outcome)
        page.select_option("#by", bad)
        found[outcome] = count(page)
        assert found[outcome] == int(counts(page, bad)[cell])
    page.select_option("#outcome", "right")
    assert count(page) == total - sum(found.values())
    page.select_option("#outcome", "disagree")
    assert 0 < count(page) < total
    page.click("#clear")
    page.fill("#text", "003")
    assert count(page) == 1
    page.fill("#text", "no such file")
    assert count(page) == 0
    assert cards(page).count() == 0


def test_the_worst_come_first(opened, report):
    page = opened()
    name = report["names"][0]
    for input_ in page.locator("[data-choose]").all()[1:]:
        input_.uncheck()
    evaluation = report["board"].evaluations[0]
    scores, cuts = evaluation.view.scores().value, evaluation.view.threshold("image").value
    good = {i: evaluation.dataset.image_by_id[i].is_good for i in scores}
    wrongness = {i: (scores[i] - cuts[i]) * (1 if good[i] else -1) for i in scores}
    wanted = sorted(scores, key=lambda i: (-wrongness[i], i))[:24]
    shown = [int(card.get_attribute("data-image")) for card in cards(page).all()]
    assert shown == wanted
    assert page.locator("#cards .by .name").first.text_content() == name.removeprefix("tiles-").removesuffix("-all")


def test_layers_switch_by_box_and_by_key(opened):
    page = opened()
    first = page.locator("#cards .panel:has(.map)").first
    for layer, key, part in (
        ("truth", "t", ".truth"),
        ("boxes", "b", ".boxes"),
        ("masks", "m", ".masks"),
        ("map", "a", ".map"),
    ):
        shown = f"getComputedStyle(document.querySelector('#cards .panel:has(.map) {part}')).display !== 'none'"
        assert page.evaluate(shown)
        page.uncheck(f"#layer-{layer}")
        assert not page.evaluate(shown)
        page.locator("#gallery-h").focus()
        page.keyboard.press(key)
        assert page.evaluate(shown)
        assert page.is_checked(f"#layer-{layer}")
    boxes = first.locator(".boxes > g").count()
    page.check("#layer-all")
    assert page.locator("#cards .panel:has(.map)").first.locator(".boxes > g").count() == boxes + 2


def test_cards_are_walked_by_keys_and_an_image_opens_and_closes_where_one_was(opened):
    page = opened()
    buttons = page.locator("#cards .open")
    assert page.locator("#cards .open[tabindex='0']").count() == 1, "one stop of the tab key"
    buttons.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.place") == "2"
    page.keyboard.press("ArrowDown")
    place = int(page.evaluate("document.activeElement.dataset.place"))
    assert place > 2
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.place") == "29"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    assert "2 of 30" in dialog.locator("[role=status]").inner_text()
    page.keyboard.press("ArrowRight")
    assert "3 of 30" in dialog.locator("[role=status]").inner_text()
    page.keyboard.press("ArrowLeft")
    assert dialog.locator("figure").count() == 4, "the truth and three runs"
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    until(page, "!location.hash.includes('open=')")


def test_a_link_restores_what_was_chosen(opened, report):
    bad = next(name for name in report["names"] if "bad" in name)
    page = opened()
    page.locator("[data-choose='1']").uncheck()
    page.select_option("#metric", "image.ap")
    page.locator("#board thead button", has_text="accuracy").click()
    page.select_option("#type", HOSTILE)
    page.select_option("#outcome", "right")
    page.select_option("#by", bad)
    page.select_option("#order", "name")
    page.uncheck("#layer-map")
    page.fill("#text", ".png")
    slider(page, report["names"][0]).locator("input").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(150)
    cards(page).first.locator("button").click()
    wanted = page.locator("#viewer-h").inner_text()
    link, seen = state_link(page), page.locator("#count").inner_text()

    other = opened(link)
    assert state_link(other) == link
    assert other.locator("dialog[open] #viewer-h").inner_text() == wanted
    assert other.locator("#count").inner_text() == seen
    assert not other.is_checked("[data-choose='1']")
    assert other.input_value("#metric") == "image.ap"
    assert other.locator("#board thead th", has_text="accuracy").get_attribute("aria-sort") == "descending"
    chosen = [other.input_value(f"#{name}") for name in ("type", "outcome", "by", "order", "text")]
    assert chosen == [HOSTILE, "right", bad, "name", ".png"]
    assert not other.is_checked("#layer-map")
    name = report["names"][0]
    assert counts(other, name) == counts(page, name)
    other.keyboard.press("Escape")
    other.evaluate("location.hash = ''")
    until(other, "document.querySelector('#count').textContent === '30 of 30 images'")


@pytest.mark.parametrize("link", ["#run=nobody&open=99999&cut=x:y&metric=z&layers=q&sort=+", "#%zz=1", "#gallery"])
def test_a_link_that_makes_no_sense_does_no_harm(opened, link):
    page = opened(link)
    assert count(page) == 30
    assert page.locator("dialog[open]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_nothing_scrolls_sideways_and_axe_finds_nothing_serious(opened, scheme, viewport):
    page = opened("", viewport, scheme)
    for details in page.locator("details").all():
        details.evaluate("node => { node.open = true; }")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
    assert serious(page) == []
    page.evaluate("scrollTo(0, 0)")
    cards(page).first.locator("button").click()
    assert page.evaluate(overflow) <= 0
    assert page.evaluate("viewer.scrollWidth - viewer.clientWidth") <= 0
    assert serious(page) == []


def serious(page):
    """Violations that axe calls serious or critical, with where they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = axe.Axe().run(page).response["violations"]
    return [
        (each["id"], [node["target"] for node in each["nodes"]][:5])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_the_page_is_used_by_keyboard_from_the_start(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.locator("header, main, nav, footer, [role=search], [role=region]").count() >= 6


def test_in_print_the_leaderboard_and_the_curves_remain(opened):
    page = opened()
    page.emulate_media(media="print")
    assert page.is_visible("#board")
    assert page.is_visible(".plot svg.chart")
    assert not page.is_visible("#cards")
    assert not page.is_visible("#filters")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 at 96 dpi, less its margins
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


@pytest.mark.parametrize("with_others", [False, True], ids=["alone", "beside others"])
def test_runs_that_were_given_truth_stand_in_a_table_of_their_own(
    browser, masks, new_dataset, new_run, prompted, tmp_path, with_others
):
    dataset = new_dataset(tmp_path / "tiles", masks)
    ids = [image.id for image in dataset.images]
    runs = []
    for name, moved in (("poor", 2), ("fine", 0)):
        made = prompted(dataset, ids, lambda a, moved=moved: np.roll(geometry.decode(a["segmentation"]), moved, axis=1))
        given = {"truth_given": "boxes of the defects", "thresholds": {}}
        runs.append(new_run(tmp_path / f"tiles-{name}-all", dataset, made, "crossval", "all", **given))
    if with_others:
        made = predictions(dataset, np.random.default_rng(0), 0.5)
        runs.append(new_run(tmp_path / "tiles-other-all", dataset, made, "crossval", "all"))
    write_report(evaluate_runs([run.path for run in runs], samples=20), tmp_path / "report.html")
    page, said = browser.new_page(viewport=LAPTOP), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#count:not(:empty)")
    assert page.locator("#board h3").all_inner_texts() == ["Given the boxes of the defects (oracle prompts)"]
    assert page.locator("#board table").count() == 1 + with_others
    table = page.locator("#board table").last
    assert table.locator(".name").all_inner_texts() == ["tiles-fine-all", "tiles-poor-all"]
    assert table.locator("thead th").all_inner_texts()[1:6] == [
        "mask IoU",
        "mask Dice",
        "mask AP",
        "mask AP50",
        "mask AP75",
    ]
    assert page.input_value("#metric") == "mask.iou", "the first of the first table that has pairs"
    assert page.locator("#matrix table").count() == 1
    assert "tiles-fine-all beats tiles-poor-all" in page.locator("#sentences").inner_text()
    table.locator("button", has_text="mask Dice").press("Enter")
    assert page.evaluate("document.activeElement.dataset.sort") == "mask.dice"
    table.locator("button", has_text="mask Dice").press("Enter")
    assert table.locator(".name").all_inner_texts() == ["tiles-poor-all", "tiles-fine-all"]
    assert page.locator("#by-type tbody tr").count() == 2 * with_others
    assert "No threshold: the run was given" in slider(page, "tiles-fine-all").inner_text()
    assert page.locator("#cards .card").first.locator(".tag").last.text_content() == "undecided"
    page.locator("#cards .open:has(.masks path)").first.click()
    assert page.locator("dialog[open] figure .masks path").count() > 0
    assert serious(page) == []
    page.close()
    assert said == []


def test_two_thousand_images_and_three_runs_fit_and_open_fast(browser, new_dataset, new_run, tmp_path):
    """Photo-like images; every run has maps and detections."""
    rng = np.random.default_rng(0)
    masks = []
    for number in range(2000):
        mask = np.zeros((120, 160), np.uint8)
        if number % 2:
            cv2.circle(mask, tuple(int(v) for v in rng.integers(30, 90, 2)), int(rng.integers(6, 25)), 1, -1)
        masks.append(mask)
    dataset = new_dataset(tmp_path / "many", masks)
    for image in dataset.images:
        photo = cv2.resize(rng.integers(0, 256, (15, 20, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
        photo = cv2.resize(photo, (160, 120)) // 2 + rng.integers(0, 60, (120, 160, 1), np.uint8)
        dataset.image_path(image.id).write_bytes(cv2.imencode(".jpg", photo)[1].tobytes())
    plain, full = [], []
    for number in range(3):
        made = list(many(dataset, rng))
        scores = [Prediction(image_id=p.image_id, score=p.score) for p in made]
        plain.append(new_run(tmp_path / "plain" / f"run{number}", dataset, scores).path)
        full.append(new_run(tmp_path / "full" / f"run{number}", dataset, made))
    board = evaluate_runs(plain, samples=5)  # the pixel metrics of 2,000 images are not what is timed here
    views = {run.name: PredictionView(run, dataset, "test") for run in full}
    evaluations = tuple(dataclasses.replace(e, view=views[e.run.name]) for e in board.evaluations)
    board = dataclasses.replace(board, evaluations=evaluations)

    started = time.perf_counter()
    size = write_report(board, tmp_path / "report.html", ReportOptions())
    built = time.perf_counter() - started
    page = browser.new_page(viewport=LAPTOP)
    started = time.perf_counter()
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#cards > li")
    shown = time.perf_counter() - started
    made = cards(page).count()
    started = time.perf_counter()
    page.select_option("#outcome", "missed")
    until(page, "document.querySelector('#count').textContent.includes('missed by')")
    filtered = time.perf_counter() - started
    page.close()
    print(f"{size / 1e6:.1f} MB, built in {built:.1f} s, first card after {shown:.2f} s, filter {filtered:.2f} s")
    assert size <= 30e6
    assert built < 60
    assert shown < 8
    assert filtered < 3
    assert made < 200, "cards are made as one scrolls"


def many(dataset, rng):
    for image in dataset.images:
        defect = not image.is_good
        grid = rng.uniform(0, 0.3, (24, 32)).astype(np.float32)
        boxes = [tuple(map(float, a["bbox"])) for a in dataset.annotations_by_image[image.id]]
        yield Prediction(
            image_id=image.id,
            score=float(defect + 0.5 * rng.normal()),
            map=cv2.GaussianBlur(grid, (0, 0), 2),
            detections=[
                Detection(box_ltwh=box, score=0.9, segmentation=a["segmentation"], category_id=1)
                for box, a in zip(boxes, dataset.annotations_by_image[image.id], strict=True)
            ]
            + [Detection(box_ltwh=(5.0, 6.0, 30.0, 20.0), score=float(rng.uniform(0, 0.4))) for _ in range(4)],
        )
