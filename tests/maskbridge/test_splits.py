from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskbridge.dataset import Image
from maskbridge.splits import make_splits

TYPES = ("good", "crack", "stain", "dent")


def make_images(rows: list[tuple[str, str, int]]) -> list[Image]:
    """Images from (part, type, group)."""
    return [
        Image(
            id=number,
            file_name=f"{part}/{kind}/{number:03}.png",
            width=36,
            height=24,
            sha256="",
            origin=f"{part}/{kind}",
            group=group,
        )
        for number, (part, kind, group) in enumerate(rows, start=1)
    ]


def rows(groups: Any) -> Any:
    test = st.lists(st.tuples(st.just("test"), st.sampled_from(TYPES), groups), min_size=1, max_size=40)
    train = st.lists(st.tuples(st.just("train"), st.just("good"), groups), max_size=20)
    return st.tuples(train, test).map(lambda parts: [*parts[0], *parts[1]])


GROUPED = rows(st.integers(1, 25)).map(make_images)
SINGLE = rows(st.just(0)).map(
    lambda found: make_images([(part, kind, number) for number, (part, kind, _) in enumerate(found, start=1)])
)
FOLDS = st.integers(2, 6)
SEEDS = st.integers(0, 2**32)


@given(GROUPED, FOLDS, SEEDS)
@settings(max_examples=100, deadline=None)
def test_folds_hold_together_whatever_the_groups(images: list[Image], folds: int, seed: int) -> None:
    splits, report = make_splits(images, folds=folds, seed=seed)
    has_train = any(image.part == "train" for image in images)
    labelled = {image.id for image in images if image.part == "test"}
    trained = {image.id for image in images} - labelled
    by_id = {image.id: image for image in images}
    tests = [set(fold["test"]) for fold in splits["folds"]]
    assert sum(map(len, tests)) == len(labelled)
    assert set().union(*tests) == labelled
    for number, fold in enumerate(splits["folds"]):
        parts = {name: set(ids) for name, ids in fold.items()}
        assert all(ids == sorted(set(ids)) for ids in fold.values())
        groups = {name: {by_id[i].group for i in ids} for name, ids in parts.items()}
        for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not parts[one] & parts[two]
            assert not groups[one] & groups[two]
        held = groups["val"] | groups["test"]
        assert parts["train"] | parts["val"] | parts["test"] >= labelled
        mates = {i for i in trained if by_id[i].group in held}
        assert trained - parts["train"] == mates
        assert report["train_images_left_out"].get(str(number), []) == sorted(by_id[i].file_name for i in mates)
        outside = Counter(by_id[i].defect_type for i in labelled - parts["test"])
        val = Counter(by_id[i].defect_type for i in parts["val"])
        assert all(val[kind] >= 1 for kind, count in outside.items() if count >= 3)
    if has_train:
        assert splits["official"] == {"train": sorted(trained), "test": sorted(labelled)}
    else:
        assert splits["official"] is None


@given(SINGLE, FOLDS, SEEDS)
@settings(max_examples=100, deadline=None)
def test_where_no_image_has_a_mate_every_type_is_dealt_evenly(images: list[Image], folds: int, seed: int) -> None:
    splits, report = make_splits(images, folds=folds, seed=seed)
    kind_of = {image.id: image.defect_type for image in images}
    total = Counter(image.defect_type for image in images if image.part == "test")
    counts = [Counter(kind_of[i] for i in fold["test"]) for fold in splits["folds"]]
    sizes = [count.total() for count in counts]
    for kind in TYPES:
        assert max(count[kind] for count in counts) - min(count[kind] for count in counts) <= 1
    assert max(sizes) - min(sizes) <= 1
    for fold, count in zip(splits["folds"], counts, strict=True):
        val = Counter(kind_of[i] for i in fold["val"])
        for kind in TYPES:
            outside = total[kind] - count[kind]
            assert val[kind] == round(outside / 4)
    assert report["train_images_left_out"] == {}
    assert report["types_smaller_than_folds"] == {k: n for k, n in sorted(total.items()) if n < folds}


@given(GROUPED, FOLDS, SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_same_seed_gives_the_same_folds(images: list[Image], folds: int, seed: int) -> None:
    assert make_splits(images, folds=folds, seed=seed) == make_splits(list(images), folds=folds, seed=seed)


def test_another_seed_gives_other_folds() -> None:
    images = make_images([("test", TYPES[n % 4], n) for n in range(40)])
    results = {str(make_splits(images, folds=5, seed=seed)[0]["folds"]) for seed in range(5)}
    assert len(results) == 5


def test_a_source_without_parts_is_labelled_throughout() -> None:
    images = make_images([("all", TYPES[n % 4], n) for n in range(21)])
    splits, _ = make_splits(images, folds=3, seed=0)
    assert splits["official"] is None
    assert sorted(i for fold in splits["folds"] for i in fold["test"]) == list(range(1, 22))


def test_a_group_across_the_official_parts_is_reported_and_official_stays_as_it_is() -> None:
    images = make_images([("train", "good", 1), ("train", "good", 2), *[("test", "good", n) for n in range(2, 8)]])
    splits, report = make_splits(images, folds=2, seed=0)
    assert splits["official"] == {"train": [1, 2], "test": [3, 4, 5, 6, 7, 8]}
    assert report["groups_across_official_parts"] == {"2": ["test/good/003.png", "train/good/002.png"]}
    assert report["official_leaks_dropped"] == []
    dropped, report = make_splits(images, folds=2, seed=0, drop_leaks=True)
    assert dropped["official"] == {"train": [1], "test": [3, 4, 5, 6, 7, 8]}
    assert dropped["folds"] == splits["folds"]
    assert report["official_leaks_dropped"] == ["train/good/002.png"]


@pytest.mark.parametrize("folds", [2, 5])
def test_one_huge_group_stays_whole(folds: int) -> None:
    images = make_images([("test", TYPES[n % 4], min(n, 12)) for n in range(32)])
    splits, _ = make_splits(images, folds=folds, seed=0)
    holding = [fold for fold in splits["folds"] if {13, 32} & set(fold["test"])]
    assert len(holding) == 1
    assert set(range(13, 33)) <= set(holding[0]["test"])


def test_the_largest_group_is_dealt_first_and_small_ones_make_up_for_it() -> None:
    images = make_images([("test", "good", min(n, 6)) for n in range(12)])
    for seed in range(5):
        splits, _ = make_splits(images, folds=2, seed=seed)
        assert sorted(map(tuple, (fold["test"] for fold in splits["folds"]))) == [
            (1, 2, 3, 4, 5, 6),
            (7, 8, 9, 10, 11, 12),
        ]


@pytest.mark.parametrize(("count", "wanted"), [(2, 0), (3, 1), (4, 1), (8, 2), (40, 10)])
def test_val_takes_a_quarter_and_one_at_least_of_a_type_that_has_three(count: int, wanted: int) -> None:
    """`count` cracks outside the test part of each of two folds, none of them of one group."""
    images = make_images([("test", "crack", n) for n in range(2 * count)])
    splits, _ = make_splits(images, folds=2, seed=0)
    assert [len(fold["val"]) for fold in splits["folds"]] == [wanted, wanted]
    assert [len(fold["train"]) for fold in splits["folds"]] == [count - wanted, count - wanted]
