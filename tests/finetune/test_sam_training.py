from __future__ import annotations

import io
import socket
from typing import ClassVar

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry

from finetune import _sam_answers, _sam_checkpoints, _sam_embeddings, _sam_model, _sam_training, sam
from finetune._sam_examples import Examples
from finetune._sam_lora import add_adapters, merge_adapters
from finetune._sam_prompts import Item
from maskbridge.errors import DatasetError, MaskbridgeError, OptionError, RunError, WeightsError

VAL = (1, 7)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MASKBRIDGE_WEIGHTS", raising=False)


def state(folder):
    return torch.load(folder / "weights" / "sam.pt", weights_only=True)


def furthest(one, two):
    """Largest difference of any weight."""
    a, b = state(one), state(two)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def changed(folder, start):
    """Parts of the model whose weights are no longer those of the start."""
    now = state(folder)
    names = [name for name in now if not torch.equal(now[name], start[name])]
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.fixture
def start():
    torch.manual_seed(0)
    return {k: v.clone() for k, v in _sam_model.build("tiny", backbone="", image_size=64).sam.state_dict().items()}


# ---------------------------------------------------------------- loss


def test_the_loss_of_one_prompt_by_hand():
    logits = torch.tensor([[[0.0, 2.0], [-2.0, 0.0]]])
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    inside = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    p = 1 / (1 + np.exp([0.0, -2.0, 2.0]))
    wrong = np.array([1 - p[0], 1 - p[1], p[2]])
    focal = np.mean(wrong**2 * -np.log(1 - wrong))
    dice = 1 - (2 * (p[0] + p[1]) + 1) / (p.sum() + 2 + 1)
    iou = 1 / 2  # a logit of 0 is not found
    expected = 20 * focal + dice + (0.9 - iou) ** 2
    args = (logits, torch.tensor([0.9]), target, inside)
    yes, no = torch.ones(1), torch.zeros(1)

    def loss(shown, judged):
        return float(_sam_answers.losses(*args, shown, judged, focal_weight=20.0)[0])

    assert loss(yes, yes) == pytest.approx(expected, rel=1e-5)
    unjudged = loss(yes, no)
    assert expected - unjudged == pytest.approx((0.9 - iou) ** 2, abs=1e-5)
    assert loss(no, yes) == pytest.approx(0.9**2, abs=1e-5)  # nobody's mask


def test_a_line_thinner_than_half_a_cell_is_not_nothing():
    line = np.zeros((64, 64), np.uint8)
    line[30, 8:56] = 1
    target, inside = (
        torch.from_numpy(share)[None]
        for share in _sam_embeddings.low_resolution_target(line, image_size=64, low_size=16)
    )
    assert target.max() == 0.25
    found, nothing = torch.where(target > 0, 1.0, -1.0), torch.full_like(target, -1.0)
    assert [float(x) for x in _sam_answers.agreement(found, target, inside)] == pytest.approx([1 / 4, 2 / 5])
    assert [float(x) for x in _sam_answers.agreement(nothing, target, inside)] == [0, 0]
    assert [float(x) for x in _sam_answers.agreement(nothing, 0 * target, inside)] == [0, 0]
    quality, yes = torch.tensor([0.25]), torch.ones(1)
    judged, unjudged = (
        _sam_answers.losses(found, quality, target, inside, yes, flag, focal_weight=20.0) for flag in (yes, 0 * yes)
    )
    assert float(judged - unjudged) == pytest.approx(0, abs=1e-6)  # the IoU that it is to predict


def test_padding_has_no_say_in_the_loss():
    logits, inside = torch.randn(2, 8, 8), torch.ones(2, 8, 8)
    inside[:, :, 5:] = 0
    target = (torch.rand(2, 8, 8) > 0.5).float() * inside
    other = torch.where(inside > 0, logits, torch.full_like(logits, 3.0))
    one, two = (
        _sam_answers.losses(x, torch.zeros(2), target, inside, torch.ones(2), torch.ones(2), focal_weight=20.0)
        for x in (logits, other)
    )
    assert torch.allclose(one, two)


