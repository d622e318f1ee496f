import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters import mvtec
from maskbridge.check import check
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.errors import SourceError
from maskbridge.source import Reading

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


def test_every_file_that_is_not_used_is_named_with_the_reason(source: Path) -> None:
    neither = ("test/notes.txt", "test/crack/Thumbs.db", "ground_truth/crack/x.svg", "ground_truth/a.txt", "readme.md")
    for name in neither:
        (source / name).write_text("")
    (source / "license.txt").write_text("used: it is quoted on the card")
    (source / "test/.DS_Store").write_text("")
    photo = cv2.imread(str(source / "test/crack/000.png"))
    for name in ("validation/good/000.png", "overview.png", "test/sheet.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(source / name), photo)
    (source / "test/crack/gone.png").symlink_to(source / "nowhere")
    assert mvtec.read(source)[0].ignored == {
        **dict.fromkeys(neither, "neither image nor mask"),
        "validation/good/000.png": "validation is none of train, test, ground_truth",
        "overview.png": "image outside train and test",
        "test/sheet.png": "image in test itself, in the folder of no type",
        "test/crack/gone.png": "no regular file",
    }


def test_images_and_masks_in_folders_of_cameras_are_read(source: Path, tmp_path: Path) -> None:
    for folder in ("test/crack", "ground_truth/crack", "train/good"):
        shutil.move(source / folder, source / "moved")
        shutil.move(source / "moved", source / folder / "line 1/cam1")
    (product,) = mvtec.read(source)
    names = [image.file_name for image in product.images]
    assert names[:5] == [
        *[f"train/good/line 1__cam1__{n:03}.png" for n in range(4)],
        "test/crack/line 1__cam1__000.png",
    ]
    assert product.images[4].mask == source / "ground_truth/crack/line 1/cam1/000_mask.png"
    assert product.ignored == {}
    convert("mvtec", source, tmp_path / "out", ConvertOptions(folds=2))
    assert check(tmp_path / "out") == []
    assert Dataset.open(tmp_path / "out").card["totals"]["instances"] == 11


def test_the_same_name_under_two_cameras_is_no_clash(source: Path) -> None:
    for root in ("test/crack", "ground_truth/crack"):
        shutil.copytree(source / root, source / "copy")
        shutil.move(source / "copy", source / root / "cam2")
    assert [i.file_name for i in mvtec.read(source)[0].images if i.defect_type == "crack"] == [
        *[f"test/crack/{n:03}.png" for n in range(4)],
        *[f"test/crack/cam2__{n:03}.png" for n in range(4)],
    ]


@pytest.mark.parametrize("moved", ["test/crack", "ground_truth/crack"])
def test_masks_that_lie_deeper_than_their_images_or_less_deep_are_refused(
    source: Path, refused: Refused, moved: str
) -> None:
    shutil.move(source / moved, source / "moved")
    shutil.move(source / "moved", source / moved / "cam1")
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert "found 4 defect images without a mask: test/crack/" in line
    assert "4 masks without an image: ground_truth/crack/" in line
    assert "images and masks of one name lie in folders that differ below test and ground_truth" in line


def test_masks_in_a_folder_for_each_image_are_refused(source: Path, refused: Refused) -> None:
    for path in sorted((source / "ground_truth/crack").iterdir()):
        folder = path.with_name(path.stem.removesuffix("_mask"))
        folder.mkdir()
        path.rename(folder / "000.png")
    assert "merge the masks of each image, which lie in a folder of its own" in refused(
        "convert", "mvtec", source, source.parent / "out"
    )


@pytest.mark.parametrize("name", ["Good", "GOOD"])
def test_parts_and_good_are_known_in_capitals(source: Path, name: str) -> None:
    before = [image.file_name for image in mvtec.read(source)[0].images]
    (source / "train/good").rename(source / "train" / name)
    for part, other in (("train", "Train"), ("test", "TEST"), ("ground_truth", "Ground_Truth")):
        (source / part).rename(source / other)
    (source / "Ground_Truth/crack/000_mask.png").rename(source / "Ground_Truth/crack/000_MASK.PNG")
    (product,) = mvtec.read(source)
    assert [image.file_name for image in product.images] == before
    assert not product.ignored


def test_good_images_by_another_name_are_taken_where_it_is_given(source: Path, refused: Refused) -> None:
    for part in ("train", "test"):
        (source / part / "good").rename(source / part / "OK")
    out = source.parent / "out"
    line = refused("convert", "mvtec", source, out)
    assert (
        "found 7 defect images without a mask: train/OK/000.png, train/OK/001.png, train/OK/002.png and 4 more" in line
    )
    assert "if the images of OK are good ones, add --good OK" in line
    assert "black" not in line
    line = refused("convert", "mvtec", source, out, "--good", "ok")
    assert "--good names no type of the source; found ok; expected OK, crack, stain" in line
    assert [i.defect_type for i in mvtec.read(source, Reading(good=("OK",)))[0].images].count("good") == 7
    convert("mvtec", source, out, ConvertOptions(folds=2, good=("OK",)))
    assert Dataset.open(out).card["classes"]["good"]["images"] == 7


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (["images", "masks"], "found images, masks;"),
        (["train/images", "train/masks", "test/images", "test/masks"], "found train/images;"),
        (["train/good", "test/good", "test/dent/rgb", "test/dent/gt"], "found test/dent/…/gt;"),
        (["train/good", "test/good", "test/good/masks"], "found test/good/…/masks;"),
    ],
)
def test_another_layout_is_told_as_such(tmp_path: Path, refused: Refused, photo, folders: list[str], told: str) -> None:
    for folder in folders:
        (tmp_path / "source" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "source" / folder / "000.png"), photo(1))
    line = refused("convert", "mvtec", tmp_path / "source", tmp_path / "out")
    assert "is not in MVTec layout" in line
    assert told in line
    assert "for another layout: move good images to train/good" in line


