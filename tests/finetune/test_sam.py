from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry

from finetune import _sam_answers, _sam_checkpoints, _sam_embeddings, _sam_model, _sam_training, sam
from finetune._sam_prompts import Item
from maskbridge.approach import Context
from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError, MaskbridgeError, OptionError, WeightsError
from maskbridge.weights import find_local

REAL_WEIGHTS = os.environ.get("MASKBRIDGE_WEIGHTS")
SIZES = [(40, 64), (64, 40), (45, 70), (70, 45), (1, 90), (90, 1), (33, 33)]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MASKBRIDGE_WEIGHTS", raising=False)


def without_prompt(model, embeddings):
    none = Item("none", np.zeros((0, 2), np.float32), None, None)
    return _sam_answers.answer(model, embeddings, [none] * len(embeddings), range(len(embeddings)))


def tiny(image_size=64):
    torch.manual_seed(0)
    return _sam_model.build("tiny", backbone="", image_size=image_size)


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize("size_hw", SIZES)
def test_the_input_is_what_the_packages_predictor_makes(size_hw):
    model, image = tiny(), np.random.default_rng(0).integers(0, 255, (*size_hw, 3), dtype=np.uint8)
    if min(_sam_embeddings.ResizeLongestSide.get_preprocess_shape(*size_hw, 64)) == 0:
        assert _sam_embeddings.to_input(model, image).shape == (3, 64, 64)
        return
    predictor = SamPredictor(model.sam)
    predictor.set_image(image)
    with torch.inference_mode():
        ours = model.neck(model.trunk(_sam_embeddings.to_input(model, image)[None]))
    assert torch.allclose(ours, predictor.features, atol=1e-5)


@pytest.mark.parametrize("size_hw", SIZES)
def test_padding_is_cut_off_where_the_image_ends(size_hw):
    image_size, low = 64, 32
    _, inside = _sam_embeddings.low_resolution_target(np.ones(size_hw, np.uint8), image_size, low)
    height, width = _sam_embeddings.input_size(size_hw, image_size)
    assert inside.sum() == pytest.approx(height * width / (image_size / low) ** 2)
    ramp_x = torch.arange(low, dtype=torch.float32).repeat(low, 1)
    for ramp, side, axis in ((ramp_x, width, 1), (ramp_x.T.contiguous(), height, 0)):
        cropped = _sam_embeddings.crop_padding(ramp, size_hw, image_size)
        last = (side * low / image_size) * (1 - 0.5 / cropped.shape[axis]) - 0.5
        assert float(cropped.max()) == pytest.approx(max(last, 0), abs=1e-3)


