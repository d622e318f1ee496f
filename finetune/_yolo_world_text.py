"""Text features of class prompts for YOLO-World: CLIP ViT-B/32's own text encoder, a file, or a stand-in.

    features = text_features("auto", ["bottle broken large"], cache=Path("text-features.npz"))

A file is a NumPy `.npz` with `names` (N strings) and `features` (N x 512, float), CLIP ViT-B/32 text features; rows
need not be of unit length. `maskbridge text-features` makes one, for machines without a network.

The encoder is open-clip-torch: it is released regularly, reads weights as tensors (safetensors), and brings the
tokenizer along. clip-anytorch gives the same features (a test says so), but imports `pkg_resources`, which setuptools
has dropped, reads weights as TorchScript programs, and takes the module name `clip`, which Ultralytics looks for.
Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021,
https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskbridge.errors import MaskbridgeError, OptionError, WeightsError
from maskbridge.files import NO_ARRAY, open_regular, refuse_foreign, sha256_file, write_bytes
from maskbridge.progress import say
from maskbridge.weights import AUTO, find_weights

_UNREADABLE: tuple[type[Exception], ...] = (MaskbridgeError, *NO_ARRAY)

#: Length of a CLIP ViT-B/32 text feature.
DIMENSIONS = 512
HASHED = "hashed"
#: What open-clip-torch calls the architecture of OpenAI's weights.
ARCHITECTURE = "ViT-B-32-quickgelu"
#: OpenAI's own file, a TorchScript program. OpenAI states its SHA-256 in the address, against which its own loader
#: checks it: `_MODELS` and `_download` in https://github.com/openai/CLIP/blob/main/clip/clip.py.
WEIGHTS_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
WEIGHTS_URL = f"https://openaipublic.azureedge.net/clip/models/{WEIGHTS_SHA256}/ViT-B-32.pt"
#: Names in the weights folder: a state dict of open-clip-torch, or the file above.
WEIGHTS_NAMES = ("ViT-B-32.safetensors", "ViT-B-32.pt")

Features = npt.NDArray[np.float32]

_WAYS_OUT = (
    "or give --text-features FILE, made where there is a network by `maskbridge text-features`; "
    f"--text-features {HASHED} is a stand-in that knows no language and marks the run"
)


def text_features(option: str, prompts: Sequence[str], cache: Path | None = None) -> Features:
    """Features of prompts, N x 512, float32, unit length.

    Args:
        option: `auto` (the encoder), `hashed`, or the path of a `.npz` file.
        prompts: Texts, in class order.
        cache: A file to keep what the encoder said in, by encoder and text.

    Raises:
        OptionError: When the encoder cannot be had; every way out is named.
        WeightsError: When a file cannot be read or lacks a prompt.
    """
    if option == HASHED:
        return np.stack([hashed(prompt) for prompt in prompts])
    if option != AUTO:
        table = read_features(Path(option))
        missing = [prompt for prompt in prompts if prompt not in table]
        if missing:
            raise WeightsError(
                "lacks features of a prompt",
                where=option,
                found=", ".join(sorted(table)[:6]),
                expected=", ".join(missing),
                remedy="set --prompt, or make the file anew with `maskbridge text-features`",
            )
        return np.stack([table[prompt] for prompt in prompts])
    name = encoder_name()
    if cache is not None and cache.is_file():
        kept, (_, _, encoder) = read_features(cache), _read(cache)
        if encoder == name and all(prompt in kept for prompt in prompts):
            return np.stack([kept[prompt] for prompt in prompts])
    features = encode(prompts)
    if cache is not None:
        write_features(cache, prompts, features, name)
    return features


def known_features(option: str, texts: Sequence[str], cache: Path | None = None) -> Features | None:
    """Features of texts that are wanted but not needed: None where the source does not know all of them."""
    if option == HASHED:
        return None
    if option != AUTO:
        table = read_features(Path(option))
        return np.stack([table[text] for text in texts]) if all(text in table for text in texts) else None
    return text_features(option, texts, cache)


def encode(texts: Sequence[str]) -> Features:
    """Features of texts by CLIP ViT-B/32's text encoder, N x 512, float32, unit length.

    Raises:
        OptionError: When open-clip-torch or the weights are missing, or a text is longer than the encoder reads.
        WeightsError: When the weights are not what they should be.
    """
    try:
        import open_clip
    except ImportError as error:
        raise OptionError(
            "no text encoder", found="no open-clip-torch", remedy=f"pip install open-clip-torch, {_WAYS_OUT}"
        ) from error
    import torch

    model = _load_encoder(_encoder_weights())
    tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
    for text in texts:
        if len(tokenizer.encode(text)) > tokenizer.context_length - 2:
            raise OptionError(
                "a prompt is longer than the text encoder reads", found=text, expected="at most 75 tokens"
            )
    rows: list[npt.NDArray[Any]] = []
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            rows.append(model.encode_text(tokenizer(list(texts[start : start + 64]))).float().numpy())
    return np.stack([_unit(row) for row in np.concatenate(rows)])


def encoder_name() -> str:
    """What the features of `encode` come from; features of two encoders are never mixed."""
    path = _encoder_weights()
    return f"open-clip-torch {ARCHITECTURE}, {path.name}, SHA-256 {sha256_file(path)}"


def source_name(option: str) -> str:
    """What features of an option come from, for run.json; the stand-in is marked also where a file holds it."""
    if option == AUTO:
        return encoder_name()
    if option == HASHED:
        return HASHED
    encoder = _read(Path(option))[2]
    return HASHED if encoder == HASHED else Path(option).name


def hashed(prompt: str) -> Features:
    """A fixed random direction for a text: it tells classes apart, and means nothing."""
    seed = int.from_bytes(hashlib.sha256(prompt.encode("utf-8")).digest()[:8], "big")
    return _unit(np.random.default_rng(seed).normal(size=DIMENSIONS))


def read_features(path: Path) -> Mapping[str, Features]:
    """Features by text, each 512, float32, unit length; no object of the file is ever built.

    Raises:
        WeightsError: When it is no such file, or a feature has no direction.
    """
    texts, features, _ = _read(path)
    if features.shape != (len(texts), DIMENSIONS):
        raise WeightsError(
            "has features of the wrong shape",
            where=path,
            found=features.shape,
            expected=(len(texts), DIMENSIONS),
        )
    lengths = np.linalg.norm(features, axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise WeightsError("has a feature that is zero or not finite", where=path)
    return {text: _unit(row) for text, row in zip(texts, features, strict=True)}


def write_features(path: Path, texts: Sequence[str], features: Features, encoder: str) -> None:
    """Write a file of text features, atomically.

    Raises:
        MaskbridgeError: When something else is there.
    """
    refuse_foreign(path, b"names.npy", kind="a file of text features")
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(list(texts)), features=features, encoder=np.array(encoder))
    write_bytes(path, buffer.getvalue())


def _read(path: Path) -> tuple[list[str], npt.NDArray[np.float64], str]:
    """Texts, features (unchecked) and the encoder's name (empty where the file has none)."""
    if not path.exists():
        raise WeightsError("no such file", where=path, expected=f"{AUTO}, {HASHED}, or an .npz of text features")
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            encoder = str(archive["encoder"]) if "encoder" in archive else ""
            features = np.asarray(archive["features"], dtype=np.float64)
            return [str(name) for name in archive["names"]], features, encoder
    except _UNREADABLE as error:
        raise WeightsError(
            "cannot be read as text features",
            where=path,
            found="no array file, or objects in it" if "pickle" in str(error) else error,
            expected="an .npz with names and features",
        ) from error


