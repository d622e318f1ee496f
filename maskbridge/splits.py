"""Folds: stratified by defect type, groups never torn apart.

The labelled images are dealt into k test parts; a fold's `val` is a stratified quarter of the labelled images
outside its test part; `train` is the remainder and the source's own training part, except training images that
share a group with the fold's `val` or `test`.

    splits, report = make_splits(images, folds=5, seed=0)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from maskbridge.dataset import Image

RULE = (
    "labelled images dealt into test parts, stratified by type, groups whole; val: a stratified quarter of the "
    "labelled images outside the test part; train: the remainder and the source's training part, without images "
    "that share a group with val or test"
)
#: Of three images outside the test part this is one already, so that a type of three is always represented.
VAL_SHARE = 0.25


def make_splits(
    images: Sequence[Image], *, folds: int, seed: int, drop_leaks: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Deal images into folds.

    Args:
        images: All images. Those of part `train` are the source's training part; the others are labelled.
            Without any part `train`, all of them are labelled.
        folds: Number of folds, at least 2.
        seed: Seed of the order in which groups are dealt.
        drop_leaks: Leave training images that share a group with a labelled one out of the official training part.

    Returns:
        The content of `splits.json`, and a report: training images left out per fold, types with fewer images
        than folds, groups that cross the source's own parts, training images that `drop_leaks` left out.
    """
    has_parts = {"train", "test"} <= {image.part for image in images}
    trained = [image for image in images if has_parts and image.part == "train"]
    labelled = [image for image in images if not (has_parts and image.part == "train")]
    rng = np.random.default_rng(seed)
    test_of = _deal(labelled, folds, rng)
    parts: list[dict[str, list[int]]] = []
    left_out: dict[str, list[str]] = {}
    for fold in range(folds):
        test = [image for image in labelled if test_of[image.id] == fold]
        rest = [image for image in labelled if test_of[image.id] != fold]
        val = _take_val(rest, np.random.default_rng([seed, fold]))
        held = {image.group for image in [*test, *val]}
        train = [image for image in [*trained, *rest] if image.group not in held]
        lost = [image.file_name for image in trained if image.group in held]
        if lost:
            left_out[str(fold)] = sorted(lost)
        parts.append({"train": _ids(train), "val": _ids(val), "test": _ids(test)})
    counts = Counter(image.defect_type for image in labelled)
    crossing = {image.group for image in trained} & {image.group for image in labelled}
    report = {
        "train_images_left_out": left_out,
        "types_smaller_than_folds": {name: n for name, n in sorted(counts.items()) if n < folds},
        "groups_across_official_parts": {
            str(group): sorted(image.file_name for image in images if image.group == group)
            for group in sorted(crossing)
        },
        "official_leaks_dropped": sorted(i.file_name for i in trained if drop_leaks and i.group in crossing),
    }
    kept = [image for image in trained if not (drop_leaks and image.group in crossing)]
    official = {"train": _ids(kept), "test": _ids(labelled)} if has_parts else None
    return {"rule": RULE, "seed": seed, "folds": parts, "official": official}, report


def _deal(images: Sequence[Image], folds: int, rng: np.random.Generator) -> dict[int, int]:
    """Fold of each image id: rarest type first, largest group first, to the fold that has least of the type."""
    groups = _by_group(images)
    order = list(groups)
    rng.shuffle(order)
    order.sort(key=lambda group: -len(groups[group]))
    of_type = [Counter[str]() for _ in range(folds)]
    result: dict[int, int] = {}
    counts = Counter(image.defect_type for image in images)
    for defect_type, _ in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        for group in order:
            members = groups[group]
            if members[0].id in result or all(image.defect_type != defect_type for image in members):
                continue
            fold = min(range(folds), key=lambda k: (of_type[k][defect_type], of_type[k].total(), k))
            of_type[fold].update(image.defect_type for image in members)
            result.update((image.id, fold) for image in members)
    return result


def _take_val(images: Sequence[Image], rng: np.random.Generator) -> list[Image]:
    """A stratified quarter, groups whole, at least one image of each type that has three."""
    groups = _by_group(images)
    order = list(groups)
    rng.shuffle(order)
    counts = Counter(image.defect_type for image in images)
    taken: Counter[str] = Counter()
    chosen: list[Image] = []
    for defect_type, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        wanted = round(count * VAL_SHARE)
        candidates = [g for g in order if any(image.defect_type == defect_type for image in groups[g])]
        while taken[defect_type] < wanted and candidates:
            missing = wanted - taken[defect_type]
            fitting = [g for g in candidates if len(groups[g]) <= missing]
            group = fitting[0] if fitting else min(candidates, key=lambda g: len(groups[g]))
            overshoot = len(groups[group]) - missing
            if overshoot > missing and taken[defect_type]:
                break
            candidates.remove(group)
            if groups[group][0] in chosen:
                continue
            chosen.extend(groups[group])
            taken.update(image.defect_type for image in groups[group])
    return chosen


def _by_group(images: Iterable[Image]) -> dict[int, list[Image]]:
    table: dict[int, list[Image]] = defaultdict(list)
    for image in images:
        table[image.group].append(image)
    return dict(table)


def _ids(images: Iterable[Image]) -> list[int]:
    return sorted(image.id for image in images)
