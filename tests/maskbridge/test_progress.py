from __future__ import annotations

import pytest

from maskbridge.progress import say_once


def test_a_line_that_is_said_once_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("a", "b", "a"):
        say_once(line)
    assert capsys.readouterr().err == "a\nb\n"