def _encoder_weights() -> Path:
    try:
        found = find_weights(
            AUTO,
            names=WEIGHTS_NAMES,
            what="CLIP ViT-B/32",
            url=WEIGHTS_URL,
            sha256=WEIGHTS_SHA256,
            remedy=f"name its folder in MASKBRIDGE_WEIGHTS, {_WAYS_OUT}",
            by_path=False,
        )
    except WeightsError as error:
        raise OptionError(f"no text encoder: {error}") from error
    assert found is not None
    return found


def _load_encoder(path: Path) -> Any:
    """CLIP with its weights. A TorchScript file is a program: only OpenAI's own, known by its hash, is opened."""
    import open_clip
    import torch
    from safetensors import SafetensorError

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            found = sha256_file(path)
            if found != WEIGHTS_SHA256:
                raise WeightsError(
                    "is not OpenAI's file, and a TorchScript file is a program",
                    where=path,
                    found=f"SHA-256 {found}",
                    expected=WEIGHTS_SHA256,
                    remedy=f"put OpenAI's file there, {_WAYS_OUT}",
                )
            archive: Any = torch.jit
            with warnings.catch_warnings():  # of torch, that TorchScript is of the past
                warnings.simplefilter("ignore")
                state = archive.load(str(path), map_location="cpu").state_dict()
        logging.disable(logging.WARNING)  # open-clip-torch warns that the weights, which come next, are not there
        model = open_clip.create_model(ARCHITECTURE).eval().float()
        own = model.state_dict()
        missing = sorted(own.keys() - state.keys())
        if missing:
            raise WeightsError("lacks tensors of CLIP ViT-B/32", where=path, found=f"no {missing[0]}")
        model.load_state_dict({name: state[name].float() for name in own})
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise WeightsError(
            "cannot be read as CLIP ViT-B/32",
            where=path,
            found=str(error).split("\n", 1)[0][:200],
            remedy=f"fetch it again, {_WAYS_OUT}",
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    say(f"text features by CLIP ViT-B/32, {path.name}")
    return model


def _unit(vector: npt.NDArray[np.floating]) -> Features:
    return (vector / np.linalg.norm(vector)).astype(np.float32)
