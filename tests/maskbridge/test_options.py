from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from maskbridge.dataset import FoldName
from maskbridge.errors import OptionError
from maskbridge.options import (
    add_options,
    field_docs,
    fold_name,
    from_arguments,
    from_stored,
    given,
    require_usable,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options."""

    epochs: int = 5
    """Passes over the data,
    at most."""
    learning_rate: float = 1e-3
    """Learning rate, in 1/step."""
    share: float | None = None
    """Share kept, in %."""
    kind: Literal["a", "b"] = "a"
    """Kind."""
    side: Literal[32, 64] = 32
    """Side in pixels."""
    flip: bool = False
    """Whether to flip."""
    blur: bool = True
    """Whether to blur."""
    fold: FoldName = 0
    """Fold."""
    text: str = ""
    """Text."""
    place: Path = Path("here")
    """Place."""

    @property
    def double(self) -> int:
        """Not an option."""
        return 2 * self.epochs


def parser(only=None):
    made = argparse.ArgumentParser()
    add_options(made, Config, only)
    return made


def parsed(*words, base=None):
    return from_arguments(Config, parser().parse_args([str(word) for word in words]), base)


def test_nothing_given_is_the_defaults():
    assert parsed() == Config()
    assert given(Config, parser().parse_args([])) == {}


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--epochs", "7"], "epochs", 7),
        (["--learning-rate", "2e-2"], "learning_rate", 0.02),
        (["--share", "0.5"], "share", 0.5),
        (["--kind", "b"], "kind", "b"),
        (["--side", "64"], "side", 64),
        (["--flip"], "flip", True),
        (["--no-blur"], "blur", False),
        (["--fold", "2"], "fold", 2),
        (["--fold", "official"], "fold", "official"),
        (["--text", "-"], "text", "-"),
        (["--place", "a b"], "place", Path("a b")),
    ],
)
def test_each_type_is_read_as_annotated(words, field, value):
    config = parsed(*words)
    assert config == dataclasses.replace(Config(), **{field: value})
    assert type(getattr(config, field)) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "1.5"],
        ["--epochs", "\u0663"],
        ["--epochs", "1_0"],
        ["--epochs", "9" * 5000],
        ["--epochs", ""],
        ["--side", "48"],
        ["--kind", "c"],
        ["--fold", "last"],
        ["--flip", "1"],
        ["--share"],
    ],
)
def test_a_value_of_another_type_is_a_usage_error(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed(*words)
    assert words[0] in capsys.readouterr().err or words == ["--flip", "1"]


def test_an_option_that_equals_its_default_still_counts_as_given():
    assert given(Config, parser().parse_args(["--epochs", "5", "--no-flip"])) == {"epochs": 5, "flip": False}


def test_a_preset_beats_the_default_and_the_command_line_beats_the_preset():
    preset = {"epochs": 50, "flip": True, "kind": "b"}
    assert parsed("--epochs", 5, base=preset) == Config(epochs=5, flip=True, kind="b")
    assert parsed("--no-flip", base=preset) == Config(epochs=50, flip=False, kind="b")


def test_help_names_every_option_with_its_text_and_its_true_default():
    text = " ".join(parser().format_help().split())
    for line in (
        "Passes over the data, at most (default: 5)",
        "Learning rate, in 1/step (default: 0.001)",
        "Share kept, in % (default: none)",
        "--kind {a,b} Kind (default: a)",
        "--side {32,64} Side in pixels (default: 32)",
        "--flip, --no-flip Whether to flip (default: no)",
        "--blur, --no-blur Whether to blur (default: yes)",
        "--learning-rate RATE",
        "Text (default: none)",
        "Place (default: here)",
    ):
        assert line in text


def test_only_the_named_fields_become_options():
    made = parser(["kind"])
    assert given(Config, made.parse_args(["--kind", "b"])) == {"kind": "b"}
    with pytest.raises(SystemExit, match="2"):
        made.parse_args(["--epochs", "3"])


def test_field_docs_are_the_literals_below_the_fields_in_one_line_each():
    docs = field_docs(Config)
    assert list(docs) == [field.name for field in dataclasses.fields(Config)]
    assert docs["epochs"] == "Passes over the data, at most."


@pytest.mark.parametrize("text", ["-1", "0", "17"])
def test_a_fold_number_is_read_as_it_stands(text):
    assert fold_name(text) == int(text)


def test_stored_options_of_another_version_are_refused_by_name(tmp_path):
    stored = {**dataclasses.asdict(Config()), "momentum": 0.9}
    with pytest.raises(OptionError, match=r"run\.json: has options of another version; found .*momentum"):
        from_stored(Config, stored, tmp_path / "run.json")
    assert from_stored(Config, {"epochs": 9}, tmp_path / "run.json") == Config(epochs=9)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Options by names of the vocabulary, and one that is not of it."""

    seed: int = 0
    image_size: int = 64
    devices: int = 1
    rotation: float = 0.0
    momentum: float = 0.9
    steps: int = 1
    device: str = "auto"
    words: tuple[str, ...] = ()
    place: Path | None = None
    flip: bool = False
    kind: Literal["a", "b"] = "a"


UNUSABLE = {
    "seed": [-1, 2**32, 10**400, 1.0, "1", None, True],
    "image_size": [2**31, 10**20, float("nan")],
    "devices": [2**31],
    "rotation": [float("inf"), float("-inf"), float("nan"), 181.0, "1"],
    "momentum": [float("inf"), float("nan"), 1e308],
    "steps": [2**31, -(2**31) - 1],
    "device": ["banana", "", "cuda:", "cuda:x", "cuda:99999", "0,", "cpu:1", "\u0663", 0],
    "words": ["ab", ["a", 1], ["\udcff"]],
    "place": [Path("\udcff"), "text"],
    "flip": [0, "yes"],
    "kind": ["c", 1, None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
def test_a_value_that_no_approach_can_use_is_refused_by_name(name, value, tmp_path):
    told = f"--{name.replace('_', '-')} cannot be used; found .*; expected "
    with pytest.raises(OptionError, match=told):
        require_usable(Machine, {name: value})
    with pytest.raises(OptionError, match=rf"run\.json: {told}"):
        from_stored(Machine, {name: value}, tmp_path / "run.json")


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 2**32 - 1, "image_size": 2**13, "rotation": 180, "steps": -5, "words": ["a"], "place": Path("a")},
        *({"device": device} for device in ("auto", "cpu", "mps", "cuda", "cuda:1", "cuda:0,1", "2", "0,1")),
        {"place": None, "kind": "b", "flip": True},
    ],
)
def test_whatever_can_be_used_is(values):
    require_usable(Machine, values)


def test_an_option_from_the_command_line_is_refused_before_the_dataclass_is_made():
    with pytest.raises(OptionError, match="--seed cannot be used; found -1; expected a whole number from 0 to"):
        from_arguments(Machine, argparse.Namespace(seed=-1))
