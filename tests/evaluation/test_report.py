"""The report as a file: what stands in it, what it weighs, what is never in it."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import os
import re
import shlex

import cv2
import numpy as np
import pytest

from evaluation import _report_images
from evaluation._report_commands import (
    approach_defaults,
    convert_command,
    option_words,
    run_commands,
    shown_path,
)
from evaluation._report_images import FRAME, Pictures, outline
from evaluation._report_page import json_text
from evaluation.leaderboard import evaluate_runs
from evaluation.report import CHUNK, ReportOptions, write_report
from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.cli import main
from maskbridge.errors import DatasetError, MaskbridgeError, OptionError
from maskbridge.predictions import Run

OLD = "<!doctype html><title>old – maskbridge report</title>"
HOSTILE = "<script>alert(1)</script>&\u2028\"'"


def noisy(dataset, ids, noise=0.6, seed=0):
    """Scores, maps and detections near the truth; every image has twelve detections, most of them unsure."""
    rng = np.random.default_rng(seed)
    for image_id in ids:
        mask = dataset.mask(image_id)
        boxes = [tuple(map(float, a["bbox"])) for a in dataset.annotations_by_image[image_id]]
        sure = [Detection(box_ltwh=box, score=0.9, category_id=1) for box in boxes]
        unsure = [
            Detection(box_ltwh=(1.0, 2.0, 6.0, 4.0), score=float(rng.uniform(0, 0.45)), category_id=None)
            for _ in range(12 - len(sure))
        ]
        yield Prediction(
            image_id=image_id,
            score=float(mask.any() + noise * rng.normal()),
            map=(mask + rng.uniform(0, 0.4, mask.shape)).astype(np.float32),
            detections=sure + unsure,
        )


@pytest.fixture
def runs(dataset, ids, new_run, tmp_path):
    one = new_run(tmp_path / "sure", dataset, noisy(dataset, ids, 0.2), "crossval", "all", weights_from="none")
    scores = [Prediction(image_id=p.image_id, score=p.score) for p in noisy(dataset, ids, 0.9, seed=1)]
    return [one, new_run(tmp_path / "unsure", dataset, scores, "crossval", "all", weights_from="a.pt")]


@pytest.fixture
def board(runs):
    return evaluate_runs([run.path for run in runs], samples=20)


class Tags(html.parser.HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.texts = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag in ("script", "style")
        if self.inside:
            self.texts.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            tag, attrs, text = self.texts[-1]
            self.texts[-1] = (tag, attrs, text + data)


def blocks(text):
    """The JSON blocks of a page by their id."""
    tags = Tags(text)
    return {a["id"]: json.loads(content) for tag, a, content in tags.texts if a.get("type") == "application/json"}


def written(board, tmp_path, **options):
    out = tmp_path / "out" / "report.html"
    size = write_report(board, out, ReportOptions(**options))
    assert size == out.stat().st_size
    return out.read_text(encoding="utf-8")


def test_the_page_is_one_file_that_asks_for_nothing(board, tmp_path):
    text = written(board, tmp_path)
    assert os.listdir(tmp_path / "out") == ["report.html"]
    tags = Tags(text)
    links = [value for _, attrs in tags.found for name, value in attrs.items() if name in ("src", "href", "action")]
    assert all(link.startswith(("#", "data:")) for link in links)
    code = "".join(content for _, attrs, content in tags.texts if attrs.get("type") != "application/json")
    assert set(re.findall(r"https?://[^\"\s]*", code)) == {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"url\(([^)]*)\)", code)) == {"#heat"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttp|import\(", code)


def test_the_policy_allows_the_one_script_and_the_one_style_by_their_hashes(board, tmp_path):
    tags = Tags(written(board, tmp_path))
    (policy,) = (a["content"] for tag, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    run = [(tag, content) for tag, attrs, content in tags.texts if attrs.get("type") != "application/json"]
    assert sorted(tag for tag, _ in run) == ["script", "style"]
    for tag, content in run:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_names_are_never_markup(masks, new_dataset, new_run, tmp_path):
    dataset = new_dataset(tmp_path / "tiles", masks)
    path = dataset.path / "annotations.json"
    coco = json.loads(path.read_text(encoding="utf-8"))
    coco["categories"][0]["name"] = HOSTILE
    for image in coco["images"]:
        image["origin"] = image["origin"].replace("chip", HOSTILE)
    path.write_text(json.dumps(coco), encoding="utf-8")
    dataset = type(dataset).open(dataset.path)
    ids = [image.id for image in dataset.images]
    run = new_run(tmp_path / "<b>&run", dataset, noisy(dataset, ids), options={HOSTILE: HOSTILE})
    text = written(evaluate_runs([run.path], samples=5), tmp_path)
    data = blocks(text)["data"]
    assert data["types"][1] == HOSTILE
    assert data["runs"][0]["name"] == "<b>&run"
    assert data["runs"][0]["options"] == [[HOSTILE, HOSTILE, 1]]
    assert "alert(1)</" not in text
    assert "<b>" not in text
    assert "\u2028" not in text
    plain = [a for tag, a in Tags(text).found if tag == "script" and a.get("type") != "application/json"]
    assert len(plain) == 1


def test_json_in_the_page_has_no_letter_that_ends_its_block():
    value = {"<!--": "</script>", "a": "\u2028\u2029&amp;", "b": "\ud800"}
    text = json_text(value)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text.encode("utf-8", "backslashreplace")) == value


def test_counts_at_the_fitted_thresholds_are_those_of_metrics_json(board, tmp_path):
    data = blocks(written(board, tmp_path))["data"]
    bad = np.array(data["images"]["bad"], bool)
    for run, row in zip(data["runs"], board.rows, strict=True):
        called = np.array(run["scores"]) - np.array(run["cuts"]) >= 0
        image = row.metrics["image"]
        assert (called == bad).mean() == image["accuracy"]["value"]
        assert called[bad].mean() == image["recall"]["value"]
        assert called[~bad].mean() == image["overkill_rate"]["value"]


def test_cells_carry_interval_folds_marks_or_the_reason_why_there_are_none(board, tmp_path):
    data = blocks(written(board, tmp_path))["data"]
    keys = [column["key"] for column in data["columns"]]
    sure, unsure = data["runs"]
    assert (sure["name"], unsure["name"]) == ("sure", "unsure")
    assert sure["marks"][0][0] == "†"
    assert unsure["marks"] == []
    auroc = sure["cells"][keys.index("image.auroc")]
    assert auroc["l"] <= auroc["v"] <= auroc["h"]
    assert auroc["mean"] == board.rows[0].metrics["folds"]["image"]["auroc"]["mean"]
    assert "neither maps" in unsure["cells"][keys.index("pixel.auroc")]["why"]
    lower = {column["key"] for column in data["columns"] if column["lower"]}
    assert lower == {"image.escape_rate", "image.overkill_rate"}
    (pair,) = data["comparisons"]["image.auroc"]
    assert pair["sentence"] == board.comparisons["image.auroc"][0].sentence
    assert {pair["one"], pair["other"]} == {0, 1}
    assert set(data["byType"]) == {"images found", "defects found"}


def test_every_image_has_its_pictures_in_order(board, dataset, tmp_path):
    text = written(board, tmp_path)
    found = blocks(text)
    data = found["data"]
    records = [record for number in range(-(-30 // CHUNK)) for record in found[f"pictures-{number}"]]
    assert len(records) == len(dataset.images) == 30
    for place, record in enumerate(records):
        image = dataset.image_by_id[data["images"]["id"][place]]
        photo = cv2.imdecode(np.frombuffer(base64.b64decode(record["p"]), np.uint8), cv2.IMREAD_COLOR)
        assert photo.shape[:2] == image.size_hw
        assert abs(photo.mean() - dataset.mask(image.id).mean() * 200) < 8
        assert len(record["t"]) == len(dataset.annotations_by_image[image.id])
        sure, unsure = record["r"]
        assert unsure == {"m": None, "n": 0, "d": []}
        scores = [detection[0] for detection in sure["d"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == sure["n"] == 12
        assert [detection[2] for detection in sure["d"]] == [int(score >= 0.5) for score in scores]
        grey = cv2.imdecode(np.frombuffer(base64.b64decode(sure["m"]), np.uint8), cv2.IMREAD_GRAYSCALE)
        inside = dataset.mask(image.id) > 0
        if inside.any() and not inside.all():
            assert grey[inside].mean() > grey[~inside].mean() + 100


@pytest.mark.parametrize("place", range(8))
def test_an_outline_encloses_its_mask(masks, place):
    mask = masks[place][0]
    units = FRAME / max(mask.shape)
    d = outline(geometry.encode(mask), units)
    polygons = []
    for piece in d.split("M")[1:]:
        start, steps = piece.removesuffix("z").split("l") if "l" in piece else (piece.split("h")[0], "1 0")
        points = np.array([[int(v) for v in start.split()], *np.array(steps.split(), int).reshape(-1, 2).tolist()])
        polygons.append(np.cumsum(points, axis=0).astype(np.int32))
    drawn = np.zeros((round(mask.shape[0] * units), FRAME), np.uint8)
    cv2.fillPoly(drawn, polygons, 1)
    wanted = cv2.resize(mask, drawn.shape[::-1], interpolation=cv2.INTER_NEAREST)
    assert (drawn & wanted).sum() / (drawn | wanted).sum() > 0.6
    away = cv2.distanceTransform((drawn == 0).astype(np.uint8), cv2.DIST_L2, 3)
    assert away[wanted > 0].max() < 0.6 * units, "no corner of the mask lies outside by more than half a pixel"


def test_an_empty_mask_has_no_outline():
    assert outline(geometry.encode(np.zeros((4, 6), np.uint8)), 10.0) == ""


def test_the_page_is_made_smaller_until_it_fits(board, tmp_path):
    whole = written(board, tmp_path)
    data = blocks(whole)["data"]["pictures"]
    assert (data["px"], data["wantedPx"], data["detections"]) == (256, 256, 20)
    less = (len(whole.encode()) - 6000) / 1e6
    small = written(board, tmp_path, megabytes=less)
    assert len(small.encode()) <= less * 1e6
    data = blocks(small)["data"]["pictures"]
    assert data["px"] < data["wantedPx"]
    assert data["detections"] < 20


def test_a_page_that_cannot_fit_is_refused_and_nothing_is_written(board, tmp_path):
    with pytest.raises(OptionError, match=r"--megabytes"):
        written(board, tmp_path, megabytes=0.01)
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_read_leaves_the_old_page(board, dataset, tmp_path):
    out = tmp_path / "report.html"
    out.write_text(OLD)
    dataset.image_path(7).write_bytes(b"no image")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DatasetError, match=r"007\.png"):
        write_report(board, out)
    assert out.read_text() == OLD
    assert sorted(tmp_path.iterdir()) == before


def test_a_report_is_replaced_and_no_other_file_is(board, tmp_path):
    out = tmp_path / "r.html"
    out.touch()
    for _ in range(3):
        write_report(board, out)
    for foreign in (
        b"mine",
        b"<!doctype html><title>my thesis</title>",
        (board.evaluations[0].run.path / "run.json").read_bytes(),
    ):
        out.write_bytes(foreign)
        with pytest.raises(MaskbridgeError, match=r"r\.html: is not a report made by maskbridge and is left alone"):
            write_report(board, out)
        assert out.read_bytes() == foreign


def test_a_file_in_the_way_is_told_before_the_runs_are_judged(tmp_path, capsys):
    (tmp_path / "r.html").write_text("mine")
    assert main(["report", str(tmp_path / "no-run"), "--out", str(tmp_path / "r.html")]) == 1
    assert "r.html: is not a report made by maskbridge" in capsys.readouterr().err


def test_a_folder_is_no_place_for_the_page(board, tmp_path):
    with pytest.raises(OptionError, match=r"is a folder.*report\.html"):
        write_report(board, tmp_path)


@pytest.mark.parametrize("options", [{"megabytes": 0}, {"megabytes": float("nan")}, {"thumbnail_px": 8}])
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(OptionError, match="--"):
        ReportOptions(**options)


def test_the_same_runs_give_the_same_bytes(board, runs, tmp_path):
    again = evaluate_runs([run.path for run in runs], samples=20)
    assert written(board, tmp_path) == written(again, tmp_path)


def test_no_path_of_the_machine_is_in_the_page(board, tmp_path, monkeypatch):
    assert str(tmp_path) not in written(board, tmp_path)
    monkeypatch.chdir(tmp_path)
    text = written(board, tmp_path)
    assert str(tmp_path) not in text
    assert "maskbridge report sure unsure --out out/report.html" in text


def test_without_webp_the_pictures_are_jpeg(board, tmp_path, monkeypatch):
    monkeypatch.setattr(_report_images.cv2, "haveImageWriter", lambda _: False)
    found = blocks(written(board, tmp_path))
    assert found["data"]["pictures"]["format"] == "jpeg"
    assert base64.b64decode(found["pictures-0"][0]["p"]).startswith(b"\xff\xd8")


def test_maps_without_any_contrast_are_shown_empty(dataset, ids, new_run, tmp_path):
    maps = [Prediction(image_id=i, map=np.full((2, 3), 0.25, np.float32)) for i in ids]
    board = evaluate_runs([new_run(tmp_path / "flat", dataset, maps).path], samples=5)
    pictures = Pictures(board.evaluations, 64)
    assert pictures.scales == [{"official": (0.25, 0.25)}]
    found = blocks(written(board, tmp_path))
    grey = base64.b64decode(found["pictures-0"][0]["r"][0]["m"])
    assert not cv2.imdecode(np.frombuffer(grey, np.uint8), cv2.IMREAD_GRAYSCALE).any()


def words(run, dataset, part, **info):
    """The commands of a run whose run.json says `info`."""
    evaluation = evaluate_runs([run.path], samples=5).evaluations[0]
    changed = Run(run.path, {**run.info, **info})
    return run_commands(dataclasses.replace(evaluation, run=changed, dataset=dataset, part=part))


def test_commands_name_only_what_differs_from_the_defaults(dataset, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = {"backbone": "auto", "backbone_weights": "auto", "image_size": 256, "neighbours": 3}
    (line,) = words(runs[1], dataset, "crossval", approach="knn", options=usual)
    assert line == "maskbridge crossval knn tiles unsure"
    options = {**usual, "neighbours": 5, "backbone_weights": "/elsewhere/my weights.pth"}
    (line,) = words(runs[1], dataset, "crossval", approach="knn", options=options, seed=3, device="cuda:1")
    assert shlex.split(line)[1:] == [
        *("crossval", "knn", "tiles", "unsure", "--backbone-weights", "my weights.pth", "--neighbours", "5"),
        *("--seed", "3", "--device", "cuda:1"),
    ]
    train, predict = words(runs[1], dataset, "val", approach="knn", options=usual, fold=2)
    assert train == "maskbridge train knn tiles unsure --fold 2"
    assert predict == "maskbridge predict unsure tiles --part val"
    (line,) = words(
        runs[1], dataset, "crossval", options={"alpha": -0.5, "mirror": False, "none": None, "x y": "$(rm)"}
    )
    assert line == "maskbridge crossval made-up tiles unsure --alpha=-0.5 --no-mirror '--x y' '$(rm)'"


def test_the_dataset_command_is_that_of_its_card(plates):
    from maskbridge.dataset import Dataset

    dataset = Dataset.open(plates)
    assert convert_command(dataset) == "maskbridge convert mvtec plate plates --link copy"
    assert convert_command(dataclasses.replace(dataset, card={"product": "plate"})) is None


def test_paths_are_shown_below_the_current_folder_or_by_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "a" / "b") == "a/b"
    assert shown_path("a/b") == "a/b"
    assert shown_path("/far/away/c") == "c"


def test_runs_that_differ_by_their_seed_show_the_spread(dataset, ids, new_run, tmp_path):
    runs = [new_run(tmp_path / f"seed{n}", dataset, noisy(dataset, ids), seed=n) for n in range(2)]
    board = evaluate_runs([run.path for run in runs], samples=5)
    [group] = blocks(written(board, tmp_path))["data"]["seeds"]
    assert sorted(group["runs"]) == ["seed0", "seed1"]
    assert group["columns"]["image.auroc"] == [board.rows[0].metrics["image"]["auroc"]["value"], 0.0]


def test_an_option_that_is_given_again_and_again_is_written_so():
    defaults = approach_defaults("yolo-world")
    assert option_words({"prompt": [], "epochs": defaults["epochs"]}, defaults) == []
    assert option_words({"prompt": ["a=b c", "d=e"]}, defaults) == ["--prompt", "a=b c", "--prompt", "d=e"]
