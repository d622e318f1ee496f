"""Runs that were given truth stand apart: leaderboard, comparison, report."""

import csv
import io
import json

import numpy as np
import pytest

from evaluation.columns import COLUMNS, COSTS, GIVEN_COLUMNS
from evaluation.leaderboard import evaluate_runs
from evaluation.report import write_report
from maskbridge import geometry
from maskbridge.cli import main

BOXES = "boxes of the defects"
TITLE = "## Given the boxes of the defects (oracle prompts)"


@pytest.fixture
def given(dataset, ids, new_run, prompted, tmp_path):
    def make(name, moved, truth_given=BOXES, **info):
        """A run whose masks lie `moved` columns beside the defects."""
        made = prompted(dataset, ids, lambda a: np.roll(geometry.decode(a["segmentation"]), moved, axis=1))
        return new_run(tmp_path / name, dataset, made, truth_given=truth_given, thresholds={}, **info).path

    return make


@pytest.fixture
def other(dataset, ids, new_run, truth, tmp_path):
    def make(name):
        return new_run(tmp_path / name, dataset, truth(dataset, ids)).path

    return make


def board_of(*paths):
    return evaluate_runs(paths, samples=20)


def cells(text):
    """By run the rows of all tables that name it first."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            name, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            rows.setdefault(name, []).append(rest)
    return rows


def test_they_have_a_table_of_their_own_below_sorted_by_mask_iou(given, other):
    board = board_of(given("poor", 2), other("one"), given("fine", 0), other("two"))
    assert [row.run for row in board.rows] == ["one", "two", "fine", "poor"]
    main_part, own = board.markdown().split(TITLE)
    assert "fine" not in main_part
    assert "poor" not in main_part
    assert set(cells(main_part)) == {"run", "one", "two"}
    rows = cells(own)
    assert rows["run"][0] == ["approach", *(c.heading for c in GIVEN_COLUMNS), *(c.heading for c in COSTS)]
    assert list(rows) == ["run", "fine", "poor"]
    assert rows["fine"][0][1].startswith("1.000 [")
    assert "Who beats whom on image AUROC" in main_part
    assert "one and two are not distinguishable" in main_part
    assert "Who beats whom on mask IoU" in own
    assert "fine beats poor: mask IoU 1.000 and " in own


def test_every_table_corrects_for_its_own_pairs(given, other):
    board = board_of(*(given(f"given{n}", n) for n in range(3)), other("one"), other("two"))
    pairs = [(pair.one, pair.other, pair.pairs) for pair in board.comparisons["mask.iou"]]
    assert pairs == [("one", "two", 1), ("given0", "given1", 3), ("given0", "given2", 3), ("given1", "given2", 3)]
    assert [(pair.one, pair.other) for pair in board.comparisons["image.auroc"]] == [("one", "two")]
    assert set(board.comparisons) == {column.key for column in (*COLUMNS, *GIVEN_COLUMNS)}


def test_a_leaderboard_of_them_alone_has_no_other_table(given):
    board = board_of(given("fine", 0), given("poor", 3))
    text = board.markdown()
    assert list(cells(text)) == ["run", "fine", "poor"]
    assert "image AUROC" not in text.split("* \\*")[0]
    assert set(board.comparisons) == {column.key for column in GIVEN_COLUMNS}


def test_a_leaderboard_without_them_says_nothing_of_them(other):
    text = board_of(other("one"), other("two")).markdown()
    assert "##" not in text
    assert "Given" not in text


def test_what_was_given_otherwise_stands_in_another_table(given):
    board = board_of(given("boxes", 0), given("points", 1, truth_given="points <in> the defects"))
    assert [table.title for table in board.tables] == [
        "Given the boxes of the defects (oracle prompts)",
        "Given the points <in> the defects (oracle prompts)",
    ]
    assert board.comparisons["mask.iou"] == ()
    assert "## Given the points \\<in\\> the defects" in board.markdown()


def test_their_spread_over_seeds_stands_with_them(given, other):
    text = board_of(given("a", 0, seed=0), given("b", 1, seed=1), other("one")).markdown()
    main_part, own = text.split(TITLE)
    assert "over seeds" not in main_part
    assert "| a, b | " in own


def test_json_and_csv_say_what_was_given(given, other, tmp_path):
    board = board_of(given("fine", 0), other("one"))
    board.write(tmp_path / "out")
    content = json.loads((tmp_path / "out/leaderboard.json").read_text(encoding="utf-8"))
    assert {row["run"]: row["truth_given"] for row in content["rows"]} == {"one": None, "fine": BOXES}
    lines = list(csv.DictReader(io.StringIO(board.csv())))
    assert {(line["run"], line["truth_given"]) for line in lines} == {("one", ""), ("fine", BOXES)}
    iou = next(line for line in lines if line["run"] == "fine" and (line["family"], line["metric"]) == ("mask", "iou"))
    assert iou["value"] == "1.0"


def test_two_of_them_are_compared_on_masks_and_the_rest_is_said_to_be_undefined(given, capsys):
    assert main(["compare", str(given("fine", 0)), str(given("poor", 2)), "--samples", "50"]) == 0
    told = capsys.readouterr().out
    assert "fine beats poor: mask IoU 1.000 and" in told
    assert "fine beats poor: mask Dice 1.000 and" in told
    for name in ("fine", "poor"):
        assert f"{name}: metrics of images, pixels, boxes and types are undefined; the run was given the boxes" in told
    assert "\nimage AUROC" not in told


def test_one_of_them_is_compared_with_another_run(given, other, capsys):
    assert main(["compare", str(other("one")), str(given("poor", 2)), "--samples", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("image AUROC")).split()[2:] == ["1.000", *"-----"]
    assert any(line.startswith("one beats poor: mask IoU") for line in lines)
    assert sum("undefined" in line for line in lines) == 1


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
def test_a_report_is_made_of_them(given, other, tmp_path, beside):
    board = board_of(given("fine", 0), given("poor", 2), *([other("one")] if beside else []))
    assert write_report(board, tmp_path / "report.html") > 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    *first, own = data["tables"]
    assert [table["title"] for table in first] == [""] * beside
    assert [data["runs"][run]["name"] for run in own["runs"]] == ["fine", "poor"]
    assert [data["columns"][place]["key"] for place in own["columns"]] == [column.key for column in GIVEN_COLUMNS]
    fine = data["runs"][own["runs"][0]]
    assert (fine["scores"], fine["cuts"], fine["maps"]["there"], fine["detections"]["there"]) == (
        None,
        None,
        False,
        True,
    )
    assert ["given", BOXES] in fine["facts"]
    assert bool(data["byType"]) is beside
