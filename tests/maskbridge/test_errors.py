import inspect
import json
from pathlib import Path

import pytest

from maskbridge import errors
from maskbridge.errors import MaskbridgeError, printable


def test_the_line_tells_where_what_found_expected_and_remedy_in_this_order() -> None:
    error = MaskbridgeError("is bent", where=Path("a/b.png"), found="70x50", expected="64x48", remedy="unbend it")
    assert str(error) == "a/b.png: is bent; found 70x50; expected 64x48; unbend it"


def test_parts_that_are_not_given_leave_no_trace() -> None:
    assert str(MaskbridgeError("is bent")) == "is bent"


def test_found_that_is_false_is_still_told() -> None:
    assert str(MaskbridgeError("too few", found=0)) == "too few; found 0"


def test_an_error_is_one_line_whatever_its_parts_hold() -> None:
    error = MaskbridgeError("is\nbent", where="two\nlines.png", found="a\r\n\tb", remedy="stop\u2028it")
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x07", "\\u001b[2J\\u0007"),
        ("a\nb\r\t\x7f\x9b", "a\\u000ab\\u000d\\u0009\\u007f\\u009b"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("\u2028\udcff", "\\u2028\\udcff"),
        ("größe 😀 a\u200db", "größe 😀 a\u200db"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_by_its_number(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert json.loads(f'"{shown}"') == text, "JSON stays what it was"


def test_an_error_does_nothing_to_a_terminal() -> None:
    error = MaskbridgeError("is bent", where="a\x1b[31m.png", found="\u202e", remedy="b\x9b")
    assert str(error) == "a\\u001b[31m.png: is bent; found \\u202e; b\\u009b"


@pytest.mark.parametrize("name", ["SourceError", "DatasetError", "RunError", "WeightsError", "OptionError"])
def test_every_error_is_of_the_one_tree(name: str) -> None:
    assert issubclass(getattr(errors, name), MaskbridgeError)


def test_the_tree_holds_nothing_but_errors() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert len(classes) == 6
    assert all(issubclass(c, MaskbridgeError) for c in classes)
