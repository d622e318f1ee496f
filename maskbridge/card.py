"""The dataset card: what a data section of a report asks for, as data and as text.

maskbridge card datasets/bottle
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from maskbridge import __version__
from maskbridge.binarisation import listed, named_losses
from maskbridge.dataset import GOOD, SYNTHETIC, Image
from maskbridge.errors import printable
from maskbridge.progress import counted
from maskbridge.source import NEITHER, first_names

#: Type of images with several kinds of defect at once (MVTec AD cable and others).
COMBINED = "combined"
_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "max": 1.0}


def make_card(
    *,
    product: str,
    images: Sequence[Image],
    annotations: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    splits: dict[str, Any],
    rules: dict[str, Any],
    origin: dict[str, Any],
    options: dict[str, Any],
    changes: dict[str, Any],
    sha256: dict[str, str],
    bit_depth: int = 8,
) -> dict[str, Any]:
    """The content of `dataset.json`; sizes of defects and the long tail are those without synthetic ones."""
    names = {category["id"]: category["name"] for category in categories}
    types = [category["name"] for category in categories]
    areas = {name: [a["area"] for a in annotations if names[a["category_id"]] == name] for name in types}
    per_type = Counter(image.defect_type for image in images)
    defective = sum(count for name, count in per_type.items() if name not in (GOOD, SYNTHETIC))
    counts = [per_type[name] for name in types if per_type[name] and name != SYNTHETIC]
    labelled = [annotation for annotation in annotations if names[annotation["category_id"]] != SYNTHETIC]
    sizes = Counter(f"{image.width}x{image.height}" for image in images)
    return {
        "product": product,
        "version": __version__,
        "bit_depth": bit_depth,
        "totals": {"images": len(images), "instances": len(annotations), "types": len(types)},
        "classes": {
            name: {
                "images": per_type[name],
                "instances": len(areas.get(name, [])),
                "images_per_part": dict(sorted(Counter(i.part for i in images if i.defect_type == name).items())),
                "area_px": _distribution(areas.get(name, [])),
            }
            for name in [GOOD, *types]
        },
        "area_px": _distribution([annotation["area"] for annotation in labelled]),
        "area_share": _distribution(_shares(images, labelled)),
        "long_tail": {
            "good": per_type[GOOD],
            "defective": defective,
            "good_to_defective": _ratio(per_type[GOOD], defective),
            "largest_to_smallest_type": _ratio(max(counts), min(counts)) if counts else None,
        },
        "combined": COMBINED if COMBINED in types else None,
        "image_sizes": {"count": len(sizes), "most_common": dict(sizes.most_common(5))},
        "splits": {
            "folds": [{part: len(fold[part]) for part in ("train", "val", "test")} for fold in splits["folds"]],
            "official": splits["official"] and {part: len(splits["official"][part]) for part in ("train", "test")},
        },
        "rules": rules,
        "source": origin,
        "options": options,
        "changes": changes,
        "sha256": sha256,
    }


def dropped_instances(areas: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """`changes.dropped_instances`, of the areas in pixels by file name."""
    return {"count": sum(map(len, areas.values())), "areas_px": dict(areas)}


def empty_masks(
    images: Sequence[Image], annotations: Sequence[Mapping[str, Any]], dropped: Collection[str]
) -> dict[str, Any]:
    """`changes.empty_masks`: defect images without a defect pixel; those whose instances were `dropped` had some."""
    defective = {annotation["image_id"] for annotation in annotations}
    names = [
        image.file_name
        for image in images
        if not image.is_good and image.id not in defective and image.file_name not in dropped
    ]
    return {"count": len(names), "files": names}


def group_rule(by: str, near_duplicates: Sequence[tuple[str, str]], images: Sequence[Image]) -> dict[str, Any]:
    """`rules.groups`: what groups go by, how many and how large they are, and the pairs of files that were found."""
    sizes = Counter(Counter(image.group for image in images).values())
    return {
        "by": by,
        "groups": sum(sizes.values()),
        "largest": max(sizes),
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
        "near_duplicates": [list(pair) for pair in near_duplicates],
    }


def summary(card: dict[str, Any]) -> str:
    """Counts of images, instances and groups in one line."""
    totals = card["totals"]
    return f"{totals['images']} images, {totals['instances']} instances, {card['rules']['groups']['groups']} groups"


def conversion_lines(card: dict[str, Any]) -> list[str]:
    """What whoever converts has to know: what was dropped, left out or ignored, and what spoils figures."""
    changes, lines = card["changes"], []
    losses = named_losses(card["rules"]["binarisation"])
    good = card["classes"][GOOD]["images_per_part"]
    if changes["dropped_instances"]["count"]:
        lines.append(
            f"{counted(changes['dropped_instances']['count'], 'instance')} dropped by --min-area, named in dataset.json"
        )
    if changes["empty_masks"]["count"]:
        lines.append(f"defect images with an empty mask: {changes['empty_masks']['count']}, named in dataset.json")
    if losses:
        lines.append(
            f"masks that lose a fifth of their pixels above 0 or more, cut at half their highest value: {len(losses)}, "
            f"named in dataset.json: {first_names(losses)}"
        )
    for reason, names in changes["ignored_files"]["reasons"].items():
        lines.append(f"{counted(len(names), 'file')} ignored, named in dataset.json: {reason}: {first_names(names)}")
    for one, other in changes["one_picture_two_types"]:
        lines.append(f"one picture under two types: {one} and {other}")
    if not any(count for part, count in good.items() if part != "train"):
        lines.append("no good image outside the training part: false alarms and AUROC cannot be measured")
    if changes["official_leaks_dropped"]:
        names = changes["official_leaks_dropped"]
        lines.append(f"{counted(len(names), 'image')} left out of the official training part: {first_names(names)}")
    if changes["official_leaks"]:
        lines.append(f"{changes['official_leaks']}; --drop-leaks leaves the training copies out")
    return lines


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown; line ends and other controls in names are escaped."""
    card = _printable(card)
    tail, totals, groups = card["long_tail"], card["totals"], card["rules"]["groups"]
    parts = sorted({part for entry in card["classes"].values() for part in entry["images_per_part"]})
    lines = [
        f"# {card['product']}",
        "",
        f"{totals['images']} images, {totals['types']} defect types, {totals['instances']} defect instances.",
        "",
        f"| type | {' | '.join(parts)} | images | instances | area px: min / median / max |",
        f"| --- |{' --: |' * (len(parts) + 3)}",
    ]
    for name, entry in card["classes"].items():
        flag = " (several kinds at once)" if name == card["combined"] else ""
        cells = [str(entry["images_per_part"].get(part, 0)) for part in parts]
        cells += [str(entry["images"]), str(entry["instances"]), _area(entry["area_px"])]
        lines.append(f"| {name}{flag} | {' | '.join(cells)} |")
    lines += [
        "",
        f"- good : defective = {tail['good']} : {tail['defective']}{_as_ratio(tail['good_to_defective'])}",
        f"- largest : smallest defect type{_as_ratio(tail['largest_to_smallest_type'])}",
        f"- combined type: {card['combined'] or 'none'}",
        f"- image sizes (width x height): {_sizes(card['image_sizes'])}",
        f"- bit depth: {card.get('bit_depth', 8)}",
        f"- defect area, share of the image: {_share(card['area_share'])}",
        f"- groups: {groups['groups']}, the largest of {groups['largest']} images (by {groups['by']})",
        f"- instances: {card['rules']['instances']}, 8-connected, smallest kept {card['rules']['min_area']} px",
    ]
    lines += [f"- {line}" for line in _masks(card["rules"]["binarisation"])]
    for number, fold in enumerate(card["splits"]["folds"]):
        lines.append(f"- fold {number}: train {fold['train']}, val {fold['val']}, test {fold['test']}")
    official = card["splits"]["official"]
    lines.append(
        f"- official: train {official['train']}, test {official['test']}"
        if official
        else "- official: the source has no parts"
    )
    lines += _changes(card["changes"])
    lines.append(
        f"- source: {card['source']['layout']}; licence: {card['source']['licence'] or 'none found in the source'}"
    )
    return "\n".join(lines) + "\n"


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key): _printable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return printable(value) if isinstance(value, str) else value