def test_an_empty_target_is_answered_best_by_nothing():
    empty, inside = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    args = (torch.zeros(1), empty, inside, torch.ones(1), torch.ones(1))
    nothing, little, much = (
        float(_sam_answers.losses(torch.full((1, 8, 8), level), *args, focal_weight=20.0))
        for level in (-9.0, -1.0, 3.0)
    )
    assert nothing < little < much


def test_what_counts_of_an_answer_depends_on_prompt_and_defect():
    """Of a prompt at no defect the predicted IoU alone; of no prompt at no defect the mask alone."""
    some, none, inside = np.zeros((8, 8)), np.zeros((8, 8)), np.ones((8, 8))
    some[2, 3:5] = 1
    point = np.zeros((1, 2), np.float32)
    items = [Item(kind, point, target, inside) for kind in ("none", "point") for target in (some, none)]
    target, _, shown, judged = _sam_answers.tensors(items, torch.device("cpu"))
    assert target.sum((1, 2)).tolist() == [2, 0, 2, 0]
    assert shown.tolist() == [1, 1, 1, 0]
    assert judged.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("kind", ["none", "box"])
def test_the_loss_of_a_step_is_the_mean_over_its_prompts(dataset, lab, kind):
    """However many there are: twice the same images give the same loss and the same gradients."""
    config = sam.Config(**lab.tiny, train_prompts=(kind,), cache="off")
    torch.manual_seed(0)
    model = _sam_model.build("tiny", backbone="", image_size=64)
    model.train_only("decoder")
    fabric = _sam_training.Fabric(accelerator="cpu", devices=1)
    examples = Examples(dataset, model, None, config, [i.id for i in dataset.images], seed=0)
    found = []
    for images in ([7, 8], [7, 8, 7, 8]):
        model.sam.zero_grad()
        step = examples.validation(images)
        loss = _sam_training._backward(fabric, model, examples, step, config)
        found.append((loss, torch.cat([p.grad.flatten() for p in model.trained() if p.grad is not None])))
    with torch.no_grad():
        embeddings = model.encode(examples.validation([7, 8]).inputs([0, 1]))
        each = []
        for place, items in enumerate(examples.validation([7, 8]).items):
            for item in items:
                answer = _sam_answers.answer(model, embeddings, [item], [place])
                target = _sam_answers.tensors([item], torch.device("cpu"))
                each.append(float(_sam_answers.losses(*answer, *target, focal_weight=config.focal_weight)))
    assert len(each) == 2
    assert found[0][0] == pytest.approx(np.mean(each), rel=1e-4)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- which epoch, which rate


def test_the_best_epoch_on_val_is_kept_and_val_alone_is_asked(dataset, tmp_path, lab, monkeypatch):
    asked, states = [], []

    def scored(fabric, model, examples, image_ids, config):
        asked.append(tuple(image_ids))
        states.append({name: tensor.clone() for name, tensor in model.sam.state_dict().items()})
        return [0.2, 0.9, 0.1, 0.3][len(asked) - 1]

    monkeypatch.setattr(_sam_training, "validation_score", scored)
    _, told = lab.train(dataset, tmp_path, val=VAL, epochs=4)
    assert asked == [VAL] * 4
    assert told.facts["best_epoch"] == 2
    kept = state(tmp_path)
    assert all(torch.equal(kept[name], tensor) for name, tensor in states[1].items())
    for other in (0, 2, 3):
        assert any(not torch.equal(kept[name], tensor) for name, tensor in states[other].items())


