from __future__ import annotations

from pathlib import Path

import pytest

from maskbridge.progress import say_once, show


def test_a_line_that_is_said_once_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("a", "b", "a"):
        say_once(line)
    assert capsys.readouterr().err == "a\nb\n"


def test_what_is_told_does_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show(Path("runs/a\nb\x1b[31m"))
    show("a\x1b[2J\nb\n")
    say_once("c\r\x07")
    out, err = capsys.readouterr()
    assert out == "runs/a\\u000ab\\u001b[31m\na\\u001b[2J\nb\n"
    assert err == "c\\u000d\\u0007\n"
