"""Waist 2: a run, `runs/<run>/`: what was trained and what it predicted.

    run = Run.open("runs/bottle-knn-0")
    run.scores("test")          # {image id: score} or None
    run.detections("test")      # COCO results list or None
    run.map("test", 17)         # float32 h x w or None

Files: `run.json`, `weights/`, `predictions/<part>/{detections.json, scores.json, types.json, maps/<image id>.npy}`.
A file that is absent was not produced; `derive` fills in what follows from the others.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict, cast

import msgspec
import numpy as np
import numpy.typing as npt

from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Dataset
from maskbridge.errors import RunError
from maskbridge.files import NO_ARRAY, open_regular, write_array, write_json
from maskbridge.folders import OLD, beside, move_in, recover, told_of
from maskbridge.geometry import RLE
from maskbridge.run_info import read_run_info
from maskbridge.run_lengths import whole_runs
from maskbridge.typed_json import decoded


class Result(TypedDict, total=False):
    """One entry of `detections.json`: a COCO result. `segmentation` is optional."""

    image_id: Required[int]
    category_id: Required[int | None]
    bbox: Required[Annotated[list[float], msgspec.Meta(min_length=4, max_length=4)]]
    score: Required[float]
    segmentation: RLE


# A typed decoder stops at the first value of another kind: a hostile file never becomes objects in memory.
_RESULTS = msgspec.json.Decoder(list[Result])
_SCORES = msgspec.json.Decoder(dict[str, float])
_TYPES = msgspec.json.Decoder(dict[str, str])


@dataclass(frozen=True)
class Run:
    """A run folder; `info` is the content of its run.json."""

    path: Path
    info: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run folder.

        Raises:
            RunError: When it is not one.
        """
        folder = Path(path)
        recover(folder)
        for old in sorted((folder / "predictions").glob(f".*{OLD}")):
            recover(old.with_name(old.name.removeprefix(".").removesuffix(OLD)))
        info = read_run_info(folder)
        return cls(path=folder.resolve(), info=info)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def weights(self) -> Path:
        """Folder of the checkpoint."""
        return self.path / "weights"

    @property
    def truth_given(self) -> str | None:
        """What of the truth it predicts from, such as "boxes of the defects"; None where it sees images alone."""
        given: str | None = self.info.get("truth_given")
        return given

    def save(self, **changes: Any) -> Run:
        """Write run.json with `changes` taken in, and return the run as it is now."""
        info = {**self.info, **changes}
        write_json(self.path / "run.json", info)
        return Run(self.path, info)

    def dataset(self, override: str | Path | None = None) -> Dataset:
        """Open the dataset the run was trained on, and refuse another or a changed one.

        Args:
            override: Where the dataset lies now, if it was moved.

        Raises:
            RunError: When annotations or splits differ from those at training; both hashes are named.
        """
        recorded = self.info["dataset"]
        dataset = Dataset.open(override or recorded["path"])
        for name, found in (("annotations", dataset.annotations_sha256), ("splits", dataset.splits_sha256)):
            expected = recorded[f"{name}_sha256"]
            if found != expected:
                raise RunError(
                    f"the {name} of dataset {dataset.path} have changed since the run",
                    where=self.path,
                    found=f"sha256 {found}",
                    expected=f"sha256 {expected}",
                    remedy="train again, or name the dataset it was trained on with --dataset",
                )
        return dataset

    def has(self, part: str) -> bool:
        """Whether there are predictions of a part."""
        return (self.path / "predictions" / part).is_dir()

    def default_part(self) -> str:
        """`crossval` where present or where the run is of all folds, else `test`."""
        return "crossval" if self.has("crossval") or self.info["fold"] == "all" else "test"

    def scores(self, part: str) -> dict[int, float] | None:
        """Anomaly score of each image of a part; None where the approach gave none."""
        path = self._part(part) / "scores.json"
        if not os.path.lexists(path):
            return None
        return _by_image_id(decoded(path, _SCORES, "is not a table of scores by image id"), "a score", path)

    def types(self, part: str) -> dict[int, str] | None:
        """What each image of a part is called: `good` or a defect type; None where the approach gave none."""
        path = self._part(part) / "types.json"
        if not os.path.lexists(path):
            return None
        return _by_image_id(decoded(path, _TYPES, "is not a table of types by image id"), "a type", path)

    def detections(self, part: str) -> list[Result] | None:
        """COCO results of a part; None where the approach gave none."""
        path = self._part(part) / "detections.json"
        if not os.path.lexists(path):
            return None
        results = decoded(path, _RESULTS, "is not a COCO result")
        for index, result in enumerate(results):
            where = f"{path}, entry {index}"
            if result["bbox"][2] < 0 or result["bbox"][3] < 0:
                raise RunError("has a box of negative size", where=where, found=result["bbox"])
            if "segmentation" in result:
                _check_mask(result["segmentation"], where)
        return cast(list[Result], results)

    def has_maps(self, part: str) -> bool:
        """Whether the approach gave anomaly maps."""
        return (self._part(part) / "maps").is_dir()

    def map(self, part: str, image_id: int) -> npt.NDArray[np.float32] | None:
        """Anomaly map of one image, h x w, float32, at the model's own resolution; None where there is none.

        Raises:
            RunError: When the maps of other images are there and this one is not, or it is no finite 2-d array.
        """
        if not self.has_maps(part):
            return None
        path = self._part(part) / "maps" / f"{image_id}.npy"
        try:
            with open_regular(path) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        except FileNotFoundError as error:
            raise RunError("the map of an image is missing", where=path) from error
        except NO_ARRAY as error:
            raise RunError("cannot be read as an array", where=path, found=str(error)) from error
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise RunError("is not an array of numbers", where=path)
        if array.ndim != 2 or array.size == 0:
            raise RunError("is not a map", where=path, found=f"shape {array.shape}", expected="height x width")
        with np.errstate(over="ignore"):
            anomaly_map: npt.NDArray[np.float32] = array.astype(np.float32, copy=False)
        if not np.isfinite(anomaly_map).all():
            raise RunError("has values that are not finite", where=path, found="NaN or infinity")
        return anomaly_map

    def _part(self, part: str) -> Path:
        folder = self.path / "predictions" / part
        if not folder.is_dir():
            raise RunError(
                f"has no predictions of {part}",
                where=self.path,
                remedy="run `maskbridge predict`",
            )
        return folder


