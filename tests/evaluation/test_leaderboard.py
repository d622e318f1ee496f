import csv
import io
import json

import numpy as np
import pytest

from evaluation._report_data import page_data
from evaluation.leaderboard import evaluate_runs
from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError, RunError


def scores_of(dataset, ids, noise, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Prediction(image_id=i, score=float((not dataset.image_by_id[i].is_good) + noise * rng.normal())) for i in ids
    ]


def test_runs_stand_side_by_side_best_first(dataset, ids, new_run, truth, tmp_path):
    worst = new_run(tmp_path / "worst", dataset, scores_of(dataset, ids, 3.0), weights_from="none")
    best = new_run(tmp_path / "best", dataset, truth(dataset, ids), weights_from="resnet.pth")
    maps = [Prediction(image_id=i, map=np.full((2, 3), i % 2, np.float32)) for i in ids]
    derived = new_run(tmp_path / "derived", dataset, maps, weights_from="a.pt, hashed text features")
    board = evaluate_runs([worst.path, derived.path, best.path], samples=20)
    assert not (tmp_path / "out").exists()
    assert not (best.path / "metrics.json").exists()
    board.write_metrics()
    board.write(tmp_path / "out")
    assert board.rows[0].run == "best"
    aurocs = [row.metrics["image"]["auroc"]["value"] for row in board.rows]
    assert aurocs == sorted(aurocs, reverse=True)

    text = (tmp_path / "out/leaderboard.md").read_text(encoding="utf-8")
    assert text == board.markdown()
    assert "12 good and 18 defective images" in text
    assert "F1max (oracle)" in text
    cells = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "beats worst: image AUROC" in text or "not distinguishable on 30 images: image AUROC" in text
    assert "made-up †" in cells["worst"]
    assert "made-up ‡" in cells["derived"]
    assert "made-up |" in cells["best"]
    assert "\\*" in cells["derived"]
    assert cells["best"].count("\\*") == 1, "the types of images follow from detections"
    assert "random initialisation" in text
    assert len({line.count("|") for line in cells.values()}) == 1

    content = json.loads((tmp_path / "out/leaderboard.json").read_text(encoding="utf-8"))
    assert [row["run"] for row in content["rows"]] == [row.run for row in board.rows]
    for row in content["rows"]:
        assert json.loads((tmp_path / row["run"] / "metrics.json").read_text()) == row["metrics"]


def test_a_run_on_an_official_split_that_leaks_is_marked(dataset, ids, new_dataset, new_run, truth, tmp_path):
    """Two test images share a group with a training image; runs on folds are not concerned."""
    groups = [image.group for image in dataset.images]
    groups[1] = groups[-1] = groups[0]
    masks = [(dataset.mask(image.id), image.defect_type) for image in dataset.images]
    leaking = new_dataset(tmp_path / "leaking", masks, groups=groups)
    splits = json.loads((leaking.path / "splits.json").read_text())
    splits["official"] = {"train": ids[:1], "test": ids[1:]}
    (leaking.path / "splits.json").write_text(json.dumps(splits))
    leaking = Dataset.open(leaking.path)
    run = new_run(tmp_path / "official", leaking, truth(leaking, ids[1:]))
    board = evaluate_runs([run.path], samples=5)
    told = (
        "2 of 29 test images of the official split (1 of them good) share a group (near-duplicates) with its training "
        "part, so figures on it are too good"
    )
    assert f"* § {told}.\n" in board.markdown()
    assert "| official | made-up § |" in board.markdown()
    assert board.to_json()["rows"][0]["marks"] == [told]
    assert page_data(board)["runs"][0]["marks"] == [["§", told]]
    folds = new_run(tmp_path / "folds", leaking, truth(leaking, ids), "crossval", "all")
    board = evaluate_runs([folds.path], samples=5)
    assert "§" not in board.markdown()
    assert board.to_json()["rows"][0]["marks"] == []


def test_the_csv_has_a_line_for_every_metric_of_every_run(dataset, ids, new_run, truth, tmp_path):
    runs = [new_run(tmp_path / name, dataset, truth(dataset, ids)) for name in ("one", 'two, "quoted"')]
    board = evaluate_runs([run.path for run in runs], samples=5)
    rows = list(csv.DictReader(io.StringIO(board.csv())))
    assert {row["run"] for row in rows} == {run.name for run in runs}
    of_one = {(row["family"], row["metric"]): row for row in rows if row["run"] == "one"}
    auroc = board.rows[0].metrics["image"]["auroc"]
    assert float(of_one["image", "auroc"]["low"]) == auroc["low"]
    assert of_one["instance", "bbox_ap_over_10000px"]["why"] == "there is no defect of this size"
    assert ("cost", "train_seconds") in of_one
    assert len(of_one) == len(rows) / 2


