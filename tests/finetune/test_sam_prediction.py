from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from segment_anything import SamPredictor

from finetune import sam
from finetune._sam_checkpoints import open_run
from finetune._sam_embeddings import turn, turn_back, turn_xy
from finetune._sam_prediction import Predictor
from finetune._sam_prompts import box_logits
from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Dataset, read_image
from maskbridge.errors import RunError
from maskbridge.files import write_json
from maskbridge.predictions import Run, write_predictions
from maskbridge.prompts import Prompt
from maskbridge.thresholds import fold_thresholds

BOXES = [(4.0, 6.0, 20.0, 16.0), (0.0, 0.0, 56.0, 40.0), (30.5, 11.25, 9.0, 3.5)]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MASKBRIDGE_WEIGHTS", raising=False)


@pytest.fixture
def run(dataset, tmp_path, lab):
    """A trained SAM's folder and options."""
    config, _ = lab.train(dataset, tmp_path / "sam", epochs=4, lr=1e-3)
    return tmp_path / "sam", config


@pytest.fixture
def predictor(run, dataset):
    return Predictor(open_run(run[0] / "weights"), dataset, torch.device("cpu"), chunk=2)


@pytest.fixture
def detector(dataset, tmp_path):
    """Make a run of fold 0, whose val and test are all images, that gives what is asked for."""

    def make(given) -> Run:
        ids = [image.id for image in dataset.images]
        write_json(
            dataset.path / "splits.json",
            {"rule": "", "seed": 0, "official": None, "folds": [{"train": [], "val": [], "test": ids}]},
        )
        again = Dataset.open(dataset.path)
        judged = dataclasses.replace(
            again, splits={"folds": [{"train": [], "val": ids, "test": ids}], "official": None}
        )
        recorded = {
            "path": str(again.path), "name": again.name,
            "annotations_sha256": again.annotations_sha256, "splits_sha256": again.splits_sha256,
        }  # fmt: skip
        made = Run(tmp_path / "detector", {"approach": "x", "options": {}, "fold": 0, "dataset": recorded})
        for part in ("val", "test"):
            write_predictions(made.path, part, (given(again, i) for i in ids))
        return made.save(thresholds={"0": fold_thresholds(made, judged)})

    return make


def predict(lab, run, **options):
    folder, config = run
    changed = dataclasses.replace(config, **options)
    dataset = Dataset.open(folder.parent / "plates")
    return {p.image_id: p for p in lab.predict(dataset, folder, changed)}


# ---------------------------------------------------------------- the package's own predictor


