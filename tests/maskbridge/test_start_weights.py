from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from maskbridge import start_weights
from maskbridge.approach import TrainData, Trained
from maskbridge.convert import ConvertOptions, convert
from maskbridge.crossval import crossval
from maskbridge.dataset import Dataset
from maskbridge.errors import WeightsError
from maskbridge.files import sha256_file
from maskbridge.model_export import export_run
from maskbridge.predictions import Run
from maskbridge.start_weights import seen_by, seen_in, shared_images, start_from
from maskbridge.training import Settings, train_run
from maskbridge.weights import find_weights, local_weights

LEAK = "start weights have seen images that this fold is judged by"
TENSORS = {"layer": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(5)}


@pytest.fixture
def starts(fake, tmp_path, tiles):
    """Train an approach that takes start weights and leaves checkpoints of both kinds, into a run of the given name."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(fake.Config):
        """Options."""

        weights: str = "none"
        """start weights"""

        def start_files(self) -> list[Path]:
            return [] if self.weights == "none" else [Path(self.weights)]

    predictable = fake.train

    def train(data, config, weights, context):
        predictable(data, config, weights, context)
        torch.save(TENSORS, weights / "best.pt")
        save_file(TENSORS, weights / "model.safetensors", metadata={"mine": "kept"})
        source = "none" if config.weights == "none" else start_weights.source_name(Path(config.weights))
        return Trained(parameters=17, weights_from=source)

    fake.Config, fake.train, fake.SUPERVISED = Config, train, True

    def run(name: str, fold=0, dataset=tiles, weights="none", **options) -> Run:
        settings = Settings(fold=fold, **options)
        return train_run("fake", dataset, tmp_path / name, Config(weights=str(weights)), settings)

    run.Config = Config
    return run


@pytest.fixture
def source(tmp_path, zoo, new_source):
    """A source in the layout of MVTec with 9 defects."""
    kinds = {"crack": [zoo[name] for name in ("line", "ring", "several")] * 3}
    return new_source(tmp_path / "source", kinds, train=6, good=6)


def converted(source, out, **options) -> Dataset:
    convert("mvtec", source, out, ConvertOptions(**{"folds": 3, **options}))
    return Dataset.open(out)


def hashes(dataset, ids):
    return {dataset.image_by_id[i].sha256 for i in ids}


def test_run_json_keeps_what_was_trained_on_and_selected_by(starts, tiles):
    info = starts("one", fold=1).info
    split = tiles.split(1)
    assert info["start_weights"] == []
    [seen] = info["seen"]
    assert set(seen["trained"]) == hashes(tiles, split.train)
    assert set(seen["selected"]) == hashes(tiles, split.val)
    assert not (set(seen["trained"]) | set(seen["selected"])) & hashes(tiles, split.test)
    told = {key: seen[key] for key in ("run", "dataset", "path", "fold", "weights_from", "annotations_sha256")}
    assert told == {
        "run": "one",
        "dataset": "tiles",
        "path": str(tiles.path),
        "fold": 1,
        "weights_from": "none",
        "annotations_sha256": tiles.annotations_sha256,
    }


def test_what_was_seen_is_all_of_its_groups(tiles):
    first, second, *others = tiles.split(0).train
    images = tuple(dataclasses.replace(i, group=99) if i.id in (first, others[-1]) else i for i in tiles.images)
    grouped = dataclasses.replace(tiles, images=images)
    seen = seen_in("run", "none", grouped, 0, train=[first, second])
    assert set(seen.trained) == hashes(tiles, [first, second, others[-1]])


def test_a_checkpoint_tells_what_it_has_seen_and_opens_as_before(starts):
    run = starts("one")
    assert torch.equal(torch.load(run.weights / "best.pt", weights_only=True)["layer"], TENSORS["layer"])
    assert torch.equal(torch.load(run.weights / "best.pt", weights_only=True, mmap=True)["bias"], TENSORS["bias"])
    assert {name: t.tolist() for name, t in load_file(run.weights / "model.safetensors").items()} == {
        name: t.tolist() for name, t in TENSORS.items()
    }
    with safe_open(run.weights / "model.safetensors", framework="pt") as file:
        assert file.metadata()["mine"] == "kept"
    for name in ("best.pt", "model.safetensors"):
        content = (run.weights / name).read_bytes()
        assert str(run.path.parent).encode() not in content, "a checkpoint that is passed on tells no folder"
        [seen] = start_weights._read_record(run.weights / name)
        assert [seen.trained, seen.selected] == [tuple(run.info["seen"][0][key]) for key in ("trained", "selected")]


@pytest.mark.parametrize("name", ["best.pt", "model.safetensors"])
@pytest.mark.parametrize("how", ["as it lies", "copied", "hard", "link", "folder"])
def test_start_weights_of_another_fold_are_refused_wherever_they_lie(starts, tiles, fake, tmp_path, name, how):
    run = starts("one")
    path = tmp_path / "elsewhere.bin" if how == "copied" and name == "best.pt" else tmp_path / f"elsewhere-{name}"
    if how == "copied":
        shutil.copy(run.weights / name, path)
        shutil.rmtree(run.path)
    elif how == "hard":
        path.hardlink_to(run.weights / name)
    elif how == "link":
        path.symlink_to(run.weights / name)
    else:
        path = run.path if how == "folder" else run.weights / name
    trained = len(fake.given)
    with pytest.raises(WeightsError, match=LEAK) as caught:
        starts("two", fold=1, weights=path)
    split = tiles.split(1)
    seen = {*tiles.split(0).train, *tiles.split(0).val} & set(split.test)
    leaked = set(tiles.split(0).train) & set(split.val)
    line = str(caught.value)
    assert f"{path}: {LEAK}; found {len(seen)} of {len(split.test)} images of test and {len(leaked)} of" in line
    assert "seen by one, fold 0 of tiles; expected weights that have seen none of fold 1; start from" in line
    assert not (tmp_path / "two").exists()
    assert len(fake.given) == trained, "refused before anything is trained"


def test_a_fold_goes_on_from_its_own_run_and_the_chain_is_kept(starts):
    first = starts("one")
    second = starts("two", weights=first.weights / "best.pt")
    third = starts("three", weights=second.weights / "model.safetensors")
    assert second.info["weights_from"] == "none, best.pt of a run"
    assert third.info["weights_from"] == "none, best.pt of a run, model.safetensors of a run"
    assert [seen["run"] for seen in third.info["seen"]] == ["three", "two", "one"]
    told = sha256_file(second.weights / "model.safetensors")
    assert third.info["start_weights"] == [{"file": "model.safetensors", "sha256": told}]
    assert seen_by(third.weights / "best.pt")[0].run == "three"


def test_a_leak_is_found_through_a_run_on_another_dataset(starts, plates):
    first = starts("one")
    second = starts("two", dataset=Dataset.open(plates), weights=first.weights / "best.pt")
    with pytest.raises(WeightsError, match=r"seen by one, fold 0 of tiles; .*each fold from its own"):
        starts("three", fold=1, weights=second.weights / "best.pt")
    starts("four", fold=0, weights=second.weights / "best.pt")


def test_early_stopping_on_an_image_is_having_seen_it_where_it_is_to_test(tiles, tmp_path):
    """The same part may select again."""
    file = tmp_path / "start.pt"

    def start(**parts):
        torch.save(TENSORS, file)
        start_weights.mark(file, [seen_in("run", "none", tiles, 0, **parts)])
        config = type("Config", (), {"start_files": lambda self: [file]})()
        split = tiles.split(0)
        return start_from(config, TrainData(dataset=tiles, train=split.train, val=split.val, fold=0))

    split = tiles.split(0)
    assert [seen.run for seen in start(train=split.train, val=split.val).seen] == ["run"]
    for parts, words in (
        ({"train": (), "val": split.test[-1:]}, "1 of {} images of test and 0 of"),
        ({"train": split.test[-1:]}, "1 of {} images of test and 0 of"),
        ({"train": split.val[-1:]}, "0 of {} images of test and 1 of"),
    ):
        with pytest.raises(WeightsError, match=words.format(len(split.test))):
            start(**parts)


@pytest.mark.parametrize("fold", [0, "official"])
def test_the_official_split_and_the_folds_are_held_against_each_other(starts, fake, tiles, fold):
    fake.SUPERVISED = False
    run = starts("one", fold=fold)
    if fold == 0:
        split, official = tiles.split(0), tiles.split("official")
        seen = {*split.val, *(i for i in split.train if tiles.image_by_id[i].is_good)} & set(official.test)
        assert len(seen) > len(split.val)
        with pytest.raises(WeightsError, match=rf"found {len(seen)} of {len(official.test)} images of test and 0 of 0"):
            starts("two", fold="official", weights=run.weights / "best.pt")
    else:
        starts("two", fold=1, weights=run.weights / "best.pt")


def test_a_dataset_that_was_converted_again_is_the_same_images(starts, source, tmp_path):
    one, two = converted(source, tmp_path / "v1"), converted(source, tmp_path / "v2", seed=7, min_area=2)
    assert one.annotations_sha256 != two.annotations_sha256
    run = starts("one", dataset=one)
    with pytest.raises(WeightsError, match=r"seen by one, fold 0 of v1; .*; start from weights from elsewhere"):
        starts("two", dataset=two, weights=run.weights / "best.pt")
    shutil.rmtree(one.path)
    with pytest.raises(WeightsError, match=LEAK):
        starts("two", dataset=two, weights=run.weights / "best.pt")


def test_groups_of_the_new_dataset_count_too(starts, source, tmp_path):
    """One more exposure of a part that was trained on."""
    one = converted(source, tmp_path / "v1")
    run = starts("one", dataset=one)
    split = one.split(0)
    seen, other = split.train[-1], split.test[0]
    images = tuple(
        dataclasses.replace(
            i, sha256="0" * 64 if i.id != seen else i.sha256, group=5 if i.id in (seen, other) else i.id + 9
        )
        for i in one.images
    )
    parts = {"train": list(split.train), "val": [], "test": [other]}
    changed = dataclasses.replace(
        one, images=images, splits={"folds": [parts], "official": None}, path=tmp_path, annotations_sha256="other"
    )
    config = starts.Config(weights=str(run.weights / "best.pt"))
    shutil.rmtree(one.path)
    with pytest.raises(WeightsError, match="found 1 of 1 images of test"):
        start_from(config, TrainData(dataset=changed, train=split.train, val=(), fold=0))


@pytest.mark.parametrize("gone", [False, True])
def test_images_that_were_encoded_anew_are_known_as_pictures(starts, plates, tmp_path, capsys, gone):
    """Mirrored and as JPEG: no hash is the same; where the older dataset is gone, that is said."""
    one = Dataset.open(shutil.copytree(plates, tmp_path / "one"))
    two = Dataset.open(shutil.copytree(plates, tmp_path / "two"))
    images = []
    for image in two.images:
        path = two.image_path(image.id)
        data = cv2.imencode(".jpg", cv2.flip(cv2.imread(str(path)), 1), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        path.write_bytes(data)
        images.append(dataclasses.replace(image, sha256=sha256_file(path)))
    two = dataclasses.replace(two, images=tuple(images), annotations_sha256="other")
    assert not hashes(one, one.image_by_id) & hashes(two, two.image_by_id)
    run = starts("first", dataset=one)
    if gone:
        shutil.rmtree(one.path)
        starts("second", dataset=two, fold=1, weights=run.weights / "best.pt")
        assert f"{one.path}: the dataset of first is gone" in capsys.readouterr().err
        return
    seen = {*one.split(0).train, *one.split(0).val} & set(one.split(1).test)
    with pytest.raises(WeightsError, match=f"found {len(seen)} of {len(one.split(1).test)} images of test"):
        starts("second", dataset=two, fold=1, weights=run.weights / "best.pt")
    starts("second", dataset=two, fold=0, weights=run.weights / "best.pt")
    assert shared_images(one, one.split(0).train, two, one.split(0).test) == set()
    assert shared_images(one, one.split(0).train, two, one.split(0).train[:3]) == set(one.split(0).train[:3])


def test_a_run_that_keeps_no_record_is_judged_by_its_dataset(starts, tiles, source, tmp_path):
    def forget(run: Run) -> Path:
        info = json.loads((run.path / "run.json").read_text())
        (run.path / "run.json").write_text(json.dumps({k: v for k, v in info.items() if k != "seen"}))
        torch.save(TENSORS, run.weights / "best.pt")
        return run.weights / "best.pt"

    older = forget(starts("older"))
    assert seen_by(older)[0].trained == tuple(sorted(hashes(tiles, tiles.split(0).train)))
    with pytest.raises(WeightsError, match=LEAK):
        starts("two", fold=1, weights=older)
    starts("three", fold=0, weights=older)
    gone = converted(source, tmp_path / "gone")
    lost = forget(starts("lost", dataset=gone))
    shutil.rmtree(gone.path)
    with pytest.raises(WeightsError, match=r"it cannot be told which images this run has seen; found .*gone"):
        starts("four", weights=lost)
    changed = converted(source, gone.path, seed=3)
    with pytest.raises(WeightsError, match=r"gone has changed; expected the dataset it was trained on as it was"):
        starts("four", dataset=changed, weights=lost)


def test_a_run_over_all_folds_has_seen_every_labelled_image(starts, tiles, tmp_path):
    merged = crossval("fake", tiles, tmp_path / "all", starts.Config(), Settings())
    seen = seen_by(merged.path)
    assert [each.fold for each in seen] == [0, 1, 2]
    everything = {sha256 for each in seen for sha256 in (*each.trained, *each.selected)}
    assert everything >= hashes(tiles, tiles.fold_of_image())
    starts("two", fold=2, weights=merged.path / "fold2" / "weights" / "best.pt")


def test_crossval_is_refused_before_the_first_fold(starts, tiles, fake, tmp_path):
    run = starts("one", fold=0)
    with pytest.raises(WeightsError, match=r"fold 1; start from a run of fold 1 with the same splits, each fold"):
        crossval("fake", tiles, tmp_path / "all", starts.Config(weights=str(run.weights / "best.pt")), Settings())
    assert len(fake.given) == 1
    assert not (tmp_path / "all").exists()


def test_an_unfinished_run_gives_no_start_weights(starts, fake, tmp_path):
    finished = fake.train

    def killed(data, config, weights, context):
        torch.save(TENSORS, context.work / "last.pt")
        raise KeyboardInterrupt

    fake.train = killed
    with pytest.raises(KeyboardInterrupt):
        starts("cut")
    fake.train = finished
    path = tmp_path / "cut" / "work" / "last.pt"
    with pytest.raises(WeightsError, match=r"start weights lie in an unfinished run; finish it: train .*cut --resume"):
        starts("two", weights=path)


@pytest.mark.parametrize("name", ["model.pt", "model", "model.weights"])
def test_an_exported_model_tells_what_the_run_has_seen(starts, fake, tmp_path, name):
    fake.MODEL_FORMATS = {"torch": "pt"}
    fake.export_model = lambda format, config, weights, out: torch.save(TENSORS, out)
    run = starts("one")
    out = export_run(run.path, tmp_path / name, "torch")
    shutil.rmtree(run.path)
    with pytest.raises(WeightsError, match=LEAK):
        starts("two", fold=2, weights=out)


def test_weights_from_elsewhere_are_nobodys(starts, tmp_path):
    torch.save(TENSORS, tmp_path / "plain.pt")
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(TENSORS, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "run.json").write_text('{"of": "another program"}')
    for name in ("plain.pt", "old.pth", "plain.safetensors", "text.safetensors"):
        assert seen_by(tmp_path / name) == ()
        assert start_weights.source_name(tmp_path / name) == name
    assert starts("one", weights=tmp_path / "plain.pt").info["weights_from"] == "plain.pt"
    assert seen_by(tmp_path / "not there.pt") == ()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'[{"run": "x"}]', b'["\xff"]', pytest.param(b"[" * 200_000, id="deep")]
)
def test_a_record_that_cannot_be_read_is_one_line(tmp_path, content):
    torch.save(TENSORS, tmp_path / "odd.pt")
    with zipfile.ZipFile(tmp_path / "odd.pt", "a") as archive:
        archive.writestr(f"archive/{start_weights.RECORD}", content)
    with pytest.raises(WeightsError, match=r"odd.pt: what the weights have seen cannot be read; found ") as caught:
        seen_by(tmp_path / "odd.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("told", ["", "[1]", pytest.param("\ud800", id="half"), pytest.param("[" * 200_000, id="deep")])
def test_metadata_that_cannot_be_read_are_one_line(tmp_path, told):
    head = json.dumps({"__metadata__": {start_weights.KEY: told}}).encode()
    (tmp_path / "odd.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(WeightsError, match=r"odd.safetensors: what the weights have seen cannot be read; found "):
        seen_by(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("name", ["best.pt", "model.safetensors"])
def test_a_damaged_checkpoint_is_one_line_or_for_its_reader_to_refuse(starts, tmp_path, name):
    whole = (starts("one").weights / name).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / name
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=rng.integers(1, 30)):
            data[place] = rng.integers(256)
        path.write_bytes(bytes(data[: rng.integers(len(data) // 2, len(data))] if rng.random() < 0.3 else data))
        with contextlib.suppress(WeightsError):
            seen_by(path)


def test_a_file_that_may_not_be_read_is_one_line(starts, tmp_path, monkeypatch):
    torch.save(TENSORS, tmp_path / "mine.pt")

    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(start_weights, "sha256_file", closed)
    with pytest.raises(WeightsError, match=r"mine.pt: cannot be read; found Permission denied"):
        starts("one", weights=tmp_path / "mine.pt")


def test_a_name_that_no_file_can_have_is_not_there():
    for name in ("x" * 5000, "absent.pt"):
        assert local_weights(name, ["any"]) == []
        with pytest.raises(WeightsError, match="no such file"):
            find_weights(name, names=["any"], what="weights")


def test_a_run_whose_name_is_no_utf8_is_trained_and_marked(starts):
    run = starts("run \udcff")
    assert next(each.run for each in seen_by(run.path / "weights" / "best.pt")) == r"run \udcff"
