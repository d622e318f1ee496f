from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest

from finetune import _yolo_world_text as text
from finetune._yolo_world_text import DIMENSIONS, hashed, read_features, text_features, write_features
from maskbridge.cli import main
from maskbridge.errors import MaskbridgeError, OptionError, WeightsError
from maskbridge.files import sha256_file

PROMPTS = ["plate chip", "plate scratch", "plate stain"]


def features_file(path, names=PROMPTS, features=None, **more):
    if features is None:
        features = np.random.default_rng(0).normal(3, 1, (len(names), DIMENSIONS))
    np.savez(path, names=np.array(names), features=features, **more)
    return path


def test_features_of_a_file_come_in_the_order_of_the_prompts_and_of_unit_length(tmp_path):
    rows = np.random.default_rng(0).normal(3, 1, (3, DIMENSIONS))
    path = features_file(tmp_path / "text.npz", ["plate stain", "plate chip", "plate scratch"], rows)
    found = text_features(str(path), PROMPTS)
    assert (found.shape, found.dtype) == ((3, DIMENSIONS), np.float32)
    np.testing.assert_allclose(found, (rows / np.linalg.norm(rows, axis=1, keepdims=True))[[1, 2, 0]], atol=1e-6)


def test_a_prompt_that_is_missing_is_named_with_what_is_there(tmp_path):
    path = features_file(tmp_path / "text.npz", ["plate chip", "plate rust"])
    with pytest.raises(
        WeightsError,
        match=r"lacks features of a prompt; found plate chip, plate rust; expected plate scratch, plate stain",
    ):
        text_features(str(path), PROMPTS)


@pytest.mark.parametrize(
    "features",
    [np.ones((3, 511)), np.ones((2, 512)), np.ones(512), np.ones((3, 512, 1)), np.zeros((0, 512)), np.float64(1)],
)
def test_features_of_another_shape_are_refused(tmp_path, features):
    with pytest.raises(WeightsError, match=r"has features of the wrong shape; found \(.*\); expected \(3, 512\)"):
        text_features(str(features_file(tmp_path / "text.npz", PROMPTS, features)), PROMPTS)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_feature_without_a_direction_is_refused(tmp_path, value):
    rows = np.ones((3, DIMENSIONS))
    rows[1] = value
    with pytest.raises(WeightsError, match="has a feature that is zero or not finite"):
        text_features(str(features_file(tmp_path / "text.npz", PROMPTS, rows)), PROMPTS)


def test_a_pickled_object_is_refused_and_not_executed(tmp_path, exploit):
    names = np.array([exploit[0], "b", "c"], dtype=object)
    np.savez(tmp_path / "names.npz", names=names, features=np.ones((3, DIMENSIONS)))
    (tmp_path / "plain.npz").write_bytes(exploit[1])
    for path in (tmp_path / "names.npz", tmp_path / "plain.npz"):
        with pytest.raises(WeightsError, match="cannot be read as text features"):
            text_features(str(path), PROMPTS)
    assert not (tmp_path / "executed").exists()


