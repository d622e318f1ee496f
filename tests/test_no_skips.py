"""CI fails where a test was skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = {
    "reason": 'import pytest\n\ndef test_it():\n    pytest.skip("no browser")\n',
    "marker": 'import pytest\n\n@pytest.mark.skipif(True, reason="no browser")\ndef test_it(): pass\n',
    "fixture": 'import pytest\n\n@pytest.fixture\ndef page(): pytest.skip("no browser")\n\ndef test_it(page): pass\n',
    "module": 'import pytest\npytest.importorskip("no_such_package", reason="no browser")\n\ndef test_it(): pass\n',
}
EXPECTED_FAILURE = "import pytest\n\n@pytest.mark.xfail\ndef test_it():\n    assert False\n"


@pytest.fixture
def run_tests(tmp_path: Path):
    """Run one test module beside our conftest.py, in a process of its own."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)

    def run(text: str, **variables: str) -> tuple[int, str]:
        (tmp_path / "test_one.py").write_text(text + "\n\ndef test_other(): pass\n", encoding="utf-8")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MASKBRIDGE", "PYTEST"))}
        words = [sys.executable, "-m", "pytest", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull]
        words += [f"--rootdir={tmp_path}", str(tmp_path)]
        done = subprocess.run(
            words, cwd=tmp_path, env=inherited | variables, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    return run


@pytest.mark.parametrize("how", SKIPPED)
def test_a_skip_is_a_failure_with_its_reason_where_nothing_may_be_skipped(run_tests, how: str) -> None:
    code, printed = run_tests(SKIPPED[how], MASKBRIDGE_NO_SKIPS="1")
    assert code in (1, 2), printed
    assert "no browser (MASKBRIDGE_NO_SKIPS is set: nothing may be skipped)" in printed


def test_a_skip_is_none_elsewhere_and_an_expected_failure_is_no_skip(run_tests) -> None:
    for text, variables in ((SKIPPED["reason"], {}), (EXPECTED_FAILURE, {"MASKBRIDGE_NO_SKIPS": "1"})):
        code, printed = run_tests(text, **variables)
        assert code == 0, printed
