from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from baselines import _gan
from baselines._synthesis import SynthesisOptions, synthesize
from maskbridge.approach import TrainData
from maskbridge.card import make_card
from maskbridge.check import check
from maskbridge.cli import main
from maskbridge.dataset import Dataset, read_image
from maskbridge.errors import DatasetError, MaskbridgeError, OptionError, WeightsError
from maskbridge.files import sha256_file, write_json
from maskbridge.predictions import Run
from maskbridge.start_weights import mark, seen_in, start_from

COUNT = 5


@pytest.fixture
def folds(dataset: Dataset, tmp_path: Path) -> Dataset:
    """The stripes with two folds, as a folder that passes the check."""
    folder = tmp_path / "stripes"
    for image in dataset.images:
        path = folder / "images" / image.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dataset.image_path(image.id).read_bytes())
    labelled, train = range(21, 31), list(range(1, 21))
    parts = []
    for fold in (0, 1):
        test = [i for i in labelled if i % 2 == fold]
        rest = [i for i in labelled if i % 2 != fold]
        parts.append({"train": [*train, *rest[2:]], "val": rest[:2], "test": test})
    write_json(folder / "splits.json", {**dataset.splits, "folds": parts})
    (folder / "annotations.json").write_bytes((dataset.path / "annotations.json").read_bytes())
    card = make_card(
        product="stripes",
        images=dataset.images,
        annotations=dataset.annotations,
        categories=dataset.categories,
        splits={"folds": parts, "official": dataset.splits["official"]},
        rules={
            "instances": "components", "connectivity": 8, "min_area": 1, "binarisation": {},
            "groups": {"by": "hand", "groups": 30, "largest": 1},
        },
        origin={"layout": "mvtec", "path": "stripes", "licence": None},
        options={},
        changes={
            "dropped_instances": {"count": 0, "areas_px": {}}, "empty_masks": {"count": 0, "files": []},
            "ignored_files": {"count": 0, "files": []}, "train_images_left_out": {}, "types_smaller_than_folds": {},
            "groups_across_official_parts": {},
        },
        sha256={name: sha256_file(folder / name) for name in ("annotations.json", "splits.json")},
    )  # fmt: skip
    write_json(folder / "dataset.json", card)
    assert check(folder) == []
    return Dataset.open(folder)


def made(folds: Dataset, out: Path, **options) -> Dataset:
    synthesize(folds, out, SynthesisOptions(**{"count": COUNT, **options}))
    assert check(out) == []
    return Dataset.open(out)


@pytest.mark.parametrize("method", ["cutpaste", "perlin"])
def test_training_parts_get_defects_with_masks_and_all_else_stays(folds: Dataset, tmp_path: Path, method: str) -> None:
    new = made(folds, tmp_path / "out", method=method)
    assert new.images[: len(folds.images)] == folds.images
    assert new.annotations[: len(folds.annotations)] == folds.annotations
    assert new.splits["official"] == folds.splits["official"]
    assert [each["name"] for each in new.categories] == ["chip", "synthetic"]
    seen: set[int] = set()
    for fold in range(2):
        before, after = folds.split(fold), new.split(fold)
        assert (after.val, after.test) == (before.val, before.test)
        added = [new.image_by_id[i] for i in after.train if i not in before.train]
        assert len(added) == COUNT
        assert not seen & {image.id for image in added}
        seen |= {image.id for image in added}
        groups = {folds.image_by_id[i].group for i in before.train if folds.image_by_id[i].is_good}
        for image in added:
            assert image.group in groups
            assert image.defect_type == "synthetic"
            mask = new.mask(image.id)
            [source] = [i for i in folds.images if i.group == image.group]
            one, two = (read_image(d.image_path(i)) for d, i in ((folds, source.id), (new, image.id)))
            np.testing.assert_array_equal(one[mask == 0], two[mask == 0])
            assert cv2.absdiff(one, two)[mask > 0].any()


def test_defects_smaller_than_the_datasets_smallest_are_not_made(folds: Dataset, tmp_path: Path) -> None:
    card = {**folds.card, "rules": {**folds.card["rules"], "min_area": 120}}
    new = made(dataclasses.replace(folds, card=card), tmp_path / "out", count=30)
    areas = [each["area"] for each in new.annotations[len(folds.annotations) :]]
    assert len(areas) >= 60
    assert min(areas) >= 120


def test_the_seed_decides(folds: Dataset, tmp_path: Path) -> None:
    one, two, other = (made(folds, tmp_path / str(n), seed=s) for n, s in enumerate((3, 3, 4)))
    assert one.annotations_sha256 == two.annotations_sha256 != other.annotations_sha256


def test_more_images_than_sources_use_each_source_again(folds: Dataset, tmp_path: Path) -> None:
    new = made(folds, tmp_path / "out", count=60)
    assert sum(image.defect_type == "synthetic" for image in new.images) == 120
    assert len({image.sha256 for image in new.images if image.defect_type == "synthetic"}) > 110


