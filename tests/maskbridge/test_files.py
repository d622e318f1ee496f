import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from maskbridge import files
from maskbridge.errors import MaskbridgeError

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(params=["write", "fsync", "replace"])
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up, or Ctrl-C comes, at one step of a write."""

    def fail(*_: object) -> None:
        raise FULL if request.param == "fsync" else KeyboardInterrupt

    if request.param == "write":
        monkeypatch.setattr(files.os, "fdopen", fail)
    else:
        monkeypatch.setattr(files.os, request.param, fail)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, failing: None) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises((OSError, KeyboardInterrupt)):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_come_back_and_folders_are_made(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a" / "b.json", {"ö": [1, 0.5, None]})
    assert files.read_json(tmp_path / "a" / "b.json") == {"ö": [1, 0.5, None]}
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    files.write_array(tmp_path / "c.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), array)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_holds_no_nan_and_no_infinity(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"value": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(MaskbridgeError, match=r"a\.json: not a readable JSON file; found"):
        files.read_json(tmp_path / "a.json")


def test_a_missing_json_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MaskbridgeError, match=r"a\.json: no such file"):
        files.read_json(tmp_path / "a.json")


def test_hashes_of_bytes_and_file_agree(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert files.sha256_file(tmp_path / "a") == files.sha256_bytes(data)


def test_hard_links_share_the_file_and_copies_do_not(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(b"pixels")
    assert files.link_file(source, tmp_path / "hard" / "a.png", "hard") == "hard"
    assert files.link_file(source, tmp_path / "copy" / "a.png", "copy") == "copy"
    assert files.link_file(source, tmp_path / "soft" / "a.png", "symlink") == "symlink"
    assert (tmp_path / "hard" / "a.png").samefile(source)
    assert not (tmp_path / "copy" / "a.png").samefile(source)
    assert (tmp_path / "soft" / "a.png").readlink() == source.resolve()
    assert {path.read_bytes() for path in tmp_path.rglob("*.png")} == {b"pixels"}


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_a_hard_link_that_is_not_possible_becomes_a_copy_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "link", fail)
    (tmp_path / "a").write_bytes(b"pixels")
    assert files.link_file(tmp_path / "a", tmp_path / "b", "hard") == "copy"
    assert (tmp_path / "b").read_bytes() == b"pixels"


def test_a_full_disk_is_no_reason_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(files.os, "link", fail)
    (tmp_path / "a").write_bytes(b"pixels")
    with pytest.raises(OSError, match="No space"):
        files.link_file(tmp_path / "a", tmp_path / "b", "hard")


def killed_while_writing(path: Path) -> None:
    """What SIGKILL leaves of a write."""
    pid = os.fork()
    if pid == 0:
        with files.whole_file(path) as file:
            file.write(b"half")
            file.flush()
            os._exit(9)
    os.waitpid(pid, 0)


def test_what_a_killed_write_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "old")
    killed_while_writing(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".a.json.maskbridge.partial", "a.json"]
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "new"


def test_a_link_in_the_place_of_a_temporary_file_is_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("years of work")
    os.link(tmp_path / "mine", tmp_path / ".a.maskbridge.partial")
    (tmp_path / ".b.maskbridge.partial").symlink_to(tmp_path / "mine")
    for name in ("a", "b"):
        files.write_text(tmp_path / name, "new")
    assert (tmp_path / "mine").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "mine"]


def test_of_two_writers_of_one_file_the_second_waits_and_both_succeed(tmp_path: Path) -> None:
    path, order = tmp_path / "a", []

    def second() -> None:
        files.write_text(path, "second")
        order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with files.whole_file(path) as file:
            file.write(b"first")
            other = pool.submit(second)
            time.sleep(0.1)
            order.append("first")
        other.result()
    assert order == ["first", "second"]
    assert path.read_text() == "second"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read_a_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write_json(tmp_path / "made" / "a.json", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "made" / "a.json").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_disk_that_is_full_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_text(tmp_path / "a.json", "new")
    assert caught.value.filename == str(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "told"),
    [("pipe", "found a pipe"), ("device", "found a device"), ("folder", "found a folder"), ("loop", "cannot be read")],
)
def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path: Path, what: str, told: str) -> None:
    path = tmp_path / "a.json"
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/null"),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
    }[what]()
    for read in (files.read_regular, files.read_json):
        with pytest.raises(MaskbridgeError, match=told):
            read(path)


def test_a_file_larger_than_anything_of_ours_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**41)
    with pytest.raises(MaskbridgeError, match=r"a\.json: is too large; found 2199023255552 bytes; expected at most"):
        files.read_json(path)
    assert files.read_regular(Path(__file__), most_bytes=10**6) == Path(__file__).read_bytes()
    with pytest.raises(MaskbridgeError, match="expected at most 9"):
        files.read_regular(Path(__file__), most_bytes=9)


@pytest.mark.parametrize("what", ["pipe", "folder", "link to a pipe"])
def test_nothing_but_a_file_is_replaced_by_a_file(tmp_path: Path, what: str) -> None:
    """As root a rename goes over a device: a report once took the place of /dev/zero."""
    path = tmp_path / "out"
    if what == "folder":
        path.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe" if what == "pipe" else path
        path.symlink_to("pipe") if what != "pipe" else None
    before = {entry: entry.lstat().st_mode for entry in tmp_path.iterdir()}
    with pytest.raises(MaskbridgeError, match=r"is in the way; found a (pipe|folder); expected a new file"):
        files.write_text(path, "new")
    assert {entry: entry.lstat().st_mode for entry in tmp_path.iterdir()} == before
