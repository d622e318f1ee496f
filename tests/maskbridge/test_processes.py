from __future__ import annotations

import operator
import os
import pathlib

import pytest

from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError, MaskbridgeError
from maskbridge.processes import together


def test_one_process_is_this_one() -> None:
    assert together(1, os.getpid) == os.getpid()


def test_of_several_the_first_one_answers_and_each_knows_its_place() -> None:
    assert together(2, os.getenv, "LOCAL_RANK") == "0"
    assert together(2, os.getenv, "MASTER_ADDR") == "127.0.0.1"


def test_on_several_machines_the_places_are_those_of_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("NODE_RANK", "1")
    assert together(1, os.getenv, "MASTER_ADDR", nodes=2) == "10.0.0.1"
    assert together(1, os.getenv, "MASKBRIDGE_QUIET", nodes=2) == "1"


def test_what_the_user_can_mend_is_raised_as_it_is(tmp_path, capfd) -> None:
    with pytest.raises(DatasetError) as caught:
        together(2, Dataset.open, tmp_path / "nowhere")
    assert "nowhere" in str(caught.value)
    with pytest.raises(FileNotFoundError):
        together(2, pathlib.Path.read_bytes, tmp_path / "nowhere")
    assert capfd.readouterr().err == ""


def test_a_process_that_is_stopped_is_told(capfd) -> None:
    with pytest.raises(MaskbridgeError, match=r"a process of the training was stopped; found SIGABRT"):
        together(2, os.abort)


def test_other_errors_keep_their_traceback_and_are_told(capfd) -> None:
    with pytest.raises(MaskbridgeError, match="exit code 1"):
        together(2, operator.truediv, 1, 0)
    assert "ZeroDivisionError" in capfd.readouterr().err