def test_masks_among_good_images_are_another_layout(source: Path, refused: Refused) -> None:
    cv2.imwrite(str(source / "test/good/001_mask.png"), np.zeros((48, 64), np.uint8))
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert "found masks among the images, such as test/good/001_mask.png" in line


def test_a_type_may_be_called_label(source: Path) -> None:
    for root in ("test", "ground_truth"):
        (source / root / "crack").rename(source / root / "label")
    assert {image.defect_type for image in mvtec.read(source)[0].images} == {"good", "label", "stain"}


def test_images_in_no_folder_of_a_type_are_another_layout(source: Path, refused: Refused) -> None:
    for path in (source / "train/good").iterdir():
        path.rename(source / "train" / path.name)
    (source / "train/good").rmdir()
    assert "found images in train itself" in refused("convert", "mvtec", source, source.parent / "out")


def test_a_type_without_an_image_is_refused(source: Path, refused: Refused) -> None:
    (source / "test/dent").mkdir()
    assert "test/dent: type has no image" in refused("convert", "mvtec", source, source.parent / "out")


def test_a_link_that_leads_back_is_refused(source: Path, refused: Refused) -> None:
    (source / "test/crack/again").symlink_to(source / "test")
    assert "leads back to a folder that it lies in" in refused("convert", "mvtec", source, source.parent / "out")


def test_an_image_that_is_called_like_a_mask_has_its_own(source: Path) -> None:
    (source / "test/crack/000.png").rename(source / "test/crack/x_mask.png")
    (source / "ground_truth/crack/000_mask.png").rename(source / "ground_truth/crack/x_mask.png")
    assert mvtec.read(source)[0].images[7].mask == source / "ground_truth/crack/x_mask.png"
    (source / "test/crack/001.png").rename(source / "test/crack/x.png")
    (source / "ground_truth/crack/001_mask.png").rename(source / "ground_truth/crack/x_mask_mask.png")
    masks = {i.path.name: i.mask.name for i in mvtec.read(source)[0].images if i.mask and i.path.name.startswith("x")}
    assert masks == {"x.png": "x_mask.png", "x_mask.png": "x_mask_mask.png"}


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


def test_images_and_masks_without_a_partner_are_refused_all_at_once(source: Path, refused: Refused) -> None:
    for number in range(4):
        (source / f"ground_truth/crack/{number:03}_mask.png").unlink()
    for mask in ("ground_truth/stain/999_mask.png", "ground_truth/dent/000.png"):
        (source / mask).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(source / mask), np.zeros((48, 64), np.uint8))
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert (
        "source: images and masks do not pair up; found 4 defect images without a mask: test/crack/000.png, "
        "test/crack/001.png, test/crack/002.png and 1 more, 2 masks without an image: ground_truth/dent/000.png, "
        "ground_truth/stain/999_mask.png; expected ground_truth/crack/000_mask.png for the first; "
    ) in line
    assert "add what is missing, or leave them out with --without-mask unlabelled" in line


def test_images_and_masks_without_a_partner_are_left_out_and_named_where_asked_for(source: Path) -> None:
    (source / "ground_truth/stain/002_mask.png").unlink()
    (source / "test/crack/001.png").unlink()
    out = source.parent / "out"
    convert("mvtec", source, out, ConvertOptions(folds=2, without_mask="unlabelled"))
    assert check(out) == []
    dataset = Dataset.open(out)
    assert len(dataset.images) == 13
    assert dataset.card["changes"]["ignored_files"] == {
        "count": 2,
        "files": ["ground_truth/crack/001_mask.png", "test/stain/002.png"],
        "reasons": {
            "mask without an image (--without-mask unlabelled)": ["ground_truth/crack/001_mask.png"],
            "defect image without a mask (--without-mask unlabelled)": ["test/stain/002.png"],
        },
    }


@pytest.mark.parametrize("mask", ["stain/999_mask.png", "dent/999_mask.png", "999_mask.png"])
def test_a_mask_without_image_is_refused(source: Path, refused: Refused, mask: str) -> None:
    path = source / "ground_truth" / mask
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), np.zeros((48, 64), np.uint8))
    line = refused("convert", "mvtec", source, source.parent / "out")
    expected = mask.removesuffix("_mask.png")
    assert f"found 1 masks without an image: ground_truth/{mask}; expected an image test/{expected}.* for" in line


def test_a_good_image_with_a_mask_of_defects_is_refused(source: Path, refused: Refused) -> None:
    (source / "ground_truth/good").mkdir()
    mask = np.zeros((48, 64), np.uint8)
    mask[3, 4:9] = 1
    cv2.imwrite(str(source / "ground_truth/good/001_mask.png"), mask)
    line = refused("convert", "mvtec", source, source.parent / "out")
    assert "test/good/001.png: good image has a mask with defects; found 5 defect pixels in " in line


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


@pytest.mark.parametrize("part", ["test", "train"])
def test_good_images_of_a_folder_of_another_name_keep_apart_from_those_of_good(
    tmp_path: Path, new_source, zoo, part: str
) -> None:
    """Both folders count from 000, as cameras do."""
    source = new_source(tmp_path / "tile", {"crack": [zoo["line"], zoo["pit"]]})
    shutil.copytree(source / part / "good", source / part / "OK")
    (product,) = mvtec.read(source, Reading(good=("OK",)))
    names = {item.file_name for item in product.images if item.defect_type == "good" and item.part == part}
    assert {f"{part}/good/000.png", f"{part}/good/OK__000.png"} <= names
