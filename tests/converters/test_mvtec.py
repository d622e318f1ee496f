import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters import mvtec
from maskbridge.check import check
from maskbridge.dataset import Dataset
from maskbridge.errors import SourceError

Refused = Callable[..., str]


def test_a_category_is_read_in_order_of_part_type_and_name(source: Path) -> None:
    (product,) = mvtec.read(source)
    names = [image.file_name for image in product.images]
    assert names == [
        *[f"train/good/{n:03}.png" for n in range(4)],
        *[f"test/crack/{n:03}.png" for n in range(4)],
        *[f"test/good/{n:03}.png" for n in range(3)],
        *[f"test/stain/{n:03}.png" for n in range(4)],
    ]
    assert product.product == "source"
    assert product.layout == "mvtec"
    assert product.licence is None
    for image in product.images:
        if image.defect_type == "good":
            assert image.mask is None
        else:
            assert image.mask == source / "ground_truth" / image.defect_type / f"{image.path.stem}_mask.png"


def test_a_folder_of_categories_gives_each_of_them(tmp_path: Path, source: Path) -> None:
    for name in ("b", "a"):
        shutil.copytree(source, tmp_path / "many" / name)
    (tmp_path / "many" / "c").mkdir()
    (tmp_path / "many" / "license.txt").write_text("CC BY-NC-SA 4.0\n")
    products = mvtec.read(tmp_path / "many")
    assert [product.product for product in products] == ["a", "b"]
    assert {product.licence for product in products} == {"CC BY-NC-SA 4.0"}


def test_converting_a_folder_of_categories_makes_a_dataset_of_each(tmp_path: Path, source: Path) -> None:
    from maskbridge.cli import main

    for name in ("b", "a"):
        shutil.copytree(source, tmp_path / "many" / name)
    assert main(["convert", "mvtec", str(tmp_path / "many"), str(tmp_path / "out")]) == 0
    for name in ("a", "b"):
        assert check(tmp_path / "out" / name) == []
        assert Dataset.open(tmp_path / "out" / name).product == name


def test_a_folder_of_one_category_makes_its_dataset_inside_out(tmp_path: Path, source: Path) -> None:
    from maskbridge.cli import main

    shutil.move(source, tmp_path / "many" / "a")
    assert main(["convert", "mvtec", str(tmp_path / "many"), str(tmp_path / "out")]) == 0
    assert check(tmp_path / "out" / "a") == []


