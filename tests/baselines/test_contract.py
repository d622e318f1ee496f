from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

from baselines import autoencoder, balanced_softmax, deep_svdd, gaussian, knn, ocsvm, padim, patchcore, pca
from maskbridge.approach import Context, TrainData
from maskbridge.dataset import Dataset
from maskbridge.errors import MaskbridgeError, OptionError, WeightsError

ENCODER = {"backbone": "shufflenet_v2_x0_5", "backbone_weights": "none", "image_size": 64}
#: Good images, and two of the four with chips.
LABELLED = (*range(1, 21), 27, 28)
THE_SAME = "the features of all 20 training images are the same"


NO_GOOD_IMAGE = (
    r"stripes: (no good image in the training part of fold official|"
    r"fold official has nothing to tell apart in its training part; found no image)"
)


class Case(NamedTuple):
    """An approach with options that make it small."""

    module: ModuleType
    config: Any
    #: What is said of training images that are all the same; None: nothing, since no features are compared.
    tells: str | None = THE_SAME
    #: Options with which it finds the chips; None: not in a training as short as this, from random weights.
    enough: dict[str, Any] | None = {}  # noqa: RUF012
    train: tuple[int, ...] = tuple(range(1, 21))

    def data(self, dataset: Dataset) -> TrainData:
        return TrainData(dataset=dataset, train=self.train, val=(), fold="official")