def test_the_learning_rate_rises_for_a_tenth_of_the_steps_and_falls_along_half_a_cosine(
    dataset, tmp_path, lab, monkeypatch
):
    groups, backward, seen, given = _sam_training._groups, _sam_training._backward, [], []

    def remember(*args):
        given.extend(groups(*args))
        return given

    def look(*args):
        seen.append([group["lr"] for group in given])
        return backward(*args)

    monkeypatch.setattr(_sam_training, "_groups", remember)
    monkeypatch.setattr(_sam_training, "_backward", look)
    lab.train(dataset, tmp_path, epochs=5, batch=3, negatives="0", lr=2e-3, neck_lr=1e-2)  # 10 steps
    shares = np.array(seen) / np.array([group["most"] for group in given])
    assert sorted(group["most"] for group in given) == [2e-3, 1e-2]
    np.testing.assert_allclose(shares[:, 0], shares[:, 1])
    worked = [0.01, 1, 0.969846, 0.883022, 0.75, 0.586824, 0.413176, 0.25, 0.116978, 0.030154]
    np.testing.assert_allclose(shares[:, 0], worked, atol=1e-5)


# ---------------------------------------------------------------- the same result in other pieces


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 3}, {"accumulate": 4}, {"accumulate": 2, "chunk": 3}])
def test_pieces_do_not_change_what_is_learned(dataset, tmp_path, lab, options):
    lab.train(dataset, tmp_path / "whole", val=VAL)
    lab.train(dataset, tmp_path / "pieces", val=VAL, **options)
    assert furthest(tmp_path / "pieces", tmp_path / "whole") < 1e-4


@pytest.mark.slow
def test_two_processes_learn_what_one_does(dataset, tmp_path, lab, capfd):
    _, one = lab.train(dataset, tmp_path / "one", val=VAL)
    _, two = lab.train(dataset, tmp_path / "two", val=VAL, devices=2)
    assert furthest(tmp_path / "two", tmp_path / "one") < 1e-4
    assert np.allclose(one.facts["history"], two.facts["history"], atol=1e-4)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_one_line(dataset, tmp_path, lab):
    with pytest.raises(MaskbridgeError, match="training diverged") as caught:
        lab.train(dataset, tmp_path, devices=2, lr=1e30)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_what_goes_wrong_in_one_process_alone_is_its_line(dataset, tmp_path, lab, capfd, rank):
    """The other one waits for it."""
    path = dataset.image_path(dataset.images[rank].id)  # whose features this process computes
    path.write_bytes(b"no image")
    with pytest.raises(DatasetError) as caught:
        lab.train(dataset, tmp_path, devices=2)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_full_disk_in_one_process_is_told(dataset, tmp_path, lab, monkeypatch):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(blocked))
    with pytest.raises(MaskbridgeError, match="cannot be cached"):
        lab.train(dataset, tmp_path, devices=2)


def test_an_fp32_cache_learns_exactly_what_no_cache_does(dataset, tmp_path, lab):
    _, off = lab.train(dataset, tmp_path / "off", val=VAL, cache="off")
    _, fp32 = lab.train(dataset, tmp_path / "fp32", val=VAL, cache="fp32")
    _, fp16 = lab.train(dataset, tmp_path / "fp16", val=VAL, cache="fp16")
    assert off.facts["history"] == fp32.facts["history"]
    assert lab.same_weights(tmp_path / "off", tmp_path / "fp32")
    losses, halved = (np.array(told.facts["history"])[:, 0] for told in (off, fp16))
    assert 0 < np.abs(halved / losses - 1).max() < 0.01


@pytest.mark.parametrize("kind", ["decoder", "lora", "full"])
@pytest.mark.parametrize("stop", [1, 2, 4, 7])
def test_killed_at_any_step_a_training_goes_on_to_the_same_weights(
    dataset, tmp_path, lab, monkeypatch, capsys, kind, stop
):
    lab.train(dataset, tmp_path / "whole", val=VAL, train=kind, epochs=3)
    monkeypatch.setattr(_sam_training, "SAVE_SECONDS", 0)
    monkeypatch.setattr(_sam_training, "SAVE_SHARE", 0)
    backward, calls = _sam_training._backward, []

    def killed(*args):
        calls.append(1)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        return backward(*args)

    monkeypatch.setattr(_sam_training, "_backward", killed)
    with pytest.raises(KeyboardInterrupt):
        lab.train(dataset, tmp_path / "killed", val=VAL, train=kind, epochs=3)
    monkeypatch.setattr(_sam_training, "_backward", backward)
    lab.train(dataset, tmp_path / "killed", val=VAL, train=kind, epochs=3, resume=True)
    assert "training goes on after epoch " in capsys.readouterr().err
    assert lab.same_weights(tmp_path / "whole", tmp_path / "killed")


