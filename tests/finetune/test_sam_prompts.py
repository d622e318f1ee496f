from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune import _sam_embeddings, _sam_model, sam
from finetune._sam_examples import Examples
from finetune._sam_prompts import Truths, box_logits, draw, encode
from finetune.sam import PROMPT_KINDS as KINDS

SIZES = np.array([[12.0, 9.0]], np.float32)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return _sam_model.build("tiny", backbone="", image_size=64)


@pytest.fixture
def truths(model):
    return Truths(None, model)


def blob(size_hw, rows, columns):
    mask = np.zeros(size_hw, np.uint8)
    mask[rows, columns] = 1
    return mask


def drawn(truth, kinds, *, instances=4, jitter=0.1, seed=0):
    return draw(truth, kinds=kinds, instances=instances, jitter=jitter, sizes=SIZES, rng=np.random.default_rng(seed))


# ---------------------------------------------------------------- truth and views


@pytest.mark.parametrize("size_hw", [(40, 64), (64, 40)])
def test_boxes_are_in_the_input_frame(truths, size_hw):
    truth = truths.make([blob(size_hw, slice(4, 20), slice(10, 30))], size_hw)
    assert truth.boxes.tolist() == [[10, 4, 30, 20]]  # the longest side has the input's size already
    doubled = truths.make([blob((80, 128), slice(8, 40), slice(20, 60))], (80, 128))
    assert doubled.boxes.tolist() == [[10, 4, 30, 20]]


def test_a_view_turns_image_and_truth_alike(dataset, model):
    truths = Truths(dataset, model)
    image_id = 8
    seen = []
    for view in range(_sam_embeddings.VIEWS):
        truth = truths.of(image_id, view)
        mask = _sam_embeddings.turn(dataset.mask(image_id), view)
        union, inside = _sam_embeddings.low_resolution_target(mask, 64, 32)
        assert np.array_equal(truth.union, union.astype(np.float16))
        assert np.array_equal(truth.inside, inside.astype(np.float16))
        left, top, right, bottom = (truth.boxes[0] * (max(mask.shape) / 64)).round().astype(int)
        assert mask[top:bottom, left:right].all()
        assert mask.sum() == (bottom - top) * (right - left)
        seen.append(mask.tobytes() + bytes(mask.shape))
    assert len(set(seen)) == 8


@pytest.mark.parametrize("view", range(8))
def test_a_view_is_undone_by_turning_on(view):
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    turned = _sam_embeddings.turn(image, view)
    back = turned[:, ::-1] if view >= 4 else turned
    assert np.array_equal(np.rot90(back, -(view % 4)), image)


@pytest.mark.parametrize("view", range(8))
@pytest.mark.parametrize("size_hw", [(4, 6), (6, 4)])
def test_places_turn_with_the_image(view, size_hw):
    image = np.zeros(size_hw, np.uint8)
    image[1, 2] = 1
    x, y = _sam_embeddings.turn_xy(2.5, 1.5, size_hw, view)
    assert np.argwhere(_sam_embeddings.turn(image, view)).tolist() == [[int(y), int(x)]]


@pytest.mark.parametrize("view", range(8))
@pytest.mark.parametrize("size_hw", [(40, 64), (64, 40), (64, 64), (30, 64)])
def test_an_answer_to_a_view_is_turned_back(view, size_hw):
    height, width = (side // 2 for side in size_hw)
    answer = np.random.default_rng(0).random((height, width)).astype(np.float32)
    turned, padded = _sam_embeddings.turn(answer, view), torch.zeros(1, 32, 32)
    padded[0, : turned.shape[0], : turned.shape[1]] = torch.from_numpy(turned)
    back = _sam_embeddings.turn_back(padded, size_hw, view, 64)[0, :height, :width]
    assert np.allclose(back, answer, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "asked"),
    [(("none",), ["none"]), (("point",), ["point"]), (("mask",), ["box"]), (("none", "box", "point"), ["none", "box"])],
)
def test_validation_asks_as_training_did(dataset, model, kinds, asked):
    config = sam.Config(train_prompts=kinds)
    examples = Examples(dataset, model, None, config, [8, 9], seed=0)
    (items,) = examples.validation([8]).items
    assert [item.kind for item in items] == asked
    for item in items:
        x, y = (item.points.mean(0) if len(item.points) else np.array([0, 0])) / 2
        assert item.kind == "none" or item.target[int(y), int(x)] == item.target.max()


# ---------------------------------------------------------------- what is asked


def test_without_a_prompt_the_answer_is_every_defect(truths):
    masks = [blob((40, 64), slice(4, 12), slice(4, 12)), blob((40, 64), slice(20, 30), slice(40, 60))]
    (item,) = drawn(truths.make(masks, (40, 64)), ("none",))
    assert item.kind == "none"
    assert item.target.sum() * 4 == masks[0].sum() + masks[1].sum()


def test_each_prompt_has_its_own_defect_as_answer(truths):
    masks = [blob((40, 64), slice(4, 12), slice(4, 12)), blob((40, 64), slice(20, 30), slice(40, 60))]
    truth = truths.make(masks, (40, 64))
    for seed in range(20):
        for item in drawn(truth, ("box",), seed=seed):
            middle = item.points.mean(0)
            if item.target.any():
                rows, columns = np.nonzero(item.target)
                assert np.abs(middle - [columns.mean() * 2 + 1, rows.mean() * 2 + 1]).max() < 8


