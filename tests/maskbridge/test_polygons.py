"""Polygons that come back exact, and a replica equal to the loader that they come back from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskbridge import geometry
from maskbridge.errors import MaskbridgeError
from maskbridge.polygons import area_rle, loader_masks, polygon_from_mask, round_trip_iou
from maskbridge.yolo_lines import parse_segmentation_line, segmentation_line

Mask = npt.NDArray[np.bool_]
Component = tuple[Mask, tuple[int, int]]


def zoo() -> dict[str, Mask]:
    """One mask of 24x31 pixels per kind of defect that label tools get wrong."""
    masks = {
        name: np.zeros((24, 31), dtype=bool)
        for name in (
            *("none", "pixel", "corner_pixel", "line", "column", "diagonal", "antidiagonal", "zigzag", "pit"),
            *("ring", "diamond", "pinhole", "two_holes", "stacked_holes", "ring_in_ring", "corner_touch"),
            *("two_blobs", "frame_blob", "frame_ring", "whole", "checkerboard", "comb"),
        )
    }
    masks["pixel"][5, 7] = True
    masks["corner_pixel"][-1, -1] = True
    masks["line"][5, 3:29] = True
    masks["column"][2:20, 30] = True
    masks["diagonal"][np.arange(20), np.arange(20) + 4] = True
    masks["antidiagonal"][np.arange(20), 30 - np.arange(20)] = True
    masks["zigzag"][10 + np.arange(31) % 2, np.arange(31)] = True
    masks["pit"][8:10, 8:10] = True
    masks["ring"][4:14, 6:20] = True
    masks["ring"][5:13, 7:19] = False
    masks["diamond"][[4, 5, 5, 6], [5, 4, 6, 5]] = True
    masks["pinhole"][4:14, 6:20] = True
    masks["pinhole"][9, 9] = False
    masks["two_holes"][4:14, 6:20] = True
    masks["two_holes"][[6, 7, 10], [8, 9, 15]] = False
    masks["stacked_holes"][2:22, 6:20] = True
    masks["stacked_holes"][4:20:3, 8:12] = False
    masks["ring_in_ring"][2:22, 2:28] = True
    masks["ring_in_ring"][4:20, 4:26] = False
    masks["ring_in_ring"][8:16, 8:20] = True
    masks["ring_in_ring"][10:14, 10:18] = False
    masks["corner_touch"][4:8, 4:9] = True
    masks["corner_touch"][8:12, 9:15] = True
    masks["two_blobs"][3:8, 4:10] = True
    masks["two_blobs"][12:20, 15:30] = True
    masks["frame_blob"][:6, 25:] = True
    masks["frame_ring"][:] = True
    masks["frame_ring"][1:-1, 1:-1] = False
    masks["whole"][:] = True
    masks["checkerboard"][(np.indices((24, 31)).sum(axis=0) % 2) == 0] = True
    masks["comb"][::2] = True
    masks["comb"][:, 15] = True
    return masks


def components_of(mask: Mask) -> list[Component]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = []
    for index in range(1, count):
        x, y, width, height, _ = stats[index].tolist()
        found.append((labels[y : y + height, x : x + width] == index, (x, y)))
    return found


def label_lines(components: list[Component], size_hw: tuple[int, int]) -> list[str]:
    return [
        segmentation_line(index, polygon_from_mask(crop, offset_xy, size_hw), size_hw)
        for index, (crop, offset_xy) in enumerate(components)
    ]


def round_trip_ious(mask: Mask) -> list[float]:
    """Of every component: through Ultralytics' loader, then filled as an area."""
    components = components_of(mask)
    lines = label_lines(components, mask.shape)
    filled = [geometry.decode(area_rle(line, mask.shape)) for line in lines]
    loaded = [*loader_masks(lines, mask.shape), *filled]
    return [round_trip_iou(one, *component) for one, component in zip(loaded, components * 2, strict=True)]


def random_mask(seed: int, height: int, width: int, density: float, blur: float) -> Mask:
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), blur) if blur else noise
    return smooth > np.quantile(smooth, 1 - density)


random_masks = st.builds(
    random_mask,
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(10, 60),
    width=st.integers(61, 150),
    density=st.floats(0.05, 0.98),
    blur=st.sampled_from([0, 0, 0.7, 1.5, 4]),
)
random_polygons = st.lists(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=40), min_size=1, max_size=6
)


