"""What follows from a run's predictions where the approach did not give it itself.

    view = PredictionView(run, dataset, "test")
    found = view.scores()                 # found.value, found.derived, found.why
    maps = view.maps().value              # a function of the image id, or None

Image score: the largest confidence (0 without detections), else the largest value of the map. Type of the image: that
of the surest detection where the score reaches the image threshold, else good. Map: the largest confidence painted over
each mask, else box. Detections: the 8-connected components of the map above the pixel threshold. What is there is never
replaced. A run that was given truth has detections alone: scores, maps and thresholds would tell what it was told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from maskbridge.dataset import GOOD, Dataset
from maskbridge.detection_checks import check_in_image, in_order_of_truth
from maskbridge.errors import RunError
from maskbridge.painting import MOST_DETECTIONS, detections_from_map, map_from_detections
from maskbridge.pixel_counts import resized
from maskbridge.predictions import Result, Run

Value = TypeVar("Value")
Maps = Callable[[int], npt.NDArray[np.float32]]
Thresholds = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Found(Generic[Value]):
    """One kind of prediction of a part.

    Attributes:
        value: The predictions; None where there are none and none follow.
        derived: Whether they follow from others.
        why: Why there are none.
        images_cut: Number of images of which only the surest ones were made.
    """

    value: Value | None
    derived: bool = False
    why: str = ""
    images_cut: int = 0


class PredictionView:
    """The predictions of one part of a run, those that are there and those that follow.

    Args:
        run: The run.
        dataset: Its dataset.
        part: `val`, `test` or `crossval`.
        image_ids: Images of the part; by default those of the run's fold (`part_image_ids`).
        thresholds: By fold and kind, as in run.json, which is the default.
        most_detections: Detections derived from one map at most, the highest first.

    Attributes:
        given_why: Why images, pixels and boxes cannot be judged of a run that was given truth; empty for other runs.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        part: str,
        *,
        image_ids: Sequence[int] | None = None,
        thresholds: Thresholds | None = None,
        most_detections: int = MOST_DETECTIONS,
    ) -> None:
        """Remember where to look; nothing is read yet."""
        self.run = run
        self.dataset = dataset
        self.part = part
        self._most_detections = most_detections
        given = f"the run was given the {run.truth_given}, which exist only where there is a defect"
        self.given_why = "" if run.truth_given is None else given
        self.image_ids = tuple(part_image_ids(run, dataset, part) if image_ids is None else image_ids)
        self._thresholds: Thresholds = (run.info.get("thresholds") or {}) if thresholds is None else thresholds
        self._found_scores: Found[dict[int, float]] | None = None
        self._found_types: Found[dict[int, str]] | None = None
        self._found_detections: Found[list[Result]] | None = None
        self._fold_of = dataset.fold_of_image() if part == "crossval" else {}

    def fold(self, image_id: int) -> str:
        """Fold that judges an image, as a key of the thresholds."""
        return str(self._fold_of[image_id] if self.part == "crossval" else self.run.info["fold"])

    def threshold(self, kind: str) -> Found[dict[int, float]]:
        """Threshold of each image by its own fold; `kind` is `image`, `pixel` or `detection`."""
        if self.given_why:
            return Found(None, why=self.given_why)
        values: dict[int, float] = {}
        for image_id in self.image_ids:
            entry = self._thresholds.get(self.fold(image_id), {}).get(kind, {})
            if entry.get("value") is None:
                why = entry.get("why", "the run has none")
                return Found(None, why=f"no {kind} threshold for fold {self.fold(image_id)}: {why}")
            values[image_id] = float(entry["value"])
        return Found(values)

    def scores(self) -> Found[dict[int, float]]:
        """Score of each image.

        Raises:
            RunError: When images of the part have no score, or others have one.
        """
        if self._found_scores is None:
            self._found_scores = self._find_scores()
        return self._found_scores

    def _find_scores(self) -> Found[dict[int, float]]:
        if self.given_why:
            return Found(None, why=self.given_why)
        scores = self.run.scores(self.part)
        if scores is not None:
            self.refuse_other_images(set(scores), "scores")
            return Found(scores)
        results = self.given_detections()
        if results is not None:
            scores = dict.fromkeys(self.image_ids, 0.0)
            for result in results:
                scores[result["image_id"]] = max(scores[result["image_id"]], float(result["score"]))
            return Found(scores, derived=True)
        maps = self.maps()
        if maps.value is not None:
            return Found({i: float(maps.value(i).max()) for i in self.image_ids}, derived=True)
        return Found(None, why="the run has neither scores nor maps nor detections")

    def types(self) -> Found[dict[int, str]]:
        """What each image is called: `good` or the name of a defect type.

        Raises:
            RunError: When images of the part have no type, or others have one, or a type is not the dataset's.
        """
        if self._found_types is None:
            self._found_types = self._find_types()
        return self._found_types

    def _find_types(self) -> Found[dict[int, str]]:
        if self.given_why:
            return Found(None, why=self.given_why)
        names = {category["id"]: category["name"] for category in self.dataset.categories}
        types = self.run.types(self.part)
        if types is not None:
            self.refuse_other_images(set(types), "types")
            unknown = sorted(set(types.values()) - {GOOD, *names.values()})
            if unknown:
                raise RunError("a type is not the dataset's", where=self.run.path, found=unknown[0])
            return Found(types)
        results, scores, thresholds = self.given_detections(), self.scores(), self.threshold("image")
        if results is None or any(result["category_id"] not in names for result in results):
            return Found(None, why="the run names no types")
        if scores.value is None or thresholds.value is None:
            return Found(None, why=scores.why or thresholds.why)
        surest: dict[int, Result] = {}
        for result in sorted(results, key=lambda result: -result["score"]):
            surest.setdefault(result["image_id"], result)
        called = {i for i in surest if scores.value[i] >= thresholds.value[i]}
        kinds = {i: names[surest[i]["category_id"] or 0] if i in called else GOOD for i in self.image_ids}
        return Found(kinds, derived=True)

    def maps(self) -> Found[Maps]:
        """Anomaly map by image id: h x w, float32, at the model's own resolution (derived: the image's).

        Raises:
            RunError: When images of the part have no map, or others have one.
        """
        if self.given_why:
            return Found(None, why=self.given_why)
        if self.run.has_maps(self.part):
            folder = self.run.path / "predictions" / self.part / "maps"
            names = sorted(path.stem for path in folder.glob("*.npy"))
            strange = [name for name in names if not name.isdecimal()]
            if strange:
                raise RunError("a map is not named by an image id", where=folder, found=f"{strange[0]}.npy")
            self.refuse_other_images({int(name) for name in names}, "maps")
            return Found(self._given_map)
        results = self.given_detections()
        if results is None:
            return Found(None, why="the run has neither maps nor detections")
        by_image: dict[int, list[Result]] = {image_id: [] for image_id in self.image_ids}
        for result in results:
            by_image[result["image_id"]].append(result)

        def painted(image_id: int) -> npt.NDArray[np.float32]:
            return map_from_detections(by_image[image_id], self.dataset.image_by_id[image_id].size_hw)

        return Found(painted, derived=True)

    def detections(self) -> Found[list[Result]]:
        """COCO results of all images; of a run that was given truth in the order of the annotations.

        Raises:
            RunError: When a detection belongs to no image of the part, its box or mask is not one of that image, or,
                where truth was given, the detections are not one for each annotation.
        """
        if self._found_detections is None:
            self._found_detections = self._find_detections()
        return self._found_detections

    def _find_detections(self) -> Found[list[Result]]:
        results = self.given_detections()
        if results is not None:
            return Found(results)
        if not self.run.has_maps(self.part):
            return Found(None, why="the run has neither detections nor maps")
        maps, threshold = self.maps(), self.threshold("pixel")
        if maps.value is None or threshold.value is None:
            return Found(None, why=threshold.why)
        derived: list[Result] = []
        most, images_cut = self._most_detections, 0
        for image_id in self.image_ids:
            size_hw = self.dataset.image_by_id[image_id].size_hw
            full = resized(maps.value(image_id), size_hw, where=f"image {image_id}")
            found = detections_from_map(full, threshold.value[image_id], image_id, most + 1)
            derived += found[:most]
            images_cut += len(found) > most
        return Found(derived, derived=True, images_cut=images_cut)

    def _given_map(self, image_id: int) -> npt.NDArray[np.float32]:
        anomaly_map = self.run.map(self.part, image_id)
        assert anomaly_map is not None, "asked for only where there are maps"
        return anomaly_map

    def given_detections(self) -> list[Result] | None:
        """Detections that the run itself gives, checked; None where it gives none."""
        results = self.run.detections(self.part)
        where = self.run.path / "predictions" / self.part / "detections.json"
        known = set(self.image_ids)
        for index, result in enumerate(results or ()):
            image_id = result["image_id"]
            if image_id not in known:
                found = f"image_id {image_id} in entry {index}"
                raise RunError("a detection belongs to no image of the part", where=where, found=found)
            check_in_image(result, self.dataset.image_by_id[image_id], f"{where}, entry {index}")
        if results is not None and self.given_why:
            return in_order_of_truth(results, self.dataset, self.image_ids, where)
        return results

    def refuse_other_images(self, found: set[int], what: str) -> None:
        """Refuse what is not of the images of the part.

        Raises:
            RunError: When an image is missing or one too many is there.
        """
        missing, extra = sorted(set(self.image_ids) - found), sorted(found - set(self.image_ids))
        if missing or extra:
            raise RunError(
                f"the {what} of part {self.part} are of other images",
                where=self.run.path,
                found=f"{len(missing)} missing {missing[:5]}, {len(extra)} unknown {extra[:5]}",
                expected=f"one for each of {len(self.image_ids)} images",
                remedy="run `maskbridge predict` again",
            )


def part_image_ids(run: Run, dataset: Dataset, part: str) -> tuple[int, ...]:
    """Image ids of a part, ascending: those of the run's fold; for `crossval` all folds' test parts together.

    Raises:
        RunError: When a run over all folds is asked for another part than `crossval`.
    """
    if part == "crossval":
        return tuple(sorted(dataset.fold_of_image()))
    fold = run.info["fold"]
    if fold != "official" and not isinstance(fold, int):
        raise RunError("a run over all folds has the part crossval alone", where=run.path, found=part)
    return tuple(sorted(dataset.split(fold).part(part)))