def _changes(changes: dict[str, Any]) -> list[str]:
    lines = [f"- instances dropped: {changes['dropped_instances']['count']}"]
    if "synthetic" in changes:
        count, method = changes["synthetic"]["images_per_fold"], changes["synthetic"]["method"]
        lines.append(f"- synthetic: {count} images in the training part of each fold, by {method}")
    for name, areas in changes["dropped_instances"]["areas_px"].items():
        lines.append(f"  - {name}: {', '.join(map(str, areas))} px")
    lines.append(f"- defect images with an empty mask: {changes['empty_masks']['count']}")
    lines += [f"  - {name}" for name in changes["empty_masks"]["files"]]
    if oriented := changes.get("orientation", {}).get("files", {}):
        drawn = Counter(entry["masks_drawn"] for entry in oriented.values())
        lines.append(
            f"- images with an EXIF orientation: {len(oriented)}; masks drawn on the upright picture: "
            f"{drawn['upright']}, on the stored one: {drawn['stored']}, the same on both: {drawn[None]}"
        )
    lines.append(f"- files ignored: {changes['ignored_files']['count']}")
    reasons = changes["ignored_files"].get("reasons", {NEITHER: changes["ignored_files"]["files"]})
    lines += [f"  - {name}: {reason}" for reason, names in reasons.items() for name in names]
    for fold, names in changes["train_images_left_out"].items():
        lines.append(f"- left out of training in fold {fold}, near-duplicates of val or test: {', '.join(names)}")
    for name, count in changes["types_smaller_than_folds"].items():
        lines.append(f"- type {name} has {count} images, fewer than folds")
    for names in changes["groups_across_official_parts"].values():
        lines.append(f"- near-duplicates across the official parts: {', '.join(names)}")
    for name in changes.get("official_leaks_dropped", []):
        lines.append(f"- left out of the official training part by --drop-leaks: {name}")
    if changes.get("official_leaks"):
        lines.append(f"- {changes['official_leaks']}")
    for one, other in changes.get("one_picture_two_types", []):
        lines.append(f"- one picture under two types: {one} and {other}")
    return lines