def test_what_was_started_from_other_weights_is_not_continued(dataset, tmp_path, lab, monkeypatch):
    monkeypatch.setattr(_sam_training, "SAVE_SECONDS", 0)
    backward, calls = _sam_training._backward, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return backward(*args)

    monkeypatch.setattr(_sam_training, "_backward", killed)
    with pytest.raises(KeyboardInterrupt):
        lab.train(dataset, tmp_path)
    other = _sam_model.build("tiny", backbone="", image_size=64)
    torch.save(other.sam.state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        RunError, match=r"was started from other weights; found tiny, none, .* expected tiny, other.pth"
    ):
        lab.train(dataset, tmp_path, resume=True, weights=str(tmp_path / "other.pth"))
    lab.train(dataset, tmp_path, resume=True, chunk=1)


@pytest.mark.parametrize("val", [(), VAL])
def test_a_training_that_diverges_in_its_last_step_is_told(dataset, tmp_path, lab, monkeypatch, val):
    clip = _sam_training.Fabric.clip_gradients

    def spoilt(fabric, module, *args, **options):
        clip(fabric, module, *args, **options)
        module.mask_decoder.iou_token.weight.grad.fill_(float("nan"))

    monkeypatch.setattr(_sam_training.Fabric, "clip_gradients", spoilt)
    with pytest.raises(MaskbridgeError, match="training diverged; found epoch 1"):
        lab.train(dataset, tmp_path, val=val, epochs=1, batch=16)
    assert not (tmp_path / "weights" / "sam.pt").exists()


# ---------------------------------------------------------------- what is trained


def test_the_decoder_is_trained_alone(dataset, tmp_path, lab, start):
    lab.train(dataset, tmp_path)
    parts = changed(tmp_path, start)
    assert {part for part in parts if not part.startswith("mask_decoder")} == {"image_encoder.neck"}
    assert "mask_decoder.transformer" in parts


def test_full_training_changes_the_image_encoder(dataset, tmp_path, lab, start):
    _, told = lab.train(dataset, tmp_path, train="full")
    parts = changed(tmp_path, start)
    assert {"image_encoder.blocks", "image_encoder.patch_embed", "mask_decoder.transformer"} <= parts
    assert not any(part.startswith("prompt_encoder") for part in parts)
    assert told.facts["trained_parameters"] > 0.99 * told.parameters - 10_000


def test_adapters_go_into_encoder_and_decoder_and_out_again(dataset, tmp_path, lab, start):
    _, told = lab.train(dataset, tmp_path, train="lora", lora_rank=2)
    merged, adapters = state(tmp_path), torch.load(tmp_path / "weights" / "lora.pt", weights_only=True)
    assert merged.keys() == start.keys()
    assert told.parameters == sum(
        p.numel() for p in _sam_model.build("tiny", backbone="", image_size=64).sam.parameters()
    )
    assert {name.split(".")[0] for name in adapters if "lora" in name} == {"image_encoder", "mask_decoder"}
    assert "mask_decoder.mask_tokens.weight" in adapters
    torch.manual_seed(0)
    model = _sam_model.build("tiny", backbone="", image_size=64)
    add_adapters(model.sam, 2, ("qkv", "proj", "q_proj", "k_proj", "v_proj", "out_proj"))
    unexpected = model.sam.load_state_dict(adapters, strict=False).unexpected_keys
    assert not unexpected
    merge_adapters(model.sam)
    again = model.sam.state_dict()
    assert all(torch.allclose(again[name], merged[name], atol=1e-6) for name in merged)


