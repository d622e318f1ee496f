"""Everything the report says beside the pictures, as JSON values.

    page_data(board)["runs"][0]["scores"]      # one number for each of data["images"]["id"], ascending

Scores and thresholds keep every digit, so that the page counts as metrics.json does. Those of a merged run are on one
scale (`maskbridge.fold_ranks`), so that one slider can move the thresholds of all folds. A cell without a value carries
its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation._leaderboard_markdown import seed_spreads
from evaluation._report_commands import approach_defaults, shown_value
from evaluation._report_images import defect_types
from evaluation.columns import COSTS, LOWER_IS_BETTER, Column
from evaluation.leaderboard import Leaderboard, Row
from evaluation.metrics import Evaluation
from maskbridge.card import card_text
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError
from maskbridge.fold_ranks import mapped

#: Families with one metric for each defect type, and what stands above them.
BY_TYPE = {"image_recall_by_type": "images found", "detection_rate_by_type": "defects found"}

_THRESHOLDS = ("image", "pixel", "detection")


def page_data(board: Leaderboard) -> dict[str, Any]:
    """The data of a report, without pictures and commands."""
    first = board.evaluations[0]
    dataset, image_ids = first.dataset, sorted(first.view.image_ids)
    types, names = defect_types(board.evaluations), [row.run for row in board.rows]
    columns = list(dict.fromkeys(column for table in board.tables for column in table.columns))
    images = [dataset.image_by_id[image_id] for image_id in image_ids]
    return {
        "dataset": board.dataset,
        "product": dataset.product,
        "part": board.part,
        "counts": first.metrics["images"],
        "intervals": first.metrics["intervals"],
        "types": types,
        "images": {
            "id": image_ids,
            "file": [image.file_name for image in images],
            "type": [types.index(image.defect_type) for image in images],
            "bad": [int(not image.is_good) for image in images],
            "size": [[image.width, image.height] for image in images],
        },
        "columns": [
            {"key": c.key, "heading": c.heading, "lower": c.name in LOWER_IS_BETTER, "family": c.family}
            for c in columns
        ],
        "tables": [
            {
                "title": table.title,
                "note": table.note,
                "runs": [names.index(each.run.name) for each in table.evaluations],
                "columns": [columns.index(column) for column in table.columns],
            }
            for table in board.tables
        ],
        "costs": [cost.heading for cost in COSTS],
        "byType": [
            name
            for family, name in BY_TYPE.items()
            if any(row.metrics.get(family) for row in board.rows if row.truth_given is None)
        ],
        "runs": [
            _run(row, evaluation, columns, image_ids)
            for row, evaluation in zip(board.rows, board.evaluations, strict=True)
        ],
        "comparisons": {key: [_pair(pair, names) for pair in pairs] for key, pairs in board.comparisons.items()},
        "seeds": [
            {"runs": runs, "columns": {key: [spread["mean"], spread["sd"]] for key, spread in figures.items()}}
            for table in board.tables
            for runs, figures in seed_spreads(table)
        ],
        "card": _card(dataset),
    }


def _run(row: Row, evaluation: Evaluation, columns: Sequence[Column], image_ids: Sequence[int]) -> dict[str, Any]:
    view, info = evaluation.view, evaluation.run.info
    scores, cuts = view.scores(), view.threshold("image")
    maps, results, least = view.maps(), view.detections(), view.threshold("detection")
    shown, shown_cuts = _on_one_scale(evaluation, scores.value, cuts.value, image_ids)
    return {
        "name": row.run,
        "approach": row.approach,
        "marks": [list(mark) for mark in row.marks],
        "cutNote": row.cut_note,
        "scores": shown,
        "ranked": int(evaluation.ranks is not None),
        "scoresWhy": scores.why,
        "scoresDerived": scores.derived,
        "cuts": shown_cuts,
        "cutsWhy": cuts.why,
        "folds": [view.fold(i) for i in image_ids],
        "maps": {"there": maps.value is not None, "why": maps.why, "derived": maps.derived},
        "detections": {
            "there": results.value is not None,
            "why": results.why,
            "derived": results.derived,
            "cutWhy": least.why,
        },
        "curves": {name: [[round(x, 5), round(y, 5)] for x, y in points] for name, points in evaluation.curves.items()},
        "cells": [_cell(row.metrics, column.family, column.name) for column in columns],
        "costs": [_cost(row.metrics["cost"].get(cost.name), cost.form) for cost in COSTS],
        "byType": {
            heading: {name: _figure(metric) for name, metric in (row.metrics.get(family) or {}).items()}
            for family, heading in BY_TYPE.items()
        },
        "facts": _facts(row, evaluation),
        "options": _options(str(info["approach"]), info["options"]),
        "versions": [[name, str(version)] for name, version in (info.get("versions") or {}).items()],
        "thresholds": _thresholds(info.get("thresholds") or {}),
        "seconds": _phases(info.get("seconds")),
        "memory": _phases(info.get("peak_memory_mb")),
    }


def _on_one_scale(
    evaluation: Evaluation,
    scores: Mapping[int, float] | None,
    cuts: Mapping[int, float] | None,
    image_ids: Sequence[int],
) -> tuple[list[float] | None, list[float] | None]:
    """Scores and thresholds of the images on one scale; every image is called what it is called off it."""
    folds = [evaluation.view.fold(image_id) for image_id in image_ids]
    ranks = None if evaluation.ranks is None else evaluation.ranks["image"]
    shown_cuts = None if cuts is None else mapped(ranks, folds, [cuts[i] for i in image_ids])
    if scores is None:
        return None, None if shown_cuts is None else shown_cuts.tolist()
    shown = mapped(ranks, folds, [scores[i] for i in image_ids])
    if cuts is None or shown_cuts is None:
        return shown.tolist(), None
    refused = np.array([scores[i] < cuts[i] for i in image_ids], bool)
    lifted = refused & (shown >= shown_cuts)  # by rounding: they were neighbours
    shown[lifted] = np.nextafter(shown_cuts[lifted], -np.inf)
    return shown.tolist(), shown_cuts.tolist()


def _cell(metrics: dict[str, Any], family: str, name: str) -> dict[str, Any]:
    cell = _figure(metrics[family].get(name))
    spread = ((metrics.get("folds") or {}).get(family) or {}).get(name) or {}
    if spread.get("mean") is not None:
        cell |= {"mean": spread["mean"], "sd": spread.get("sd")}
    return cell


def _figure(metric: dict[str, Any] | None) -> dict[str, Any]:
    if metric is None or metric.get("value") is None:
        return {"v": None, "why": (metric or {}).get("why", "not computed")}
    found = {"v": metric["value"], "l": metric.get("low"), "h": metric.get("high")}
    if metric.get("method"):
        found["m"] = metric["method"]
    return {**found, "d": 1} if metric.get("derived") else found


def _cost(metric: dict[str, Any] | None, form: Any) -> dict[str, Any]:
    figure = _figure(metric)
    return figure if figure["v"] is None else {"v": figure["v"], "text": form(figure["v"])}


def _pair(pair: Any, names: Sequence[str]) -> dict[str, Any]:
    return {
        "one": names.index(pair.one),
        "other": names.index(pair.other),
        "d": pair.difference,
        "p": pair.p_holm,
        "winner": None if pair.winner is None else names.index(pair.winner),
        "sentence": pair.sentence,
    }


def _facts(row: Row, evaluation: Evaluation) -> list[list[str]]:
    info = evaluation.run.info
    trained = info.get("trained_on") or {}
    facts = {
        "approach": row.approach,
        "part": evaluation.part,
        "fold": "all, cross-validated" if info["fold"] == "all" else str(info["fold"]),
        "start weights": row.weights_from,
        "given": row.truth_given or "",
        "learned from": ", ".join(f"{count:g} {kind} images" for kind, count in trained.items()),
        "parameters": f"{info['parameters']:,}" if isinstance(info.get("parameters"), int) else "",
        "seed": str(info.get("seed", "")),
        "device": str(info.get("device", "")),
        "prediction": _milliseconds(info.get("predict_ms_per_image")),
        "resumed": "yes: the seconds of training cover the last stretch alone" if info.get("resumed") else "",
    }
    return [[name, value] for name, value in facts.items() if value]


def _milliseconds(value: Any) -> str:
    return "" if value is None else f"{value:.1f} ms per image"


def _options(approach: str, options: dict[str, Any]) -> list[list[Any]]:
    """Name, value, and whether it differs from the default."""
    defaults = approach_defaults(approach)
    return [
        [name, str(shown_value(value)), int(name not in defaults or defaults[name] != value)]
        for name, value in options.items()
    ]


def _thresholds(by_fold: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for fold, kinds in by_fold.items():
        for kind in _THRESHOLDS:
            entry = kinds.get(kind) or {}
            value = entry.get("value")
            text = str(entry.get("why", "the run has none")) if value is None else str(entry.get("rule", ""))
            rows.append({"fold": fold, "kind": kind, "v": value, "text": text})
    return rows


def _phases(phases: dict[str, Any] | None) -> list[list[Any]]:
    numbers = {name: value for name, value in (phases or {}).items() if isinstance(value, int | float)}
    return [[name, value] for name, value in numbers.items() if math.isfinite(value)]


def _card(dataset: Dataset) -> dict[str, Any]:
    try:
        card = dataset.whole_card
        lines = [line.strip().removeprefix("- ") for line in card_text(card).splitlines() if "- " in line[:4]]
    except DatasetError:
        card = {"classes": {}, "combined": None, "splits": {"folds": []}}
        lines = ["The card is of another version of maskbridge; its figures are not shown."]
    parts = sorted({part for entry in card["classes"].values() for part in entry["images_per_part"]})
    return {
        "parts": parts,
        "classes": [
            {
                "name": name,
                "parts": [entry["images_per_part"].get(part, 0) for part in parts],
                "images": entry["images"],
                "instances": entry["instances"],
                "area": entry["area_px"],
                "combined": name == card["combined"],
            }
            for name, entry in card["classes"].items()
        ],
        "facts": lines,
        "folds": card["splits"]["folds"],
        "hashes": [
            ["annotations.json", dataset.annotations_sha256],
            ["splits.json", dataset.splits_sha256],
        ],
        "version": str(dataset.card.get("version", "unknown")),
    }
