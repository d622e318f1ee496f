import json

import numpy as np
import pytest

from evaluation.leaderboard import evaluate_runs
from maskbridge.approach import Prediction
from maskbridge.errors import RunError


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
    board = evaluate_runs([worst.path, derived.path, best.path], out=tmp_path / "out", samples=20)
    assert board.rows[0].run == "best"
    assert [row.auroc for row in board.rows] == sorted((row.auroc for row in board.rows), reverse=True)

    text = (tmp_path / "out/leaderboard.md").read_text(encoding="utf-8")
    assert text == board.markdown()
    assert "12 good and 18 defective images" in text
    assert "F1max (oracle)" in text
    cells = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "made-up †" in cells["worst"]
    assert "made-up ‡" in cells["derived"]
    assert "made-up |" in cells["best"]
    assert "\\*" in cells["derived"]
    assert "\\*" not in cells["best"]
    assert "random initialisation" in text
    assert len({line.count("|") for line in cells.values()}) == 1

    content = json.loads((tmp_path / "out/leaderboard.json").read_text(encoding="utf-8"))
    assert [row["run"] for row in content["rows"]] == [row.run for row in board.rows]
    for row in content["rows"]:
        assert json.loads((tmp_path / row["run"] / "metrics.json").read_text()) == row["metrics"]


def test_nothing_is_written_beside_the_runs_without_a_folder(dataset, ids, new_run, tmp_path):
    run = new_run(tmp_path / "run", dataset, scores_of(dataset, ids, 1.0))
    evaluate_runs([run.path], samples=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tiles"]


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


def test_no_run_at_all_is_refused():
    with pytest.raises(RunError, match="no run"):
        evaluate_runs([])
