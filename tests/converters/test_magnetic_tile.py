from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters import magnetic_tile
from maskbridge.check import check
from maskbridge.cli import main
from maskbridge.dataset import Dataset
from maskbridge.errors import SourceError
from maskbridge.source import Reading

CRACKS = [(1, 85602), (2, 85642), (3, 85665), (4, 85998), (5, 86031), (6, 86064), (1, 90000), (3, 90010), (2, 90020)]


@pytest.fixture
def tiles(tmp_path: Path, photo) -> Path:
    """Two cracks under six and two exposures, one under one; five free tiles."""
    root = tmp_path / "tiles"
    for folder in ("MT_Crack", "MT_Free"):
        (root / folder / "Imgs").mkdir(parents=True)
    mask = np.zeros((48, 64), np.uint8)
    mask[4, 5:40] = 255
    for exposure, number in CRACKS:
        stem = root / "MT_Crack" / "Imgs" / f"exp{exposure}_num_{number}"
        cv2.imwrite(f"{stem}.jpg", photo(number))
        cv2.imwrite(f"{stem}.png", mask)
    for number in range(5):
        stem = root / "MT_Free" / "Imgs" / f"exp1_num_{number}"
        cv2.imwrite(f"{stem}.jpg", photo(number))
        cv2.imwrite(f"{stem}.png", mask * 0)
    return root


@pytest.mark.parametrize(
    ("exposures", "expected"),
    [
        ([], []),
        ([4], [0]),
        ([1, 2, 3, 4, 5, 6], [0] * 6),
        ([1, 2, 1, 2], [0, 0, 1, 1]),
        ([1, 3, 6, 2, 5], [0, 0, 0, 1, 1]),
        ([1, 1, 1], [0, 1, 2]),
        ([3, 2, 1], [0, 1, 2]),
        ([6, 1, 6, 6], [0, 1, 1, 2]),
    ],
)
def test_a_run_ends_where_the_exposure_does_not_rise(exposures: list[int], expected: list[int]) -> None:
    assert magnetic_tile.runs([(10 * n, exposure) for n, exposure in enumerate(exposures)]) == expected


def test_the_exposures_of_one_crack_are_one_group(tiles: Path) -> None:
    (product,) = magnetic_tile.read(tiles)
    groups: dict[str | None, list[str]] = {}
    for image in product.images:
        if image.defect_type == "Crack":
            groups.setdefault(image.group, []).append(image.path.stem)
    assert sorted(map(len, groups.values())) == [1, 2, 6]
    assert max(groups.values(), key=len) == [f"exp{e}_num_{n}" for e, n in CRACKS[:6]]


def test_files_are_ordered_by_number_not_by_spelling(tiles: Path) -> None:
    """exp5_num_9 comes before exp6_num_10, though its name sorts behind."""
    numbers = [(int(stem.split("_")[2]), int(stem[3])) for stem in ("exp6_num_10", "exp5_num_9")]
    assert magnetic_tile.runs(sorted(numbers)) == [0, 0]


def test_a_converted_tile_set_has_its_runs_whole_in_every_fold(tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["convert", "magnetic-tile", str(tiles), str(out), "--folds", "3"]) == 0
    assert check(out) == []
    dataset = Dataset.open(out)
    assert dataset.splits["official"] is None
    assert {image.origin for image in dataset.images} == {"all/Crack", "all/good"}
    run = {i.id for i in dataset.images if i.defect_type == "Crack" and int(i.file_name[-9:-4]) < 90000}
    assert len(run) == 6
    for number in range(3):
        fold = dataset.split(number)
        assert sum(bool(run & set(part)) for part in (fold.train, fold.val, fold.test)) == 1
    assert len(dataset.annotations) == 9
    assert dataset.product == "tiles"


def test_other_files_are_named(tiles: Path) -> None:
    for name in ("readme.md", "MT_Crack/notes.txt", "MT_Free/Imgs/Thumbs.db"):
        (tiles / name).write_text("")
    cv2.imwrite(str(tiles / "MT_Crack/x.png"), np.zeros((48, 64), np.uint8))
    assert magnetic_tile.read(tiles)[0].ignored == {
        "MT_Crack/notes.txt": "neither image nor mask",
        "MT_Crack/x.png": "image outside MT_<Class>/Imgs",
        "MT_Free/Imgs/Thumbs.db": "neither image nor mask",
        "readme.md": "neither image nor mask",
    }


@pytest.mark.parametrize(
    ("removed", "told"),
    [
        (".png", "found 1 defect images without a mask: MT_Crack/Imgs/exp1_num_85602.jpg;"),
        (".jpg", "found 1 masks without an image: MT_Crack/Imgs/exp1_num_85602.png;"),
    ],
)
def test_an_image_and_a_mask_that_do_not_pair_up_are_refused_or_left_out(
    tiles: Path, refused: Callable[..., str], removed: str, told: str
) -> None:
    (tiles / f"MT_Crack/Imgs/exp1_num_85602{removed}").unlink()
    assert told in refused("convert", "magnetic-tile", tiles, tiles.parent / "out")
    (product,) = magnetic_tile.read(tiles, Reading(without_mask="unlabelled"))
    assert len(product.images) == 13
    assert len(product.ignored) == 1


def test_a_free_tile_needs_no_mask_and_has_a_black_one(tiles: Path, refused: Callable[..., str]) -> None:
    (tiles / "MT_Free/Imgs/exp1_num_0.png").unlink()
    assert len(magnetic_tile.read(tiles)[0].images) == 14
    cv2.imwrite(str(tiles / "MT_Free/Imgs/exp1_num_1.png"), np.full((48, 64), 255, np.uint8))
    assert "good image has a mask with defects" in refused("convert", "magnetic-tile", tiles, tiles.parent / "out")


def test_another_class_may_be_good(tiles: Path, refused: Callable[..., str]) -> None:
    (tiles / "MT_Free").rename(tiles / "MT_OK")
    (product,) = magnetic_tile.read(tiles, Reading(good=("OK",)))
    assert [image.defect_type for image in product.images].count("good") == 5
    line = refused("convert", "magnetic-tile", tiles, tiles.parent / "out", "--good", "ok")
    assert "--good names no type of the source; found ok; expected Crack, OK" in line


def test_a_name_without_exposure_and_number_is_refused(tiles: Path) -> None:
    for suffix in (".jpg", ".png"):
        path = tiles / f"MT_Crack/Imgs/exp1_num_85602{suffix}"
        path.rename(path.with_name(f"tile{suffix}"))
    with pytest.raises(SourceError, match=r"tile\.jpg: has an unknown name; expected exp<E>_num_<N>"):
        magnetic_tile.read(tiles)


def test_two_images_of_one_name_are_refused(tiles: Path) -> None:
    path = tiles / "MT_Crack/Imgs/exp1_num_85602.jpg"
    path.with_suffix(".bmp").write_bytes(path.read_bytes())
    with pytest.raises(SourceError, match=r"differ in their extension only; found also exp1_num_85602\.bmp"):
        magnetic_tile.read(tiles)


@pytest.mark.parametrize("folder", ["other", "MT_Crack", "MT_Crack/Imgs"])
def test_a_folder_without_tiles_is_refused(tmp_path: Path, refused: Callable[..., str], folder: str) -> None:
    (tmp_path / "source" / folder).mkdir(parents=True)
    line = refused("convert", "magnetic-tile", tmp_path / "source", tmp_path / "out")
    assert ("is not in magnetic-tile layout; found other" if folder == "other" else "has no image") in line
