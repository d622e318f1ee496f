"""One page that shows what runs did: `maskbridge report RUN … --out report.html`.

    board = evaluate_runs([Path("runs/bottle-knn-all"), Path("runs/bottle-sam-all")])
    write_report(board, Path("report.html"))

The page is one file that opens from disk and asks for nothing else: leaderboard, who beats whom, curves with a
threshold that can be moved, every image with truth and predictions, the dataset card, the runs and the commands.
No chart library: a few step curves and a table need little code, a library would be more bytes than the rest of the
page and draws on a canvas that no screen reader reads.

Pictures of as many sizes are tried on a sample of the images until the page fits into its limit, then all are made,
one image at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation._report_commands import convert_command, defaults_of, report_command, run_commands
from evaluation._report_data import page_data
from evaluation._report_images import FRAME, Level, Pictures
from evaluation._report_page import json_text, page
from evaluation.leaderboard import Leaderboard
from maskbridge import __version__
from maskbridge.errors import OptionError
from maskbridge.files import refuse_foreign, write_bytes
from maskbridge.progress import track

#: Images whose pictures stand in one block of the page, which is read when the first of them is shown.
CHUNK = 40

#: What stands in the head of every report.
_MARKS = (b"<!doctype html>", b"maskbridge report</title>")
_SAMPLED = 24
_LEAST_PX, _MOST_PX = 32, 2048


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `maskbridge report`."""

    megabytes: float = 30.0
    """largest size of the page in millions of bytes; pictures are made smaller until it fits"""
    thumbnail_px: int = 256
    """longest side of the pictures in pixels, where there is room"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if not 0 < self.megabytes < float("inf"):
            raise OptionError("--megabytes cannot be used", found=self.megabytes, expected="a number above 0")
        if not _LEAST_PX <= self.thumbnail_px <= _MOST_PX:
            expected = f"{_LEAST_PX} to {_MOST_PX}"
            raise OptionError("--thumbnail-px cannot be used", found=self.thumbnail_px, expected=expected)


def write_report(board: Leaderboard, out: Path, options: ReportOptions = ReportOptions()) -> int:
    """Write the page, whole or not at all.

    Args:
        board: Runs on the same images, evaluated.
        out: The file to write; a report that is there is replaced.
        options: See `ReportOptions`.

    Returns:
        Size of the page in bytes.

    Raises:
        DatasetError: When an image cannot be read.
        OptionError: When the page does not fit into `options.megabytes` even with the smallest pictures.
        MaskbridgeError: As `refuse_taken`.
    """
    refuse_taken(out)
    pictures = Pictures(board.evaluations, options.thumbnail_px)
    data = page_data(board)
    data["commands"] = _commands(board, out, options)
    data["version"] = __version__
    limit = round(options.megabytes * 1e6)
    for level in _levels_that_fit(board, pictures, data, limit):
        encoded = _page(board, pictures, data, level)
        if len(encoded) <= limit:
            write_bytes(out, encoded)
            return len(encoded)
    raise _too_large(board, out, options)


def refuse_taken(out: Path) -> None:
    """Refuse a place that no report can be written to.

    Raises:
        OptionError: When it is a folder.
        MaskbridgeError: When it is a file, and no report.
    """
    if out.is_dir():
        raise OptionError("is a folder", where=out, expected="a file to write, such as report.html")
    refuse_foreign(out, *_MARKS, kind="a report")


def _levels_that_fit(board: Leaderboard, pictures: Pictures, data: dict[str, Any], limit: int) -> Sequence[Level]:
    """Levels from the first at which a sample of the images says that the page fits; none if it never does."""
    image_ids = data["images"]["id"]
    sample = image_ids[:: max(1, -(-len(image_ids) // _SAMPLED))]
    fixed = len(_joined(board, data, pictures, pictures.levels[0], []))
    for place, level in enumerate(pictures.levels):
        size = sum(len(json_text(pictures.record(image_id, level))) + 1 for image_id in sample)
        if fixed + size * len(image_ids) / len(sample) <= limit:
            return pictures.levels[place:]
    return ()


def _page(board: Leaderboard, pictures: Pictures, data: dict[str, Any], level: Level) -> bytes:
    chunks: list[str] = []
    records: list[str] = []
    image_ids = data["images"]["id"]
    for image_id in track(image_ids, "pictures of the report"):
        records.append(json_text(pictures.record(image_id, level)))
        if len(records) == CHUNK or image_id == image_ids[-1]:
            chunks.append(f"[{','.join(records)}]")
            records = []
    return _joined(board, data, pictures, level, chunks)


def _joined(board: Leaderboard, data: dict[str, Any], pictures: Pictures, level: Level, chunks: Sequence[str]) -> bytes:
    shown = {
        "chunk": CHUNK,
        "frame": FRAME,
        "format": pictures.format,
        "px": level.thumbnail_px,
        "wantedPx": pictures.levels[0].thumbnail_px,
        "mapPx": level.map_px,
        "detections": level.detections,
        "scales": pictures.scales,
    }
    title = f"{board.dataset}, {board.part}: {len(board.rows)} run{'s' if len(board.rows) > 1 else ''}"
    return page(title=f"{title} – maskbridge report", data={**data, "pictures": shown}, chunks=chunks).encode(
        "utf-8", "backslashreplace"
    )


def _commands(board: Leaderboard, out: Path, options: ReportOptions) -> list[list[Any]]:
    """Title and lines of each step."""
    made = convert_command(board.evaluations[0].dataset)
    steps: list[list[Any]] = [["dataset", [made]]] if made else []
    for row, evaluation in zip(board.rows, board.evaluations, strict=True):
        steps.append([row.run, run_commands(evaluation)])
    steps.append(["this page", [report_command(board.evaluations, out, asdict(options), defaults_of(ReportOptions))]])
    return steps


def _too_large(board: Leaderboard, out: Path, options: ReportOptions) -> OptionError:
    return OptionError(
        "the report does not fit even with the smallest pictures",
        where=out,
        found=f"{len(board.evaluations[0].view.image_ids)} images and {len(board.evaluations)} runs",
        expected=f"at most {options.megabytes:g} million bytes",
        remedy="allow more with --megabytes, or name fewer runs",
    )