def test_every_pair_is_compared_on_every_column(dataset, ids, new_run, truth, tmp_path):
    runs = [new_run(tmp_path / str(n), dataset, scores_of(dataset, ids, n / 2, n)) for n in range(4)]
    board = evaluate_runs([run.path for run in runs], samples=10)
    assert {len(pairs) for pairs in board.comparisons.values()} == {6}
    assert len(board.evaluations[0].sampled["image"]["auroc"]) >= 6 * 80
    assert json.loads(json.dumps(board.to_json(), allow_nan=False))["comparisons"]["image.auroc"][0]["pairs"] == 6
    assert all("cannot be compared" in pair.sentence for pair in board.comparisons["instance.bbox_ap"])


def test_runs_that_differ_by_their_seed_show_the_spread(dataset, ids, new_run, tmp_path):
    runs = [new_run(tmp_path / f"seed{n}", dataset, scores_of(dataset, ids, 1.0, n), seed=n) for n in range(3)]
    text = evaluate_runs([run.path for run in runs], samples=5).markdown()
    assert "Mean and standard deviation over seeds" in text
    row = next(line for line in text.splitlines() if "seed0" in line and "seed1" in line and "±" in line)
    aurocs = [
        each.metrics["image"]["auroc"]["value"] for each in evaluate_runs([r.path for r in runs], samples=5).evaluations
    ]
    assert f"{np.mean(aurocs):.3f} ± {np.std(aurocs, ddof=1):.3f}".replace("0.", ".") in row


def test_two_runs_of_one_name_are_refused(dataset, ids, new_run, tmp_path):
    runs = [new_run(tmp_path / folder / "run", dataset, scores_of(dataset, ids, 1.0)) for folder in "ab"]
    with pytest.raises(RunError, match=r"same name.*rename"):
        evaluate_runs([run.path for run in runs], samples=5)
    with pytest.raises(RunError, match="the same run twice"):
        evaluate_runs([runs[0].path, runs[0].path], samples=5)


def test_a_run_whose_name_cannot_be_printed_is_refused(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "a\nb", dataset, scores_of(dataset, ids, 1.0))
    with pytest.raises(RunError, match=r"cannot be printed.*rename"):
        evaluate_runs([run.path], samples=5)


def test_a_leaderboard_that_cannot_be_written_leaves_no_metrics(dataset, ids, new_run, tmp_path, capsys):
    from maskbridge.cli import main

    run = new_run(tmp_path / "run", dataset, scores_of(dataset, ids, 1.0))
    (tmp_path / "file").write_text("x")
    assert main(["evaluate", str(run.path), "--samples", "5", "--out", str(tmp_path / "file" / "x")]) == 1
    assert capsys.readouterr().err.startswith("maskbridge: ")
    assert not (run.path / "metrics.json").exists()


def test_a_run_name_with_markup_stays_text_in_the_table(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "a|b<script>", dataset, scores_of(dataset, ids, 1.0))
    text = evaluate_runs([run.path], samples=5).markdown()
    assert "a\\|b\\<script\\>" in text
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_crossval_is_taken_where_it_is(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "run", dataset, scores_of(dataset, ids, 1.0), "crossval", "all")
    board = evaluate_runs([run.path], samples=5)
    assert board.part == "crossval"
    auroc = board.rows[0].metrics["folds"]["image"]["auroc"]
    assert f"| run | {auroc['mean']:.3f} ± {auroc['sd']:.3f}".replace("0.", ".") in board.markdown()


def test_a_crossval_and_an_official_run_on_the_same_images_may_be_compared(dataset, ids, new_run, tmp_path):
    one = new_run(tmp_path / "one", dataset, scores_of(dataset, ids, 1.0), "crossval", "all")
    two = new_run(tmp_path / "two", dataset, scores_of(dataset, ids, 1.0), "test", "official")
    assert evaluate_runs([one.path, two.path], samples=5).part == "crossval and test"


def test_runs_on_different_images_are_refused_and_both_are_named(dataset, ids, new_run, tmp_path):
    one = new_run(tmp_path / "one", dataset, scores_of(dataset, ids, 1.0))
    two = new_run(tmp_path / "two", dataset, scores_of(dataset, ids[::3], 1.0), fold=0)
    with pytest.raises(RunError, match=r"different images.*two.*one"):
        evaluate_runs([one.path, two.path], samples=5)
    assert not (one.path / "metrics.json").exists()


def test_runs_on_different_datasets_are_refused_and_both_are_named(dataset, ids, new_dataset, new_run, masks, tmp_path):
    other = new_dataset(tmp_path / "other", [masks[1], *masks[1:]])
    one = new_run(tmp_path / "one", dataset, scores_of(dataset, ids, 1.0))
    two = new_run(tmp_path / "two", other, scores_of(other, ids, 1.0))
    with pytest.raises(RunError, match=r"different datasets.*two.*one"):
        evaluate_runs([one.path, two.path], samples=5)


