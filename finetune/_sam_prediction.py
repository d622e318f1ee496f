"""What a trained SAM says of images: without a prompt an anomaly map, of prompts a mask each.

    predictor = Predictor(model, dataset, device, chunk=8)
    predictor.without_prompt(image_id)                       # anomaly map and score
    masks = predictor.masks(image_id, prompts)               # low-resolution logits and predicted IoU

Masks are those of `segment_anything.SamPredictor` with the same weights and prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.ops import nms

from finetune._sam_decoder import decode
from finetune._sam_embeddings import Embeddings, crop_padding, input_size, turn_back, turn_xy
from finetune._sam_model import EMBEDDING_CHANNELS, Model
from finetune._sam_prompts import dense
from maskbridge import geometry
from maskbridge.approach import Detection, Prediction
from maskbridge.dataset import Dataset
from maskbridge.painting import MOST_DETECTIONS
from maskbridge.prompts import Prompt

#: Boxes of masks from a grid that overlap more are one defect, as in `SamAutomaticMaskGenerator`.
GRID_NMS_IOU = 0.7


@dataclass(frozen=True)
class Masks:
    """Answers to the prompts of one image.

    Attributes:
        logits: N x L x L, low-resolution frame; above 0 is defect.
        quality: Predicted IoU, N.
    """

    logits: torch.Tensor
    quality: torch.Tensor


class Predictor:
    """Predicts the images of a dataset.

    Args:
        model: The model, in prediction mode.
        dataset: The dataset.
        device: Where the model lies.
        chunk: Prompts in one call of the decoder.
        views: Views of an image that answers are averaged over.
    """

    def __init__(self, model: Model, dataset: Dataset, device: torch.device, *, chunk: int, views: int = 1) -> None:
        """Nothing is predicted yet."""
        self._model, self._dataset, self._device = model, dataset, device
        self._chunk, self._views = chunk, views
        self._embeddings = Embeddings(model, device, precision="fp32")  # nothing is cached here, so nothing is rounded
        self._resize = ResizeLongestSide(model.image_size)

    @torch.inference_mode()
    def without_prompt(self, image_id: int) -> Prediction:
        """Anomaly map of an image, without padding, at the decoder's resolution; its maximum is the score."""
        anomaly = self._map(torch.sigmoid(self.masks(image_id, [None]).logits[0]), image_id)
        return Prediction(image_id=image_id, score=float(anomaly.max()), map=anomaly)

    @torch.inference_mode()
    def of_truth(self, image_id: int, prompts: Sequence[Prompt]) -> Prediction:
        """One mask for each prompt, in their order, with the prompt's box."""
        masks = self.masks(image_id, prompts)
        rles = list(self._rles(masks.logits, image_id))
        detections = [
            Detection(box_ltwh=_box_of(prompt), score=float(quality.clamp(0, 1)), segmentation=rle)
            for prompt, quality, rle in zip(prompts, masks.quality, rles, strict=True)
        ]
        return Prediction(image_id=image_id, detections=detections)

    @torch.inference_mode()
    def of_prompts(self, image_id: int, prompts: Sequence[Prompt]) -> Prediction:
        """One mask for each prompt, as sure as its source and the predicted IoU together."""
        masks = self.masks(image_id, prompts)
        scores = masks.quality.clamp(0, 1) * torch.tensor([prompt.score for prompt in prompts])
        return self._prediction(image_id, masks.logits, scores, prompts)

    @torch.inference_mode()
    def of_grid(self, image_id: int, per_side: int) -> Prediction:
        """Masks of points all over the image, as sure as their predicted IoU, one for each place."""
        height, width = self._dataset.image_by_id[image_id].size_hw
        steps = (np.arange(per_side) + 0.5) / per_side
        prompts = [Prompt(point_xy=(float(x * width), float(y * height))) for y in steps for x in steps]
        masks = self.masks(image_id, prompts)
        low = (masks.logits > 0).flatten(1).any(1)
        boxes = torch.stack([_low_box(logits) for logits in masks.logits[low]]) if low.any() else torch.zeros(0, 4)
        kept = nms(boxes, masks.quality[low], GRID_NMS_IOU)[:MOST_DETECTIONS]
        chosen = torch.nonzero(low)[:, 0][kept]
        some = [prompts[i] for i in chosen.tolist()]
        return self._prediction(image_id, masks.logits[chosen], masks.quality[chosen].clamp(0, 1), some)

    @torch.inference_mode()
    def masks(self, image_id: int, prompts: Sequence[Prompt | None]) -> Masks:
        """Answers to prompts, which are all boxes, all points, or all None, on the CPU; the mean over the views."""
        side = 4 * int(self._model.sam.prompt_encoder.image_embedding_size[0])
        logits, quality = torch.zeros(len(prompts), side, side), torch.zeros(len(prompts))
        for view in range(self._views) if prompts else ():
            size_hw = self._dataset.image_by_id[image_id].size_hw
            features = torch.from_numpy(self._embeddings.compute(self._dataset, image_id, view))
            embedding = self._model.neck(features.to(self._device).float()[None])
            for start in range(0, len(prompts), self._chunk):
                some = slice(start, start + self._chunk)
                answer = self._decode(embedding, *self._encode(prompts[some], size_hw, view))
                logits[some] += turn_back(answer.logits, size_hw, view, self._model.image_size) / self._views
                quality[some] += answer.quality / self._views
        return Masks(logits, quality)

    def _encode(
        self, prompts: Sequence[Prompt | None], size_hw: tuple[int, int], view: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of prompts in a view, and what they add to the image."""
        encoder, first = self._model.sam.prompt_encoder, prompts[0]
        turned_hw = size_hw if view % 2 == 0 else (size_hw[1], size_hw[0])
        if first is None:
            return torch.zeros(len(prompts), 0, EMBEDDING_CHANNELS, device=self._device), dense(self._model, None)
        if first.box_ltwh is None:
            points = np.array([prompt.point_xy for prompt in prompts if prompt is not None], np.float64)
            xy = np.stack(turn_xy(points[:, 0], points[:, 1], size_hw, view), axis=1)[:, None]
            coordinates = torch.from_numpy(self._resize.apply_coords(xy, turned_hw)).float().to(self._device)
            labels = torch.ones(len(prompts), 1, device=self._device)
            return encoder(points=(coordinates, labels), boxes=None, masks=None)[0], dense(self._model, None)
        ltwh = np.array([prompt.box_ltwh for prompt in prompts if prompt is not None], np.float64)
        x, y = turn_xy(ltwh[:, [0]] + ltwh[:, [2]] * [0, 1], ltwh[:, [1]] + ltwh[:, [3]] * [0, 1], size_hw, view)
        ltrb = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1)
        boxes = torch.from_numpy(self._resize.apply_boxes(ltrb, turned_hw)).float().to(self._device)
        return encoder(points=None, boxes=boxes, masks=None)[0], dense(self._model, boxes.reshape(-1, 4))

    def _decode(self, embedding: torch.Tensor, sparse: torch.Tensor, added: torch.Tensor) -> Masks:
        index = torch.zeros(len(sparse), dtype=torch.int64, device=self._device)
        logits, quality = decode(self._model.sam, embedding, index, sparse, added, multimask=False)
        return Masks(logits[:, 0].float().cpu(), quality[:, 0].float().cpu())

    def _map(self, low: torch.Tensor, image_id: int) -> npt.NDArray[np.float32]:
        size_hw = self._dataset.image_by_id[image_id].size_hw
        anomaly: npt.NDArray[np.float32] = crop_padding(low, size_hw, self._model.image_size).numpy()
        return anomaly

    def _rles(self, logits: torch.Tensor, image_id: int) -> Iterator[geometry.RLE]:
        """Masks at the original size."""
        size_hw = self._dataset.image_by_id[image_id].size_hw
        inside = input_size(size_hw, self._model.image_size)
        for one in logits:
            full = self._model.sam.postprocess_masks(one[None, None], inside, size_hw)[0, 0]
            yield geometry.encode((full > self._model.sam.mask_threshold).numpy().astype(np.uint8))

    def _prediction(
        self, image_id: int, logits: torch.Tensor, scores: torch.Tensor, prompts: Sequence[Prompt]
    ) -> Prediction:
        """Detections with the box of their mask (the prompt's where it is empty), and the map and score they make."""
        detections = [
            Detection(
                box_ltwh=geometry.box(rle) or _box_of(prompt),
                score=float(score),
                category_id=prompt.category_id,
                segmentation=rle,
            )
            for prompt, score, rle in zip(prompts, scores, self._rles(logits, image_id), strict=True)
        ]
        weighed = torch.sigmoid(logits) * scores[:, None, None]
        anomaly = self._map(weighed.amax(0) if len(weighed) else torch.zeros(logits.shape[1:]), image_id)
        score = max((detection.score for detection in detections), default=0.0)
        return Prediction(image_id=image_id, score=score, map=anomaly, detections=detections)


def _box_of(prompt: Prompt) -> tuple[float, float, float, float]:
    """The prompt's box; of a point the pixel that it lies in."""
    if prompt.box_ltwh is not None:
        return prompt.box_ltwh
    assert prompt.point_xy is not None, "a prompt is a box or a point"
    x, y = prompt.point_xy
    return float(int(x)), float(int(y)), 1.0, 1.0


def _low_box(logits: torch.Tensor) -> torch.Tensor:
    """Left, top, right, bottom of what is above 0, in cells."""
    rows, columns = torch.nonzero(logits > 0, as_tuple=True)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
