"""10, 12 and 14 bits in 16-bit files: one scale for a source, used by whatever reads pixels."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskbridge import plugins
from maskbridge.check import check
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError
from maskbridge.export import ExportOptions
from maskbridge.files import read_json
from maskbridge.predicting import predict_run
from maskbridge.training import Settings, train_run

Change = Callable[[np.ndarray], np.ndarray]


def changed(source: Path, change: Change, suffix: str = ".png") -> Path:
    """Every image of a source, masks left out, as another array."""
    for path in sorted(source.glob("t*/*/*.png")):
        pixels = change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
        path.unlink()
        assert cv2.imwrite(str(path.with_suffix(suffix)), pixels)
    return source


def dataset_of(source: Path, out: Path) -> Dataset:
    convert("mvtec", source, out, ConvertOptions(folds=2))
    assert check(out) == []
    return Dataset.open(out)


@pytest.fixture(scope="module")
def eight(zoo_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset_of(zoo_source, tmp_path_factory.mktemp("eight") / "out")


def test_eight_bits_are_eight_bits(eight: Dataset) -> None:
    assert eight.bit_depth == 8
    image = eight.images[0]
    stored = cv2.imread(str(eight.image_path(image.id)))
    np.testing.assert_array_equal(eight.read_image(image.id)[..., ::-1], stored)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_models_see_of_any_depth_what_they_see_of_eight_bits(eight, source, tmp_path, bits, suffix) -> None:
    """Values up to the top of the depth, and none beyond."""
    deep = changed(
        source, lambda pixels: (pixels.astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16), suffix
    )
    dataset = dataset_of(deep, tmp_path / "out")
    assert dataset.bit_depth == bits
    assert read_json(tmp_path / "out/dataset.json")["bit_depth"] == bits
    for one, two in zip(eight.images, dataset.images, strict=True):
        difference = eight.read_image(one.id).astype(int) - dataset.read_image(two.id)
        assert np.abs(difference).max() <= 1


def test_grey_images_of_twelve_bits_and_alpha_are_scaled_too(source, tmp_path) -> None:
    def with_alpha(pixels: np.ndarray) -> np.ndarray:
        return np.dstack([pixels.astype(np.uint16) * 16, np.full(pixels.shape[:2], 65535, np.uint16)])

    dataset = dataset_of(changed(source, with_alpha), tmp_path / "out")
    assert dataset.bit_depth == 12
    assert dataset.read_image(1).max() > 250


def test_one_dark_image_is_scaled_like_the_bright_ones_of_its_source(source, tmp_path) -> None:
    changed(source, lambda pixels: pixels.astype(np.uint16) * 16)
    dark = source / "train/good/001.png"
    cv2.imwrite(str(dark), cv2.imread(str(dark), cv2.IMREAD_UNCHANGED) // 8)
    dataset = dataset_of(source, tmp_path / "out")
    image = next(image for image in dataset.images if image.file_name == "train/good/001.png")
    assert dataset.bit_depth == 12
    assert dataset.read_image(image.id).max() == 32


def test_eight_bit_images_beside_deep_ones_are_never_scaled(source, tmp_path) -> None:
    path = source / "train/good/001.png"
    eight = cv2.imread(str(path))
    changed(source, lambda pixels: pixels.astype(np.uint16) * 4)
    cv2.imwrite(str(path), eight)
    dataset = dataset_of(source, tmp_path / "out")
    image = next(image for image in dataset.images if image.file_name == "train/good/001.png")
    assert dataset.bit_depth == 10
    np.testing.assert_array_equal(dataset.read_image(image.id)[..., ::-1], eight)


def test_masks_say_nothing_of_the_depth(source, tmp_path) -> None:
    for path in source.glob("ground_truth/*/*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16) * 257)
    assert dataset_of(source, tmp_path / "out").bit_depth == 8


def test_a_copy_in_eight_bits_is_found_among_deep_images(source, tmp_path) -> None:
    copy = cv2.imread(str(source / "train/good/000.png"))
    changed(source, lambda pixels: pixels.astype(np.uint16) * 4)
    cv2.imwrite(str(source / "train/good/copy.png"), np.ascontiguousarray(copy[:, ::-1]))
    dataset = dataset_of(source, tmp_path / "out")
    pairs = dataset.card["rules"]["groups"]["near_duplicates"]
    assert pairs == [["train/good/000.png", "train/good/copy.png"]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("format", ["yolo", "yolo-seg", "coco"])
def test_exports_have_eight_bits_scaled_by_the_depth(source, tmp_path, format, suffix) -> None:
    dataset = dataset_of(changed(source, lambda pixels: pixels.astype(np.uint16) * 16, suffix), tmp_path / "out")
    plugins.load("format", format).export(dataset, tmp_path / "export", ExportOptions())
    exported = sorted((tmp_path / "export/images").rglob(f"*{suffix}"))
    report = read_json(tmp_path / "export/export-report.json")
    assert len(report["depth_taken"]) == len(exported) > 0
    for path in exported:
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert pixels.dtype == np.uint8
        assert pixels.max() > 250
    assert check(tmp_path / "out") == [], "hard links are replaced, never written through"


def test_a_dataset_of_before_is_read_as_sixteen_bits(source, tmp_path) -> None:
    dataset = dataset_of(changed(source, lambda pixels: pixels.astype(np.uint16) * 257), tmp_path / "out")
    without = {key: value for key, value in dataset.card.items() if key != "bit_depth"}
    before = replace(dataset, card=without)
    assert before.bit_depth == 8
    np.testing.assert_array_equal(before.read_image(1), dataset.read_image(1))


def test_a_run_reads_another_dataset_by_the_depth_it_was_trained_on(source, tmp_path) -> None:
    deep = shutil.copytree(source, tmp_path / "deep")
    twelve = dataset_of(changed(deep, lambda pixels: pixels.astype(np.uint16) * 16), tmp_path / "twelve")
    ten = dataset_of(changed(source, lambda pixels: pixels.astype(np.uint16) * 4), tmp_path / "ten")
    assert ten.read_at_depth(12).read_image(1).max() == pytest.approx(255 / 4, abs=1)
    assert ten.read_at_depth(10) is ten
    assert ten.read_at_depth(8) is ten, "a run that saw 8 bits alone takes them by their own depth"
    with pytest.raises(DatasetError, match="found 12 bit; expected at most 10 bit"):
        twelve.read_at_depth(10)


def test_predicting_another_dataset_is_refused_where_it_has_more_bits(source, tmp_path, fake) -> None:
    deep = shutil.copytree(source, tmp_path / "deep")
    twelve = dataset_of(changed(deep, lambda pixels: pixels.astype(np.uint16) * 16), tmp_path / "twelve")
    ten = dataset_of(changed(source, lambda pixels: pixels.astype(np.uint16) * 4), tmp_path / "ten")
    run = train_run("fake", twelve, tmp_path / "run", fake.Config(), Settings(device="cpu"))
    assert run.info["bit_depth"] == 12
    depths: list[int] = []
    predict = fake.predict
    fake.predict = lambda data, *others: depths.append(data.dataset.bit_depth) or predict(data, *others)
    predict_run(run, ten, "test", device="cpu")
    assert depths == [12]
    low = train_run("fake", ten, tmp_path / "low", fake.Config(), Settings(device="cpu"))
    with pytest.raises(DatasetError, match="another depth than the run was trained on"):
        predict_run(low, twelve, "test", device="cpu")


def test_a_merged_run_keeps_the_depth_and_what_its_folds_have_seen(source, tmp_path, fake) -> None:
    from maskbridge.crossval import crossval

    twelve = dataset_of(changed(source, lambda pixels: pixels.astype(np.uint16) * 16), tmp_path / "twelve")
    merged = crossval("fake", twelve, tmp_path / "all", fake.Config(), Settings(device="cpu"))
    assert merged.info["bit_depth"] == 12
    assert [seen["fold"] for seen in merged.info["seen"]] == list(range(twelve.fold_count))
    assert merged.info["start_weights"] == []


def test_synthetic_defects_keep_the_depth(source, tmp_path) -> None:
    from baselines._synthesis import SynthesisOptions, synthesize

    twelve = dataset_of(changed(source, lambda pixels: pixels.astype(np.uint16) * 16), tmp_path / "twelve")
    synthesize(twelve, tmp_path / "more", SynthesisOptions(count=2, device="cpu"))
    more = Dataset.open(tmp_path / "more")
    assert check(more.path) == []
    assert more.bit_depth == 12
    made = next(image for image in more.images if image.defect_type == "synthetic")
    stored = cv2.imread(str(more.image_path(made.id)), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint8
    assert stored.max() > 250


def test_a_damaged_image_of_a_dataset_is_refused_in_one_line(
    eight, tmp_path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = Dataset.open(shutil.copytree(eight.path, tmp_path / "copy"))
    path = copy.image_path(1)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match=r"000\.png: is damaged"):
        copy.read_image(1)
    path.unlink()
    with pytest.raises(DatasetError, match=r"000\.png: no such file"):
        copy.read_image(1)
    assert any("file is missing" in problem for problem in check(copy.path))
    assert capfd.readouterr().err == ""


def test_whatever_reads_pixels_asks_the_dataset_which_knows_the_depth() -> None:
    """Only photographs of no dataset are read by path alone; `start_weights` gives the depth of its dataset."""
    root = Path(__file__).parents[2]
    reading: dict[str, set[str]] = {"read_image": set(), "imread": set(), "imdecode": set()}
    for package in ("maskbridge", "converters", "finetune", "baselines", "evaluation"):
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
                of_dataset = isinstance(node, ast.Attribute) and name == "read_image"
                if name in reading and not of_dataset:
                    reading[name].add(path.name)
    assert reading == {
        "read_image": {"dataset.py", "_yolo_world_forgetting.py", "start_weights.py"},
        "imread": set(),
        "imdecode": {"decoding.py", "near_duplicates.py"},
    }


@pytest.mark.parametrize("depth", ["/etc/passwd", 9, 0, -8, 1e300, None, [12]])
def test_a_depth_that_no_image_has_is_refused(tiles, tmp_path, depth):
    folder = shutil.copytree(tiles.path, tmp_path / "ds")
    card = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**card, "bit_depth": depth}))
    with pytest.raises(DatasetError, match=r"dataset\.json\.bit_depth"):
        Dataset.open(folder)
