"""Start weights of another run: which images they have seen, and whether this fold may start from them.

    start = start_from(config, data, name="bottle-sam-1")   # refuses what has seen images that this fold is judged by
    mark(path / "weights", start.seen)                      # the checkpoints tell it wherever they are copied to

run.json keeps what a run has seen, and what the runs before it had that its weights go back to: SHA-256 of every image
of the groups that were trained on (`trained`), and of those that the best epoch or a threshold was chosen by
(`selected`). The same stands in each checkpoint, as a record of its own in the zip archive that torch writes and in the
metadata of safetensors; who opens the file need not know of it.

A run may start from weights that were trained on no image of this fold's `val` or `test`, and selected by none of its
`test`. Images are the same by hash, by the groups of either dataset and, where the datasets differ, as pictures.
"""

from __future__ import annotations

import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from maskbridge import near_duplicates
from maskbridge.approach import TrainData
from maskbridge.dataset import Dataset, read_image
from maskbridge.errors import MaskbridgeError, WeightsError, printable
from maskbridge.files import sha256_file, write_bytes
from maskbridge.folders import is_ours
from maskbridge.progress import say_once, track
from maskbridge.run_info import read_run_info

#: Where a checkpoint keeps what it has seen: name of the record below the archive's own folder, and of the metadata.
RECORD, KEY = "extra/maskbridge-seen.json", "maskbridge_seen"
#: A longer record is not ours; a million images need 70 MB.
_MOST_BYTES = 100_000_000
#: What a damaged archive makes zipfile raise.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, NotImplementedError, RuntimeError, ValueError,
            EOFError, OSError)  # fmt: skip
#: Parts of a fold that a training sees.
PARTS: tuple[Literal["train", "val"], ...] = ("train", "val")


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one training has seen of one dataset.

    Attributes:
        run: Name of the run folder.
        dataset: Name of the dataset folder.
        annotations_sha256: Hash of its annotations.
        path: Where it lay; empty in a checkpoint, which may be passed on.
        fold: Fold, `official`, or `all` for several.
        weights_from: Where the run's own start weights came from, in words.
        trained: SHA-256 of all images of the groups that were trained on, ascending.
        selected: Of those that the best epoch or a threshold was chosen by.
    """

    run: str
    dataset: str
    annotations_sha256: str
    path: str = ""
    fold: int | str
    weights_from: str
    trained: tuple[str, ...]
    selected: tuple[str, ...]


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a training starts from.

    Attributes:
        files: Name and SHA-256 of each file of start weights.
        seen: What the runs behind them have seen, the latest first.
    """

    files: tuple[dict[str, str], ...] = ()
    seen: tuple[Seen, ...] = ()


def start_from(config: Any, data: TrainData) -> Start:
    """Look at the files that `config.start_files()` names, where an approach has that method.

    Raises:
        WeightsError: When one has seen images that this fold is judged by, lies in an unfinished run, or it cannot be
            told what it has seen.
    """
    paths: Iterable[Path] = getattr(config, "start_files", tuple)()
    files: list[dict[str, str]] = []
    seen: list[Seen] = []
    for path in paths:
        try:
            chain = seen_by(path)
            if path.is_file():
                files.append({"file": path.name, "sha256": sha256_file(path)})
        except OSError as error:
            raise WeightsError("cannot be read", where=path, found=error.strerror) from error
        _refuse_leaks(path, chain, data)
        seen += [each for each in chain if each not in seen]
    return Start(files=tuple(files), seen=tuple(seen))


def seen_in(
    name: str, weights_from: str, dataset: Dataset, fold: int | str, *, train: Iterable[int], val: Iterable[int] = ()
) -> Seen:
    """What a training sees of a dataset: its images `train` and `val` with all others of their groups."""
    return Seen(
        run=printable(name),  # a name of a file need not be UTF-8
        dataset=printable(dataset.name),
        annotations_sha256=dataset.annotations_sha256,
        path=printable(str(dataset.path)),
        fold=fold,
        weights_from=weights_from,
        trained=_hashes(dataset, train),
        selected=_hashes(dataset, val),
    )


def seen_by(path: Path) -> tuple[Seen, ...]:
    """What the run of a checkpoint and those before it have seen, by the run it lies in and by its own record.

    Args:
        path: A file, or a run folder.

    Returns:
        The latest first; nothing for weights from elsewhere.

    Raises:
        WeightsError: When it lies in an unfinished run, its record cannot be read, or the run has none and its dataset
            is gone or has changed.
    """
    folder = _run_folder(path)
    told = () if folder is None else seen_of_run(folder)
    known = {(each.trained, each.selected) for each in told}
    return (*told, *(each for each in _read_record(path) if (each.trained, each.selected) not in known))


