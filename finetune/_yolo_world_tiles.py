"""Small defects: images cut into overlapping tiles, for training and for prediction.

    tiles, left_out = tiled(dataset, fold, tile=512, overlap=0.2, out=Path("work/tiles"))      # a Dataset
    boxes, scores, classes = detect_tiled(detect, image, tile=512, overlap=0.2, iou=0.6)

A tile's boxes are those of the mask inside it, exactly; a clipped box would reach beyond what is seen. The whole image
goes along, in training and in prediction, so that defects larger than a tile are seen whole (Akyon et al., Slicing
Aided Hyper Inference, ICIP 2022, https://arxiv.org/abs/2202.06934). Prediction is supervision's `InferenceSlicer`: it
takes any detector as a function, so that tiles and whole images go through the same call; sahi wraps Ultralytics in a
model of its own, which leaves no say in non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge import geometry
from maskbridge.dataset import GOOD, Annotation, Dataset, Image
from maskbridge.files import sha256_bytes, write_bytes
from maskbridge.progress import track

#: A part of an instance counts from this share of the instance, or of the tile, on; below, the tile is left out.
LEAST_SHARE_OF_INSTANCE, LEAST_SHARE_OF_TILE = 0.1, 0.01

#: Boxes N x 4 as left, top, right, bottom in pixels; scores N; class numbers N.
Detections = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]
Detect = Callable[[npt.NDArray[np.uint8]], Detections]


@dataclass(frozen=True)
class Window:
    """A tile's place in its image, half-open, in pixels."""

    left: int
    top: int
    right: int
    bottom: int


def windows(size_hw: tuple[int, int], tile: int, overlap: float) -> list[Window]:
    """Places of the tiles of an image, row by row; the last ones are moved inwards, so that all are of one size."""
    tops, lefts = (_starts(size, tile, overlap_pixels(tile, overlap)) for size in size_hw)
    height, width = size_hw
    return [Window(x, y, min(x + tile, width), min(y + tile, height)) for y in tops for x in lefts]


def overlap_pixels(tile: int, overlap: float) -> int:
    """Pixels that two neighbours share, at least one: without any, supervision cuts the last tiles smaller."""
    return max(1, round(tile * overlap))


def tiled(dataset: Dataset, fold: int, *, tile: int, overlap: float, out: Path) -> tuple[Dataset, int]:
    """The images of a fold's `train` and `val`, whole and in tiles, as a dataset of that one fold.

    Args:
        dataset: The dataset.
        fold: Number of the fold.
        tile: Side of a tile in pixels.
        overlap: Share of it that neighbours have in common, in [0, 1).
        out: Folder for the tiles, written without loss as `images/<part>/<type>/<name>__<left>_<top>.png`.

    Returns:
        The dataset, and the number of tiles that were left out because they hold no more than a sliver of a defect.
    """
    split = dataset.split(fold)
    images: list[Image] = []
    annotations: list[Annotation] = []
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    left_out = 0
    chosen = [(part, image_id) for part in ("train", "val") for image_id in split.part(part)]
    for part, image_id in track(chosen, "tiles"):
        whole = dataset.image_by_id[image_id]
        pixels = dataset.read_image(image_id)
        masks = [(a, geometry.decode(a["segmentation"])) for a in dataset.annotations_by_image[image_id]]
        places = [Window(0, 0, whole.width, whole.height)]
        if max(whole.size_hw) > tile:
            places += windows(whole.size_hw, tile, overlap)
        for place in places:
            pieces = list(_pieces(masks, place))
            if any(piece is None for piece in pieces):
                left_out += 1
                continue
            unmarked = not masks and not whole.is_good
            crop = pixels[place.top : place.bottom, place.left : place.right, ::-1]
            data = cv2.imencode(".png", crop, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
            image = _cut(whole, place, len(images) + 1, data, keeps_type=bool(pieces) or unmarked)
            write_bytes(out / "images" / image.file_name, data)
            images.append(image)
            parts[part].append(image.id)
            for piece in pieces:
                if piece is not None:
                    annotations.append({**piece, "id": len(annotations) + 1, "image_id": image.id})
    cut = replace(
        dataset,
        path=out,
        images=tuple(images),
        annotations=tuple(annotations),
        splits={"folds": [parts], "official": None},
    )
    return cut, left_out


def detect_tiled(detect: Detect, image: npt.NDArray[np.uint8], *, tile: int, overlap: float, iou: float) -> Detections:
    """Detect in the whole image and in its tiles, and merge by non-maximum suppression within each class.

    Args:
        detect: The detector, for an image or tile, H x W x 3.
        image: H x W x 3, uint8.
        tile: Side of a tile in pixels.
        overlap: Share of it that neighbours have in common.
        iou: Overlap above which the weaker box goes. It is measured by the smaller of two boxes, since the part of a
            defect in one tile lies within the box of the whole defect.
    """
    from supervision import Detections as Found
    from supervision import InferenceSlicer, OverlapFilter, OverlapMetric

    def call(crop: npt.NDArray[np.uint8]) -> Found:
        boxes, scores, classes = detect(np.ascontiguousarray(crop))
        return Found(xyxy=boxes.astype(np.float32), confidence=scores.astype(np.float32), class_id=classes)

    found = [call(image)]
    if max(image.shape[:2]) > tile:
        slicer = InferenceSlicer(
            callback=call, slice_wh=tile, overlap_wh=overlap_pixels(tile, overlap), overlap_filter=OverlapFilter.NONE
        )
        found.append(slicer(image))
    merged = Found.merge([some for some in found if len(some)]) if any(map(len, found)) else Found.empty()
    if not len(merged):
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64)
    kept = merged.with_nms(iou, overlap_metric=OverlapMetric.IOS)
    scores, classes = np.asarray(kept.confidence, dtype=np.float64), np.asarray(kept.class_id, dtype=np.int64)
    order = np.argsort(-scores, kind="stable")
    return kept.xyxy[order].astype(np.float64), scores[order], classes[order]


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    last = size - tile
    return [*range(0, last, tile - overlap), last]


def _pieces(masks: Sequence[tuple[Annotation, geometry.Mask]], place: Window) -> Iterator[Annotation | None]:
    """What each instance, given with its mask, shows of itself in a window; None for a sliver."""
    for annotation, whole in masks:
        mask = whole[place.top : place.bottom, place.left : place.right]
        area = int(mask.sum())
        if not area:
            continue
        if area < min(LEAST_SHARE_OF_INSTANCE * annotation["area"], LEAST_SHARE_OF_TILE * mask.size):
            yield None
            continue
        found, _ = geometry.instances(mask, split=False)
        yield {**annotation, **found[0]}


def _cut(whole: Image, place: Window, image_id: int, data: bytes, *, keeps_type: bool) -> Image:
    """The tile as an image of its own: good where it shows no defect of an image whose defects are marked."""
    stem, _, _ = whole.file_name.rpartition(".")
    return replace(
        whole,
        id=image_id,
        file_name=f"{stem}__{place.left}_{place.top}_{place.right}_{place.bottom}.png",
        width=place.right - place.left,
        height=place.bottom - place.top,
        origin=f"{whole.part}/{whole.defect_type if keeps_type else GOOD}",
        sha256=sha256_bytes(data),
    )