def _masks(rules: dict[str, Any]) -> list[str]:
    """What the binarisation made of the masks."""
    lines = []
    for name, rule in rules.items():
        values = f", values {listed(rule['values'])}" if "masks" in rule and "values" in rule else ""
        highest = f", highest {listed(rule['highest'])}" if "highest" in rule else ""
        count = f"; {rule['masks']} masks{values}{highest}" if "masks" in rule else ""
        lines.append(f"masks ({name}): {rule['rule']}{count}")
    return [*lines, *(f"mask loses {lost} above 0 to that cut: {name}" for name, lost in named_losses(rules).items())]


def _distribution(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {name: float(np.quantile(values, q)) for name, q in _QUANTILES.items()}


def _shares(images: Sequence[Image], annotations: Sequence[dict[str, Any]]) -> list[float]:
    pixels = {image.id: image.width * image.height for image in images}
    return [annotation["area"] / pixels[annotation["image_id"]] for annotation in annotations]


def _ratio(one: int, two: int) -> float | None:
    return round(one / two, 3) if two else None


def _as_ratio(ratio: float | None) -> str:
    return "" if ratio is None else f" = {ratio:.3g} : 1"


def _area(area: dict[str, float] | None) -> str:
    return "–" if area is None else f"{area['min']:.0f} / {area['median']:.0f} / {area['max']:.0f}"


def _share(share: dict[str, float] | None) -> str:
    if share is None:
        return "no defects"
    return f"median {share['median']:.2%}, from {share['min']:.4%} to {share['max']:.2%}"


def _sizes(sizes: dict[str, Any]) -> str:
    listed = ", ".join(f"{size} ({count})" for size, count in sizes["most_common"].items())
    more = sizes["count"] - len(sizes["most_common"])
    return listed + (f" and {more} more" if more > 0 else "")