def test_points_lie_inside_the_defect_and_nowhere_else(truths):
    mask = blob((40, 64), slice(4, 12), slice(20, 50))
    truth = truths.make([mask], (40, 64))
    counts = set()
    for seed in range(40):
        inside, *outside = drawn(truth, ("point",), seed=seed)
        counts.add(len(inside.points))
        for x, y in inside.points:
            assert mask[int(y), int(x)]
        for item in outside:
            assert not item.target.any()
            assert all(not mask[int(y), int(x)] and y < 40 for x, y in item.points)
    assert counts == {1, 2, 3}


def test_a_defect_smaller_than_a_cell_is_pointed_at(truths):
    truth = truths.make([blob((400, 640), slice(100, 102), slice(200, 202))], (400, 640))
    assert 0 < truth.masks.max() < 0.5
    (item, *_) = drawn(truth, ("point",))
    assert np.abs(item.points - [20.1, 10.1]).max() <= 2


def test_jitter_moves_a_box_by_its_own_size_and_keeps_it_in_the_image(truths):
    truth = truths.make([blob((40, 64), slice(0, 20), slice(24, 64))], (40, 64))
    boxes = np.array([drawn(truth, ("box",), seed=seed)[0].points for seed in range(300)])
    assert boxes.min() >= 0
    assert boxes[..., 0].max() <= 64
    assert boxes[..., 1].max() <= 40
    left, bottom = boxes[:, 0, 0], boxes[:, 1, 1]
    assert left.std() == pytest.approx(64 * 20 / 1024, rel=0.2)  # 4 pixels would be more than SAM's most
    assert bottom.std() == pytest.approx(64 * 20 / 1024, rel=0.2)
    small = truths.make([blob((40, 64), slice(10, 18), slice(24, 36))], (40, 64))
    boxes = np.array([drawn(small, ("box",), seed=seed)[0].points for seed in range(300)])
    assert boxes[:, 0, 0].std() == pytest.approx(0.1 * 12, rel=0.2)
    assert boxes[:, 1, 1].std() == pytest.approx(0.1 * 8, rel=0.2)
    (still, *_) = drawn(truth, ("box",), jitter=0.0)
    assert still.points.tolist() == [[24, 0], [64, 20]]


def test_a_good_image_is_asked_where_nothing_is(truths):
    truth = truths.make([], (40, 64))
    none, nowhere = drawn(truth, KINDS)
    assert (none.kind, nowhere.kind in ("box", "point")) == ("none", True)
    assert not none.target.any()
    assert not nowhere.target.any()


def test_no_prompt_without_an_answer_touches_a_defect(truths):
    mask = blob((40, 64), slice(10, 30), slice(20, 40))
    truth = truths.make([mask], (40, 64))
    for seed in range(100):
        for item in drawn(truth, ("box",), seed=seed)[1:]:
            (left, top), (right, bottom) = item.points
            assert not mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))].any()


def test_where_a_defect_fills_the_image_nothing_else_is_asked(truths):
    truth = truths.make([np.ones((40, 64), np.uint8)], (40, 64))
    assert [item.kind for item in drawn(truth, ("box",))] == ["box"]
    assert [item.kind for item in drawn(truth, ("point",))] == ["point"]


def test_more_defects_than_instances_take_turns(truths):
    masks = [blob((40, 64), slice(4, 8), slice(x, x + 4)) for x in range(0, 60, 6)]
    truth = truths.make(masks, (40, 64))
    seen = set()
    for seed in range(30):
        items = [item for item in drawn(truth, ("box",), instances=3, seed=seed) if item.target.any()]
        assert len(items) == 3
        seen |= {item.target.tobytes() for item in items}
    assert len(seen) == len(masks)


def test_the_same_seed_draws_the_same(truths):
    truth = truths.make([blob((40, 64), slice(4, 12), slice(4, 12))], (40, 64))
    one, two = (drawn(truth, KINDS, seed=3) for _ in range(2))
    assert [item.kind for item in one] == [item.kind for item in two]
    assert all(np.array_equal(a.points, b.points) for a, b in zip(one, two, strict=True))


def test_a_box_as_a_mask_covers_its_cells_by_their_shares():
    logits = box_logits(torch.tensor([[4.0, 2.0, 12.0, 7.0]]), 4, 8, 32)[
        0, 0
    ]  # cells of 8 rows and 4 columns of pixels
    shares = (logits / 10 + 1) / 2
    rows, columns = [0.625, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]
    assert np.allclose(shares, np.outer(rows, columns))


def test_tokens_are_those_of_the_prompt_encoder(model, truths):
    truth = truths.make([blob((40, 64), slice(4, 12), slice(4, 12))], (40, 64))
    (box, *_) = drawn(truth, ("box",), jitter=0.0)
    tokens = encode(model.sam, [box])
    expected = model.sam.prompt_encoder(points=None, boxes=torch.tensor([[4.0, 4, 12, 12]]), masks=None)[0]
    assert torch.equal(tokens, expected)
    (point, *_) = drawn(truth, ("point",))
    assert encode(model.sam, [point]).shape == (1, len(point.points) + 1, 256)  # and SAM's padding token
    none, *_ = drawn(truth, ("none",))
    assert encode(model.sam, [none, none]).shape == (2, 0, 256)
