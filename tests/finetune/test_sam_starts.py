from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from finetune import _sam_checkpoints, _sam_model, sam
from maskbridge.approach import Context
from maskbridge.dataset import Dataset
from maskbridge.errors import WeightsError
from maskbridge.model_export import export_run
from maskbridge.start_weights import mark, seen_in
from maskbridge.training import Settings, train_run


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MASKBRIDGE_WEIGHTS", raising=False)


def tiny():
    torch.manual_seed(0)
    return _sam_model.build("tiny", backbone="", image_size=64)


# ---------------------------------------------------------------- start weights of another run


def of_fold(dataset, fold, path, config):
    return train_run("sam", dataset, path, config, Settings(fold=fold, device="cpu"))


def small(**options):
    return sam.Config(**{"arch": "tiny", "weights": "none", "image_size": 64, "epochs": 1, **options})


@pytest.mark.parametrize("name", ["sam.pt", "lora.pt"])
@pytest.mark.parametrize("copied", [False, True])
def test_weights_of_a_run_of_another_fold_are_refused(plates, tmp_path, name, copied):
    dataset = Dataset.open(plates)
    run = of_fold(dataset, 0, tmp_path / "one", small(train="lora" if name == "lora.pt" else "decoder"))
    path = Path(shutil.copy(run.weights / name, tmp_path / "mine.pth")) if copied else run.weights / name
    config = small(weights=str(path))
    assert config.start_files() == [path]
    with pytest.raises(WeightsError, match=r"have seen images that this fold is judged by; .* seen by one, fold 0 of"):
        of_fold(dataset, 1, tmp_path / "two", config)
    assert not (tmp_path / "two").exists()
    if name == "lora.pt":
        return
    state = torch.load(path, weights_only=True)
    assert state.keys() == tiny().sam.state_dict().keys(), "a plain state dict still"
    again = of_fold(dataset, 0, tmp_path / "three", config)
    assert [seen["run"] for seen in again.info["seen"]] == ["three", "one"]
    assert again.info["weights_from"] == f"none, {path.name} of a run, image encoder: none"
    exported = export_run(run.path, tmp_path / "out.pth", "segment-anything")
    with pytest.raises(WeightsError, match="have seen images"):
        of_fold(dataset, 2, tmp_path / "four", small(weights=str(exported)))


def test_backbone_weights_that_have_seen_the_images_are_refused(plates, tmp_path):
    """Of another approach's run."""
    dataset = Dataset.open(plates)
    network = _sam_checkpoints.models.get_model("mobilenet_v2", weights=None)
    torch.save(network.state_dict(), tmp_path / "mobilenet_v2.pth")
    mark(tmp_path / "mobilenet_v2.pth", [seen_in("run", "none", dataset, 0, train=dataset.split(0).test)])
    config = small(arch="backbone", backbone_weights=str(tmp_path / "mobilenet_v2.pth"))
    with pytest.raises(WeightsError, match=r"mobilenet_v2.pth: start weights have seen images"):
        of_fold(dataset, 0, tmp_path / "run", config)


def test_weights_that_are_found_in_the_weights_folder_are_looked_at_too(plates, tmp_path, monkeypatch):
    dataset = Dataset.open(plates)
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(tmp_path))
    torch.save(tiny().sam.state_dict(), tmp_path / f"{_sam_checkpoints.DECODER_NAME}.pt")
    config = small(weights="auto")
    [path] = config.start_files()
    mark(path, [seen_in("run", "none", dataset, 0, train=dataset.split(0).test)])
    with pytest.raises(WeightsError, match="start weights have seen images"):
        of_fold(dataset, 0, tmp_path / "run", config)


# ---------------------------------------------------------------- defect images without a mask


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_defect_image_without_a_mask_is_no_good_one(dataset, tmp_path, lab, capsys, part):
    """Nothing is learned from it, and no epoch chosen by it: the weights are those of a training without it."""
    lost, val = (12, (3, 4, 9, 10)) if part == "train" else (10, (3, 4, 9, 10))
    emptied = dataclasses.replace(dataset, annotations=tuple(a for a in dataset.annotations if a["image_id"] != lost))
    assert emptied.without_mask == {lost}
    everything = lab.everything(emptied, val=val)
    config = sam.Config(**{**lab.tiny, "epochs": 2, "negatives": "all", "batch": 3})
    told = {}
    for name, data in (
        ("with", everything),
        (
            "without",
            dataclasses.replace(everything, **{part: tuple(i for i in getattr(everything, part) if i != lost)}),
        ),
    ):
        context = Context(device="cpu", seed=0, work=tmp_path / name / "work")
        context.work.mkdir(parents=True)
        told[name] = sam.train(data, config, tmp_path / name / "weights", context)
    assert lab.same_weights(tmp_path / "with", tmp_path / "without")
    assert told["with"].facts["history"] == told["without"].facts["history"]
    assert told["with"].facts["good_images_per_epoch"] == 4
    assert told["with"].trained_on == {"good": 4, "defective": 3 if part == "train" else 4}
    assert "sam: 1 defect images without a mask are left out" in capsys.readouterr().err