@pytest.mark.parametrize("image_id", [3, 9])
@pytest.mark.parametrize("box_mask", [True, False])
def test_masks_are_those_of_the_packages_predictor(run, dataset, image_id, box_mask):
    model = dataclasses.replace(open_run(run[0] / "weights"), box_mask=box_mask)
    predictor = Predictor(model, dataset, torch.device("cpu"), chunk=2)
    theirs = SamPredictor(open_run(run[0] / "weights").sam)
    theirs.set_image(read_image(dataset.image_path(image_id)))
    found = predictor.masks(image_id, [Prompt(box_ltwh=box) for box in BOXES])
    points = [(10.0, 30.0), (55.0, 0.0)]
    pointed = predictor.masks(image_id, [Prompt(point_xy=point) for point in points])
    for (left, top, width, height), ours, quality in zip(BOXES, found.logits, found.quality, strict=True):
        box = np.array([left, top, left + width, top + height])
        corners = torch.from_numpy(theirs.transform.apply_boxes(box[None], dataset.image_by_id[image_id].size_hw))
        told = box_logits(corners.float(), 32, 32, 64)[0].numpy() if box_mask else None
        mask, iou, low = theirs.predict(box=box, mask_input=told, multimask_output=False)
        assert np.allclose(ours, low[0], atol=1e-4)
        assert float(quality) == pytest.approx(float(iou[0]), abs=1e-4)
        rle = next(iter(predictor._rles(ours[None], image_id)))
        assert (geometry.decode(rle) != mask[0]).mean() < 1e-3  # a logit within 1e-4 of 0 may fall either way
    for point, ours in zip(points, pointed.logits, strict=True):
        labels = np.ones(1)
        low = theirs.predict(np.array([point]), labels, multimask_output=False)[2]
        assert np.allclose(ours, low[0], atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_do_not_change_masks(predictor, run, dataset, chunk):
    prompts = [Prompt(box_ltwh=box) for box in BOXES]
    other = Predictor(open_run(run[0] / "weights"), dataset, torch.device("cpu"), chunk=chunk)
    assert torch.allclose(predictor.masks(7, prompts).logits, other.masks(7, prompts).logits, atol=1e-5)


def test_onnx_of_the_packages_exporter_gives_our_masks(run, predictor, dataset, tmp_path):
    sam.export_model("onnx", run[1], run[0] / "weights", tmp_path / "sam.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "sam.onnx"), providers=["CPUExecutionProvider"])
    image_id, size_hw = 9, dataset.image_by_id[9].size_hw
    with torch.inference_mode():
        features = torch.from_numpy(predictor._embeddings.compute(dataset, image_id)).float()
        embedding = predictor._model.neck(features[None])
    left, top, width, height = BOXES[0]
    corners = predictor._resize.apply_coords(np.array([[left, top], [left + width, top + height]]), size_hw)
    side = predictor._model.sam.prompt_encoder.mask_input_size
    masks, _, low = session.run(
        None,
        {
            "image_embeddings": embedding.numpy(),
            "point_coords": corners[None].astype(np.float32),
            "point_labels": np.array([[2, 3]], np.float32),
            "mask_input": box_logits(torch.tensor(corners.reshape(1, 4)).float(), *side, 64).numpy(),
            "has_mask_input": np.ones(1, np.float32),
            "orig_im_size": np.array(size_hw, np.float32),
        },
    )
    ours = predictor.masks(image_id, [Prompt(box_ltwh=BOXES[0])])
    assert np.allclose(low[0, 0], ours.logits[0], atol=1e-3)
    assert masks.shape[2:] == size_hw


@pytest.mark.parametrize("prompt", [Prompt(box_ltwh=BOXES[0]), Prompt(point_xy=(10.0, 30.0)), None])
def test_the_mean_over_views_is_that_of_single_ones(run, dataset, prompt):
    """A view asked for by itself is the image turned, with the prompt turned, and its answer turned back."""
    model, cpu = open_run(run[0] / "weights"), torch.device("cpu")
    averaged = Predictor(model, dataset, cpu, chunk=2, views=8).masks(9, [prompt])
    image = read_image(dataset.image_path(9))
    answers = []
    for view in range(8):
        seen = turn(image, view)
        cv2.imwrite(str(dataset.image_path(1)), cv2.cvtColor(seen, cv2.COLOR_RGB2BGR))
        images = [dataclasses.replace(i, height=seen.shape[0], width=seen.shape[1]) for i in dataset.images]
        turned = dataclasses.replace(dataset, images=tuple(images))
        single = Predictor(model, turned, cpu, chunk=2).masks(1, [turned_prompt(prompt, view)])
        answers.append(turn_back(single.logits, (40, 56), view, 64))
    assert torch.allclose(averaged.logits, torch.stack(answers).mean(0), atol=1e-4)


# ---------------------------------------------------------------- prompts


def test_true_boxes_give_a_mask_for_each_defect_in_order_and_nothing_else(run, dataset, lab):
    for image_id, prediction in predict(lab, run, prompts="oracle").items():
        truth = dataset.annotations_by_image[image_id]
        assert prediction.score is None
        assert prediction.map is None
        assert [d.box_ltwh for d in prediction.detections] == [tuple(map(float, a["bbox"])) for a in truth]
        assert all(d.segmentation["size"] == list(dataset.image_by_id[image_id].size_hw) for d in prediction.detections)
        assert all(0 <= d.score <= 1 for d in prediction.detections)


def test_only_true_boxes_are_truth_given():
    assert sam.truth_given(sam.Config(prompts="oracle")) == "boxes of the defects"
    assert [sam.truth_given(sam.Config(prompts=p)) for p in ("none", "grid", "runs/x")] == [None] * 3


def test_a_detectors_boxes_keep_their_types_and_weigh_the_masks(run, detector, lab):
    def given(dataset, image_id):
        boxes = [tuple(a["bbox"]) for a in dataset.annotations_by_image[image_id]]
        low = Detection(box_ltwh=(0.0, 0.0, 8.0, 8.0), score=0.1, category_id=None)
        return Prediction(
            image_id=image_id, detections=[low, *(Detection(box_ltwh=b, score=0.9, category_id=1) for b in boxes)]
        )

    source = detector(given)
    for image_id, prediction in predict(lab, run, prompts=str(source.path)).items():
        found = prediction.detections
        assert [d.category_id for d in found] == [1] * (image_id > 6) + [None]
        assert all(d.score <= s for d, s in zip(found, [0.9] * (image_id > 6) + [0.1], strict=True))
        assert prediction.score == max(d.score for d in found)
        for d in found:
            assert d.box_ltwh == (geometry.box(d.segmentation) or d.box_ltwh)
        assert prediction.map.max() <= prediction.score + 1e-6


def test_a_run_without_detections_gives_a_valid_empty_result(run, detector, lab):
    source = detector(lambda dataset, i: Prediction(image_id=i, detections=[]))
    for prediction in predict(lab, run, prompts=str(source.path)).values():
        assert prediction.detections == []
        assert prediction.score == 0
        assert not prediction.map.any()
        assert prediction.map.shape == (23, 32)


def test_maps_prompt_by_their_peaks(run, detector, lab):
    def given(dataset, image_id):
        mask = dataset.mask(image_id).astype(np.float32)
        return Prediction(image_id=image_id, map=cv2.GaussianBlur(mask, (9, 9), 0) + 0.01)

    source = detector(given)
    predictions = predict(lab, run, prompts=str(source.path))
    assert [len(p.detections) for p in predictions.values()] == [0] * 6 + [1] * 6
    assert all(0 <= d.score <= 1 for p in predictions.values() for d in p.detections)


def test_a_run_of_another_fold_is_refused_before_training(dataset, detector, tmp_path, lab):
    source = detector(lambda dataset, i: Prediction(image_id=i, detections=[]))
    source.save(fold=1)
    with pytest.raises(RunError, match="is of another fold and may have seen the images"):
        lab.train(Dataset.open(dataset.path), tmp_path / "late", prompts=str(source.path))
    assert not (tmp_path / "late" / "weights").exists()


def test_a_kind_of_prompt_that_was_not_trained_is_said(run, lab, capsys):
    predict(lab, run, prompts="oracle")
    assert "--prompts oracle: this SAM was trained for none alone" in capsys.readouterr().err
    predict(lab, run, prompts="none")
    assert "trained for" not in capsys.readouterr().err


def test_a_grid_gives_each_place_once(run, lab):
    for prediction in predict(lab, run, prompts="grid", grid=5).values():
        boxes = [d.box_ltwh for d in prediction.detections]
        assert len(boxes) < 25  # masks of neighbours overlap
        scores = [d.score for d in prediction.detections]
        assert scores == sorted(scores, reverse=True)
        assert prediction.score == max(scores, default=0)


def test_a_grid_finds_the_defects_it_was_trained_to_find(tmp_path, lab):
    dataset = lab.make_dataset(tmp_path / "plates", goods=10, defective=10)
    config, _ = lab.train(dataset, tmp_path / "sam", epochs=12, lr=1e-3)
    found = predict(lab, (tmp_path / "sam", config), prompts="grid", grid=6)
    assert np.mean([found[i].score for i in range(11, 21)]) > 1.5 * np.mean([found[i].score for i in range(1, 11)])


# ---------------------------------------------------------------- difficult images


@pytest.mark.parametrize("prompts", ["none", "grid", "oracle"])
def test_an_image_of_one_row_is_predicted(tmp_path, lab, prompts):
    dataset = lab.make_dataset(tmp_path / "plates", goods=2, defective=2)
    config, _ = lab.train(dataset, tmp_path / "sam", epochs=1)
    path = dataset.image_path(3)
    cv2.imwrite(str(path), np.full((1, 5000, 3), 90, np.uint8))
    images = tuple(dataclasses.replace(i, height=1, width=5000) if i.id == 3 else i for i in dataset.images)
    annotations = tuple(
        {**a, "bbox": [100, 0, 50, 1], "area": 50, "segmentation": row_mask()} if a["image_id"] == 3 else a
        for a in dataset.annotations
    )
    long = dataclasses.replace(dataset, images=images, annotations=annotations)
    found = {p.image_id: p for p in lab.predict(long, tmp_path / "sam", dataclasses.replace(config, prompts=prompts))}
    if prompts == "oracle":
        assert found[3].detections[0].segmentation["size"] == [1, 5000]
    else:
        assert found[3].map.shape == (1, 32)


@pytest.mark.parametrize("kind", ["grey", "16-bit"])
def test_grey_and_16_bit_images_are_predicted_as_their_8_bit_copies(run, dataset, lab, kind):
    path = dataset.image_path(9)
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(path), cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    expected = predict(lab, run, prompts="none")[9]
    cv2.imwrite(str(path), grey if kind == "grey" else grey.astype(np.uint16) * 257)
    assert np.allclose(predict(lab, run, prompts="none")[9].map, expected.map, atol=2e-2)


def turned_prompt(prompt, view):
    if prompt is None:
        return None
    if prompt.box_ltwh is None:
        return Prompt(point_xy=turn_xy(*prompt.point_xy, (40, 56), view))
    left, top, width, height = prompt.box_ltwh
    corners = [turn_xy(x, y, (40, 56), view) for x, y in ((left, top), (left + width, top + height))]
    (x, x2), (y, y2) = (sorted(axis) for axis in zip(*corners, strict=True))
    return Prompt(box_ltwh=(x, y, x2 - x, y2 - y))


def row_mask():
    mask = np.zeros((1, 5000), np.uint8)
    mask[0, 100:150] = 1
    return geometry.encode(mask)
