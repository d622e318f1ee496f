"""Where pretrained weights come from; nothing is ever random unless asked for by name.

    find_weights("auto", names=["sam_vit_b_01ec64.pth"], url=URL, sha256=PIN, what="SAM ViT-B")    # -> Path
    find_backbone("mobilenet_v2", "none")                                                          # -> None

Looked up in this order: a path given as the option; the folder `MASKBRIDGE_WEIGHTS`; the cache
(`MASKBRIDGE_CACHE`, else `~/.cache/maskbridge`); a download with a pinned SHA-256, of which torchvision and timm state
the first eight digits alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from maskbridge.errors import WeightsError
from maskbridge.files import whole_file
from maskbridge.progress import say, track

#: The option that looks weights up, and the one that asks for random initialisation by name.
AUTO, NONE = "auto", "none"
WEIGHTS_VARIABLE = "MASKBRIDGE_WEIGHTS"
CACHE_VARIABLE = "MASKBRIDGE_CACHE"

#: A file whose name holds the first digits of its SHA-256, eight as a rule, and nobody states the others: the
#: convention of https://docs.pytorch.org/docs/stable/hub.html, which torchvision and timm's releases keep to.
_NAMED_HASH = re.compile(r"https://.*-([0-9a-f]{8,64})\.pth")
_SUFFIXES = (".pt", ".pth", ".safetensors")
_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60

#: Fetches a file whose hash, or its first digits, are known into the folder it is given, and returns where it lies.
Download = Callable[[Path], Path]


def cache_folder() -> Path:
    """The folder for what can be fetched or computed again; it need not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "maskbridge"


def find_weights(
    option: str,
    *,
    names: Sequence[str],
    what: str,
    url: str | None = None,
    sha256: str | None = None,
    remedy: str = "or ask for random initialisation with --weights none",
    by_path: bool = True,
) -> Path | None:
    """Find a weights file.

    Args:
        option: What the user gave: `auto`, `none` or a path.
        names: Names to look for, best first: exact ones (`clip/model.safetensors` is one too), or the
            beginning of the name of a `.pt`, `.pth` or `.safetensors` file.
        what: What the weights are, for messages.
        url: Where the file can be fetched if no folder has it; None where nobody offers it.
        sha256: Its pinned hash; needed with `url`.
        remedy: The alternative an error names.
        by_path: Whether the user can give a path instead, which the error then names too.

    Returns:
        The file, or None for `none`: random initialisation.

    Raises:
        WeightsError: When it cannot be had; names the file, the folder it can be put in, and the alternative.
    """
    if (url is None) != (sha256 is None):
        raise ValueError("a url needs a pinned sha256, and the other way round")
    download = None if url is None or sha256 is None else _pinned_download(url, sha256)
    return _find(option, names=names, what=what, download=download, remedy=remedy, by_path=by_path)


def find_backbone(
    backbone: str,
    option: str,
    *,
    download: Download | None = None,
    remedy: str = "or ask for random initialisation with --backbone-weights none",
) -> Path | None:
    """Find the weights of a torchvision or timm backbone.

    Args:
        backbone: Name of the architecture, with or without timm's `tf_` prefix. A file whose name starts with
            it, again with or without that prefix, is its weights.
        option: What the user gave: `auto`, `none` or a path.
        download: What fetches the library's own file, tried when no folder has the file. It is called with the
            cache folder; what it leaves there under the backbone's name is found the next time.
        remedy: The alternative an error names.

    Returns:
        The file, or None for `none`: random initialisation.

    Raises:
        WeightsError: As `find_weights`.
    """
    what = f"{backbone} weights"
    return _find(option, names=_backbone_names(backbone), what=what, download=download, remedy=remedy)


def local_weights(option: str, names: Sequence[str]) -> list[Path]:
    """The file that `find_weights` takes, as far as it is at hand: a list of one, or of none."""
    if option == NONE:
        return []
    path = find_local(names) if option == AUTO else Path(option).expanduser()
    return [] if path is None or not os.path.exists(path) else [path]


def local_backbone(backbone: str, option: str) -> list[Path]:
    """The same of `find_backbone`."""
    return local_weights(option, _backbone_names(backbone))


def find_local(names: Sequence[str], accept: Callable[[Path], bool] = lambda _: True) -> Path | None:
    """The first of `names` (as in `find_weights`) in the weights folder or the cache; None if neither has it.

    Args:
        names: Names, best first.
        accept: Whether a file that begins so will do.

    Raises:
        WeightsError: When `MASKBRIDGE_WEIGHTS` names no folder.
    """
    return next((path for folder in _folders() if (path := _match(folder, names, accept)) is not None), None)