def seen_of_run(folder: Path) -> tuple[Seen, ...]:
    """What a run and those before it have seen, by its run.json; of a run that keeps none by its dataset.

    Raises:
        RunError: When run.json cannot be read.
        WeightsError: When it keeps none, and its dataset is gone or has changed.
    """
    info = read_run_info(folder)
    if "seen" in info:
        return _typed(info["seen"], folder / "run.json")
    told, fold = info["dataset"], info["fold"]
    try:
        dataset = Dataset.open(told["path"])
    except MaskbridgeError as error:
        raise _unknown(folder, str(error)) from error
    if (dataset.annotations_sha256, dataset.splits_sha256) != (told["annotations_sha256"], told["splits_sha256"]):
        raise _unknown(folder, f"{dataset.path} has changed")
    splits = [dataset.split(each) for each in (range(dataset.fold_count) if fold == "all" else (fold,))]
    train, val = ([i for split in splits for i in split.part(part)] for part in PARTS)
    return (seen_in(folder.name, str(info.get("weights_from", "unknown")), dataset, fold, train=train, val=val),)


def as_kept(seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """The same as run.json keeps it."""
    kept: list[dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(seen))
    return kept


def source_name(path: Path) -> str:
    """Where weights came from, in words: through a run of ours to where that one started, so that marks stay."""
    chain = seen_by(path)
    return f"{chain[0].weights_from}, {path.name} of a run" if chain else path.name


def mark(path: Path, seen: Sequence[Seen]) -> None:
    """Write what has been seen into a checkpoint, or into every one below a folder; other files stay as they are."""
    content = msgspec.json.encode([msgspec.structs.replace(each, path="") for each in seen])
    for file in [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file()):
        if file.suffix == ".safetensors":
            _mark_safetensors(file, content.decode())
        elif (file == path or file.suffix in (".pt", ".pth")) and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file, "a") as archive:
                root = archive.namelist()[0].split("/", 1)[0]
                archive.writestr(zipfile.ZipInfo(f"{root}/{RECORD}"), content, zipfile.ZIP_DEFLATED)


def shared_images(one: Dataset, ids: Iterable[int], other: Dataset, others: Iterable[int]) -> set[int]:
    """Images of a dataset that belong together with some of another: by hash, by groups of either, or as pictures."""
    ids, others = list(ids), list(others)
    known = set(_hashes(other, others))
    if one.annotations_sha256 != other.annotations_sha256:
        known |= {one.image_by_id[first].sha256 for first, _ in _same_pictures(one, ids, other, others)}
    return _of_groups(one, ids, known)


def _refuse_leaks(path: Path, chain: Sequence[Seen], data: TrainData) -> None:
    dataset = data.dataset
    split = dataset.split(data.fold)
    for seen in chain:
        trained, selected = set(seen.trained), set(seen.selected)
        _add_copies(seen, dataset, (*split.val, *split.test), trained, selected)
        test = _of_groups(dataset, split.test, trained | selected)
        val = _of_groups(dataset, split.val, trained)
        if not test and not val:
            continue
        same = seen.annotations_sha256 == dataset.annotations_sha256
        raise WeightsError(
            "start weights have seen images that this fold is judged by",
            where=path,
            found=f"{len(test)} of {len(split.test)} images of test and {len(val)} of {len(split.val)} of val, seen by "
            f"{seen.run}, fold {seen.fold} of {seen.dataset}",
            expected=f"weights that have seen none of fold {data.fold}",
            remedy=f"start from a run of fold {data.fold} with the same splits, each fold from its own"
            if same
            else "start from weights from elsewhere",
        )


def _add_copies(seen: Seen, dataset: Dataset, held: Sequence[int], trained: set[str], selected: set[str]) -> None:
    """Add hashes of held-out images that are pictures of what was seen, in another encoding, size or orientation."""
    if not seen.path or seen.annotations_sha256 == dataset.annotations_sha256:
        return
    try:
        other = Dataset.open(seen.path)
    except MaskbridgeError:
        say_once(f"{seen.path}: the dataset of {seen.run} is gone; copies of its images in other files cannot be told")
        return
    seen_ids = [image.id for image in other.images if image.sha256 in trained or image.sha256 in selected]
    for first, second in _same_pictures(other, seen_ids, dataset, held):
        for hashes in (trained, selected):
            if other.image_by_id[first].sha256 in hashes:
                hashes.add(dataset.image_by_id[second].sha256)