SVDD = deep_svdd.Config(image_size=32, channels=4, embedding=16, epochs=2, batch_size=8)
SVDD_ENCODER = deep_svdd.Config(**ENCODER, embedding=16, epochs=2, batch_size=8)
AUTOENCODER = autoencoder.Config(image_size=32, channels=8, bottleneck=8, epochs=2, batch_size=8)
CASES = {
    "deep-svdd": Case(deep_svdd, SVDD, enough={"epochs": 10}),
    "deep-svdd-cutpaste": Case(deep_svdd, dataclasses.replace(SVDD, anomalies="cutpaste"), enough={"epochs": 10}),
    "deep-svdd-resnet18": Case(deep_svdd, SVDD_ENCODER, enough=None),
    "deep-svdd-resnet18-aug": Case(deep_svdd, dataclasses.replace(SVDD_ENCODER, flip=True, crop=0.8), enough=None),
    "deep-svdd-resnet18-mahalanobis": Case(
        deep_svdd, dataclasses.replace(SVDD_ENCODER, score="mahalanobis"), enough=None
    ),
    "autoencoder": Case(autoencoder, AUTOENCODER, None, {"epochs": 30, "learning_rate": 3e-3}),
    "autoencoder-ssim": Case(
        autoencoder, dataclasses.replace(AUTOENCODER, loss="ssim"), None, {"epochs": 60, "learning_rate": 3e-3}
    ),
    "autoencoder-resnet18": Case(autoencoder, autoencoder.Config(**ENCODER, epochs=2, batch_size=8), None, None),
    **{
        module.__name__.rpartition(".")[2]: Case(module, module.Config(**ENCODER))
        for module in (knn, gaussian, pca, ocsvm, patchcore, padim)
    },
    "balanced-softmax": Case(
        balanced_softmax, balanced_softmax.Config(**ENCODER), THE_SAME.replace("20", "22"), None, LABELLED
    ),
}


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a checkpoint of each approach."""
    folders = {}
    for name, case in CASES.items():
        folder = folders[name] = tmp_path_factory.mktemp("trained")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MASKBRIDGE_CACHE", str(folder / "cache"))
            context = Context(device="cpu", seed=3, work=folder / "work")
            case.module.train(case.data(dataset), case.config, folder / "weights", context)
    return {name: folder / "weights" for name, folder in folders.items()}


approaches = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.enough is not None])
def test_an_obvious_planted_defect_is_found(case: Case, work: SimpleNamespace, auroc) -> None:
    assert case.enough is not None
    config = dataclasses.replace(case.config, **case.enough)
    work.train(case.module, config, train=case.train)
    unseen = [image_id for image_id in range(21, 31) if image_id not in case.train]
    assert auroc(work.predictions(case.module, config, image_ids=unseen)) > 0.9


@approaches
def test_predictions_come_one_for_each_image_in_the_order_asked_for(
    case: Case, name: str, work: SimpleNamespace, trained
) -> None:
    for asked in ((30, 21, 26, 22), ()):
        found = work.predictions(case.module, case.config, trained[name], image_ids=asked)
        assert tuple(prediction.image_id for prediction in found) == asked


@approaches
def test_the_checkpoint_loads_again_to_identical_predictions(
    case: Case, name: str, work: SimpleNamespace, trained, tmp_path, monkeypatch
) -> None:
    first = work.predictions(case.module, case.config, trained[name])
    shutil.copytree(trained[name], tmp_path / "copy")
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "another cache"))
    _assert_same(first, work.predictions(case.module, case.config, tmp_path / "copy"))


@approaches
def test_the_same_seed_gives_the_same_scores_and_another_one_others(
    case: Case, name: str, work: SimpleNamespace, trained, tmp_path, dataset, context
) -> None:
    case.module.train(case.data(dataset), case.config, tmp_path / "same", context)
    case.module.train(case.data(dataset), case.config, tmp_path / "other", dataclasses.replace(context, seed=4))
    first, same, other = (
        work.predictions(case.module, case.config, folder)
        for folder in (trained[name], tmp_path / "same", tmp_path / "other")
    )
    _assert_same(first, same)
    assert [p.score for p in first] != [p.score for p in other]


@approaches
def test_one_image_of_each_kind_is_enough(case: Case, work: SimpleNamespace) -> None:
    work.train(case.module, case.config, train=(1, 27) if case.module.SUPERVISED else (1,))
    assert all(np.isfinite(p.score) for p in work.predictions(case.module, case.config))


def with_images(dataset: Dataset, folder: Path, change) -> Dataset:
    """The same dataset with other pixels."""
    for number, image in enumerate(dataset.images):
        path = folder / "images" / image.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), change(number, cv2.imread(str(dataset.image_path(image.id)))))
    return dataclasses.replace(dataset, path=folder)


@approaches
def test_images_of_different_sizes_are_taken(case: Case, work: SimpleNamespace, dataset: Dataset, tmp_path) -> None:
    def resize(number: int, pixels: np.ndarray) -> np.ndarray:
        return cv2.resize(pixels, (60 + 5 * (number % 7), 90 - 6 * (number % 5)))

    mixed = with_images(dataset, tmp_path / "mixed", resize)
    work.train(case.module, case.config, train=case.train, dataset=mixed)
    assert all(np.isfinite(p.score) for p in work.predictions(case.module, case.config, dataset=mixed))


@approaches
def test_training_images_that_are_all_the_same_give_finite_scores_and_it_is_said(
    case: Case, work: SimpleNamespace, dataset: Dataset, tmp_path, capsys
) -> None:
    flat = with_images(dataset, tmp_path / "flat", lambda _, pixels: np.full_like(pixels, 90))
    work.train(case.module, case.config, train=case.train, dataset=flat)
    assert all(np.isfinite(p.score) for p in work.predictions(case.module, case.config))
    told = capsys.readouterr().err
    assert ("training images are the same" not in told) if case.tells is None else (case.tells in told)


@approaches
def test_no_good_training_image_is_refused_in_one_line(case: Case, work: SimpleNamespace) -> None:
    with pytest.raises(MaskbridgeError, match=NO_GOOD_IMAGE):
        work.train(case.module, case.config, train=())
    assert not work.folder.exists()


@approaches
def test_a_missing_checkpoint_is_named(case: Case, work: SimpleNamespace) -> None:
    with pytest.raises(WeightsError, match=r"run/model\.safetensors: no such checkpoint"):
        work.predictions(case.module, case.config)


@approaches
def test_a_damaged_checkpoint_is_named(case: Case, name: str, work: SimpleNamespace, trained) -> None:
    whole = (trained[name] / "model.safetensors").read_bytes()
    work.folder.mkdir()
    for content in (b"", b"not a checkpoint", whole[:-40]):
        (work.folder / "model.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read as a checkpoint"):
            work.predictions(case.module, case.config)


@approaches
@pytest.mark.parametrize(
    "facts", ["[]", '{"backbone": 3}', '{"weights_from": null}', "null", "{", pytest.param("[" * 99_999, id="deep")]
)
def test_a_checkpoint_with_another_header_is_named(
    case: Case, name: str, facts: str, work: SimpleNamespace, trained
) -> None:
    from safetensors.torch import load_file, save_file

    work.folder.mkdir(exist_ok=True)
    tensors = load_file(trained[name] / "model.safetensors")
    save_file(tensors, work.folder / "model.safetensors", metadata={"maskbridge": facts})
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read as a checkpoint"):
        work.predictions(case.module, case.config)


@approaches
def test_a_checkpoint_without_a_tensor_is_named(case: Case, name: str, work: SimpleNamespace, trained) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    work.folder.mkdir(exist_ok=True)
    whole = trained[name] / "model.safetensors"
    with safe_open(whole, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(whole)
    refused = 0
    for lost in [key for key in tensors if not key.startswith("backbone.")][-12:]:
        rest = {key: tensor for key, tensor in tensors.items() if key != lost}
        save_file(rest, work.folder / "model.safetensors", metadata=header)
        try:  # not every one is needed
            work.predictions(case.module, case.config)
        except WeightsError as error:
            refused += lost.rpartition(".")[2] in str(error)
    assert refused


@approaches
def test_a_failed_training_leaves_no_checkpoint(case: Case, work: SimpleNamespace, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskbridge.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        work.train(case.module, case.config, train=case.train)
    assert not list(work.folder.glob("*"))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deep-svdd", {"embedding": 8}),
        ("deep-svdd-resnet18", {"embedding": 8}),
        ("autoencoder", {"bottleneck": 4}),
    ],
)
def test_a_checkpoint_of_another_shape_does_not_fit(
    case: Case, name: str, changes, work: SimpleNamespace, trained
) -> None:
    with pytest.raises(
        WeightsError, match=r"the weights do not fit the network; found [0-9]+ of [0-9]+ tensors that fit; .* not "
    ):
        work.predictions(case.module, dataclasses.replace(case.config, **changes), trained[name])


@approaches
def test_a_device_that_is_not_there_is_refused(case: Case, work: SimpleNamespace, dataset, context) -> None:
    for device, what in (("cuda:77", "no such GPU"), ("gpu", "no such device")):
        with pytest.raises(OptionError, match=what):
            case.module.train(case.data(dataset), case.config, work.folder, dataclasses.replace(context, device=device))


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


@pytest.mark.parametrize("name", ["deep-svdd", "deep-svdd-resnet18", "autoencoder", "autoencoder-resnet18"])
def test_a_training_that_diverges_is_stopped(case: Case, work: SimpleNamespace) -> None:
    config = dataclasses.replace(case.config, learning_rate=1e30)
    with pytest.raises(MaskbridgeError, match="training diverged; found loss"):
        work.train(case.module, config)


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
