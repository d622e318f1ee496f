"""Sources in MVTec layout, and the command line as a user meets it; a skip that is a failure, and nothing shared.

MASKBRIDGE_NO_SKIPS=1 python -m pytest -m slow      # fails where a test was skipped, as CI does
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

#: Of several workers (pytest-xdist) each has one thread, and so have the processes that it starts. Read by numpy and
#: torch when they are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pytest

HEIGHT, WIDTH = 48, 64
NO_SKIPS = "MASKBRIDGE_NO_SKIPS"
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return failed_where_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return failed_where_skipped((yield))


def failed_where_skipped(report: Report) -> Report:
    if os.environ.get(NO_SKIPS) and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason} ({NO_SKIPS} is set: nothing may be skipped)"
    return report


def make_zoo() -> dict[str, np.ndarray]:
    """One mask of each kind that geometry gets wrong, H x W, uint8, 0 or 255."""
    zoo = {
        name: np.zeros((HEIGHT, WIDTH), np.uint8)
        for name in ("line", "diagonal", "pit", "ring", "corner", "frame", "whole", "several", "none")
    }
    zoo["line"][7, 3:50] = 255
    zoo["diagonal"][np.arange(20) + 4, np.arange(20) + 9] = 255
    zoo["pit"][30:32, 20:22] = 255
    zoo["ring"][4:36, 8:42] = 255
    zoo["ring"][10:30, 14:36] = 0
    zoo["corner"][3:8, 3:9] = 255
    zoo["corner"][8:12, 9:15] = 255
    zoo["frame"][0, 20:40] = 255
    zoo["frame"][-5:, -3:] = 255
    zoo["whole"][:] = 255
    zoo["several"][2:9, 2:30] = 255
    zoo["several"][20:40, 40:63] = 255
    zoo["several"][30, 10] = 255
    return zoo


def make_photo(seed: int, size_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A texture unlike that of any other seed, H x W x 3, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


def write_mvtec(folder: Path, defects: Mapping[str, Sequence[np.ndarray]], *, train: int = 4, good: int = 3) -> Path:
    """Write a category; `defects` holds the masks of each type."""
    seed = 0

    def write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)

    for part, count in (("train", train), ("test", good)):
        (folder / part / "good").mkdir(parents=True, exist_ok=True)
        for index in range(count):
            write(folder / part / "good" / f"{index:03}.png", make_photo(seed := seed + 1))
    for kind, masks in defects.items():
        for index, mask in enumerate(masks):
            write(folder / "test" / kind / f"{index:03}.png", make_photo(seed := seed + 1, mask.shape[:2]))
            write(folder / "ground_truth" / kind / f"{index:03}_mask.png", mask)
    return folder


def encode_png(
    pixels: np.ndarray, *, depth: int, colour_type: int, palette: Sequence[tuple[int, int, int]] = ()
) -> bytes:
    """A PNG of any depth and colour type; `pixels` is H x W or H x W x channels, the values as stored."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if depth < 8:
        packed = np.packbits(np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., -depth:], axis=2)
        bits = np.unpackbits(packed, axis=2)[..., :depth].reshape(height, -1)
        lines = np.packbits(bits, axis=1)
    else:
        lines = rows.astype(">u2" if depth == 16 else np.uint8).view(np.uint8).reshape(height, -1)
    scan = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(value for colour in palette for value in colour)) if palette else b""
    end = chunk(b"IDAT", zlib.compress(scan)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colours + end


def snapshot(folder: Path) -> dict[str, str]:
    """Every entry below a folder, hidden ones too, files with a hash of their content."""
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No cache, and no settings of Ultralytics, are shared with the user or with another worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKBRIDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        yield


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said once in a process is said once in a test."""
    monkeypatch.setattr("maskbridge.progress._SAID", set())


@pytest.fixture(scope="session")
def zoo() -> dict[str, np.ndarray]:
    return make_zoo()


@pytest.fixture(scope="session")
def photo() -> Callable[..., np.ndarray]:
    return make_photo


@pytest.fixture(scope="session")
def new_source() -> Callable[..., Path]:
    return write_mvtec


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    return encode_png


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    return snapshot


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up product; read-only."""
    from maskbridge.sample import make_sample

    folder = tmp_path_factory.mktemp("sample") / "plate"
    make_sample(folder)
    return folder


@pytest.fixture(scope="session")
def plates(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up product as a dataset folder; read-only."""
    from maskbridge.convert import ConvertOptions, convert

    folder = tmp_path_factory.mktemp("datasets") / "plates"
    convert("mvtec", sample, folder, ConvertOptions(link="copy"))
    return folder


@pytest.fixture(scope="session")
def zoo_source(tmp_path_factory: pytest.TempPathFactory, zoo: dict[str, np.ndarray]) -> Path:
    """Two types of four images each, 4 good for training and 3 for testing; read-only."""
    kinds = {
        "crack": [zoo[name] for name in ("line", "diagonal", "pit", "ring")],
        "stain": [zoo[name] for name in ("corner", "frame", "whole", "several")],
    }
    return write_mvtec(tmp_path_factory.mktemp("zoo") / "source", kinds)


@pytest.fixture(scope="session")
def zoo_dataset(zoo_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a dataset folder, in 5 folds; read-only."""
    from maskbridge.convert import ConvertOptions, convert

    folder = tmp_path_factory.mktemp("datasets") / "zoo"
    convert("mvtec", zoo_source, folder, ConvertOptions(link="copy"))
    return folder


@pytest.fixture
def source(zoo_source: Path, tmp_path: Path) -> Path:
    """A copy of `zoo_source` that may be damaged."""
    return shutil.copytree(zoo_source, tmp_path / "source")


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused: exit 1, one line on stderr, and nothing made, changed or left behind."""
    from maskbridge.cli import main

    def run(*argv: object) -> str:
        before = snapshot(tmp_path)
        capfd.readouterr()
        code = main([str(word) for word in argv])
        line = capfd.readouterr().err
        assert code == 1, line
        assert line.startswith("maskbridge: ")
        assert line.index("\n") == len(line) - 1, line
        assert snapshot(tmp_path) == before
        return line

    return run


#: Refuses every program of Python, and those it starts, what leaves this machine, and notes what was asked for.
NO_NETWORK = """
import sys


def refuse(event, given):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        asked = given[1][0] if isinstance(given[1], tuple) else None  # of a Unix socket: a path, or nothing
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        asked = given[0]
    elif event == "subprocess.Popen":
        words = [str(word) for word in ([given[1]] if isinstance(given[1], (str, bytes)) else given[1] or [given[0]])]
        asked = words[0] if words[0].rsplit("/", 1)[-1] in ("curl", "wget") or "pip" in words[:3] else None
    else:
        return
    asked = asked.decode() if isinstance(asked, bytes) else asked
    if asked not in (None, "", "localhost", "::1", "0.0.0.0") and not str(asked).startswith("127."):
        with open({log!r}, "a") as file:
            file.write(event + " " + str(asked) + " by " + " ".join(sys.argv) + "\\n")
        raise OSError("refused: " + str(asked))


sys.addaudithook(refuse)
"""


@pytest.fixture(scope="session")
def no_network(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """`PYTHONPATH` under which this checkout runs without a network, and the file that notes what was refused."""
    folder = tmp_path_factory.mktemp("no_network")
    (folder / "modules").mkdir()
    (folder / "modules" / "sitecustomize.py").write_text(NO_NETWORK.replace("{log!r}", repr(str(folder / "asked"))))
    return os.pathsep.join([str(folder / "modules"), str(Path(__file__).parents[1])]), folder / "asked"
