from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from finetune._yolo_world_forgetting import finder, forgetting, measure_forgetting, probe_images, survivors
from maskbridge.errors import OptionError

BOXES = np.array([[10.0, 10, 50, 40], [60, 20, 90, 80], [5, 60, 25, 95]])
CLASSES = np.array([0, 5, 0])
NONE = (np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
IMAGES = [(f"{number}.png", np.full((100, 120, 3), number, dtype=np.uint8)) for number in range(10)]


def test_every_find_survives_in_the_same_finds_and_none_in_nothing():
    assert survivors(BOXES, CLASSES, BOXES, CLASSES) == 3
    assert survivors(BOXES, CLASSES, *NONE) == 0
    assert survivors(*NONE, BOXES, CLASSES) == 0


def test_a_find_of_another_class_or_elsewhere_does_not_count():
    assert survivors(BOXES, CLASSES, BOXES, np.array([0, 4, 0])) == 2
    assert survivors(BOXES[:1], CLASSES[:1], BOXES[:1] + np.array([21, 0, 21, 0]), CLASSES[:1]) == 0, "IoU .31"
    assert survivors(BOXES[:1], CLASSES[:1], BOXES[:1] + np.array([13, 0, 13, 0]), CLASSES[:1]) == 1, "IoU .51"


def test_one_find_keeps_one_find():
    twice = np.concatenate([BOXES[:1], BOXES[:1] + 1])
    assert survivors(twice, np.array([0, 0]), BOXES[:1], np.array([0])) == 1


def test_the_share_is_kept_finds_over_those_of_the_start():
    """Ten images of three finds; the stub of a tuned model has lost class 5."""
    facts = forgetting(lambda _: (BOXES, CLASSES), lambda _: (BOXES[CLASSES == 0], CLASSES[CLASSES == 0]), IMAGES)
    assert (facts["kept"], facts["of"], facts["images"]) == (20, 30, 10)
    assert facts["share"] == pytest.approx(2 / 3)
    assert "why" not in facts


def test_the_model_is_given_bgr_and_its_finds_come_surest_first():
    """Probe images are RGB; Ultralytics takes arrays as OpenCV reads them."""
    result = SimpleNamespace(xyxy=BOXES.astype(np.float32), conf=np.array([0.3, 0.9, 0.5]), cls=CLASSES)
    boxes = SimpleNamespace(cpu=lambda: SimpleNamespace(numpy=lambda: result))
    seen = []
    model = SimpleNamespace(predict=lambda image, **_: seen.append(image) or [SimpleNamespace(boxes=boxes)])
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    found, classes = finder(model, device="cpu")(image)
    np.testing.assert_array_equal(seen, [image[:, :, ::-1]])
    np.testing.assert_array_equal(found, BOXES[[1, 2, 0]])
    assert classes.tolist() == [5, 0, 0]


def test_below_20_finds_the_share_is_null_with_a_reason():
    facts = forgetting(lambda _: (BOXES, CLASSES), lambda _: (BOXES, CLASSES), IMAGES[:6])
    assert facts["share"] is None
    assert facts["why"] == "the start model finds 18 things on the probe images, fewer than 20"
    assert (facts["kept"], facts["of"]) == (18, 18)


def test_without_start_weights_or_language_it_is_null_with_a_reason(tmp_path):
    given = (tmp_path / "best.pt", "", "hashed", tmp_path, "cpu")
    assert measure_forgetting(None, "n", *given) == {
        "share": None,
        "why": "the start is random: there is nothing to forget",
    }
    assert measure_forgetting(tmp_path / "start.pt", "n", *given)["why"] == "hashed text features know no COCO names"


def test_the_packaged_probe_images_are_three_photographs_in_four_views():
    pytest.importorskip("ultralytics")
    images = probe_images()
    assert len(images) == 12
    assert len({name for name, _ in images}) == 12
    for name, image in images:
        assert (image.ndim, image.dtype) == (3, np.uint8), name
        assert image.flags["C_CONTIGUOUS"]


def test_own_probe_images_are_taken_as_they_are(tmp_path):
    for name in ("b.png", "deep/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((20, 30, 3), dtype=np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    assert [(name, image.shape) for name, image in probe_images(str(tmp_path))] == [
        ("b.png", (20, 30, 3)),
        ("a.png", (20, 30, 3)),
    ]


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(OptionError, match="--probe has no image"):
        probe_images(str(tmp_path))
