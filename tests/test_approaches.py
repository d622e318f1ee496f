"""What every module of `finetune/` and `baselines/` owes to the rest, by whatever name it comes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys

import pytest

from maskbridge import plugins
from maskbridge.cli import main
from maskbridge.dataset import Dataset
from maskbridge.options import field_docs
from maskbridge.predictions import Run
from maskbridge.training import Settings

APPROACHES = plugins.names("approach")
BACKBONE = "--backbone shufflenet_v2_x0_5 --backbone-weights none --image-size 64"
#: Options that make an approach small; a new one adds its line.
SMALL = {
    "autoencoder": "--image-size 32 --channels 8 --bottleneck 8 --epochs 1",
    "box-fill": "",
    "deep-svdd": "--image-size 32 --channels 4 --embedding 16 --epochs 1",
    "grabcut": "--iterations 1 --side 32",
    **dict.fromkeys(("balanced-softmax", "gaussian", "knn", "ocsvm", "padim", "patchcore", "pca"), BACKBONE),
    "sam": "--preset tiny --image-size 64 --epochs 1",
    "yolo-world": "--weights none --text-features hashed --imgsz 64 --epochs 1",
}
#: Controls: they have no weights.
LEARNS_NOTHING = {"box-fill", "grabcut"}
HEAVY = {"torch", "ultralytics", "segment_anything", "torchvision"}
#: Names that the command line uses itself.
TAKEN = {field.name for field in dataclasses.fields(Settings)} | {
    "approach", "dataset", "run", "run_path", "part", "preset", "quiet", "help",
}  # fmt: skip

approaches = pytest.mark.parametrize("name", APPROACHES)


@pytest.fixture
def module(name):
    return plugins.load("approach", name)


def test_the_five_approaches_of_the_foundation_are_there():
    assert {"autoencoder", "deep-svdd", "knn", "sam", "yolo-world"} <= set(APPROACHES)


@approaches
def test_it_says_what_it_is_how_to_call_it_and_where_it_comes_from(name, module):
    summary, _, rest = (module.__doc__ or "").partition("\n")
    assert summary == plugins.summary("approach", name)
    assert summary.endswith(".")
    assert f"maskbridge train {name} " in rest
    assert "https://" in rest
    assert isinstance(module.SUPERVISED, bool)


@approaches
def test_its_options_are_a_frozen_keyword_only_dataclass_with_defaults_and_help(name, module):
    config = module.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)
    with pytest.raises(TypeError):
        module.Config(1)
    docs = field_docs(module.Config)
    for field in dataclasses.fields(config):
        assert field.default is not dataclasses.MISSING
        assert docs.get(field.name), f"{field.name} has no help"
    assert module.Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@approaches
def test_its_options_do_not_collide_with_those_of_the_command_line(name, module):
    assert not TAKEN & {field.name for field in dataclasses.fields(module.Config)}


@approaches
def test_its_presets_and_predict_options_are_options(name, module):
    names = {field.name for field in dataclasses.fields(module.Config)}
    assert set(getattr(module, "PREDICT_OPTIONS", ())) <= names
    for preset in getattr(module, "PRESETS", {}).values():
        module.Config(**preset)


@approaches
def test_every_file_that_it_can_start_from_is_named(name, module, tmp_path):
    fields = {field.name for field in dataclasses.fields(module.Config)}
    options = sorted(option for option in fields if option.endswith("weights"))
    assert options or name in LEARNS_NOTHING
    (file := tmp_path / "start.pth").touch()
    for option in options:
        needed = {"backbone": "resnet18"} if "backbone" in fields else {}
        needed |= {"arch": "backbone"} if "arch" in fields else {}
        config = module.Config(**needed, **{**dict.fromkeys(options, "none"), option: str(file)})
        assert config.start_files() == [file], option
        assert module.Config(**needed, **dict.fromkeys(options, "none")).start_files() == []
        gone = module.Config(**needed, **{**dict.fromkeys(options, "none"), option: str(tmp_path / "gone.pth")})
        assert gone.start_files() == [], "that it is missing is told where it is read"


@approaches
def test_train_and_predict_take_what_the_contract_says(name, module):
    for function in (module.train, module.predict):
        assert list(inspect.signature(function).parameters) == ["data", "config", "weights", "context"]
    assert inspect.isgeneratorfunction(module.predict)


@approaches
def test_its_help_shows_every_option_and_loads_nothing_heavy(name, module):
    code = (
        "import sys\nfrom maskbridge.cli import main\n"
        f"try: main(['train', {name!r}, '--help'])\n"
        f"except SystemExit: print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    for field in dataclasses.fields(module.Config):
        assert f"--{field.name.replace('_', '-')}" in out
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", [name for name in APPROACHES if plugins.load("approach", name).SUPERVISED])
def test_a_supervised_approach_refuses_the_official_split(name, plates, tmp_path, capsys):
    code = main(["train", name, str(plates), str(tmp_path / "run"), "--fold", "official", *SMALL[name].split()])
    assert code == 1
    assert "learns from labelled defects" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@approaches
def test_it_trains_predicts_and_leaves_the_dataset_as_it_was(name, plates, tmp_path, tree, monkeypatch, capsys):
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert name in SMALL, "add a line to SMALL"
    before, path = tree(plates), tmp_path / "run"
    words = ["train", name, str(plates), str(path), "--fold", "1", "--device", "cpu", *SMALL[name].split()]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["predict", str(path), str(plates), "--device", "cpu"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.splitlines() == [str(path), str(path / "predictions" / "test")]
    assert tree(plates) == before
    run, dataset = Run.open(path), Dataset.open(plates)
    assert sorted(child.name for child in path.iterdir()) == ["predictions", "run.json", "weights"]
    assert sorted(child.name for child in tmp_path.iterdir() if child.name != "cache") == ["run"]
    assert any(run.weights.iterdir()) == (name not in LEARNS_NOTHING)
    assert run.info["weights_from"].startswith("nothing is learned" if name in LEARNS_NOTHING else "none")
    assert run.info["parameters"] >= 0
    assert set(run.info["seconds"]) == set(run.info["peak_memory_mb"]) == {"train", "val", "test"}
    for entry in run.info["thresholds"]["1"].values():
        assert entry["why"] if entry["value"] is None else entry["rule"]
    split = dataset.split(1)
    learns = plugins.load("approach", name).SUPERVISED and name not in LEARNS_NOTHING
    defective = sum(not dataset.image_by_id[i].is_good for i in split.train)
    assert run.info["trained_on"]["defective"] == (defective if learns else 0)
    for part, ids in (("val", split.val), ("test", split.test)):
        scores, results = run.scores(part), run.detections(part)
        assert scores is not None or results is not None or run.has_maps(part)
        assert scores is None or set(scores) == set(ids)
        assert {result["image_id"] for result in results or ()} <= set(ids)
        assert not run.has_maps(part) or all(run.map(part, i) is not None for i in ids)
    assert main([*words, "--resume"]) == 0
    assert Run.open(path).info == run.info