def test_a_file_that_holds_no_features_is_told_in_one_line(tmp_path):
    whole = features_file(tmp_path / "text.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("names.npy", b"nothing")
    np.savez(tmp_path / "other.npz", names=PROMPTS)
    np.savez(tmp_path / "scalar.npz", names=np.array("plate"), features=np.ones((1, DIMENSIONS)))
    np.savez(tmp_path / "texts.npz", names=PROMPTS, features=np.array([["a"] * DIMENSIONS] * 3))
    np.save(tmp_path / "array.npy", np.ones((3, DIMENSIONS)))
    contents = {"empty.npz": b"", "text.txt": b"nothing", "cut.npz": whole[: len(whole) // 2], "head.npz": whole[:30]}
    contents["flipped.npz"] = whole[:400] + bytes(byte ^ 0xFF for byte in whole[400:900]) + whole[900:]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "zip.npz", "other.npz", "scalar.npz", "texts.npz", "array.npy", "absent.npz", "."):
        with pytest.raises(
            WeightsError, match=r"cannot be read as text features|no such file; expected auto"
        ) as caught:
            text_features(str(tmp_path / name), PROMPTS)
        assert "\n" not in str(caught.value)


def test_hashed_features_are_fixed_of_unit_length_and_tell_texts_apart():
    found = text_features("hashed", PROMPTS)
    np.testing.assert_array_equal(found, text_features("hashed", PROMPTS))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found @ found.T - np.eye(3)).max() < 0.2
    assert hashed("plate chip") @ hashed("Plate chip") < 0.2


class Encoder:
    """Stands in for `encode`: hashed features, and the texts it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.append(list(texts))
        return np.stack([hashed(one) for one in texts])


@pytest.fixture
def encoder(monkeypatch):
    stand_in = Encoder()
    monkeypatch.setattr(text, "encode", stand_in)
    monkeypatch.setattr(text, "encoder_name", lambda: "one")
    return stand_in


def test_what_the_encoder_said_is_kept_by_text_and_by_encoder(encoder, monkeypatch, tmp_path):
    cache = tmp_path / "work" / "text-features.npz"
    first = text_features("auto", PROMPTS, cache)
    np.testing.assert_array_equal(text_features("auto", PROMPTS[::-1], cache), first[::-1])
    assert encoder.asked == [PROMPTS]
    text_features("auto", ["plate rust"], cache)
    assert encoder.asked[1:] == [["plate rust"]], "another text"
    monkeypatch.setattr(text, "encoder_name", lambda: "another")
    text_features("auto", ["plate rust"], cache)
    assert encoder.asked[2:] == [["plate rust"]], "another encoder"


def test_wanted_texts_that_a_file_lacks_are_none(tmp_path):
    path = features_file(tmp_path / "text.npz")
    assert text.known_features(str(path), PROMPTS[:2]).shape == (2, DIMENSIONS)
    assert text.known_features(str(path), ["person"]) is None
    assert text.known_features("hashed", ["person"]) is None


@pytest.fixture
def nothing_at_hand(monkeypatch, tmp_path):
    """No weights folder, an empty cache."""
    monkeypatch.delenv("MASKBRIDGE_WEIGHTS", raising=False)
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_encoder_is_fetched_by_its_pinned_hash_once(nothing_at_hand, server, monkeypatch):
    folder, url = server
    (folder / "ViT-B-32.pt").write_bytes(b"weights")
    monkeypatch.setattr(text, "WEIGHTS_URL", f"{url}/ViT-B-32.pt")
    monkeypatch.setattr(text, "WEIGHTS_SHA256", sha256_file(folder / "ViT-B-32.pt"))
    assert f"ViT-B-32.pt, SHA-256 {text.WEIGHTS_SHA256}" in text.encoder_name()
    (folder / "ViT-B-32.pt").unlink()
    assert "ViT-B-32.pt" in text.encoder_name()
    assert (nothing_at_hand / "ViT-B-32.pt").read_bytes() == b"weights"


def test_a_download_with_another_hash_and_no_network_name_every_way_out(nothing_at_hand, server, monkeypatch):
    folder, url = server
    (folder / "ViT-B-32.pt").write_bytes(b"something else")
    for address in (f"{url}/ViT-B-32.pt", "http://127.0.0.1:1/ViT-B-32.pt"):
        monkeypatch.setattr(text, "WEIGHTS_URL", address)
        with pytest.raises(OptionError, match="no text encoder") as caught:
            text_features("auto", PROMPTS)
        for way in ("MASKBRIDGE_WEIGHTS", "--text-features FILE", "--text-features hashed"):
            assert way in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (nothing_at_hand / "ViT-B-32.pt").exists()


def test_a_torchscript_file_that_is_not_openais_is_never_opened(monkeypatch, tmp_path, exploit):
    pytest.importorskip("open_clip")
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(tmp_path))
    (tmp_path / "ViT-B-32.pt").write_bytes(exploit[1])
    with pytest.raises(WeightsError, match="is not OpenAI's file, and a TorchScript file is a program"):
        text_features("auto", PROMPTS)
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_clip_beside_the_right_ones_are_not_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(tmp_path))
    for name in ("ViT-B-32-256.pt", "ViT-B-32-laion2b_s34b.safetensors", "ViT-B-32.pt"):
        (tmp_path / name).write_bytes(name.encode())
    assert "ViT-B-32.pt, " in text.encoder_name()


@pytest.fixture
def small_clip(monkeypatch, tmp_path):
    """A small CLIP of open-clip-torch with random weights in the place of ViT-B/32."""
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": DIMENSIONS,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    (tmp_path / "small-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "small-clip.json")
    monkeypatch.setattr(text, "ARCHITECTURE", "small-clip")
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(weights))
    return open_clip.create_model("small-clip").eval(), weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_the_encoder_reads_tensors_and_openais_own_file_alike(small_clip, monkeypatch):
    import open_clip
    import torch
    from safetensors.torch import save_file

    model, weights = small_clip
    with torch.inference_mode():
        expected = model.encode_text(open_clip.get_tokenizer("small-clip")(PROMPTS)).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    save_file(model.state_dict(), weights / "ViT-B-32.safetensors")
    found = text_features("auto", PROMPTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
    (weights / "ViT-B-32.safetensors").unlink()
    torch.jit.script(model).save(str(weights / "ViT-B-32.pt"))
    monkeypatch.setattr(text, "WEIGHTS_SHA256", sha256_file(weights / "ViT-B-32.pt"))
    np.testing.assert_allclose(text_features("auto", PROMPTS), expected, atol=1e-6)


@pytest.mark.slow
def test_weights_of_another_model_and_a_prompt_that_is_too_long_are_one_line(small_clip):
    import torch
    from safetensors.torch import save_file

    model, weights = small_clip
    save_file(model.state_dict(), weights / "ViT-B-32.safetensors")
    with pytest.raises(OptionError, match="a prompt is longer than the text encoder reads"):
        text_features("auto", ["break " * 80])
    save_file({"a": torch.ones(2)}, weights / "ViT-B-32.safetensors")
    with pytest.raises(WeightsError, match="lacks tensors of CLIP ViT-B/32"):
        text_features("auto", PROMPTS)
    (weights / "ViT-B-32.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot be read as CLIP ViT-B/32"):
        text_features("auto", PROMPTS)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:pkg_resources is deprecated", "ignore:Deprecated call to `pkg_resources")
def test_features_are_those_of_clip_anytorch(monkeypatch, tmp_path):
    """OpenAI's architecture at its full size, with random weights, in both packages."""
    import clip
    import open_clip
    import torch
    from clip.model import build_model
    from safetensors.torch import save_file

    torch.manual_seed(0)
    ours = open_clip.create_model(text.ARCHITECTURE)
    save_file(ours.state_dict(), tmp_path / "ViT-B-32.safetensors")
    theirs = build_model(dict(ours.state_dict())).float().eval()
    texts = [*PROMPTS, "a large break in the glass rim, 3 mm", "Ünïcode & co."]
    with torch.inference_mode():
        expected = theirs.encode_text(clip.tokenize(texts)).float().numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(tmp_path))
    np.testing.assert_allclose(text_features("auto", texts), expected, atol=2e-3)  # theirs is built in half precision


