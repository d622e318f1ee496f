from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest

from baselines import autoencoder, deep_svdd, gaussian, knn, ocsvm, padim, patchcore, pca
from maskbridge.approach import Context, TrainData
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError, OptionError, WeightsError

SMALL = {
    deep_svdd: deep_svdd.Config(image_size=32, channels=4, embedding=16, epochs=2, batch_size=8),
    autoencoder: autoencoder.Config(image_size=32, channels=8, bottleneck=8, epochs=2, batch_size=8),
    **{
        module: module.Config(backbone="shufflenet_v2_x0_5", backbone_weights="none", image_size=64)
        for module in (knn, gaussian, pca, ocsvm, patchcore, padim)
    },
}
ENOUGH_EPOCHS = {deep_svdd: {"epochs": 10}, autoencoder: {"epochs": 30, "learning_rate": 3e-3}}


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[ModuleType, Path]:
    """A folder with a checkpoint of each approach."""
    folders = {}
    for module, config in SMALL.items():
        folder = folders[module] = tmp_path_factory.mktemp("trained")
        data = TrainData(dataset=dataset, train=dataset.split("official").train, val=(), fold="official")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MASKBRIDGE_CACHE", str(folder / "cache"))
            module.train(data, config, folder / "weights", Context(device="cpu", seed=3, work=folder / "work"))
    return {module: folder / "weights" for module, folder in folders.items()}


approaches = pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__.split(".")[-1])


@approaches
def test_an_obvious_planted_defect_is_found(module: ModuleType, work: SimpleNamespace, auroc) -> None:
    config = dataclasses.replace(SMALL[module], **ENOUGH_EPOCHS.get(module, {}))
    work.train(module, config)
    assert auroc(work.predictions(module, config)) > 0.9


@approaches
def test_predictions_come_one_for_each_image_in_the_order_asked_for(
    module: ModuleType, work: SimpleNamespace, trained
) -> None:
    for asked in ((30, 21, 26, 22), ()):
        found = work.predictions(module, SMALL[module], trained[module], image_ids=asked)
        assert tuple(prediction.image_id for prediction in found) == asked


@approaches
def test_the_checkpoint_loads_again_to_identical_predictions(
    module: ModuleType, work: SimpleNamespace, trained, tmp_path, monkeypatch
) -> None:
    first = work.predictions(module, SMALL[module], trained[module])
    shutil.copytree(trained[module], tmp_path / "copy")
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "another cache"))
    _assert_same(first, work.predictions(module, SMALL[module], tmp_path / "copy"))


@approaches
def test_the_same_seed_gives_the_same_scores_and_another_one_others(
    module: ModuleType, work: SimpleNamespace, trained, tmp_path, dataset, context
) -> None:
    data = TrainData(dataset=dataset, train=dataset.split("official").train, val=(), fold="official")
    module.train(data, SMALL[module], tmp_path / "same", context)
    module.train(data, SMALL[module], tmp_path / "other", dataclasses.replace(context, seed=4))
    first, same, other = (
        work.predictions(module, SMALL[module], folder)
        for folder in (trained[module], tmp_path / "same", tmp_path / "other")
    )
    _assert_same(first, same)
    assert [p.score for p in first] != [p.score for p in other]


@approaches
def test_one_training_image_is_enough(module: ModuleType, work: SimpleNamespace) -> None:
    work.train(module, SMALL[module], train=(1,))
    assert all(np.isfinite(p.score) for p in work.predictions(module, SMALL[module]))


def with_images(dataset: Dataset, folder: Path, change) -> Dataset:
    """The same dataset with other pixels."""
    for number, image in enumerate(dataset.images):
        path = folder / "images" / image.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), change(number, cv2.imread(str(dataset.image_path(image.id)))))
    return dataclasses.replace(dataset, path=folder)


@approaches
def test_images_of_different_sizes_are_taken(
    module: ModuleType, work: SimpleNamespace, dataset: Dataset, tmp_path
) -> None:
    def resize(number: int, pixels: np.ndarray) -> np.ndarray:
        return cv2.resize(pixels, (60 + 5 * (number % 7), 90 - 6 * (number % 5)))

    mixed = with_images(dataset, tmp_path / "mixed", resize)
    work.train(module, SMALL[module], dataset=mixed)
    assert all(np.isfinite(p.score) for p in work.predictions(module, SMALL[module], dataset=mixed))