@pytest.mark.parametrize("size_hw", [(40, 64), (64, 40)])
def test_cutting_at_whole_cells_is_exact(size_hw):
    low = torch.rand(32, 32)
    cropped = _sam_embeddings.crop_padding(low, size_hw, 64)
    assert torch.allclose(cropped, low[: size_hw[0] // 2, : size_hw[1] // 2], atol=1e-5)


@pytest.mark.parametrize("size_hw", [(160, 208), (208, 160)])
def test_a_perfect_map_lies_on_the_defect(size_hw):
    mask = np.zeros(size_hw, np.uint8)
    mask[100:140, 90:150] = 1
    low, _ = _sam_embeddings.low_resolution_target(mask, 256, 128)
    back = _sam_embeddings.crop_padding(torch.from_numpy(low), size_hw, 256).numpy()
    full = cv2.resize(back, (size_hw[1], size_hw[0])) > 0.5
    assert (full & (mask > 0)).sum() / (full | (mask > 0)).sum() > 0.95


ZOO = {
    "line": (slice(10, 11), slice(5, 50)),
    "pit": (slice(20, 22), slice(30, 32)),
    "at the frame": (slice(0, 3), slice(0, 9)),
    "whole image": (slice(None), slice(None)),
    "none": (slice(0, 0), slice(0, 0)),
}


@pytest.mark.parametrize("where", ZOO.values(), ids=ZOO)
def test_a_target_keeps_the_defects_area(where):
    mask = np.zeros((48, 64), np.uint8)
    mask[where] = 1
    target, inside = _sam_embeddings.low_resolution_target(mask, 64, 32)
    assert target.sum() * 4 == pytest.approx(mask.sum())
    assert (target <= inside).all()


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize(("arch", "image_size", "grid"), [("tiny", 64, 8), ("backbone", 96, 6)])
def test_a_batch_without_prompts_equals_one_image_at_a_time(arch, image_size, grid):
    torch.manual_seed(0)
    model = _sam_model.build(arch, backbone="mobilenet_v2", image_size=image_size)
    x = torch.rand(3, 256, grid, grid)
    with torch.inference_mode():
        logits, quality = without_prompt(model, x)
        singles = [without_prompt(model, one[None]) for one in x]
    assert logits.shape == (3, 4 * grid, 4 * grid)
    assert torch.allclose(logits, torch.cat([one for one, _ in singles]), atol=1e-4)
    assert torch.allclose(quality, torch.cat([one for _, one in singles]), atol=1e-4)


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_an_encoder_is_its_trunk_and_its_neck(backbone):
    model = _sam_model.build("backbone", backbone=backbone, image_size=96)
    x = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(model.sam.image_encoder(x), model.neck(model.trunk(x)))
        assert model.sam.image_encoder(x).shape == (1, 256, 6, 6)


def test_only_decoder_and_neck_are_trained():
    model = tiny()
    model.train_only("decoder")
    parts = {name.split(".")[0] for name, p in model.sam.named_parameters() if p.requires_grad}
    encoder = {
        name.split(".")[1] for name, p in model.sam.image_encoder.named_parameters(prefix="e") if p.requires_grad
    }
    assert parts == {"mask_decoder", "image_encoder"}
    assert encoder == {"neck"}


@pytest.mark.parametrize("image_size", [0, 48, 100])
def test_a_size_off_the_grid_is_refused(image_size):
    with pytest.raises(OptionError, match="multiple of 32"):
        _sam_model.build("tiny", backbone="", image_size=image_size)


@pytest.mark.parametrize("name", ["nonet", "fasterrcnn_mobilenet_v3_large_fpn", "fcn_resnet50", "raft_small"])
def test_a_backbone_that_is_no_classifier_is_refused(name):
    with pytest.raises(OptionError, match=f"--backbone is not known; found {name}; expected a torchvision classifier"):
        _sam_model.build("backbone", backbone=name, image_size=64)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("swin_t", "has other maps than channels first; found swin_t: 16 x 24 x 96 of 64 x 96 pixels"),
        ("vit_b_16", "is no chain of layers; found vit_b_16"),
        ("maxvit_t", "is no chain of layers; found maxvit_t"),
        ("squeezenet1_1", "has "),
    ],
)
def test_a_backbone_that_would_be_read_wrongly_is_refused(name, why):
    with pytest.raises(OptionError, match=f"--backbone {why}"):
        _sam_model.build("backbone", backbone=name, image_size=64)