def fetch(url: str, sha256: str, folder: Path) -> Path:
    """Download a file; it gets its name only after its hash was verified.

    Args:
        url: Address of the file; its last part becomes the file's name.
        sha256: Expected hash: 64 hexadecimal digits, or the first ones, eight at least, where its publisher states no
            more. Eight find a damaged file or another one, not one that was forged with care.
        folder: Where to put it; made if missing.

    Returns:
        The file.

    Raises:
        WeightsError: When the content is not the pinned one.
        OSError: When the address does not answer or the file cannot be written.
    """
    import http.client
    import urllib.request

    if not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise ValueError("a pinned SHA-256 has 8 to 64 hexadecimal digits")
    path = folder / url.rsplit("/", 1)[-1]
    digest = hashlib.sha256()
    try:
        with whole_file(path) as file, urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            blocks = -(-int(response.headers.get("Content-Length") or 0) // _BLOCK_BYTES)
            for block in track(_blocks(response), f"fetching {path.name} (MB)", total=blocks or None):
                digest.update(block)
                file.write(block)
            if not digest.hexdigest().startswith(sha256):
                raise WeightsError(
                    "the download has another SHA-256 and was thrown away",
                    where=url,
                    found=digest.hexdigest(),
                    expected=sha256,
                )
    except http.client.HTTPException as error:
        raise OSError(f"{url} does not answer in HTTP: {error!r}") from error
    return path


def stated_download(url: str) -> Download | None:
    """What fetches a file whose publisher states digits of its SHA-256 in its name alone; says so.

    Args:
        url: Address of the file.

    Returns:
        None where there are no such digits: then there is nothing to check it by.
    """
    named = _NAMED_HASH.fullmatch(url)
    if named is None:
        return None
    digits = named[1]

    def download(folder: Path) -> Path:
        checked = f"checked by {len(digits)} of the 64 digits of its SHA-256, all that its publisher states"
        say(f"fetching {url} into {folder}, {checked}")
        return fetch(url, digits, folder)

    return download


def _find(
    option: str, *, names: Sequence[str], what: str, download: Download | None, remedy: str, by_path: bool = True
) -> Path | None:
    if option == NONE:
        return None
    if option != AUTO:
        path = Path(option).expanduser()
        if not os.path.exists(path):  # False for a name that the system cannot take, too
            raise WeightsError("no such file", where=path, expected=what, remedy=remedy)
        if not path.is_file() and not path.is_dir():  # a device has no end
            raise WeightsError("is not a regular file", where=path, expected=what, remedy=remedy)
        return path
    local = find_local(names)
    if local is not None:
        return local
    place = os.environ.get(WEIGHTS_VARIABLE) or str(cache_folder())
    file = names[0] if names[0].endswith(_SUFFIXES) else f"{names[0]}*.pth"
    put = f"put {file} into {place}, {'give its path, ' if by_path else ''}{remedy}"
    if download is None:
        raise WeightsError(f"{what} not found", expected=" or ".join(names), remedy=put)
    try:
        return download(cache_folder())
    except OSError as error:
        raise WeightsError(f"{what} not found and not to be fetched", found=f"{error}", remedy=put) from error
    except WeightsError as error:
        raise WeightsError(str(error), remedy=put) from error


def _backbone_names(backbone: str) -> list[str]:
    bare = backbone.removeprefix("tf_")
    return [bare, f"tf_{bare}"]


def _pinned_download(url: str, sha256: str) -> Download:
    def download(folder: Path) -> Path:
        say(f"fetching {url} into {folder}")
        return fetch(url, sha256, folder)

    return download


def _folders() -> list[Path]:
    chosen = os.environ.get(WEIGHTS_VARIABLE)
    if not chosen:
        return [cache_folder()]
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise WeightsError("is not a folder", where=folder, remedy=f"set {WEIGHTS_VARIABLE} to the weights folder")
    return [folder, cache_folder()]


def _match(folder: Path, names: Sequence[str], accept: Callable[[Path], bool] = lambda _: True) -> Path | None:
    if not folder.is_dir():
        return None
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _SUFFIXES and p.name[0] != ".")
    for name in names:
        if (folder / name).exists():
            return folder / name
        for path in files:
            if path.name.startswith(name) and not path.name[len(name)].isalnum() and accept(path):
                return path
    return None


def _blocks(response: Any) -> Iterator[bytes]:
    while block := response.read(_BLOCK_BYTES):
        yield block
