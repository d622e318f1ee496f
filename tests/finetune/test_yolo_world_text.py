from __future__ import annotations

import zipfile

import numpy as np
import pytest

from finetune._yolo_world_text import DIMENSIONS, hashed, text_features
from maskbridge.errors import WeightsError

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
        with pytest.raises(WeightsError, match="cannot be read as text features") as caught:
            text_features(str(tmp_path / name), PROMPTS)
        assert "\n" not in str(caught.value)


def test_hashed_features_are_fixed_of_unit_length_and_tell_texts_apart():
    found = text_features("hashed", PROMPTS)
    np.testing.assert_array_equal(found, text_features("hashed", PROMPTS))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found @ found.T - np.eye(3)).max() < 0.2
    assert hashed("plate chip") @ hashed("Plate chip") < 0.2