def test_targets_of_adapters_are_an_option(dataset, tmp_path, lab):
    lab.train(dataset, tmp_path, train="lora", lora_targets=("qkv", "v_proj"))
    adapters = torch.load(tmp_path / "weights" / "lora.pt", weights_only=True)
    assert {name.split(".")[-2] for name in adapters if "lora" in name} == {"qkv", "v_proj"}


def test_adapters_need_attention(dataset, tmp_path, lab):
    options = {"arch": "backbone", "backbone_weights": "none", "train": "lora"}
    with pytest.raises(OptionError, match="--train full"):
        lab.train(dataset, tmp_path, **options)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_where_the_encoder_learns_nothing_is_cached(dataset, tmp_path, lab, kind):
    lab.train(dataset, tmp_path, train=kind)
    assert not (tmp_path / "cache").exists()


def test_views_are_cached_each(dataset, tmp_path, lab):
    lab.train(dataset, tmp_path, val=VAL, views=3)
    names = [path.stem.rsplit("-", 1)[1] for path in (tmp_path / "cache" / "embeddings").rglob("*.npy")]
    assert sorted(names) == sorted([*"0" * 12, *"1" * 10, *"2" * 10])


def test_augmentation_turns_the_cache_off_and_says_so(dataset, tmp_path, lab, capsys):
    lab.train(dataset, tmp_path, augment=True)
    assert "nothing is cached" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"views": 9}, "--views cannot be used; found 9; expected 1 to 8"),
        ({"views": 2, "augment": True}, "--augment makes a new view each time; found --views 2"),
        ({"train_prompts": ("box", "circle")}, "--train-prompts is not known; found box, circle"),
        ({"train_prompts": ()}, "--train-prompts is not known"),
        ({"average_views": 0}, "--average-views cannot be used; found 0; expected 1 to 8"),
        ({"grid": 0}, "--grid cannot be used"),
        ({"precision": "16"}, "--precision 16 needs a GPU"),
        ({"devices": 0}, "--devices cannot be used; found 0"),
        ({"lora_rank": 0}, "--lora-rank cannot be used; found 0"),
    ],
)
def test_options_that_do_not_fit_are_one_line(dataset, tmp_path, lab, options, line):
    with pytest.raises(OptionError, match=line):
        lab.train(dataset, tmp_path, **options)


def test_bf16_trains_on_a_cpu(dataset, tmp_path, lab):
    _, told = lab.train(dataset, tmp_path, precision="bf16")
    assert all(np.isfinite(loss) for loss, _ in told.facts["history"])


# ---------------------------------------------------------------- checkpoints


@pytest.mark.slow
def test_a_decoder_alone_starts_a_vit_and_says_that_its_encoder_is_random(tmp_path, capsys):
    source = _sam_model.build("tiny", backbone="", image_size=64).sam
    parts = {"PromtEncoder": source.prompt_encoder.state_dict(), "MaskDecoder": source.mask_decoder.state_dict()}
    torch.save(parts, tmp_path / "parts.pt")
    model, weights_from = _sam_checkpoints.start(sam.Config(arch="vit_b", weights=str(tmp_path / "parts.pt")))
    assert weights_from == "parts.pt, image encoder: none"
    assert "its image encoder is random" in capsys.readouterr().err
    assert torch.equal(model.sam.mask_decoder.iou_token.weight, source.mask_decoder.iou_token.weight)


@pytest.mark.slow
def test_mobile_sam_is_built_and_told_from_the_others(tmp_path):
    model = _sam_model.build("vit_t", backbone="", image_size=0)
    with torch.inference_mode():
        assert model.encode(torch.zeros(1, 3, 1024, 1024)).shape == (1, 256, 64, 64)
    with torch.no_grad():
        for name, parameter in model.sam.named_parameters():
            if name.endswith("attention_biases"):
                parameter.fill_(1.0)
    torch.save(model.sam.state_dict(), tmp_path / "mobile_sam.pt")
    again, weights_from = _sam_checkpoints.start(sam.Config(weights=str(tmp_path / "mobile_sam.pt")))
    assert (again.arch, weights_from) == ("vit_t", "mobile_sam.pt")
    biases = [module.ab for module in again.sam.image_encoder.modules() if hasattr(module, "ab")]
    assert len(biases) == 10
    assert all(bool((bias == 1).all()) for bias in biases)  # read from a copy that is made in eval()
    tiny = _sam_model.build("tiny", backbone="", image_size=64)
    with pytest.raises(WeightsError, match="found vit_t; expected tiny"):
        _sam_checkpoints.load_sam(tiny, tmp_path / "mobile_sam.pt")


