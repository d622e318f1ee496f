from pathlib import Path

import cv2
import numpy as np
import pytest

from maskbridge.cli import main
from maskbridge.geometry import component_count
from maskbridge.sample import DEFECTS, make_sample


def masks_of(sample: Path, kind: str) -> list[np.ndarray]:
    paths = sorted((sample / "ground_truth" / kind).glob("*_mask.png"))
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths]


def test_there_are_40_good_for_training_and_12_of_each_kind_for_testing(sample: Path) -> None:
    counts = {
        str(folder.relative_to(sample)): len(list(folder.glob("*.png")))
        for folder in sample.rglob("*")
        if folder.is_dir() and list(folder.glob("*.png"))
    }
    assert counts == {
        "train/good": 40,
        "test/good": 12,
        **{f"test/{kind}": 12 for kind in ("scratch", "stain", "chip")},
        **{f"ground_truth/{kind}": 12 for kind in ("scratch", "stain", "chip")},
    }


def test_every_photo_and_mask_has_the_same_size_higher_than_wide_or_wider_than_high(sample: Path) -> None:
    sizes = {cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape[:2] for path in sample.rglob("*.png")}
    assert sizes == {(160, 208)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of 2 + 2 + 3 x 1 images."""
    for name, count in (("TRAIN_GOOD", 2), ("TEST_GOOD", 2), ("TEST_PER_TYPE", 1)):
        monkeypatch.setattr(f"maskbridge.sample.{name}", count)


def test_the_same_seed_gives_the_same_bytes(small: None, sample: Path, tmp_path: Path, tree) -> None:
    make_sample(tmp_path / "same")
    same = tree(tmp_path / "same")
    assert len([name for name in same if name.endswith(".png")]) == 10
    assert same.items() <= tree(sample).items()


def test_another_seed_gives_other_images(small: None, sample: Path, tmp_path: Path, tree) -> None:
    make_sample(tmp_path / "other", seed=1)
    other, first = tree(tmp_path / "other"), tree(sample)
    names = [name for name in other if name.endswith(".png")]
    assert len(names) == 10
    assert not [name for name in names if other[name] == first[name]]


def test_no_two_photos_are_the_same(sample: Path, tree) -> None:
    photos = [value for name, value in tree(sample).items() if "/" in name and not name.startswith("ground_truth")]
    files = [value for value in photos if value]
    assert len(set(files)) == len(files) == 88


@pytest.mark.parametrize("kind", sorted(DEFECTS))
def test_every_mask_is_0_and_255_and_holds_a_defect(sample: Path, kind: str) -> None:
    for mask in masks_of(sample, kind):
        assert mask.dtype == np.uint8
        assert mask.ndim == 2
        assert np.unique(mask).tolist() == [0, 255]


def test_scratches_are_1_or_2_px_wide(sample: Path) -> None:
    square = np.ones((3, 3), np.uint8)
    eroded = [cv2.erode(mask, square, borderValue=0).sum() for mask in masks_of(sample, "scratch")]
    crossings = sum(total > 0 for total in eroded)
    assert crossings <= 3  # only where two scratches cross is there room for a 3 x 3 square
    two = [cv2.erode(mask, square[:2, :2], borderValue=0).any() for mask in masks_of(sample, "scratch")]
    assert any(two), "no scratch 2 px wide"
    assert not all(two), "no scratch 1 px wide"


def test_stains_have_a_hole(sample: Path) -> None:
    for mask in masks_of(sample, "stain"):
        assert component_count(mask) == 1
        background, labels = cv2.connectedComponents((mask == 0).astype(np.uint8), connectivity=4)
        assert background - 1 >= 2, "no hole"
        assert len(np.unique(labels)) == background


def test_chips_lie_at_the_frame(sample: Path) -> None:
    sides = set()
    for mask in masks_of(sample, "chip"):
        touched = [side for side, line in enumerate((mask[0], mask[-1], mask[:, 0], mask[:, -1])) if line.any()]
        assert touched
        sides.update(touched)
    assert len(sides) >= 3


@pytest.mark.parametrize("kind", sorted(DEFECTS))
def test_defects_can_be_seen(sample: Path, kind: str) -> None:
    for mask, path in zip(masks_of(sample, kind), sorted((sample / "test" / kind).glob("*.png")), strict=True):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(float)
        ring = (cv2.dilate(mask, np.ones((9, 9), np.uint8)) > 0) & (mask == 0)
        assert abs(grey[mask > 0].mean() - grey[ring].mean()) > 10


def test_the_command_makes_it_and_replaces_it_only_when_asked(small: None, tmp_path: Path, refused) -> None:
    out = tmp_path / "plate"
    assert main(["sample", str(out), "--seed", "3"]) == 0
    assert "is not empty" in refused("sample", out)
    assert main(["sample", str(out), "--seed", "3", "--overwrite"]) == 0


def test_somebodys_own_product_is_never_replaced(source: Path, refused) -> None:
    """MVTec AD categories hold a license.txt, too."""
    (source / "license.txt").write_text("CC BY-NC-SA 4.0")
    assert "is not a sample made by maskbridge and is left alone" in refused("sample", source, "--overwrite")
