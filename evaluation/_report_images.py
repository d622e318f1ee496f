"""Small pictures of the report: photos and anomaly maps as data, defects as outlines.

    pictures = Pictures(evaluations, thumbnail_px=256)
    pictures.record(17, pictures.levels[0])     # {"p": "UklGR…", "t": […], "r": […]}

Coordinates of outlines and boxes are whole units of a frame whose longest side is `FRAME`, whatever the size of the
picture. Photos and maps are WebP, or JPEG where OpenCV has no WebP, in base64; of a photo one is held at a time.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from evaluation.metrics import Evaluation
from maskbridge import geometry
from maskbridge.dataset import GOOD, Dataset
from maskbridge.predictions import Result
from maskbridge.progress import track

#: Units of outlines along the longest side of an image.
FRAME = 1000

#: Percentiles of all map pixels of a run and fold between which its maps are shown.
MAP_PERCENTILES = (60.0, 99.7)

#: Longest side of a map at most, in pixels.
MAP_PX = 96

#: Share of the wanted size, quality of photos, longest side of maps, quality of maps, detections kept.
_STEPS = (
    (1.0, 78, MAP_PX, 70, 20),
    (0.875, 70, 80, 60, 15),
    (0.75, 62, 64, 50, 10),
    (0.625, 55, 48, 45, 8),
    (0.5, 48, 40, 40, 5),
    (0.375, 40, 32, 35, 3),
    (0.25, 35, 24, 30, 2),
)
_SMALLEST_PX = 24
_SAMPLED_PER_MAP = 1024
_OUTLINE_UNITS = 2.0


@dataclass(frozen=True)
class Level:
    """How much room pictures take.

    Attributes:
        thumbnail_px: Longest side of a photo.
        quality: Its quality, 0 to 100.
        map_px: Longest side of a map at most.
        map_quality: Its quality, 0 to 100.
        detections: Detections kept of an image and run, the highest first.
    """

    thumbnail_px: int
    quality: int
    map_px: int
    map_quality: int
    detections: int


class Pictures:
    """Pictures of the images of runs that stand side by side.

    Args:
        evaluations: The runs, on the same images.
        thumbnail_px: Longest side of a photo, where there is room.
    """

    def __init__(self, evaluations: Sequence[Evaluation], thumbnail_px: int) -> None:
        """Sort detections by image and read every map once for its scale."""
        self.levels = tuple(
            Level(max(_SMALLEST_PX, round(share * thumbnail_px)), quality, map_px, map_quality, detections)
            for share, quality, map_px, map_quality, detections in _STEPS
        )
        self.format = "webp" if cv2.haveImageWriter(".webp") else "jpeg"
        self._dataset = evaluations[0].dataset
        self.types = defect_types(evaluations)
        self._place = {name: place for place, name in enumerate(self.types)}
        self._names = _names(self._dataset)
        self._runs = [_RunPictures(evaluation) for evaluation in evaluations]

    @property
    def scales(self) -> list[dict[str, tuple[float, float]] | None]:
        """Of each run and fold the values that are shown as 0 and 255; None where it has no maps."""
        return [run.scales for run in self._runs]

    def record(self, image_id: int, level: Level) -> dict[str, Any]:
        """Everything that is drawn of one image.

        Returns:
            `p` photo, `t` true defects as [type, box, outline], `r` for each run `m` (its map or None), `d`
            (detections as [confidence, type or -1, shown by default, box, outline], the highest first) and `n` (their
            number before the lowest were left out).

        Raises:
            MaskbridgeError: When the image cannot be read.
        """
        image = self._dataset.image_by_id[image_id]
        units = FRAME / max(image.size_hw)
        photo = _shrunk(self._dataset.read_image(image_id), level.thumbnail_px)
        return {
            "p": self._encoded(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), level.quality),
            "t": [
                [
                    self._place[self._names[a["category_id"]]],
                    _box(a["bbox"], units),
                    outline(a["segmentation"], units),
                ]
                for a in self._dataset.annotations_by_image[image_id]
            ],
            "r": [self._of_run(run, image_id, level, units) for run in self._runs],
        }

    def _of_run(self, run: _RunPictures, image_id: int, level: Level, units: float) -> dict[str, Any]:
        found = run.detections.get(image_id, [])
        least = None if run.thresholds is None else run.thresholds[image_id]
        return {
            "m": None if run.scales is None else self._encoded(run.grey(image_id, level.map_px), level.map_quality),
            "n": len(found),
            "d": [
                [
                    float(f"{result['score']:.4g}"),
                    -1 if result["category_id"] is None else self._place[run.names[result["category_id"]]],
                    int(least is None or result["score"] >= least),
                    _box(result["bbox"], units),
                    outline(result["segmentation"], units) if "segmentation" in result else "",
                ]
                for result in found[: level.detections]
            ],
        }

    def _encoded(self, pixels: npt.NDArray[Any], quality: int) -> str:
        flag = cv2.IMWRITE_WEBP_QUALITY if self.format == "webp" else cv2.IMWRITE_JPEG_QUALITY
        done, data = cv2.imencode(f".{self.format}", pixels, [flag, quality])
        assert done, "OpenCV says that it can write this format"
        return base64.b64encode(data.tobytes()).decode("ascii")


def defect_types(evaluations: Sequence[Evaluation]) -> list[str]:
    """`good`, then the defect types of categories and images; runs may know others than the first one."""
    names = [name for evaluation in evaluations for name in _names(evaluation.dataset).values()]
    return list(dict.fromkeys([GOOD, *names, *(image.defect_type for image in evaluations[0].dataset.images)]))


def _names(dataset: Dataset) -> dict[int, str]:
    return {category["id"]: category["name"] for category in dataset.categories}


def outline(rle: geometry.RLE, units: float) -> str:
    """The border of a mask as an SVG path, holes included, to be filled by the even-odd rule.

    Args:
        rle: The mask, at the size of the image.
        units: Units of the frame for each pixel.

    Returns:
        The path in whole units; empty for an empty mask.
    """
    mask = geometry.decode(rle)
    left, top, width, height = cv2.boundingRect(mask)
    if width == 0:
        return ""
    zoom = int(np.clip(np.ceil(units / 2), 1, 4))  # of small images, so that half a pixel more or less is not seen
    crop = np.ascontiguousarray(mask[top : top + height, left : left + width].repeat(zoom, axis=0).repeat(zoom, axis=1))
    contours, hierarchy = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = units / zoom
    pieces: list[str] = []
    for contour, parent in zip(contours, hierarchy[0][:, 3], strict=True):
        if parent >= 0 and min(cv2.boundingRect(contour)[2:]) * scale < _OUTLINE_UNITS:
            continue  # a hole that is smaller than what is drawn
        corners = cv2.approxPolyDP(contour, _OUTLINE_UNITS / scale, True)[:, 0].astype(np.float64)
        points = np.rint((corners + 0.5) * scale + np.array([left, top]) * units).astype(int)
        pieces.append(_path(points))
    return "".join(pieces)


class _RunPictures:
    """Detections by image, and maps with their scale, of one run."""

    def __init__(self, evaluation: Evaluation) -> None:
        view = evaluation.view
        self.names = _names(evaluation.dataset)
        self._maps = view.maps().value
        self.thresholds = view.threshold("detection").value
        self.detections: dict[int, list[Result]] = {}
        for result in view.detections().value or ():
            self.detections.setdefault(result["image_id"], []).append(result)
        for results in self.detections.values():
            results.sort(key=lambda result: -result["score"])
        self._fold = {image_id: view.fold(image_id) for image_id in view.image_ids}
        self.scales = self._robust_scales(evaluation.run.name)

    def grey(self, image_id: int, longest_px: int) -> npt.NDArray[np.uint8]:
        """The map between the two ends of its fold's scale, h x w, 0 to 255."""
        assert self._maps is not None, "asked for only where there are maps"
        assert self.scales is not None, "maps have a scale"
        low, high = self.scales[self._fold[image_id]]
        shares = (_shrunk(self._maps(image_id), longest_px).astype(np.float64) - low) / max(high - low, 1e-300)
        return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)

    def _robust_scales(self, name: str) -> dict[str, tuple[float, float]] | None:
        """By fold: models have scales of their own."""
        if self._maps is None:
            return None
        some: dict[str, list[npt.NDArray[Any]]] = {}
        for image_id, fold in track(self._fold.items(), f"{name}: scale of the maps", len(self._fold)):
            pixels = _shrunk(self._maps(image_id), MAP_PX).ravel()
            some.setdefault(fold, []).append(pixels[:: max(1, len(pixels) // _SAMPLED_PER_MAP)])
        scales: dict[str, tuple[float, float]] = {}
        for fold, pieces in some.items():
            low, high = np.percentile(np.concatenate(pieces), MAP_PERCENTILES)
            if not high > low:
                high = max(float(piece.max()) for piece in pieces)
            scales[fold] = float(low), float(high)
        return scales


def _shrunk(pixels: npt.NDArray[Any], longest_px: int) -> npt.NDArray[Any]:
    """The picture with no side longer than `longest_px`; a smaller one as it is."""
    height, width = pixels.shape[:2]
    share = longest_px / max(height, width)
    if share >= 1:
        return pixels
    size_wh = max(1, round(width * share)), max(1, round(height * share))
    shrunk: npt.NDArray[Any] = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)
    return shrunk


def _box(box_ltwh: Sequence[float], units: float) -> list[int]:
    return [round(value * units) for value in box_ltwh]


def _path(points: npt.NDArray[Any]) -> str:
    """M x y, then relative steps; a single point becomes a dot of one unit."""
    steps = np.diff(points, axis=0)
    steps = steps[np.any(steps != 0, axis=1)]
    start = f"M{points[0, 0]} {points[0, 1]}"
    if not len(steps):
        return start + "h1v1h-1z"
    return start + "l" + " ".join(f"{x} {y}" for x, y in steps.tolist()) + "z"