def _same_pictures(one: Dataset, ids: Iterable[int], other: Dataset, others: Iterable[int]) -> list[tuple[int, int]]:
    """Pairs of images that are one picture, among those that only one of two datasets has by hash."""
    known = [{image.sha256 for image in dataset.images} for dataset in (other, one)]
    first = [i for i in ids if one.image_by_id[i].sha256 not in known[0]]
    second = [i for i in others if other.image_by_id[i].sha256 not in known[1]]
    if not first or not second:
        return []
    places = [*((one, i) for i in first), *((other, i) for i in second)]
    signatures = [
        _signature(dataset.image_path(i), dataset.bit_depth) for dataset, i in track(places, "comparing images")
    ]

    def read(index: int) -> npt.NDArray[np.uint8]:
        dataset, image_id = places[index]
        return dataset.read_image(image_id)

    pairs = near_duplicates.near_duplicate_pairs(np.stack(signatures), read)
    count = len(first)
    return [(first[i], second[j - count]) for i, j in pairs if i < count <= j]


@lru_cache(maxsize=20_000)
def _signature(path: Path, bit_depth: int) -> npt.NDArray[np.uint8]:
    """Kept from one fold to the next; 1 kB each."""
    return near_duplicates.signature(read_image(path, bit_depth))


def _hashes(dataset: Dataset, ids: Iterable[int]) -> tuple[str, ...]:
    """SHA-256 of all images of the groups of some, ascending."""
    groups = {dataset.image_by_id[i].group for i in ids}
    return tuple(sorted({image.sha256 for image in dataset.images if image.group in groups}))


def _of_groups(dataset: Dataset, ids: Iterable[int], hashes: Collection[str]) -> set[int]:
    """Those of some images whose group has an image of these hashes."""
    groups = {image.group for image in dataset.images if image.sha256 in hashes}
    return {i for i in ids if dataset.image_by_id[i].group in groups}


def _run_folder(path: Path) -> Path | None:
    """The run that a file lies in, or that a folder is; looked for where the name leads, and where a link does."""
    for place in dict.fromkeys((path.absolute(), path.resolve())):
        for folder in (place, *place.parents):
            if is_ours(folder, "run"):
                return folder
            if (folder / "work" / "started.json").is_file():
                raise WeightsError(
                    "start weights lie in an unfinished run", where=path, remedy=f"finish it: train {folder} --resume"
                )
    return None


def _read_record(path: Path) -> tuple[Seen, ...]:
    """What a checkpoint says itself; nothing for one without a record."""
    if not path.is_file():
        return ()
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist() if entry.filename.endswith(f"/{RECORD}")]
                if not entries:
                    return ()
                content = b"" if entries[-1].file_size > _MOST_BYTES else archive.read(entries[-1])
        except _DAMAGED as error:
            raise _unreadable(path, error) from error
    elif path.suffix == ".safetensors":
        header, _ = _safetensors_header(path)
        content = header["__metadata__"].get(KEY, "[]").encode(errors="surrogatepass")  # no UTF-8, and refused as such
    else:
        return ()
    try:
        return _typed(msgspec.json.decode(content), path)
    except (ValueError, RecursionError) as error:  # msgspec.DecodeError is a ValueError
        raise _unreadable(path, error) from error


def _typed(value: Any, where: Path) -> tuple[Seen, ...]:
    try:
        return msgspec.convert(value, tuple[Seen, ...])
    except msgspec.ValidationError as error:
        raise _unreadable(where, error) from error


def _mark_safetensors(path: Path, text: str) -> None:
    header, start = _safetensors_header(path)
    header["__metadata__"][KEY] = text
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    write_bytes(path, len(head).to_bytes(8, "little") + head + path.read_bytes()[start:])


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file with its metadata, and where its tensors begin; bare where it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if length <= _MOST_BYTES else {}
        except (ValueError, RecursionError):
            header = {}
    header = header if isinstance(header, dict) else {}
    told = header.get("__metadata__")
    kept = {key: value for key, value in told.items() if isinstance(value, str)} if isinstance(told, dict) else {}
    return {**header, "__metadata__": kept}, 8 + length


def _unknown(folder: Path, found: str) -> WeightsError:
    return WeightsError(
        "it cannot be told which images this run has seen",
        where=folder / "run.json",
        found=found,
        expected="the dataset it was trained on as it was",
        remedy="put that back, train the run anew, or start from weights from elsewhere",
    )


def _unreadable(where: Path, error: Exception) -> WeightsError:
    return WeightsError("what the weights have seen cannot be read", where=where, found=str(error))
