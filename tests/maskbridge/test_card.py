import json
from pathlib import Path

import numpy as np
import pytest

from maskbridge.card import card_text
from maskbridge.cli import main
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.files import sha256_file


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory, new_source, zoo):
    """A long-tailed product: 6 good, 4 cracks, 2 combined, 2 dents, one without a pixel."""
    folder = tmp_path_factory.mktemp("card")
    kinds = {"crack": [zoo["pit"]] * 4, "combined": [zoo["several"]] * 2, "dent": [zoo["none"], zoo["pit"]]}
    source = new_source(folder / "cable", kinds, train=3, good=3)
    (source / "license.txt").write_text("\n CC BY-NC-SA 4.0\nmore\n")
    (source / "test" / "crack" / "Thumbs.db").write_text("")
    convert("mvtec", source, folder / "out", ConvertOptions(folds=3, min_area=2))
    return Dataset.open(folder / "out").card


def test_classes_have_counts_of_images_parts_and_instances(card) -> None:
    assert card["totals"] == {"images": 14, "instances": 9, "types": 3}
    assert list(card["classes"]) == ["good", "combined", "crack", "dent"]
    assert card["classes"]["good"]["images_per_part"] == {"test": 3, "train": 3}
    assert card["classes"]["crack"]["images"] == card["classes"]["crack"]["instances"] == 4
    assert card["classes"]["combined"]["instances"] == 4
    assert card["classes"]["dent"] == {
        "images": 2,
        "instances": 1,
        "images_per_part": {"test": 2},
        "area_px": dict.fromkeys(("min", "p25", "median", "p75", "max"), 4.0),
    }


def test_areas_are_distributed_as_the_masks_are(card, zoo) -> None:
    assert card["classes"]["crack"]["area_px"] == dict.fromkeys(("min", "p25", "median", "p75", "max"), 4.0)
    assert card["classes"]["combined"]["area_px"]["min"] == 196
    assert card["classes"]["combined"]["area_px"]["max"] == 460
    assert card["area_share"]["max"] == 460 / (48 * 64)


def test_the_long_tail_is_told(card) -> None:
    assert card["long_tail"] == {
        "good": 6,
        "defective": 8,
        "good_to_defective": 0.75,
        "largest_to_smallest_type": 2.0,
    }
    assert card["combined"] == "combined"


def test_everything_dropped_or_left_out_is_named(card) -> None:
    changes = card["changes"]
    assert changes["dropped_instances"] == {
        "count": 2,
        "areas_px": {"test/combined/000.png": [1], "test/combined/001.png": [1]},
    }
    assert changes["empty_masks"] == {"count": 1, "files": ["test/dent/000.png"]}
    assert changes["ignored_files"] == {
        "count": 1,
        "files": ["test/crack/Thumbs.db"],
        "reasons": {"neither image nor mask": ["test/crack/Thumbs.db"]},
    }
    assert changes["types_smaller_than_folds"] == {"combined": 2, "dent": 2}
    assert card["source"]["licence"] == "CC BY-NC-SA 4.0"


def test_split_sizes_and_image_sizes_are_told(card) -> None:
    assert card["splits"]["official"] == {"train": 3, "test": 11}
    assert sum(fold["test"] for fold in card["splits"]["folds"]) == 11
    assert card["image_sizes"] == {"count": 1, "most_common": {"64x48": 14}}


def test_the_text_tells_the_same(card) -> None:
    text = card_text(card)
    for told in (
        "14 images, 3 defect types, 9 defect instances",
        "| type | test | train | images | instances |",
        "| combined (several kinds at once) | 2 | 0 | 2 | 4 | 196 / 328 / 460 |",
        "| dent | 2 | 0 | 2 | 1 | 4 / 4 / 4 |",
        "good : defective = 6 : 8 = 0.75 : 1",
        "largest : smallest defect type = 2 : 1",
        "combined type: combined",
        "64x48 (14)",
        "smallest kept 2 px",
        "official: train 3, test 11",
        "instances dropped: 2",
        "test/combined/000.png: 1 px",
        "empty mask: 1",
        "files ignored: 1",
        "test/crack/Thumbs.db: neither image nor mask",
        "type dent has 2 images, fewer than folds",
        "licence: CC BY-NC-SA 4.0",
    ):
        assert told in text


def test_the_card_of_a_product_without_defects_can_be_written(tmp_path: Path, new_source) -> None:
    source = new_source(tmp_path / "source", {}, train=3, good=4)
    convert("mvtec", source, tmp_path / "out", ConvertOptions(folds=2))
    card = Dataset.open(tmp_path / "out").card
    assert card["long_tail"]["good_to_defective"] is None
    assert card["long_tail"]["largest_to_smallest_type"] is None
    assert "no defects" in card_text(card)


def test_the_command_prints_text_or_json(plates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(plates)]) == 0
    assert capsys.readouterr().out == card_text(Dataset.open(plates).card)
    assert main(["card", str(plates), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == Dataset.open(plates).card


def test_the_hashes_are_those_of_the_files(plates: Path) -> None:
    assert Dataset.open(plates).card["sha256"] == {
        name: sha256_file(plates / name) for name in ("annotations.json", "splits.json")
    }


def test_the_numbers_of_the_card_are_finite(plates: Path) -> None:
    areas = [entry["area_px"] for entry in Dataset.open(plates).card["classes"].values() if entry["area_px"]]
    assert np.isfinite([value for area in areas for value in area.values()]).all()