def test_the_command_writes_prompts_texts_and_coco_names(encoder, plates, tmp_path, capsys):
    out = tmp_path / "text.npz"
    words = ["text-features", out, "a dent", "--dataset", plates, "--prompt", "chip=a chipped rim"]
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out == f"{out}: 84 texts\n"
    found = read_features(out)
    assert {"a dent", "a chipped rim", "plate scratch", "plate stain", "person", "toothbrush"} <= set(found)
    np.testing.assert_allclose(found["a dent"], hashed("a dent"), atol=1e-6)
    assert main([str(word) for word in (*words, "--no-coco")]) == 0
    assert len(read_features(out)) == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["OUT.npz"], "nothing to write features of"),
        (["OUT.npz", "a dent", "--prompt", "chip=x"], "--prompt is of a dataset's types"),
        (["OUT.pt", "a dent"], "text features are an .npz file"),
    ],
)
def test_the_command_refuses_what_it_cannot_write(refused, words, line):
    assert line in refused("text-features", *words)


def test_a_written_file_is_read_back(tmp_path):
    rows = np.stack([hashed(prompt) for prompt in PROMPTS])
    write_features(tmp_path / "deep" / "text.npz", PROMPTS, rows, "somebody")
    np.testing.assert_allclose(text_features(str(tmp_path / "deep" / "text.npz"), PROMPTS), rows, atol=1e-7)


def test_text_features_are_replaced_and_no_other_file_is(tmp_path):
    path = tmp_path / "text.npz"
    rows = np.stack([hashed(prompt) for prompt in PROMPTS])
    for _ in range(2):
        write_features(path, PROMPTS, rows, "hashed")
    np.savez(path, mine=np.zeros((3, 5)))
    before = path.read_bytes()
    with pytest.raises(MaskbridgeError, match=r"text\.npz: is not a file of text features made by maskbridge"):
        write_features(path, PROMPTS, rows, "hashed")
    assert path.read_bytes() == before
