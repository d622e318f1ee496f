from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskbridge import plugins
from maskbridge.cli import main
from maskbridge.predictions import Run

COMMANDS = (
    "sample", "convert", "check", "card", "export", "train", "predict", "crossval", "evaluate", "compare", "report",
    "list", "export-model", "text-features", "synthesize",
)  # fmt: skip


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    """`--quiet` of one test is not that of the next."""
    monkeypatch.setenv("MASKBRIDGE_QUIET", "")


@pytest.fixture
def call(capfd):
    """Run a command: exit code, standard output, standard error."""

    def run(*words):
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as leaving:
            code = leaving.code
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def trained(call, fake, tiles, tmp_path):
    assert call("train", "fake", tiles.path, tmp_path / "run", "--fold", 1)[0] == 0
    return tmp_path / "run"


def test_help_and_version_exit_with_0(call):
    code, out, _ = call("--help")
    assert code == 0
    assert set(COMMANDS) <= {line.split()[0] for line in out.splitlines() if line.startswith("    ")}
    assert call("--version")[0] == 0
    for command in COMMANDS:
        code, out, err = call(command, "--help")
        assert (code, err) == (0, "")
        assert "--quiet" in out


@pytest.mark.parametrize(
    "words",
    [
        [], ["tran"], ["train"], ["--fold", "1"], ["train", "knn"], ["list"], ["list", "formulas"], ["sample"],
        ["train", "knn", "DATA", "RUN", "--fold", "last"], ["train", "knn", "DATA", "RUN", "--colour", "red"],
        ["predict", "RUN"], ["evaluate"], ["evaluate", "RUN", "--part", "train"],
        ["evaluate", "RUN", "--samples", "0"], ["compare", "RUN"],
        ["report", "RUN"], ["card"], ["convert", "mvtec"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_2_and_says_how(call, words):
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.startswith("usage: maskbridge")


@pytest.mark.parametrize("command", ["train", "crossval"])
def test_training_without_an_approach_lists_them(call, command):
    code, _, err = call(command)
    assert code == 2
    assert all(name in err for name in plugins.names("approach"))


@pytest.mark.parametrize("words", [["knnn", "DATA", "RUN"], ["knnn", "DATA", "RUN", "--neighbours", "5"]])
@pytest.mark.parametrize("command", ["train", "crossval"])
def test_an_unknown_approach_suggests_the_nearest(call, command, words):
    code, out, err = call(command, *words)
    assert (code, out) == (1, "")
    assert "no approach of this name; found knnn; expected autoencoder, " in err
    assert err.endswith("; did you mean knn?\n")


def test_an_unknown_format_suggests_the_nearest(call, tiles, tmp_path):
    code, _, err = call("export", "yolo-sag", tiles.path, tmp_path / "out")
    assert code == 1
    assert err.endswith("; did you mean yolo-seg?\n")
    code, _, err = call("export", "mvtec", tiles.path, tmp_path / "out")
    assert (code, err) == (
        1,
        "maskbridge: this format is for reading only; found mvtec; `maskbridge convert mvtec` reads it\n",
    )


@pytest.mark.parametrize(
    "order",
    [
        ["fake", "DATA", "RUN", "--factor", "3", "--fold", "2"],
        ["--fold", "2", "fake", "DATA", "RUN", "--factor", "3"],
        ["--factor", "3", "--fold", "2", "fake", "DATA", "RUN"],
        ["--fold=2", "fake", "--factor=3", "DATA", "RUN"],
        ["--device", "cpu", "--fold", "2", "--quiet", "fake", "DATA", "--factor", "3", "RUN"],
    ],
)
def test_options_of_an_approach_stand_anywhere(call, fake, tiles, tmp_path, order):
    words = [{"DATA": tiles.path, "RUN": tmp_path / "run"}.get(word, word) for word in order]
    code, out, err = call("train", *words)
    assert (code, out) == (0, f"{tmp_path / 'run'}\n"), err
    info = Run.open(tmp_path / "run").info
    assert (info["fold"], info["options"]["factor"]) == (2, 3.0)


def test_a_folder_that_is_named_like_an_approach_is_no_approach(call, fake, tiles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("train", "fake", tiles.path, "knn", "--factor", 3)
    assert (code, out) == (0, f"{tmp_path / 'knn'}\n"), err


def test_presets_and_options_of_an_approach(call, fake, tiles, tmp_path):
    words = ["train", "fake", tiles.path, tmp_path / "run", "--preset"]
    assert call(*words, "loud", "--level", 8)[0] == 0
    assert Run.open(tmp_path / "run").info["options"]["factor"] == 10.0
    assert Run.open(tmp_path / "run").info["options"]["level"] == 8
    code, _, err = call(*words, "silent")
    assert code == 2
    assert "loud" in err


def test_predict_offers_the_options_of_the_runs_approach_wherever_they_stand(call, trained, tiles, tmp_path):
    code, out, err = call("predict", "--part", "val", "--factor", 4, trained, tiles.path, "--out", tmp_path / "second")
    assert (code, out) == (0, f"{tmp_path / 'second' / 'predictions' / 'val'}\n"), err
    assert Run.open(tmp_path / "second").info["options"]["factor"] == 4.0
    assert "name a folder for it with --out" in call("predict", trained, tiles.path, "--factor", 4)[2]
    assert "--factor FACTOR" in call("predict", trained, tiles.path, "--help")[1]
    code, _, err = call("predict", trained, tiles.path, "--level", 4)
    assert code == 2
    assert "--level" in err


def test_predict_of_no_run_or_a_damaged_one_is_one_line(refused, trained, tiles, tmp_path):
    assert "is not a finished run" in refused("predict", tmp_path / "nothing", tiles.path)
    assert "is not a finished run" in refused("predict", tmp_path / "nothing", tiles.path, "--factor", 4)
    run_json = trained / "run.json"
    whole = run_json.read_text()
    for content in ("", "[]", "{}", whole.replace('"fake"', '"fakest"')):
        run_json.write_text(content)
        assert refused("predict", trained, tiles.path)
    run_json.write_text(whole.replace('"factor": 1.0', '"momentum": 1.0'))
    assert "has options of another version" in refused("predict", trained, tiles.path)


def test_predict_makes_a_second_run_and_leaves_the_first(call, refused, trained, tiles, tree, tmp_path):
    before, second = tree(trained), tmp_path / "second"
    words = ["predict", trained, tiles.path, "--out", second, "--factor"]
    code, out, err = call(*words, 4)
    assert (code, out) == (0, f"{second / 'predictions' / 'test'}\n"), err
    assert "factor 1.0 -> 4.0; thresholds were fitted anew on val" in err
    assert tree(trained) == before
    assert Run.open(second).info["options"]["factor"] == 4.0
    assert "second: is not empty; choose another folder or add --overwrite" in refused(*words, 5)
    assert call(*words, 5, "--overwrite")[0] == 0
    assert Run.open(second).info["options"]["factor"] == 5.0
    assert tree(trained) == before


@pytest.mark.parametrize(
    "order",
    [
        ["--out", "OTHER", "--overwrite", "RUN", "DATA", "--factor", "3"],
        ["--overwrite", "RUN", "--out", "OTHER", "--factor", "3", "DATA"],
        ["--out=OTHER", "--overwrite", "--factor=3", "RUN", "DATA"],
        ["RUN", "DATA", "--overwrite", "--factor", "3", "--out", "OTHER"],
    ],
)
def test_the_run_to_predict_with_is_told_from_runs_that_options_name(call, trained, tiles, tmp_path, order):
    """The other run is of another approach, whose options are other ones."""
    other = tmp_path / "other"
    Run(other, {**Run.open(trained).info, "approach": "knn"}).save()
    names = {"RUN": trained, "DATA": tiles.path, "OTHER": other, "--out=OTHER": f"--out={other}"}
    code, _, err = call("predict", *(names.get(word, word) for word in order))
    assert code == 0, err
    info = Run.open(other).info
    assert (info["approach"], info["options"]["factor"]) == ("fake", 3.0)


def test_a_merged_run_is_predicted_fold_by_fold(call, refused, fake, tiles, tmp_path):
    assert call("crossval", "fake", tiles.path, tmp_path / "all")[1] == f"{tmp_path / 'all'}\n"
    line = refused("predict", tmp_path / "all", tiles.path, "--part", "val", "--out", tmp_path / "second")
    assert f"is a merged cross-validation; found --part val; predict one fold: {tmp_path / 'all'}/fold0" in line
    path = tmp_path / "second"
    words = ["predict", tmp_path / "all", tiles.path, "--factor", 7, "--out", path]
    assert call(*words)[:2] == (0, f"{path / 'predictions' / 'crossval'}\n")
    factors = {Run.open(run).info["options"]["factor"] for run in (path, *(path / f"fold{n}" for n in range(3)))}
    assert factors == {7.0}
    code, out, _ = call("evaluate", path, "--json", "--out", tmp_path / "board")
    assert code == 0
    assert json.loads(out)["part"] == "crossval"


def test_a_run_against_a_dataset_that_has_changed_is_refused_with_both_hashes(call, refused, trained, tiles, tmp_path):
    import shutil

    from maskbridge.dataset import Dataset

    assert call("predict", trained, tiles.path)[0] == 0
    copy = shutil.copytree(tiles.path, tmp_path / "copy")
    annotations = copy / "annotations.json"
    annotations.write_text(annotations.read_text().replace('"area": ', '"area":  ', 1))
    for words in (["evaluate", trained, "--dataset", copy], ["predict", trained, copy]):
        line = refused(*words)
        assert f"found sha256 {Dataset.open(copy).annotations_sha256}" in line
        assert f"expected sha256 {tiles.annotations_sha256}" in line


def test_hostile_predictions_are_one_line(call, refused, trained, tiles):
    assert call("predict", trained, tiles.path)[0] == 0
    folder = trained / "predictions" / "test"
    whole = (folder / "detections.json").read_text()
    entry = json.loads(whole)[0]
    for content in (
        "[" * 100_000, json.dumps([{**entry, "score": "high"}]), json.dumps([{**entry, "bbox": [1, 1, -5, 5]}]),
    ):  # fmt: skip
        (folder / "detections.json").write_text(content)
        refused("evaluate", trained)
    (folder / "detections.json").write_text(whole)
    (folder / "scores.json").write_text('{"1": NaN}')
    assert "a number is not finite; found NaN" in refused("evaluate", trained)


@pytest.mark.parametrize("what", ["formats", "approaches"])
def test_list_prints_each_name_with_its_summary(call, what):
    kind = "format" if what == "formats" else "approach"
    code, out, err = call("list", what, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert list(rows) == plugins.names(kind)
    assert all(text.endswith(".") for text in rows.values())
    lines = call("list", what)[1].splitlines()
    assert [line.split()[0] for line in lines] == list(rows)


def test_quiet_prints_results_only_and_a_file_gets_no_progress_bar(call, fake, tiles, tmp_path):
    code, out, err = call("train", "fake", tiles.path, tmp_path / "run")
    assert "trained in" in err
    assert "\r" not in err
    assert "%" not in err
    code, out, err = call("predict", "--quiet", tmp_path / "run", tiles.path)
    assert (code, out, err) == (0, f"{tmp_path / 'run/predictions/test'}\n", "")
    code, out, err = call("export", "coco", tiles.path, tmp_path / "coco", "--quiet")
    assert (code, out, err) == (0, f"{tmp_path / 'coco'}\n", "")


def test_quiet_still_prints_errors(call, tmp_path):
    code, out, err = call("card", "--quiet", tmp_path)
    assert (code, out) == (1, "")
    assert "is not a maskbridge dataset" in err


def test_ctrl_c_exits_with_130_and_a_word(call, fake, tiles, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    fake.train = interrupted
    code, out, err = call("train", "fake", tiles.path, tmp_path / "run")
    assert (code, out, err) == (130, "", "maskbridge: interrupted\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["0", "1"])
def test_names_that_the_locale_has_no_letters_for_are_no_traceback(tmp_path, zoo_dataset, mode):
    folder = tmp_path / "größe\x1b[31m"
    shutil.copytree(zoo_dataset, folder)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": mode}
    for words in (["check", folder], ["card", folder], ["card", tmp_path / "größer"], ["train", "größe"]):
        argv = [sys.executable, "-m", "maskbridge", *(os.fsencode(word) for word in words)]
        told = subprocess.run(argv, env=environment, capture_output=True, check=False)
        assert told.returncode == (0 if words[1] == folder else 1), told.stderr
        assert b"Traceback" not in told.stderr
        assert b"\x1b" not in told.stdout + told.stderr
        assert (told.stdout + told.stderr).isascii()


def test_a_link_to_itself_is_told(refused, tmp_path, zoo_dataset):
    (tmp_path / "loop").symlink_to("loop")
    assert "loop: is a link to itself" in refused("card", tmp_path / "loop")
    assert "loop/x: is a link to itself" in refused("export", "coco", zoo_dataset, tmp_path / "loop" / "x")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_read_enough_is_no_error(unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "maskbridge", "list", "approaches"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_pipe_that_breaks_elsewhere_keeps_its_traceback(fake, tiles, tmp_path):
    def broken(*_):
        raise BrokenPipeError(32, "Broken pipe")

    fake.train = broken
    with pytest.raises(BrokenPipeError):
        main(["train", "fake", str(tiles.path), str(tmp_path / "run")])


def test_a_bug_of_ours_keeps_its_traceback(fake, tiles, tmp_path):
    def buggy(*_):
        raise ZeroDivisionError

    fake.train = buggy
    with pytest.raises(ZeroDivisionError):
        main(["train", "fake", str(tiles.path), str(tmp_path / "run")])


@pytest.mark.parametrize(("number", "remedy"), [(28, "free some space"), (13, "choose a place that can be written")])
def test_a_disk_that_takes_nothing_is_one_line(call, fake, tiles, tmp_path, number, remedy):
    def full(*_):
        raise OSError(number, os.strerror(number), "weights/model.pt")

    fake.train = full
    code, out, err = call("train", "fake", tiles.path, tmp_path / "run")
    assert (code, out) == (1, "")
    assert err == f"maskbridge: weights/model.pt: {os.strerror(number)}; {remedy}\n"


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("a/.metrics.json.maskbridge.partial", "a/metrics.json"),
        (b"a/.run.maskbridge.partial/x", "a/run/x"),
        (3, "a file"),
        (None, "a file"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_by_its_final_name(call, fake, tiles, tmp_path, named, told):
    def refused(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), named)

    fake.predict = refused
    run = tmp_path / "run"
    told = told if named is not None else str(run)  # a training knows its own folder
    assert call("train", "fake", tiles.path, run)[2].startswith(f"maskbridge: {told}: {os.strerror(errno.EROFS)};")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_program_whose_streams_are_closed_does_its_work(tiles, tmp_path, closed):
    words = f"'{sys.executable}' -m maskbridge export coco '{tiles.path}' '{tmp_path}/out' {closed}"
    done = subprocess.run(["bash", "-c", words], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "out" / "export-report.json").is_file()


def test_check_exits_with_1_where_there_is_a_problem(call, tiles, tmp_path):
    import shutil

    assert call("check", tiles.path) == (0, f"{tiles.path}: whole\n", "")
    copy = shutil.copytree(tiles.path, tmp_path / "copy")
    next((copy / "images").rglob("*.png")).unlink()
    code, out, _ = call("check", copy)
    assert code == 1
    assert out.endswith(": 1 problem\n")


def test_card_prints_markdown_or_json(call, tiles):
    assert json.loads(call("card", tiles.path, "--json")[1])["product"] == "tile"
    code, out, err = call("card", tiles.path)
    assert (code, err) == (0, "")
    assert out.startswith("#")
    assert out.endswith("\n")
    assert not out.endswith("\n\n")


@pytest.mark.parametrize("words", [["--help"], ["train", "yolo-world", "--help"], ["train", "sam", "--help"]])
def test_help_loads_nothing_heavy(words):
    heavy = {"torch", "ultralytics", "segment_anything", "torchvision"}
    code = (
        "import sys\nfrom maskbridge.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: print(sorted({heavy!r} & set(sys.modules)))"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.splitlines()[-1] == "[]"


def test_the_modules_of_commands_are_the_list():
    assert set(plugins.names("command")) == set(COMMANDS)
    for name in COMMANDS:
        assert callable(plugins.load("command", name).add_arguments)
        assert callable(plugins.load("command", name).run)


def test_python_m_maskbridge_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "maskbridge", "card", "/nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("maskbridge: /nowhere: is not a maskbridge dataset")


def test_the_nearest_preset_is_named(plates, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "deep-svdd", str(plates), str(tmp_path / "run"), "--preset", "resnet81"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(
        "no preset 'resnet81' (choose from cnn, resnet18, resnet18-aug, resnet18-mahalanobis); did you mean resnet18?\n"
    )