def test_mobile_sam_leaves_timm_its_own_networks():
    import timm

    _sam_model.build("vit_t", backbone="", image_size=0)
    assert type(timm.create_model("tiny_vit_5m_224", pretrained=False)).__module__ == "timm.models.tiny_vit"


@pytest.mark.slow
def test_an_exported_vit_with_adapters_opens_in_the_package(dataset, tmp_path, lab):
    model = _sam_model.build("vit_b", backbone="", image_size=0)
    model.sam.requires_grad_(False)
    adapters = add_adapters(model.sam, 2, ("qkv", "v_proj"))
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(0, 0.1)
    merge_adapters(model.sam)
    _sam_checkpoints.save_run(model, "", tmp_path)
    sam.export_model("segment-anything", sam.Config(), tmp_path, tmp_path / "out.pth")
    opened = sam_model_registry["vit_b"](checkpoint=str(tmp_path / "out.pth"))
    ours = model.sam.state_dict()
    assert opened.state_dict().keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in opened.state_dict().items())


@pytest.mark.slow
def test_two_machines_learn_what_one_does(command, sealed, plates, tmp_path, lab):
    """Both are this one; the second keeps nothing."""
    words = ["train", "sam", plates, "--preset", "tiny", "--image-size", "64", "--epochs", "1", "--device", "cpu"]
    alone = command(*words[:3], tmp_path / "alone", *words[3:])
    error = alone.communicate(timeout=300)[1]
    assert alone.returncode == 0, error
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    machines = [
        command(
            *words[:3], tmp_path / "both", *words[3:], "--nodes", "2",
            more={"NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [machine.communicate(timeout=500)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    assert "the first machine keeps the run" in errors[1]
    assert furthest(tmp_path / "alone", tmp_path / "both") < 1e-4


@pytest.mark.parametrize(
    ("arch", "file"),
    [
        ("vit_b", "sam_vit_b_01ec64.pth"),
        ("vit_l", "sam_vit_l_0b3195.pth"),
        ("vit_h", "sam_vit_h_4b8939.pth"),
        ("vit_t", "mobile_sam.pt"),
        ("tiny", "sam_prompt_encoder_and_mask_decoder"),
    ],
)
def test_a_checkpoint_without_a_stated_hash_is_not_fetched_and_the_error_says_where_it_belongs(
    monkeypatch, tmp_path, arch, file
):
    """Nobody is asked: neither publisher states a SHA-256 of its checkpoints."""
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MASKBRIDGE_WEIGHTS", raising=False)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.setattr(
        _sam_checkpoints, "build", lambda *_, **__: _sam_model.build("tiny", backbone="", image_size=64)
    )
    with pytest.raises(WeightsError) as caught:
        _sam_checkpoints.start(sam.Config(arch=arch, image_size=64))
    line = str(caught.value)
    for words in (file, "not fetched, as its publisher states no SHA-256", "https://", f"into {tmp_path / 'cache'}"):
        assert words in line
    assert "--weights none" in line


def test_a_backbone_that_is_fetched_damaged_is_one_line(monkeypatch, tmp_path):
    class Answer(io.BytesIO):
        headers: ClassVar[dict[str, str]] = {}

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Answer(b"not these weights"))
    with pytest.raises(WeightsError, match=r"has another SHA-256 and was thrown away; found .*; expected"):
        _sam_checkpoints.backbone_download("mobilenet_v2")(tmp_path)