def write_predictions(run_path: Path, part: str, predictions: Iterable[Prediction]) -> int:
    """Write the predictions of a part, all or nothing; those that are there are exchanged for them in one step.

    Args:
        run_path: The run folder.
        part: `val`, `test` or `crossval`.
        predictions: One for each image; either all of them or none have a score, a type, a map, detections.

    Returns:
        Number of images.

    Raises:
        RunError: When a score or map is not finite (the image is named), or some images lack what others have.
    """
    out = run_path / "predictions" / part
    scores: dict[str, float] = {}
    types: dict[str, str] = {}
    results: list[Result] = []
    have = {"score": 0, "type": 0, "map": 0, "detections": 0}
    count = 0
    with told_of(out), beside(out) as folder:
        for prediction in predictions:
            count += 1
            image_id = prediction.image_id
            refuse_not_finite(prediction, run_path)
            if prediction.score is not None:
                have["score"] += 1
                scores[str(image_id)] = float(prediction.score)
            if prediction.type is not None:
                have["type"] += 1
                types[str(image_id)] = prediction.type
            if prediction.map is not None:
                have["map"] += 1
                write_array(folder / "maps" / f"{image_id}.npy", prediction.map.astype(np.float32, copy=False))
            if prediction.detections is not None:
                have["detections"] += 1
                results.extend(_result(image_id, detection) for detection in prediction.detections)
        for what, times in have.items():
            if times not in (0, count):
                raise RunError(f"{times} of {count} predictions have {what}", where=run_path, expected="all or none")
        if have["score"]:
            write_json(folder / "scores.json", scores)
        if have["type"]:
            write_json(folder / "types.json", types)
        if have["detections"]:
            write_json(folder / "detections.json", results)
        move_in(folder, out, replace=True)
    return count


def refuse_not_finite(prediction: Prediction, where: Path) -> None:
    """Refuse NaN and infinity.

    Raises:
        RunError: When a score, map, confidence or box is not finite; the image is named.
    """
    image_id = prediction.image_id
    if prediction.score is not None and not math.isfinite(prediction.score):
        raise RunError(f"the score of image {image_id} is {prediction.score}", where=where)
    if prediction.map is not None and not np.isfinite(prediction.map).all():
        raise RunError(f"the map of image {image_id} has values that are not finite", where=where)
    for detection in prediction.detections or ():
        if not all(map(math.isfinite, (*detection.box_ltwh, detection.score))):
            raise RunError(f"a detection of image {image_id} is not finite", where=where, found=detection)


def _by_image_id(table: dict[str, Any], what: str, path: Path) -> dict[int, Any]:
    for image_id in table:
        if re.fullmatch(r"[1-9][0-9]{0,15}", image_id) is None:
            raise RunError(f"{what} is not named by an image id", where=path, found=repr(image_id[:80]))
    return {int(image_id): value for image_id, value in table.items()}


def _result(image_id: int, detection: Detection) -> Result:
    result: Result = {
        "image_id": image_id,
        "category_id": detection.category_id,
        "bbox": [round(float(value), 4) for value in detection.box_ltwh],
        "score": float(detection.score),
    }
    if detection.segmentation is not None:
        result["segmentation"] = detection.segmentation
    return result


def _check_mask(rle: RLE, where: str) -> None:
    try:
        height, width = rle["size"]
        whole_runs(rle["counts"], height * width)
    except ValueError as error:
        raise RunError(
            "the mask is not a compressed RLE of its size", where=where, found=f"{error}: {rle}"[:120]
        ) from error
