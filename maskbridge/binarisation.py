"""What is defect in a mask file, and which masks hold labels instead.

File by file: with two values, 0 and another, a pixel is defect where it is > 0; with more, where it is at least half
the file's highest value (the soft rim of an anti-aliased mask, the noise of a JPEG). Over the whole source, masks are
label masks, and refused, if in any file a value between 0 and the highest fills a 3 x 3 patch, or if some files have
three or more values, the source has at most five, and in those files the middle ones make up more than 1 % of the
pixels that are not 0. In lossy files a middle value is one from a quarter to three quarters of the highest.

    values = mask_values(mask)                    # mask: H x W, uint8 or uint16, as `masks.read_mask` gives it
    refuse_labels({"test/crack/000.png": values}, source)
    defect = mask >= values.threshold
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from maskbridge.errors import SourceError
from maskbridge.masks import RawMask
from maskbridge.tiff_checks import JPEG_IN_TIFF, compression_of

TWO_VALUES = "at most two values"
MORE_VALUES = "more values"
_RULES = {
    TWO_VALUES: "defect where > 0",
    MORE_VALUES: "defect where at least half the file's highest value",
}
#: Values that a source of label masks without a 3 x 3 patch has at most, and the share of the middle ones above which
#: they are labels and no soft rim.
MOST_LABELS, RIM_SHARE = 5, 0.01
#: Share of its pixels above 0 from which on a mask that loses them is named.
NAMED_LOSS = 0.2
_LISTED = 12


@dataclass(frozen=True, kw_only=True)
class Values:
    """Which values a mask file holds.

    Attributes:
        distinct: All distinct values, ascending.
        above_zero_px: Pixels that are not 0.
        middle_px: Pixels of middle values: between 0 and the highest, both excluded; in lossy files from a quarter to
            three quarters of the highest.
        defect_px: Pixels that the rule calls defect.
        patches: Middle values that fill a 3 x 3 patch, ascending.
    """

    distinct: tuple[int, ...]
    above_zero_px: int
    middle_px: int
    defect_px: int
    patches: tuple[int, ...]

    @property
    def highest(self) -> int:
        """The highest value."""
        return self.distinct[-1]

    @property
    def rule(self) -> str:
        """Which rule holds for the file."""
        of_two = len(self.distinct) == 1 or (len(self.distinct) == 2 and self.distinct[0] == 0)
        return TWO_VALUES if of_two else MORE_VALUES

    @property
    def threshold(self) -> int:
        """Defect where a value is at least this."""
        return 1 if self.rule == TWO_VALUES else (self.highest + 1) // 2


def mask_values(mask: RawMask, *, lossy: bool = False) -> Values:
    """What `Values` says of a mask.

    Args:
        mask: H x W, uint8 or uint16.
        lossy: Whether the file's encoding changes values, see `is_lossy`.
    """
    bins = 256 if mask.dtype == np.uint8 else 65536
    histogram = cv2.calcHist([mask], [0], None, [bins], [0.0, float(bins)])
    distinct = tuple(int(value) for value in np.flatnonzero(histogram))
    above = cv2.countNonZero(mask)
    values = Values(distinct=distinct, above_zero_px=above, middle_px=0, defect_px=above, patches=())
    if values.rule == TWO_VALUES:
        return values
    low, high = _middle(values.highest, lossy=lossy)
    return Values(
        distinct=distinct,
        above_zero_px=above,
        middle_px=int(np.count_nonzero((mask >= low) & (mask <= high))),
        defect_px=int(np.count_nonzero(mask >= values.threshold)),
        patches=_patches(mask, low, high),
    )


def is_lossy(data: bytes) -> bool:
    """Whether a whole image file is of an encoding that changes values: JPEG, also in a TIFF, or lossy WebP."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        return compression_of(data) == JPEG_IN_TIFF
    return data[:3] == b"\xff\xd8\xff" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP" and b"VP8L" not in data[:4096])


def refuse_labels(files: Mapping[str, Values], where: Path) -> None:
    """Refuse a source that holds label masks.

    Args:
        files: Values of every mask of the source, by the name of its file.
        where: The source, for the error message.

    Raises:
        SourceError: With the values, how many files have them, and the first of these.
    """
    labelled = {name: values for name, values in files.items() if values.patches}
    if not labelled:
        labelled = {name: values for name, values in files.items() if len(values.distinct) > 2}
        source_values = {value for values in files.values() for value in values.distinct}
        middle = sum(values.middle_px for values in labelled.values())
        above = sum(values.above_zero_px for values in labelled.values())
        if len(source_values) > MOST_LABELS or middle <= RIM_SHARE * above:
            return
    first, values = next(iter(labelled.items()))
    patch = f", where {values.patches[0]} fills 3x3 pixels" if values.patches else ""
    distinct = sorted({value for each in labelled.values() for value in each.distinct})
    raise SourceError(
        "masks hold labels, not defect and background",
        where=where,
        found=f"values {listed(distinct)} in {len(labelled)} of {len(files)} masks, the first {first}{patch}",
        expected="0 and one other value in each mask, or values between them at the rim of defects alone",
        remedy="write binary masks (0 and 255), one for each defect type",
    )


def rules_of(files: Mapping[str, Values]) -> dict[str, Any]:
    """What the rules made of every mask, for dataset.json.

    Args:
        files: Values of every mask of the source, by the name of its image.

    Returns:
        By rule: `rule` in words, `masks` (their number), `values` (all that occur, or for more values the highest of
        the files), and for more values `files` (by name `threshold`, `above_zero_px`, `defect_px`).
    """
    told: dict[str, Any] = {}
    for name, rule in _RULES.items():
        those = {file: values for file, values in files.items() if values.rule == name}
        if not those:
            continue
        told[name] = {"rule": rule, "masks": len(those)}
        if name == TWO_VALUES:
            told[name]["values"] = sorted({value for values in those.values() for value in values.distinct})
        else:
            told[name]["highest"] = sorted({values.highest for values in those.values()})
            told[name]["files"] = {
                file: {
                    "threshold": values.threshold,
                    "above_zero_px": values.above_zero_px,
                    "defect_px": values.defect_px,
                }
                for file, values in those.items()
            }
    return told


def named_losses(told: Mapping[str, Any]) -> dict[str, str]:
    """Masks that lose a fifth of their pixels above 0 or more, by name: how many, in words.

    Args:
        told: What `rules_of` gave.
    """
    files = told.get(MORE_VALUES, {}).get("files", {})
    return {
        name: f"{file['above_zero_px'] - file['defect_px']} of {file['above_zero_px']} px"
        for name, file in files.items()
        if file["above_zero_px"] - file["defect_px"] >= NAMED_LOSS * file["above_zero_px"]
    }


def listed(values: list[int]) -> str:
    """The first dozen of some values as text."""
    return ", ".join(map(str, values[:_LISTED])) + (f" and {len(values) - _LISTED} more" if values[_LISTED:] else "")


def _middle(highest: int, *, lossy: bool) -> tuple[int, int]:
    """First and last of the values that are neither background nor the highest, nor the noise of either."""
    return (-(-highest // 4), highest * 3 // 4) if lossy else (1, highest - 1)


def _patches(mask: RawMask, low: int, high: int) -> tuple[int, ...]:
    """Values from `low` to `high` that fill a 3 x 3 patch."""
    square = np.ones((3, 3), np.uint8)
    flat = (cv2.erode(mask, square) == cv2.dilate(mask, square))[1:-1, 1:-1]
    values = np.unique(mask[1:-1, 1:-1][flat]).astype(np.int64)
    return tuple(int(value) for value in values if low <= value <= high)