def test_a_gan_is_trained_for_each_fold(folds: Dataset, tmp_path: Path, monkeypatch) -> None:
    trained: list[np.ndarray] = []
    whole = _gan.perturbed_latents

    def quick(images, fabric, context):
        trained.append(images)
        return whole(images, fabric, context, steps=20)

    monkeypatch.setattr(_gan, "perturbed_latents", quick)
    made(folds, tmp_path / "out", method="gan", count=2)
    good = [sum(folds.image_by_id[i].is_good for i in folds.split(fold).train) for fold in range(2)]
    assert [len(images) for images in trained] == good


def test_the_command_prints_the_folder_and_the_card_tells(folds: Dataset, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["synthesize", str(folds.path), str(out), "--method", "perlin", "--count", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert "3 synthetic images in the training part of each of 2 folds" in captured.err
    assert json.loads((out / "dataset.json").read_text())["changes"]["synthetic"]["method"] == "perlin"
    assert main(["card", str(out)]) == 0
    card = capsys.readouterr().out
    assert "- synthetic: 3 images in the training part of each fold, by perlin" in card
    assert "- good : defective = 26 : 4" in card


def test_what_cannot_be_is_refused_and_nothing_is_left(folds: Dataset, tmp_path: Path) -> None:
    new = made(folds, tmp_path / "out")
    with pytest.raises(DatasetError, match="has synthetic defects already"):
        synthesize(new, tmp_path / "again", SynthesisOptions())
    for out in (folds.path, folds.path / "in", folds.path.parent):
        with pytest.raises(OptionError, match="lie in each other"):
            synthesize(folds, out, SynthesisOptions(overwrite=True))
    with pytest.raises(MaskbridgeError, match="is not empty"):
        synthesize(folds, new.path, SynthesisOptions())
    with pytest.raises(OptionError, match="--count cannot be used"):
        SynthesisOptions(count=0)
    with pytest.raises(OptionError, match="--method cannot be used; found 'paint'; expected gan, cutpaste, perlin"):
        SynthesisOptions(method="paint")  # type: ignore[arg-type]
    bare = dataclasses.replace(
        folds, splits={"folds": [{"train": [27, 28], "val": [], "test": [21]}], "official": None}
    )
    with pytest.raises(DatasetError, match="fold 0 has no good image"):
        synthesize(bare, tmp_path / "bare", SynthesisOptions())
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "bare").exists()


def test_instances_are_those_of_the_datasets_rule_and_links_are_told(folds: Dataset, tmp_path: Path) -> None:
    rules = {**folds.card["rules"], "instances": "image"}
    new = made(dataclasses.replace(folds, card={**folds.card, "rules": rules}), tmp_path / "out", method="perlin")
    for image in new.images[len(folds.images) :]:
        assert len(new.annotations_by_image[image.id]) == 1
    assert new.card["changes"]["images_put_there_by"] == {"hard": len(folds.images)}


def test_a_run_on_synthetic_images_has_seen_those_they_were_made_of(folds: Dataset, tmp_path: Path) -> None:
    """Trained on synthetic images alone, of fold 0, which were made of what is tested on here."""
    new = made(folds, tmp_path / "out")
    own = [i for i in new.split(0).train if i not in folds.image_by_id]
    sources = {image.id for image in folds.images if image.group in {new.image_by_id[i].group for i in own}}
    held = sorted(sources)[:2]
    splits = {"folds": [{"train": [], "val": [], "test": held}], "official": None}
    data = TrainData(dataset=dataclasses.replace(folds, splits=splits), train=(), val=(), fold=0)
    file = tmp_path / "start.pt"
    torch.save({}, file)
    mark(file, [seen_in("run", "none", new, 0, train=own)])
    with pytest.raises(WeightsError, match="found 2 of 2 images of test"):
        start_from(SimpleNamespace(start_files=lambda: [file]), data)


def test_runs_on_both_are_compared_on_the_same_test_images(folds: Dataset, tmp_path: Path, capsys) -> None:
    new = made(folds, tmp_path / "out")
    words = ["--fold", "0", "--backbone", "shufflenet_v2_x0_5", "--backbone-weights", "none", "--image-size", "64"]
    for name, dataset in (("plain", folds), ("more", new)):
        run = str(tmp_path / name)
        assert main(["train", "balanced-softmax", str(dataset.path), run, *words]) == 0
        assert main(["predict", run, str(dataset.path)]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "plain"), str(tmp_path / "more"), "--samples", "50"]) == 0
    assert "on the same 5 images" in capsys.readouterr().out
    counts = [Run.open(tmp_path / name).info["trained_on"] for name in ("plain", "more")]
    assert counts[1] == {**counts[0], "synthetic": COUNT}
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "plain"), str(tmp_path / "more"), "--out", str(page), "--samples", "50"]) == 0
    assert "synthetic" in page.read_text(encoding="utf-8")