def test_the_product_of_a_relative_path_has_a_name(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    assert mvtec.read(Path("."))[0].product == "source"


def test_files_that_are_neither_image_nor_mask_are_named(source: Path) -> None:
    for name in ("test/notes.txt", "test/crack/Thumbs.db", "ground_truth/crack/x.svg", "ground_truth/a.txt"):
        (source / name).write_text("")
    (source / "train/good/deeper").mkdir()
    (source / "test/.DS_Store").write_text("")
    assert sorted(mvtec.read(source)[0].ignored) == [
        "ground_truth/a.txt",
        "ground_truth/crack/x.svg",
        "test/crack/Thumbs.db",
        "test/notes.txt",
        "train/good/deeper",
    ]


def test_a_mask_without_the_suffix_is_found(source: Path) -> None:
    folder = source / "ground_truth/crack"
    (folder / "000_mask.png").rename(folder / "000.png")
    assert mvtec.read(source)[0].images[4].mask == folder / "000.png"


def test_images_of_several_formats_are_read(source: Path) -> None:
    for index, suffix in enumerate((".JPG", ".bmp", ".TIF", ".webp")):
        path = source / f"test/crack/00{index}.png"
        cv2.imwrite(str(path.with_suffix(suffix)), cv2.imread(str(path)))
        path.unlink()
    assert [i.path.suffix for i in mvtec.read(source)[0].images[4:8]] == [".JPG", ".bmp", ".TIF", ".webp"]


@pytest.mark.parametrize("removed", ["train", "test", "train test ground_truth"])
def test_what_is_not_in_mvtec_layout_is_refused(source: Path, refused: Refused, removed: str) -> None:
    for name in removed.split():
        shutil.rmtree(source / name)
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert f"{source}: is not in MVTec layout; found " in line
    assert "expected train/good and test/<type> inside, or folders of categories" in line


def test_a_file_as_source_is_refused(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    line = refused("convert", "mvtec", tmp_path / "file", tmp_path / "out")
    assert "file: is not a folder; found a file; expected the folder of a product" in line


def test_a_category_without_images_is_refused(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "source/train/good").mkdir(parents=True)
    (tmp_path / "source/test").mkdir()
    line = refused("convert", "mvtec", tmp_path / "source", tmp_path / "out")
    assert "has no image; expected images in train/good and test/<type>" in line


def test_a_defect_image_without_mask_is_refused(source: Path, refused: Refused) -> None:
    (source / "ground_truth/stain/002_mask.png").unlink()
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert "test/stain/002.png: defect image has no mask; expected ground_truth/stain/002_mask.png; add the" in line


def test_defect_images_without_any_ground_truth_are_refused(source: Path, refused: Refused) -> None:
    shutil.rmtree(source / "ground_truth")
    assert "test/crack/000.png: defect image has no mask" in refused("convert", "mvtec", source, source.parent / "out")


@pytest.mark.parametrize("mask", ["stain/999_mask.png", "dent/000_mask.png"])
def test_a_mask_without_image_is_refused(source: Path, refused: Refused, mask: str) -> None:
    path = source / "ground_truth" / mask
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), np.zeros((48, 64), np.uint8))
    line = refused("convert", "mvtec", source, source.parent / "out")
    kind, stem = path.parent.name, path.stem.removesuffix("_mask")
    assert f"{mask}: mask has no image; expected an image test/{kind}/{stem}.*; add the image or remove" in line


def test_a_good_image_with_a_mask_is_refused(source: Path, refused: Refused) -> None:
    (source / "ground_truth/good").mkdir()
    cv2.imwrite(str(source / "ground_truth/good/001_mask.png"), np.zeros((48, 64), np.uint8))
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert "/good/001.png: good image has a mask; found ground_truth/good/001_mask.png" in line


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("test/crack/000.png", "test/crack/000.JPG"),
        ("train/good/000.png", "train/good/000.bmp"),
        ("test/crack/000.png", "train/crack/000.png"),
    ],
)
def test_two_images_that_would_share_a_mask_or_a_label_file_are_refused(source: Path, one: str, two: str) -> None:
    (source / two).parent.mkdir(exist_ok=True)
    cv2.imwrite(str(source / two), cv2.imread(str(source / one)))
    with pytest.raises(SourceError, match=r"has the name of another image.*also (test|train)/.*rename or remove one"):
        mvtec.read(source)


def test_two_masks_for_one_image_are_refused(source: Path) -> None:
    shutil.copy(source / "ground_truth/crack/000_mask.png", source / "ground_truth/crack/000.png")
    with pytest.raises(SourceError, match=r"two masks for one image; found also 000"):
        mvtec.read(source)


def test_the_same_name_in_train_and_test_is_no_clash_for_good_images(source: Path) -> None:
    good = [image.file_name for image in mvtec.read(source)[0].images if image.path.name == "000.png"]
    assert "train/good/000.png" in good
    assert "test/good/000.png" in good


def test_a_folder_among_categories_that_is_none_is_named(tmp_path, capsys) -> None:
    from maskbridge.sample import make_sample

    make_sample(tmp_path / "plate")
    (tmp_path / "notes").mkdir()
    assert [source.product for source in mvtec.read(tmp_path)] == ["plate"]
    assert f"{tmp_path / 'notes'}: has no train and test folders, left out" in capsys.readouterr().err