@pytest.fixture(scope="module")
def ultralytics_dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`YOLODataset` with its per-user settings kept in a temporary folder and no look at the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        patch.setenv("YOLO_OFFLINE", "true")
        patch.setenv("YOLO_VERBOSE", "false")
        return pytest.importorskip("ultralytics.data.dataset").YOLODataset


def loaded_by_ultralytics(
    dataset_class: Any,
    folder: Path,
    lines: list[str],
    size_hw: tuple[int, int],
    *,
    mask_ratio: int = 1,
    overlap_mask: bool = False,
) -> dict[str, npt.NDArray[Any]]:
    from ultralytics.cfg import get_cfg

    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "labels.cache").unlink(missing_ok=True)
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((*size_hw, 3), dtype=np.uint8))
    (folder / "labels" / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    dataset = dataset_class(
        img_path=str(folder / "images"),
        imgsz=size_hw,
        augment=False,
        rect=False,
        hyp=get_cfg(overrides={"mask_ratio": mask_ratio, "overlap_mask": overlap_mask}),
        data={"names": dict(enumerate(map(str, range(len(lines))))), "channels": 3},
        task="segment",
    )
    sample = dataset[0]
    return {name: sample[name].numpy() for name in ("masks", "cls", "bboxes")}


@pytest.mark.parametrize("name", [name for name in zoo() if name != "none"])
def test_every_component_of_the_zoo_comes_back_exactly(name: str) -> None:
    assert set(round_trip_ious(zoo()[name])) == {1.0}


@given(random_masks)
@settings(deadline=None, max_examples=40)
def test_random_blobs_and_noise_full_of_holes_come_back_exactly(mask: Mask) -> None:
    assert set(round_trip_ious(mask)) == {1.0}


def test_an_outline_of_more_vertices_than_the_loader_has_points_comes_back_exactly() -> None:
    mask = random_mask(seed=3, height=150, width=201, density=0.7, blur=0)
    longest = max(len(line.split()) // 2 for line in label_lines(components_of(mask), mask.shape))
    assert longest > 10_000
    assert set(round_trip_ious(mask)) == {1.0}


@pytest.mark.parametrize("size_hw", [(24, 31), (600, 900), (2999, 4001)])
def test_the_position_in_a_large_image_does_not_matter(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    crop = random_mask(seed=5, height=24, width=31, density=0.8, blur=0.7)
    [(largest, _)] = sorted(components_of(crop), key=lambda component: component[0].sum())[-1:]
    for corner in ((0, 0), (width - largest.shape[1], height - largest.shape[0])):
        lines = label_lines([(largest, corner)], size_hw)
        for read in (*loader_masks(lines, size_hw), geometry.decode(area_rle(lines[0], size_hw))):
            assert round_trip_iou(read, largest, corner) == 1.0


@pytest.mark.parametrize("name", [name for name in zoo() if name != "none"])
def test_the_vertices_span_the_half_open_box(name: str) -> None:
    mask = zoo()[name]
    for crop, (x, y) in components_of(mask):
        polygon_xy = polygon_from_mask(crop, (x, y), mask.shape)
        box = [x, y, x + crop.shape[1], y + crop.shape[0]]
        spanned = [*polygon_xy.min(axis=0), *polygon_xy.max(axis=0)]
        assert spanned == pytest.approx(box, abs=1e-4)


def test_a_rectangle_has_the_four_corners_of_its_pixels_one_float32_inside() -> None:
    """In an image of 64 x 128, where every edge of a pixel is a float32."""
    polygon_xy = polygon_from_mask(np.ones((30, 40), dtype=bool), (10, 20), (64, 128))
    corners = {(x, y) for x in (10, 50) for y in (20, 50)}
    assert {(round(x), round(y)) for x, y in polygon_xy} == corners
    assert len(polygon_xy) == 4
    fractions = (polygon_xy / (128, 64)).astype(np.float32)
    edges = (polygon_xy.round() / (128, 64)).astype(np.float32)
    inward = np.where(polygon_xy.round() > (30, 35), np.float32(0), np.float32(1))
    np.testing.assert_array_equal(fractions, np.nextafter(edges, inward))


@pytest.mark.parametrize("name", [name for name in zoo() if name != "none"])
def test_the_area_within_the_vertices_is_the_number_of_pixels(name: str) -> None:
    """By the trapezoid formula, which knows of no pixels: what shapely makes of the polygon."""
    for crop, offset_xy in components_of(zoo()[name]):
        x, y = polygon_from_mask(crop, offset_xy, (24, 31)).T
        area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
        assert area == pytest.approx(crop.sum(), rel=1e-4)


@pytest.mark.parametrize("name", [*(name for name in zoo() if name != "none"), "noise", "blobs"])
def test_pillow_and_supervision_fill_the_same_pixels(name: str) -> None:
    """Both cut to whole pixels in float64 and draw the outline."""
    image_draw, image = pytest.importorskip("PIL.ImageDraw"), pytest.importorskip("PIL.Image")
    converters = pytest.importorskip("supervision.detection.utils.converters")
    mask = {
        "noise": lambda: random_mask(1, 90, 131, 0.6, 0),
        "blobs": lambda: random_mask(2, 90, 131, 0.5, 3),
    }.get(name, lambda: zoo()[name])()
    (height, width), components = mask.shape, components_of(mask)
    for line, component in zip(label_lines(components, mask.shape), components, strict=True):
        polygon_xy = parse_segmentation_line(line, mask.shape)[1]
        canvas = image.new("1", (width, height))
        image_draw.Draw(canvas).polygon([tuple(vertex) for vertex in polygon_xy], fill=1, outline=1)
        filled = converters.polygon_to_mask(polygon_xy.astype(int), (width, height))
        assert round_trip_iou(np.array(canvas, np.uint8), *component) == 1.0
        assert round_trip_iou(filled.astype(np.uint8), *component) == 1.0


@pytest.mark.parametrize(("name", "components"), [("none", 0), ("two_blobs", 2), ("ring_in_ring", 2)])
def test_a_mask_that_is_not_one_component_is_refused(name: str, components: int) -> None:
    with pytest.raises(MaskbridgeError, match=f"found {components} components; expected 1"):
        polygon_from_mask(zoo()[name], (0, 0), (24, 31))


def test_a_crop_that_leaves_the_image_is_refused() -> None:
    with pytest.raises(MaskbridgeError, match="found 5x4 at 27, 20; expected within 31x24"):
        polygon_from_mask(np.ones((4, 5), dtype=bool), (27, 20), (24, 31))


def test_a_malformed_line_is_told_by_its_number() -> None:
    with pytest.raises(MaskbridgeError, match="line 2: not a segmentation line"):
        list(loader_masks(["0 0.1 0.1 0.5 0.5 0.1 0.5", "0 0.5 0.5 0.1 0.1"], (24, 31)))


def test_an_empty_label_file_has_no_masks() -> None:
    assert list(loader_masks([], (24, 31))) == []


def test_the_iou_of_a_mask_with_one_pixel_too_many_is_worked_by_hand() -> None:
    loaded = np.zeros((24, 31), dtype=np.uint8)
    loaded[4:6, 5:8] = 1
    loaded[20, 20] = 1
    assert round_trip_iou(loaded, np.ones((2, 4), dtype=bool), (5, 4)) == pytest.approx(6 / 9)


@pytest.mark.parametrize("mask_ratio", [1, 4])
@pytest.mark.parametrize("name", [name for name in zoo() if name != "none"])
def test_the_replica_equals_ultralytics_loader_on_the_zoo(
    name: str, mask_ratio: int, ultralytics_dataset: Any, tmp_path: Path
) -> None:
    mask = zoo()[name]
    components = components_of(mask)
    lines = label_lines(components, mask.shape)
    sample = loaded_by_ultralytics(
        ultralytics_dataset, tmp_path, lines, mask.shape, mask_ratio=mask_ratio, overlap_mask=False
    )
    assert sample["cls"].ravel().tolist() == list(range(len(components)))
    replica = list(loader_masks(lines, mask.shape, mask_ratio=mask_ratio))
    np.testing.assert_array_equal(sample["masks"], np.stack(replica))


@pytest.mark.parametrize("name", [name for name in zoo() if name != "none"])
def test_ultralytics_overlapped_mask_and_boxes_are_exact_on_the_zoo(
    name: str, ultralytics_dataset: Any, tmp_path: Path
) -> None:
    mask = zoo()[name]
    components = components_of(mask)
    lines = label_lines(components, mask.shape)
    sample = loaded_by_ultralytics(ultralytics_dataset, tmp_path, lines, mask.shape, overlap_mask=True)
    assert len(sample["cls"]) == len(components)
    for value, (index, box) in enumerate(zip(sample["cls"].ravel(), sample["bboxes"], strict=True), start=1):
        crop, (x, y) = components[int(index)]
        assert round_trip_iou(sample["masks"][0] == value, crop, (x, y)) == 1.0
        height, width = crop.shape
        expected = [(x + width / 2) / 31, (y + height / 2) / 24, width / 31, height / 24]
        assert box.tolist() == pytest.approx(expected, abs=1e-6)


@given(mask=random_masks)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_replica_equals_ultralytics_loader_on_random_blobs(
    mask: Mask, ultralytics_dataset: Any, tmp_path: Path
) -> None:
    components = components_of(mask)
    lines = label_lines(components, mask.shape)
    sample = loaded_by_ultralytics(ultralytics_dataset, tmp_path, lines, mask.shape)
    np.testing.assert_array_equal(sample["masks"], np.stack(list(loader_masks(lines, mask.shape))))


@given(polygons=random_polygons, mask_ratio=st.sampled_from([1, 2, 4]))
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_replica_equals_ultralytics_loader_on_polygons_of_any_kind(
    polygons: list[list[tuple[float, float]]], mask_ratio: int, ultralytics_dataset: Any, tmp_path: Path
) -> None:
    size_hw = (45, 70)
    lines = [segmentation_line(index, np.array(points) * (70, 45), size_hw) for index, points in enumerate(polygons)]
    sample = loaded_by_ultralytics(ultralytics_dataset, tmp_path, lines, size_hw, mask_ratio=mask_ratio)
    replica = list(loader_masks(lines, size_hw, mask_ratio=mask_ratio))
    np.testing.assert_array_equal(sample["masks"], np.stack(replica))


@pytest.mark.parametrize("vertices", [998, 999, 1000, 1001, 2500])
def test_the_replica_equals_ultralytics_loader_around_its_thousand_points(
    vertices: int, ultralytics_dataset: Any, tmp_path: Path
) -> None:
    size_hw = (90, 130)
    rng = np.random.default_rng(vertices)
    lines = [
        segmentation_line(index, rng.random((count, 2)) * (130, 90), size_hw)
        for index, count in enumerate((vertices, 5))
    ]
    sample = loaded_by_ultralytics(ultralytics_dataset, tmp_path, lines, size_hw)
    np.testing.assert_array_equal(sample["masks"], np.stack(list(loader_masks(lines, size_hw))))


@pytest.mark.real
def test_all_63_masks_of_bottle_come_back_exactly_and_the_replica_equals_the_loader(
    ultralytics_dataset: Any, tmp_path: Path
) -> None:
    if "MASKBRIDGE_DATA" not in os.environ:
        pytest.skip("MASKBRIDGE_DATA is not set")
    folder = Path(os.environ["MASKBRIDGE_DATA"]) / "mvtec_ad" / "bottle" / "ground_truth"
    files = sorted(folder.glob("*/*_mask.png"))
    exact: list[float] = []
    filled: list[float] = []
    quartered: list[float] = []
    for file in files:
        mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED) > 0
        components = components_of(mask)
        lines = label_lines(components, mask.shape)
        for line, component in zip(lines, components, strict=True):
            filled.append(round_trip_iou(geometry.decode(area_rle(line, mask.shape)), *component))
        for mask_ratio, ious in ((1, exact), (4, quartered)):
            sample = loaded_by_ultralytics(ultralytics_dataset, tmp_path, lines, mask.shape, mask_ratio=mask_ratio)
            replica = list(loader_masks(lines, mask.shape, mask_ratio=mask_ratio))
            np.testing.assert_array_equal(sample["masks"], np.stack(replica))
            for small, component in zip(replica, components, strict=True):
                full = cv2.resize(small, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
                ious.append(round_trip_iou(full, *component))
    assert len(files) == 63
    assert exact == filled == [1.0] * 68
    assert np.mean(quartered) == pytest.approx(0.964, abs=1e-3)
    assert np.min(quartered) == pytest.approx(0.734, abs=1e-3)


@pytest.mark.parametrize("size", [7, 640, 900, 1023])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_vertex_beside_a_pixel_is_the_outermost_number_that_truncates_to_it(size: int, side: int) -> None:
    """Outermost up to the nine digits of a label file, which must not round it into the next pixel."""
    from maskbridge.polygons import _fractions

    index = np.arange(size)
    found = _fractions(index, np.full(size, side), size)
    np.testing.assert_array_equal((found * np.float32(size)).astype(int), index)
    np.testing.assert_array_equal((found.astype(np.float64) * size).astype(int), index)
    edge = (index + (side > 0)) / size
    assert np.abs(found - edge).max() <= 4 * np.spacing(np.float32(1)), "at the pixel's edge, and no further in"
