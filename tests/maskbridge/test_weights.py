from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from maskbridge.errors import WeightsError
from maskbridge.weights import cache_folder, fetch, find_backbone, find_local, find_weights, stated_download

CONTENT = b"not really weights" * 1000
PIN = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "weights"


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "net.pth").write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(tmp_path / "www"), **kwargs)

        def do_GET(self):
            if self.path == "/junk.pth":
                self.wfile.write(b"junk\r\n\r\n")
            elif self.path == "/short.pth":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"short")
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def find(option="auto", **more):
    return find_weights(option, names=["net.pth"], what="the net", **more)


def test_none_is_random_initialisation_even_where_a_file_lies(folder):
    (folder / "net.pth").touch()
    assert find("none") is None
    assert find_backbone("net", "none") is None


def test_a_path_comes_before_the_folder(folder, tmp_path):
    (folder / "net.pth").touch()
    own = tmp_path / "own.bin"
    own.touch()
    assert find(str(own)) == own


def test_the_folder_comes_before_the_cache(folder):
    cache_folder().mkdir()
    (cache_folder() / "net.pth").touch()
    assert find() == cache_folder() / "net.pth"
    (folder / "net.pth").touch()
    assert find() == folder / "net.pth"


def test_the_cache_comes_before_the_download(folder):
    cache_folder().mkdir()
    (cache_folder() / "net.pth").touch()
    assert find(url="http://127.0.0.1:1/net.pth", sha256=PIN) == cache_folder() / "net.pth"


def test_a_missing_path_is_refused_by_name(folder, tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pth: no such file.*the net.*--weights none"):
        find(str(tmp_path / "absent.pth"))


def test_what_is_nowhere_names_file_folder_and_alternative(folder):
    with pytest.raises(WeightsError, match=rf"the net not found.*put net\.pth into {folder}.*--weights none"):
        find()


def test_a_folder_that_is_none_is_refused(folder, monkeypatch):
    monkeypatch.setenv("MASKBRIDGE_WEIGHTS", str(folder / "absent"))
    with pytest.raises(WeightsError, match="is not a folder"):
        find()


def test_a_download_lands_in_the_cache_once(folder, server):
    path = find(url=f"{server}/net.pth", sha256=PIN)
    assert path == cache_folder() / "net.pth"
    assert path.read_bytes() == CONTENT
    assert find() == path
    assert [p.name for p in cache_folder().iterdir()] == ["net.pth"]


def test_a_download_of_another_hash_leaves_nothing(folder, server):
    with pytest.raises(WeightsError, match=r"another SHA-256.*put net\.pth into.*--weights none"):
        find(url=f"{server}/net.pth", sha256="0" * 64)
    assert list(cache_folder().iterdir()) == []


def test_a_missing_download_names_file_folder_and_alternative(folder, server):
    with pytest.raises(WeightsError, match=r"the net.*404.*put net\.pth into.*--weights none"):
        find(url=f"{server}/absent.pth", sha256=PIN)
    assert list(cache_folder().iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(folder, server):
    with pytest.raises(WeightsError, match=r"another SHA-256.*put net\.pth into.*--weights none"):
        find(url=f"{server}/short.pth", sha256=PIN)
    assert list(cache_folder().iterdir()) == []


def test_an_answer_that_is_not_http_is_told(folder, server):
    with pytest.raises(WeightsError, match=r"does not answer in HTTP.*put net\.pth into.*--weights none"):
        find(url=f"{server}/junk.pth", sha256=PIN)


def test_no_network_names_file_folder_and_alternative(folder):
    with pytest.raises(WeightsError, match=r"refused.*put net\.pth into.*--weights none"):
        find(url="http://127.0.0.1:1/net.pth", sha256=PIN)


def test_a_url_without_a_pin_is_our_own_bug(folder):
    with pytest.raises(ValueError, match="pinned"):
        find(url="http://127.0.0.1:1/net.pth")


@pytest.mark.parametrize("digits", [8, 12, 64])
def test_of_a_hash_as_many_digits_are_checked_as_are_known(server, tmp_path, digits):
    assert fetch(f"{server}/net.pth", PIN[:digits], tmp_path).read_bytes() == CONTENT
    other = PIN[: digits - 1] + ("0" if PIN[digits - 1] != "0" else "1")
    with pytest.raises(WeightsError, match=f"another SHA-256 .*found {PIN}; expected {other}"):
        fetch(f"{server}/net.pth", other, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("pin", ["", PIN[:7], PIN + "0", "resnet18"])
def test_what_is_no_pin_is_our_own_bug(server, tmp_path, pin):
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits"):
        fetch(f"{server}/net.pth", pin, tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://a.org/net.pth",
        "https://a.org/net-1234567.pth",
        "http://a.org/net-12345678.pth",
        "file:///n-12345678.pth",
    ],
)
def test_what_has_no_hash_in_its_name_or_no_safe_way_is_not_downloaded(address):
    assert stated_download(address) is None


def test_fetch_replaces_what_was_there(server, tmp_path):
    (tmp_path / "net.pth").write_bytes(b"old")
    assert fetch(f"{server}/net.pth", PIN, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["resnet18.pth", "resnet18-f37072fd.pth", "tf_resnet18_a.safetensors"])
@pytest.mark.parametrize("backbone", ["resnet18", "tf_resnet18"])
def test_a_backbone_is_found_with_or_without_timms_prefix(folder, name, backbone):
    (folder / name).touch()
    assert find_backbone(backbone, "auto") == folder / name


@pytest.mark.parametrize("name", ["resnet18d.pth", "resnet18.txt", "my_resnet18.pth", ".resnet18.pth"])
def test_a_file_of_another_name_is_no_backbone(folder, name):
    (folder / name).touch()
    with pytest.raises(WeightsError, match=r"resnet18 weights.*--backbone-weights none"):
        find_backbone("resnet18", "auto")


def test_a_backbone_falls_back_to_the_librarys_download(folder):
    def download(where):
        where.mkdir()
        (where / "resnet18-f37072fd.pth").touch()
        return where / "resnet18-f37072fd.pth"

    path = find_backbone("resnet18", "auto", download=download)
    assert path == find_backbone("resnet18", "auto") == Path(cache_folder() / "resnet18-f37072fd.pth")


@pytest.mark.parametrize("backbone", ["resnet18", "resnet18.a1_in1k"])
def test_a_failing_library_download_names_the_alternative(folder, backbone):
    def download(where):
        raise OSError("no route")

    with pytest.raises(WeightsError, match=rf"no route.*put {backbone}\*\.pth into.*--backbone-weights none"):
        find_backbone(backbone, "auto", download=download)


def test_names_are_tried_in_order_and_may_have_a_folder(folder):
    (folder / "clip").mkdir()
    (folder / "clip" / "text.safetensors").touch()
    (folder / "b.pt").touch()
    assert find_local(["clip/text.safetensors", "b.pt"]) == folder / "clip" / "text.safetensors"
    assert find_local(["absent", "b"]) == folder / "b.pt"
    assert find_local(["absent"]) is None


def test_the_cache_defaults_to_the_home_folder(monkeypatch):
    monkeypatch.delenv("MASKBRIDGE_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "maskbridge"


def test_importing_it_does_not_import_torch():
    code = "import sys, maskbridge.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_weights_without_an_end_are_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.pt"
    os.mkfifo(path) if what == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(WeightsError, match=r"a\.pt: is not a regular file; expected the network"):
        find_weights(str(path), names=["a.pt"], what="the network")
