"""MVTec AD bottle and the magnetic tiles, from `MASKBRIDGE_DATA`."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.magnetic_tile import runs
from evaluation.leaderboard import evaluate_runs
from maskbridge.approach import Detection, Prediction
from maskbridge.check import check
from maskbridge.convert import ConvertOptions, convert
from maskbridge.dataset import Dataset
from maskbridge.files import write_json
from maskbridge.predictions import write_predictions

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def data() -> Path:
    if "MASKBRIDGE_DATA" not in os.environ:
        pytest.skip("MASKBRIDGE_DATA is not set")
    return Path(os.environ["MASKBRIDGE_DATA"]).resolve()


@pytest.fixture(scope="module")
def source(data: Path) -> Path:
    return data / "mvtec_ad" / "bottle"


@pytest.fixture(scope="module")
def bottle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("real") / "bottle"
    convert("mvtec", source, out, ConvertOptions(link="symlink"))
    return Dataset.open(out)


@pytest.fixture(scope="module")
def tiles(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("real") / "tiles"
    convert("magnetic-tile", data / "magnetic_tile", out, ConvertOptions(link="symlink"))
    return Dataset.open(out)


def group_sizes(dataset: Dataset, *, good: bool) -> Counter[int]:
    """How many groups there are of each size."""
    return Counter(Counter(image.group for image in dataset.images if image.is_good == good).values())


def figures(dataset: Dataset) -> str:
    """Groups and folds of a dataset, for who runs with -s."""
    lines = [f"\n{dataset.name}: {len(dataset.images)} images, {len(dataset.annotations)} instances"]
    for good in (True, False):
        sizes = group_sizes(dataset, good=good)
        told = ", ".join(f"{sizes[size]} of {size}" for size in sorted(sizes))
        lines.append(f"  groups of {'good' if good else 'defective'} images: {sum(sizes.values())} ({told})")
    for number in range(dataset.fold_count):
        fold = dataset.split(number)
        kinds = Counter(dataset.image_by_id[i].defect_type for i in fold.test)
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        lines.append(f"  fold {number}: train {len(fold.train)}, val {len(fold.val)}, test {len(fold.test)} ({told})")
    return "\n".join(lines)


def assert_folds_hold_together(dataset: Dataset, labelled: set[int]) -> None:
    tests = [set(dataset.split(number).test) for number in range(dataset.fold_count)]
    assert sum(map(len, tests)) == len(set().union(*tests)) == len(labelled)
    assert set().union(*tests) == labelled
    for number in range(dataset.fold_count):
        fold = dataset.split(number)
        groups = [{dataset.image_by_id[i].group for i in part} for part in (fold.train, fold.val, fold.test)]
        assert sum(map(len, groups)) == len(set().union(*groups)), "a group is torn apart"


# Bottle


def test_the_dataset_is_whole(bottle: Dataset) -> None:
    assert check(bottle.path) == []
    assert len(bottle.images) == 292
    assert bottle.splits["official"] is not None
    assert [len(part) for part in bottle.splits["official"].values()] == [209, 83]


def test_every_pixel_of_every_mask_comes_back_and_every_box_is_tight(bottle: Dataset, source: Path) -> None:
    masks = components = 0
    for path in sorted((source / "ground_truth").rglob("*_mask.png")):
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert raw.ndim == 2
        name = f"test/{path.parent.name}/{path.stem.removesuffix('_mask')}.png"
        image = next(image for image in bottle.images if image.file_name == name)
        np.testing.assert_array_equal(bottle.mask(image.id), raw > 0)
        found = bottle.annotations_by_image[image.id]
        count, _, stats, _ = cv2.connectedComponentsWithStats((raw > 0).view(np.uint8), connectivity=8)
        expected = sorted([*map(int, row[:4]), int(row[4])] for row in stats[1:])
        assert sorted([*annotation["bbox"], annotation["area"]] for annotation in found) == expected
        masks += 1
        components += count - 1
    assert masks == 63
    assert components == len(bottle.annotations) == 68


def test_bottles_that_merely_look_alike_are_not_lumped_together(bottle: Dataset) -> None:
    print(figures(bottle))
    sizes = Counter(Counter(image.group for image in bottle.images).values())
    assert max(sizes) <= 3


def test_the_folds_cover_all_83_test_images_and_tear_no_group(bottle: Dataset) -> None:
    assert_folds_hold_together(bottle, set(bottle.split("official").test))
    kinds = [Counter(bottle.image_by_id[i].defect_type for i in bottle.split(k).test) for k in range(5)]
    for kind in ("good", "broken_large", "broken_small", "contamination"):
        assert max(count[kind] for count in kinds) - min(count[kind] for count in kinds) <= 1


def test_workers_do_not_change_the_annotations(bottle: Dataset, source: Path, tmp_path: Path) -> None:
    convert("mvtec", source, tmp_path / "two", ConvertOptions(workers=2, link="symlink"))
    assert (tmp_path / "two/annotations.json").read_bytes() == (bottle.path / "annotations.json").read_bytes()


def write_run(folder: Path, dataset: Dataset, answers: dict[int, int]) -> Path:
    """A run whose prediction of an image is the truth of `answers[image]`."""

    def predictions() -> Iterator[Prediction]:
        for image_id, answer in answers.items():
            mask = dataset.mask(answer)
            yield Prediction(
                image_id=image_id,
                score=float(mask.any()),
                map=mask.astype(np.float32),
                detections=[
                    Detection(
                        box_ltwh=tuple(annotation["bbox"]),
                        score=1.0,
                        category_id=annotation["category_id"],
                        segmentation=annotation["segmentation"],
                    )
                    for annotation in dataset.annotations_by_image[answer]
                ],
            )

    write_predictions(folder, "test", predictions())
    info = {
        "approach": "truth",
        "dataset": {
            "path": str(dataset.path),
            "name": dataset.name,
            "annotations_sha256": dataset.annotations_sha256,
            "splits_sha256": dataset.splits_sha256,
        },
        "fold": "official",
        "options": {},
        "thresholds": {},
    }
    write_json(folder / "run.json", info)
    return folder


def values(metrics: dict, family: str) -> dict[str, float]:
    return {name: metric["value"] for name, metric in metrics[family].items() if metric["value"] is not None}


def test_perfect_predictions_score_1_and_shuffled_ones_at_chance(bottle: Dataset, tmp_path: Path) -> None:
    ids = bottle.split("official").test
    shuffled = np.random.default_rng(0).permutation(ids).tolist()
    perfect = write_run(tmp_path / "perfect", bottle, dict(zip(ids, ids, strict=True)))
    chance = write_run(tmp_path / "chance", bottle, dict(zip(ids, shuffled, strict=True)))
    board = evaluate_runs([chance, perfect], samples=20)
    assert [row.run for row in board.rows] == ["perfect", "chance"]
    best, worst = (row.metrics for row in board.rows)
    for family, names in (
        ("image", ("auroc", "ap")),
        ("pixel", ("auroc", "ap", "aupro_30", "aupro_05")),
        ("instance", ("bbox_ap", "bbox_ap50", "segm_ap", "segm_ap50")),
        ("instance_by_type", ("bbox_ap", "bbox_ap50", "segm_ap", "segm_ap50")),
    ):
        found = values(best, family)
        assert {name: pytest.approx(1.0, abs=1e-6) for name in names}.items() <= found.items()
    print("\nshuffled:", {family: values(worst, family) for family in ("image", "pixel", "instance")})
    # 20 good and 63 defective images: one standard deviation of a chance AUROC is 0.07.
    assert worst["image"]["auroc"]["value"] == pytest.approx(0.5, abs=0.2)
    assert worst["image"]["ap"]["value"] == pytest.approx(63 / 83, abs=0.1)
    # Defects of all bottles lie in one ring, so that a foreign mask overlaps a little more than by chance.
    assert worst["pixel"]["auroc"]["value"] == pytest.approx(0.5, abs=0.1)
    assert worst["pixel"]["aupro_30"]["value"] < 0.35
    assert worst["instance"]["bbox_ap"]["value"] < 0.05
    assert worst["instance"]["segm_ap"]["value"] < 0.05


# Magnetic tiles


def test_the_tiles_are_whole_in_no_parts_of_their_own(tiles: Dataset) -> None:
    assert check(tiles.path) == []
    assert tiles.splits["official"] is None
    assert sum(not image.is_good for image in tiles.images) == 392
    assert_folds_hold_together(tiles, {image.id for image in tiles.images})


def test_the_exposures_of_a_tile_are_never_torn_over_train_val_and_test(tiles: Dataset) -> None:
    print(figures(tiles))
    shots: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for image in tiles.images:
        _, exposure, number = Path(image.file_name).stem.replace("num_", "").replace("exp", "exp_").split("_")
        shots[image.defect_type].append((int(number), int(exposure), image.id))
    count = 0
    for listed in shots.values():
        listed.sort()
        members: dict[int, list[int]] = defaultdict(list)
        for run, (_, _, image_id) in zip(runs([(n, e) for n, e, _ in listed]), listed, strict=True):
            members[run].append(image_id)
        count += len(members)
        for run in members.values():
            for number in range(tiles.fold_count):
                fold = tiles.split(number)
                assert sum(bool(set(run) & set(part)) for part in (fold.train, fold.val, fold.test)) == 1
    print(f"  runs of exposures: {count}")
    cracks = {image.group for image in tiles.images if image.defect_type == "Crack"}
    assert len(cracks) <= 12


def test_one_crack_shot_again_and_again_is_one_group(tiles: Dataset) -> None:
    """Three exposures, then three again: one run each, joined by what they show."""
    numbers = ("85602", "85642", "85665", "85998", "86031", "86064")
    found = [image.group for image in tiles.images if Path(image.file_name).stem.endswith(numbers)]
    assert len(found) == 6
    assert len(set(found)) == 1