@approaches
def test_training_images_that_are_all_the_same_give_finite_scores_and_it_is_said(
    module: ModuleType, work: SimpleNamespace, dataset: Dataset, tmp_path, capsys
) -> None:
    flat = with_images(dataset, tmp_path / "flat", lambda _, pixels: np.full_like(pixels, 90))
    work.train(module, SMALL[module], dataset=flat)
    assert all(np.isfinite(p.score) for p in work.predictions(module, SMALL[module]))
    told = {
        deep_svdd: "deep-svdd has collapsed",
        **dict.fromkeys((knn, gaussian, pca, ocsvm), "the features of all 20 training images are the same"),
    }
    assert told.get(module, "") in capsys.readouterr().err


@approaches
def test_no_good_training_image_is_refused_in_one_line(module: ModuleType, work: SimpleNamespace) -> None:
    with pytest.raises(MaskbridgeError, match=r"stripes: no good image in the training part of fold official"):
        work.train(module, SMALL[module], train=())
    assert not work.folder.exists()


@approaches
def test_a_missing_checkpoint_is_named(module: ModuleType, work: SimpleNamespace) -> None:
    with pytest.raises(WeightsError, match=r"run/model\.safetensors: no such checkpoint"):
        work.predictions(module, SMALL[module])


@approaches
def test_a_damaged_checkpoint_is_named(module: ModuleType, work: SimpleNamespace, trained) -> None:
    whole = (trained[module] / "model.safetensors").read_bytes()
    work.folder.mkdir()
    for content in (b"", b"not a checkpoint", whole[:-40]):
        (work.folder / "model.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read as a checkpoint"):
            work.predictions(module, SMALL[module])


@approaches
def test_a_failed_training_leaves_no_checkpoint(module: ModuleType, work: SimpleNamespace, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskbridge.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        work.train(module, SMALL[module])
    assert not list(work.folder.glob("*"))


@pytest.mark.parametrize("module", [deep_svdd, autoencoder], ids=["deep_svdd", "autoencoder"])
def test_a_checkpoint_of_another_shape_does_not_fit(module: ModuleType, work: SimpleNamespace, trained) -> None:
    changes = {"embedding": 8} if module is deep_svdd else {"bottleneck": 4}
    with pytest.raises(WeightsError, match="the weights do not fit the network; found size mismatch"):
        work.predictions(module, dataclasses.replace(SMALL[module], **changes), trained[module])


@approaches
def test_a_device_that_is_not_there_is_refused(module: ModuleType, work: SimpleNamespace, dataset, context) -> None:
    data = TrainData(dataset=dataset, train=(1, 2), val=(), fold="official")
    for device, what in (("cuda:77", "no such GPU"), ("gpu", "no such device")):
        with pytest.raises(OptionError, match=what):
            module.train(data, SMALL[module], work.folder, dataclasses.replace(context, device=device))


@pytest.mark.parametrize(
    ("module", "options", "line"),
    [
        (deep_svdd, {"image_size": 60}, "--image-size cannot be used; found 60; expected a multiple of 8"),
        (deep_svdd, {"epochs": 0}, "--epochs cannot be used; found 0; expected at least 1"),
        (deep_svdd, {"learning_rate": float("nan")}, "--learning-rate cannot be used; found nan"),
        (
            autoencoder,
            {"image_size": 100},
            "--image-size cannot be used; found 100; expected a multiple of 16",
        ),
        (autoencoder, {"blur": -1.0}, "--blur cannot be used; found -1.0; expected at least 0"),
        (knn, {"neighbours": 0}, "--neighbours cannot be used; found 0; expected at least 1"),
    ],
)
def test_an_option_that_cannot_work_is_named_as_it_is_written(module: ModuleType, options, line: str) -> None:
    with pytest.raises(OptionError) as caught:
        module.Config(**options)
    assert line in str(caught.value)


@pytest.mark.parametrize("module", [deep_svdd, autoencoder], ids=["deep_svdd", "autoencoder"])
def test_a_training_that_diverges_is_stopped(module: ModuleType, work: SimpleNamespace) -> None:
    config = dataclasses.replace(SMALL[module], learning_rate=1e30)
    with pytest.raises(MaskbridgeError, match="training diverged; found loss"):
        work.train(module, config)


def test_importing_the_baselines_imports_no_torch() -> None:
    code = (
        "import sys, baselines.knn, baselines.gaussian, baselines.pca, baselines.ocsvm, baselines.patchcore,"
        "baselines.padim, baselines.autoencoder, baselines.deep_svdd, baselines.box_fill, baselines.grabcut,"
        "baselines.balanced_softmax, baselines.commands.synthesize;"
        "print(sorted({'torch', 'torchvision', 'safetensors', 'timm', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def _assert_same(one, two) -> None:
    assert [(p.image_id, p.score) for p in one] == [(p.image_id, p.score) for p in two]
    for p, q in zip(one, two, strict=True):
        np.testing.assert_array_equal(p.map, q.map)