def test_the_download_of_a_backbone_is_checked_by_the_digits_in_its_name(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("maskbridge.weights.fetch", lambda *request: asked.append(request) or tmp_path)
    download = _sam_checkpoints.backbone_download("resnet18")
    assert download is not None
    assert download(tmp_path) == tmp_path
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd", tmp_path)]
    assert _sam_checkpoints.backbone_download("nonet") is None


@pytest.mark.slow
def test_vit_b_has_the_registrys_keys_and_opens_in_it(tmp_path):
    model = _sam_model.build("vit_b", backbone="", image_size=512)
    assert model.image_size == 1024
    torch.save(model.sam.state_dict(), tmp_path / "sam.pt")
    opened = sam_model_registry["vit_b"](checkpoint=str(tmp_path / "sam.pt"))
    assert opened.state_dict().keys() == model.sam.state_dict().keys()
    with pytest.raises(WeightsError, match=r"another architecture; found vit_b; expected tiny"):
        _sam_checkpoints.load_sam(tiny(), tmp_path / "sam.pt")


# ---------------------------------------------------------------- weights


def test_prompt_encoder_and_decoder_come_from_their_own_file_or_a_whole_checkpoint(tmp_path):
    source = tiny()
    state = source.sam.state_dict()
    torch.save(state, tmp_path / "whole.pth")
    parts = {
        "PromtEncoder": source.sam.prompt_encoder.state_dict(),
        "MaskDecoder": source.sam.mask_decoder.state_dict(),
    }
    torch.save(parts, tmp_path / "parts.pt")
    for name in ("whole.pth", "parts.pt"):
        torch.manual_seed(1)
        model = _sam_model.build("backbone", backbone="resnet18", image_size=64)
        _sam_checkpoints.load_prompt_encoder_and_decoder(model, tmp_path / name)
        assert torch.equal(model.sam.mask_decoder.mask_tokens.weight, source.sam.mask_decoder.mask_tokens.weight)
        assert torch.equal(
            model.sam.prompt_encoder.no_mask_embed.weight, source.sam.prompt_encoder.no_mask_embed.weight
        )


def test_backbone_weights_may_be_the_whole_network_or_its_features(tmp_path):
    network = _sam_checkpoints.models.get_model("mobilenet_v2", weights=None)
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    torch.save(network.features.state_dict(), tmp_path / "features.pth")
    for name in ("whole.pth", "features.pth"):
        model = _sam_model.build("backbone", backbone="mobilenet_v2", image_size=64)
        _sam_checkpoints.load_backbone(model, tmp_path / name)
        assert torch.equal(model.sam.image_encoder.stages[0][0].weight, network.features[0][0].weight)


def test_weights_that_are_no_checkpoint_are_refused(tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        _sam_checkpoints.read_state(tmp_path / "junk.pt")
    torch.save({1: torch.zeros(1)}, tmp_path / "junk.pt")
    with pytest.raises(WeightsError, match="is not a state dict"):
        _sam_checkpoints.read_state(tmp_path / "junk.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="found no SAM"):
        _sam_checkpoints.load_prompt_encoder_and_decoder(tiny(), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        _sam_checkpoints.load_backbone(
            _sam_model.build("backbone", backbone="resnet18", image_size=64), tmp_path / "other.pt"
        )


def test_auto_takes_what_is_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(tmp_path))
    assert _sam_checkpoints.resolve_arch(sam.Config()) == "vit_b"
    assert _sam_checkpoints.resolve_arch(sam.Config(weights="none")) == "tiny"
    assert _sam_checkpoints.resolve_arch(sam.Config(weights="none", backbone_weights="mine.pth")) == "backbone"
    assert _sam_checkpoints.resolve_arch(sam.Config(weights="x/sam_vit_h_4b8939.pth")) == "vit_h"
    (tmp_path / "mobilenet_v2_features.pth").touch()
    assert _sam_checkpoints.resolve_arch(sam.Config()) == "backbone"
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    assert _sam_checkpoints.resolve_arch(sam.Config()) == "vit_b"


@pytest.mark.real
@pytest.mark.skipif(not REAL_WEIGHTS, reason="MASKBRIDGE_WEIGHTS is not set")
def test_pretrained_weights_fit_and_say_where_they_are_from(monkeypatch):
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", REAL_WEIGHTS)
    model, weights_from = _sam_checkpoints.start(sam.Config(arch="backbone"))
    assert model.arch == "backbone"
    assert "none" not in weights_from
    assert "mobilenet_v2" in weights_from
    path = find_local([_sam_checkpoints.DECODER_NAME])
    state = _sam_checkpoints.read_state(path)["MaskDecoder"]
    assert torch.equal(model.sam.mask_decoder.iou_token.weight, state["iou_token.weight"])


# ---------------------------------------------------------------- the cache


def test_a_cache_hit_gives_the_same_features(dataset, monkeypatch):
    model = tiny()
    first = _sam_embeddings.Embeddings(model, torch.device("cpu"))
    computed = [np.array(first.features(dataset, i)) for i in (1, 2)]
    again = _sam_embeddings.Embeddings(model, torch.device("cpu"))
    monkeypatch.setattr(_sam_embeddings.Embeddings, "compute", None)
    assert all(np.array_equal(again.features(dataset, i), c) for i, c in zip((1, 2), computed, strict=True))


def test_an_entry_that_is_no_file_is_not_waited_for(dataset):
    embeddings = _sam_embeddings.Embeddings(tiny(), torch.device("cpu"))
    embeddings.features(dataset, 1)
    (path,) = embeddings.folder.iterdir()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(MaskbridgeError, match=r"is not a regular file; found a pipe"):
        embeddings.features(dataset, 1)


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "zeros", "a bit", "archive", "objects"])
def test_a_damaged_entry_is_computed_again_and_said_so(dataset, capsys, damage):
    embeddings = _sam_embeddings.Embeddings(tiny(), torch.device("cpu"))
    good = np.array(embeddings.features(dataset, 1))
    (path,) = embeddings.folder.iterdir()
    whole = path.read_bytes()
    if damage == "zeros":
        np.save(path, np.zeros_like(good))
    elif damage in ("archive", "objects"):
        with path.open("wb") as file:
            np.savez(file, good) if damage == "archive" else np.save(file, np.array([{}]), allow_pickle=True)
    elif damage == "a bit":
        path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "junk": b"junk" * 99, "empty": b""}[damage])
    embeddings = _sam_embeddings.Embeddings(tiny(), torch.device("cpu"))  # another process
    assert np.array_equal(embeddings.features(dataset, 1), good)
    assert "damaged cache entry" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_told(dataset, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_sam_embeddings, "write_bytes", full)
    with pytest.raises(MaskbridgeError, match=r"cannot be cached; found No space left.*MASKBRIDGE_CACHE"):
        _sam_embeddings.Embeddings(tiny(), torch.device("cpu")).features(dataset, 1)


