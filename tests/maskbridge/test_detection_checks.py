"""Detections lie in their image; of a run that was given truth there is one for each annotation, in its order."""

import numpy as np
import pytest

from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Annotation, Dataset, Image
from maskbridge.derive import PredictionView
from maskbridge.detection_checks import check_in_image
from maskbridge.errors import RunError
from maskbridge.predictions import Run, write_predictions

HEIGHT, WIDTH = 20, 30
BOXES = {1: [(2, 3, 5, 4), (12, 6, 9, 8)], 2: [], 3: [(20, 1, 6, 9)]}


@pytest.fixture
def dataset(tmp_path):
    annotations = []
    for image_id, boxes in BOXES.items():
        for left, top, width, height in boxes:
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[top : top + height, left : left + width] = 1
            instance = geometry.instances(mask)[0][0]
            annotations.append(
                Annotation(id=len(annotations) + 1, image_id=image_id, category_id=1, iscrowd=0, **instance)
            )
    images = tuple(
        Image(id=i, file_name="", width=WIDTH, height=HEIGHT, sha256="", origin="test/good", group=i) for i in BOXES
    )
    splits = {"folds": [{"train": [], "val": [], "test": list(BOXES)}], "official": None}
    return Dataset(tmp_path, images, tuple(annotations), (), splits, {}, "", "")


@pytest.fixture
def view(dataset, tmp_path):
    def make(boxes_by_image, given="boxes of the defects", **more):
        predictions = [
            Prediction(
                image_id=i, detections=[Detection(box_ltwh=box, score=n / 10) for n, box in enumerate(boxes)], **more
            )
            for i, boxes in boxes_by_image.items()
        ]
        write_predictions(tmp_path / "run", "test", predictions)
        return PredictionView(Run(tmp_path / "run", {"fold": 0, "truth_given": given}), dataset, "test")

    return make


def test_there_are_detections_and_neither_scores_nor_maps_nor_thresholds_whatever_the_files_say(view):
    given = view(BOXES, score=1.0, map=np.ones((2, 3), np.float32))
    why = "the run was given the boxes of the defects, which exist only where there is a defect"
    assert [tuple(result["bbox"]) for result in given.detections().value] == [*BOXES[1], *BOXES[3]]
    for found in (given.scores(), given.maps(), *map(given.threshold, ("image", "pixel", "detection"))):
        assert (found.value, found.why) == (None, why)


def test_the_images_may_come_in_any_order(view):
    given = view({3: BOXES[3], 2: [], 1: BOXES[1]})
    assert [result["image_id"] for result in given.detections().value] == [1, 1, 3]


def test_a_box_may_differ_by_rounding(view):
    near = [tuple(value + 9e-4 for value in box) for box in BOXES[1]]
    assert len(view({**BOXES, 1: near}).detections().value) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({1: BOXES[1][:1]}, r"detections\.json: .*one for each defect of image 1; found 1; expected 2"),
        ({2: [(1, 1, 2, 3)]}, r"one for each defect of image 2; found 1; expected 0"),
        (
            {1: BOXES[1][::-1]},
            r"entry 0: .*that of annotation 1; found \[12.0, .*expected \[2, 3, 5, 4\], in the order",
        ),
        ({3: [(20, 1, 6, 8.99)]}, r"entry 2: .*not that of annotation 3; found .*8.99"),
    ],
    ids=["one too few", "one too many", "other order", "other box"],
)
def test_detections_that_are_not_those_of_the_annotations_are_refused(view, change, told):
    with pytest.raises(RunError, match=told) as caught:
        view({**BOXES, **change}).detections()
    assert "\n" not in str(caught.value)
    assert len(view({**BOXES, **change}, given=None).detections().value) > 0


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ((-0.5, 3, 5, 4), (-0.6, 3, 5, 4)),
        ((2, -0.5, 5, 4), (2, -0.6, 5, 4)),
        ((26, 3, 4.5, 4), (26, 3, 4.6, 4)),
        ((2, 17, 5, 3.5), (2, 17, 5, 3.6)),
    ],
)
def test_a_box_leaves_its_image_by_half_a_pixel_at_most(dataset, inside, outside):
    image = dataset.image_by_id[1]
    check_in_image({"bbox": inside}, image, "d.json")
    with pytest.raises(RunError, match=r"^d\.json: the box leaves image 1; .* within 30 x 20 pixels"):
        check_in_image({"bbox": outside}, image, "d.json")