def test_a_dataset_that_has_changed_since_is_refused_with_both_hashes(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "run", dataset, scores_of(dataset, ids, 1.0))
    (dataset.path / "annotations.json").write_text(
        (dataset.path / "annotations.json").read_text().replace('"supercategory": "tile"', '"supercategory": "x"')
    )
    with pytest.raises(RunError, match=f"sha256 .*{dataset.annotations_sha256}"):
        evaluate_runs([run.path], samples=5)


def many(dataset, ids, specks):
    """A map, or detections, with `specks` places of two pixels in the first image and one in each other."""
    for i in ids:
        anomaly_map = np.zeros((24, 36), np.float32)
        boxes = [(4 * (n % 9), 4 * (n // 9), 2, 1) for n in range(specks if i == ids[0] else 1)]
        for number, (x, y, w, h) in enumerate(boxes):
            anomaly_map[y : y + h, x : x + w] = 1 + number / 100
        yield i, anomaly_map, boxes


@pytest.mark.parametrize("derived", [False, True], ids=["detections", "maps"])
def test_detections_that_are_cut_off_are_told_and_a_higher_limit_looks_at_them(
    dataset, ids, new_run, tmp_path, capsys, derived
):
    from maskbridge.cli import main

    predictions = [
        Prediction(image_id=i, map=anomaly_map)
        if derived
        else Prediction(
            image_id=i, detections=[Detection(box_ltwh=box, score=0.5 + n / 100) for n, box in enumerate(boxes)]
        )
        for i, anomaly_map, boxes in many(dataset, ids, 7)
    ]
    run = new_run(tmp_path / "run", dataset, predictions)
    for limit, cut in ((6, 1), (7, 0)):
        assert main(["evaluate", str(run.path), "--samples", "5", "--max-detections", str(limit)]) == 0
        told = capsys.readouterr()
        for text in told:
            assert ("run: 1 images have more than 6 detections" in text) == bool(cut)
        metrics = json.loads((run.path / "metrics.json").read_text())
        assert metrics["detections"] == {"most_per_image": limit, "images_cut": cut}
        assert set(metrics["instance"]) >= {"bbox_ar1", f"bbox_ar{limit}"}
    assert main(["evaluate", str(run.path), "--samples", "5"]) == 0
    assert "bbox_ar100" in json.loads((run.path / "metrics.json").read_text())["instance"]


@pytest.mark.parametrize("word", ["0", "-1", "x", "10001", "inf", "1e3"])
def test_a_limit_of_detections_that_is_none_is_a_usage_error(word, tmp_path, capsys):
    from maskbridge.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path), "--max-detections", word])
    assert stop.value.code == 2
    assert "is no number of detections from 1 to 10000" in capsys.readouterr().err


def test_intervals_that_are_not_the_bootstraps_are_marked_wherever_they_stand(dataset, ids, new_run, truth, tmp_path):
    runs = [new_run(tmp_path / name, dataset, truth(dataset, ids)) for name in ("one", "two")]
    board = evaluate_runs([run.path for run in runs], samples=5)
    text = board.markdown()
    assert "| 1.000 [.859, 1.000]° |" in text
    assert "difference .000 [-.141, .141]°, p" in text
    assert "° all bootstrap samples agree: score interval" in text
    assert board.to_json()["rows"][0]["metrics"]["image"]["auroc"]["method"] == "newcombe"
    assert board.to_json()["comparisons"]["image.auroc"][0]["method"] == "mover"


def test_no_run_at_all_is_refused():
    with pytest.raises(RunError, match="no run"):
        evaluate_runs([])


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)"])
def test_a_run_that_is_named_like_a_formula_is_text_in_a_spreadsheet(dataset, ids, new_run, truth, tmp_path, name):
    run = new_run(tmp_path / name.replace("/", "∕"), dataset, truth(dataset, ids))
    rows = list(csv.DictReader(io.StringIO(evaluate_runs([run.path], samples=20).csv())))
    assert {row["run"] for row in rows} == {f"'{run.name}"}
    assert {row["approach"] for row in rows} == {run.info["approach"]}
    assert all(float(row["value"]) is not None for row in rows if row["value"]), "numbers stay numbers"


def test_a_leaderboard_is_replaced_and_no_other_file_is(dataset, ids, new_run, truth, tmp_path):
    board = evaluate_runs([new_run(tmp_path / "a", dataset, truth(dataset, ids)).path], samples=5)
    out = tmp_path / "out"
    for _ in range(2):
        board.write(out)
    names = ["leaderboard.csv", "leaderboard.json", "leaderboard.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        (out / name).write_text("# mine")
        with pytest.raises(MaskbridgeError, match=f"{name}: is not a leaderboard made by maskbridge"):
            board.write(out)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == {**before, name: b"# mine"}
        (out / name).write_bytes(before[name])