def test_an_image_that_changed_has_another_entry(dataset):
    """Whatever the dataset says of it."""
    before = np.array(_sam_embeddings.Embeddings(tiny(), torch.device("cpu")).features(dataset, 1))
    cv2.imwrite(str(dataset.image_path(1)), cv2.imread(str(dataset.image_path(1)))[::-1])
    after = _sam_embeddings.Embeddings(tiny(), torch.device("cpu"))
    assert not np.array_equal(after.features(dataset, 1), before)
    assert len(list(after.folder.iterdir())) == 2
    dataset.image_path(1).unlink()
    with pytest.raises(DatasetError, match=r"cannot be read; found No such file"):
        _sam_embeddings.Embeddings(tiny(), torch.device("cpu")).features(dataset, 1)


def test_other_weights_or_sizes_have_other_entries():
    folders = {_sam_embeddings.Embeddings(tiny(size), torch.device("cpu")).folder for size in (64, 96)}
    torch.manual_seed(1)
    other = _sam_model.build("tiny", backbone="", image_size=64)
    folders.add(_sam_embeddings.Embeddings(other, torch.device("cpu")).folder)
    assert len(folders) == 3


def test_an_encoder_whose_weights_fit_any_size_has_other_entries_for_each():
    folders = set()
    for size in (64, 96):
        torch.manual_seed(0)
        model = _sam_model.build("backbone", backbone="resnet18", image_size=size)
        folders.add(_sam_embeddings.Embeddings(model, torch.device("cpu")).folder)
    assert len(folders) == 2


def test_training_the_neck_keeps_the_entries():
    model = tiny()
    before = _sam_embeddings.Embeddings(model, torch.device("cpu")).folder
    with torch.no_grad():
        model.sam.image_encoder.neck[0].weight.add_(1)
    assert _sam_embeddings.Embeddings(model, torch.device("cpu")).folder == before


# ---------------------------------------------------------------- training and prediction


@pytest.mark.parametrize("size_hw", [(40, 56), pytest.param((56, 40), marks=pytest.mark.slow)])
def test_training_without_prompts_finds_the_defects(tmp_path, size_hw, lab):
    dataset = lab.make_dataset(tmp_path / "plates", goods=10, defective=10, size_hw=size_hw)
    val = (1, 2, 3, 11, 12, 13)
    config, told = lab.train(dataset, tmp_path, val=val, epochs=8, lr=1e-3)
    losses = [loss for loss, _ in told.facts["history"]]
    assert min(losses) < 0.6 * losses[0]
    by_id = {p.image_id: p for p in lab.predict(dataset, tmp_path, config)}
    assert min(by_id[i].score for i in val[3:]) > max(by_id[i].score for i in val[:3])
    for i in val[3:]:
        full = cv2.resize(by_id[i].map, size_hw[::-1])
        mask = dataset.mask(i) > 0
        assert full[mask].mean() > 3 * full[~mask].mean()


def test_a_checkpoint_gives_the_trained_predictions(dataset, tmp_path, lab):
    config, told = lab.train(dataset, tmp_path)
    first, second = (lab.predict(dataset, tmp_path, config) for _ in range(2))
    state = torch.load(tmp_path / "weights" / "sam.pt", weights_only=True)
    card = json.loads((tmp_path / "weights" / "sam.json").read_text())
    assert card == {
        "arch": "tiny",
        "backbone": "mobilenet_v2",
        "image_size": 64,
        "box_mask": True,
        "trained_prompts": ["none"],
    }
    model = tiny()
    assert state.keys() == model.sam.state_dict().keys()
    assert told.parameters == sum(p.numel() for p in model.sam.parameters())
    assert told.weights_from == "none"
    assert [p.image_id for p in first] == [image.id for image in dataset.images]
    for one, two in zip(first, second, strict=True):
        assert one.map.dtype == np.float32
        assert one.map.shape == (23, 32)
        assert np.array_equal(one.map, two.map)
        assert one.score == two.score == one.map.max()


