"""`make demo` in one epoch, without a network: nothing is asked for that was not ordered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHORT = {
    "DEMO_YOLO": "--weights none --text-features hashed --imgsz 64 --epochs 1",
    "DEMO_SAM": "--epochs 1 --batch 4",
}


def run(words: list[str], folder: Path, python_path: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    for name in ("MASKBRIDGE_WEIGHTS", "MASKBRIDGE_CACHE", "YOLO_OFFLINE", "YOLO_CONFIG_DIR"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_what_asks_the_network_is_refused_and_noted(no_network: tuple[str, Path], tmp_path: Path) -> None:
    """Or the tests below, and those of YOLO-World, would see nothing; a child process, too."""
    python_path, asked = no_network
    urls = "import urllib.request; urllib.request.urlopen('http://example.org/font.ttf')"
    for code in (urls, f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {urls!r}]))"):
        assert run(["-c", code], tmp_path, python_path).returncode == 1
        assert re.match(r"socket.getaddrinfo example.org by -c\n", asked.read_text())
        asked.unlink()
    assert run(["-m", "pip", "--version"], tmp_path, python_path).returncode == 0
    piped = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', 'install', 'clip'])"
    assert run(["-c", piped], tmp_path, python_path).returncode == 1
    assert asked.read_text().startswith("subprocess.Popen")
    asked.unlink()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_the_demo_asks_the_network_for_nothing(no_network: tuple[str, Path], tmp_path: Path) -> None:
    python_path, asked = no_network
    names = [f"{name}={value}" for name, value in SHORT.items()]
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    words = ["make", "--dry-run", "--always-make", "demo", "MB=maskbridge", *names]
    listed = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line.split()[1:] for line in listed.splitlines() if line.startswith("maskbridge ")]
    assert [line[0] for line in lines] == ["sample", "convert", "check", *["crossval"] * 5, "evaluate", "report"]
    for line in lines:
        done = run(["-m", "maskbridge", *line], tmp_path, python_path)
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "runs" / "demo-report.html").is_file()
    assert not asked.exists(), asked.read_text()