def test_the_same_seed_gives_the_same_weights(dataset, tmp_path, lab):
    for name in ("a", "b"):
        lab.train(dataset, tmp_path / name)
    assert lab.same_weights(tmp_path / "a", tmp_path / "b")


def test_a_continued_training_equals_an_uninterrupted_one(dataset, tmp_path, monkeypatch, lab):
    val = (1, 7)
    lab.train(dataset, tmp_path / "whole", val=val, epochs=3)
    monkeypatch.setattr(_sam_training, "SAVE_SECONDS", 0)
    monkeypatch.setattr(_sam_training, "SAVE_SHARE", 0)
    save, calls = _sam_training.write_bytes, []

    def killed(*args):
        save(*args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(_sam_training, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        lab.train(dataset, tmp_path / "killed", val=val, epochs=3)
    monkeypatch.setattr(_sam_training, "write_bytes", save)
    lab.train(dataset, tmp_path / "killed", val=val, epochs=3, resume=True)
    assert lab.same_weights(tmp_path / "whole", tmp_path / "killed")


def test_prediction_reads_no_ground_truth(dataset, tmp_path, monkeypatch, lab):
    config, _ = lab.train(dataset, tmp_path)
    blind = dataclasses.replace(dataset, annotations=())
    for name in ("mask", "split"):
        monkeypatch.setattr(Dataset, name, None)
    assert len(lab.predict(blind, tmp_path, config)) == 12


def test_without_a_defect_there_is_nothing_to_learn(tmp_path, lab):
    dataset = lab.make_dataset(tmp_path / "plates", goods=3, defective=0)
    with pytest.raises(DatasetError, match="no image to train on has a defect"):
        lab.train(dataset, tmp_path)


def test_without_good_images_it_trains_on_defects_alone(tmp_path, lab):
    dataset = lab.make_dataset(tmp_path / "plates", goods=0, defective=3)
    _, told = lab.train(dataset, tmp_path)
    assert told.facts["good_images_per_epoch"] == 0


@pytest.mark.parametrize(("negatives", "count"), [("all", 6), ("3", 3), ("9x", 6), ("0.5x", 3)])
def test_negatives_set_the_good_images_of_an_epoch(dataset, tmp_path, negatives, count, lab):
    _, told = lab.train(dataset, tmp_path, negatives=negatives, epochs=1)
    assert told.facts["good_images_per_epoch"] == count


@pytest.mark.parametrize("negatives", ["many", "-1", "x", "nanx"])
def test_negatives_that_are_no_number_are_refused(dataset, tmp_path, negatives, lab):
    with pytest.raises(OptionError, match="--negatives is not understood"):
        lab.train(dataset, tmp_path, negatives=negatives)


@pytest.mark.parametrize(("option", "value"), [("epochs", 0), ("batch", 0), ("lr", float("nan")), ("patience", 0)])
def test_a_schedule_that_cannot_work_is_refused(dataset, tmp_path, option, value, lab):
    with pytest.raises(OptionError, match=f"--{option} cannot be used"):
        lab.train(dataset, tmp_path, **{option: value})


def test_a_loss_that_is_not_finite_is_told(dataset, tmp_path, lab):
    with pytest.raises(MaskbridgeError, match="training diverged"):
        lab.train(dataset, tmp_path, lr=1e30)


def test_a_device_that_is_not_there_is_refused(dataset, tmp_path, lab):
    with pytest.raises(OptionError, match="--device cannot be used; found abacus"):
        sam.train(
            lab.everything(dataset), sam.Config(**lab.tiny), tmp_path, Context(device="abacus", seed=0, work=tmp_path)
        )


def test_a_run_without_its_checkpoint_is_refused(dataset, tmp_path, lab):
    config, _ = lab.train(dataset, tmp_path, epochs=1)
    (tmp_path / "weights" / "sam.pt").unlink()
    with pytest.raises(WeightsError, match=r"sam\.pt"):
        lab.predict(dataset, tmp_path, config)


def test_importing_it_does_not_import_torch():
    code = "import sys, finetune.sam; sys.exit(any(m in sys.modules for m in ('torch', 'segment_anything')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
