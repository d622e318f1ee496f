"""Which frame a mask belongs to where its image has an EXIF orientation, and images that are rewritten upright.

The frame of a dataset is that of the stored pixels. Annotation tools show the upright picture, so a mask may have been
drawn on either: its size tells where a quarter turn makes the picture another one, nothing tells otherwise.

    frame = frame_of(picture, mask, (image_path, mask_path), choice=None)
    frame.image(picture.pixels), frame.mask(mask.pixels)        # in one frame
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from maskbridge.decoding import Picture
from maskbridge.errors import OptionError, SourceError
from maskbridge.exif import BACK, WORDS, turned_upright
from maskbridge.progress import say

#: The frame in which masks were drawn.
Choice = Literal["stored", "upright"]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How an image and its mask get into one frame.

    Attributes:
        orientation: EXIF orientation of the image.
        rewritten: Whether the image is rewritten upright.
        masks: Frame that the mask was drawn in; None where it makes no difference.
        mask_turn: EXIF orientation by which the mask is turned; 1 for none.
    """

    orientation: int
    rewritten: bool
    masks: Choice | None = None
    mask_turn: int = 1

    def image(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An image in the frame of the dataset, given its stored pixels."""
        return turned_upright(pixels, self.orientation) if self.rewritten else pixels

    def mask(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Its mask in the frame of the dataset, given the stored pixels of the mask."""
        return turned_upright(pixels, self.mask_turn)

    def name(self, file_name: str) -> str:
        """`<part>/<type>/<name>` in the dataset; PNG holds every image without loss."""
        return file_name.rpartition(".")[0] + ".png" if self.rewritten else file_name


def frame_of(picture: Picture, mask: Picture | None, where: tuple[Path, Path | None], choice: Choice | None) -> Frame:
    """Find the frame that an image and its mask share.

    Args:
        picture: The image.
        mask: Its mask, one channel; None where there is none.
        where: Their files, for error messages.
        choice: `--orientation`; None where sizes are to tell.

    Raises:
        SourceError: When the mask fits in neither frame, or in both and is not the same in them.
    """
    turn, rewritten = picture.orientation, choice == "upright" and picture.orientation != 1
    if mask is None:
        return Frame(orientation=turn, rewritten=rewritten)
    if choice is not None or mask.orientation == turn:
        drawn = choice or "stored"
        frame = Frame(
            orientation=turn,
            rewritten=rewritten,
            masks=None if turn == 1 else drawn,
            mask_turn=mask.orientation if drawn == "upright" else 1,
        )
        return _fitting(frame, picture, mask, where, choice)
    if mask.orientation != 1:
        raise SourceError(
            f"mask has EXIF orientation {mask.orientation}, and its image {turn}",
            where=where[1],
            remedy="add --orientation stored (they fit as they are stored) or upright (they fit as viewers show them)",
        )
    stored_hw, mask_hw = picture.pixels.shape[:2], mask.pixels.shape[:2]
    stored = Frame(orientation=turn, rewritten=False, masks="stored")
    upright = Frame(orientation=turn, rewritten=False, masks="upright", mask_turn=BACK[turn])
    if turn >= 5 and stored_hw[0] != stored_hw[1]:
        return _fitting(upright if mask_hw == stored_hw[::-1] else stored, picture, mask, where, choice)
    _fitting(stored, picture, mask, where, choice)
    if not np.array_equal(upright.mask(mask.pixels), mask.pixels):
        raise SourceError(
            f"has EXIF orientation {turn} ({WORDS[turn]}), and sizes do not tell in which frame its mask was drawn",
            where=where[0],
            found=f"image and mask of {mask_hw[1]}x{mask_hw[0]}",
            remedy="add --orientation stored (on the pixels as stored) or upright (on the picture as viewers show it)",
        )
    return Frame(orientation=turn, rewritten=False)


def upright_png(pixels: npt.NDArray[Any]) -> bytes:
    """The file of an image that is rewritten upright: PNG, without EXIF."""
    done, data = cv2.imencode(".png", pixels)
    assert done, "PNG holds 8 and 16 bit, one to four channels"
    return data.tobytes()


def refuse_equal_names(names: list[str]) -> None:
    """Refuse two images of one name.

    Raises:
        OptionError: With the first such name.
    """
    for name, times in Counter(names).items():
        if times > 1:
            raise OptionError(
                "--orientation upright writes two images under one name", found=name, remedy="rename one of the two"
            )


def orientation_change(frames: Mapping[str, Frame]) -> dict[str, Any]:
    """What `dataset.json` says of images with an EXIF orientation, given the frames of all images by name."""
    files = {
        name: {
            "orientation": frame.orientation,
            "masks_drawn": frame.masks,
            "image": "rewritten upright" if frame.rewritten else "as stored",
        }
        for name, frame in frames.items()
        if frame.orientation != 1
    }
    return {"count": len(files), "files": files}


def say_orientation(change: Mapping[str, Any]) -> None:
    """Say what `orientation_change` found, if it found anything."""
    if change["count"]:
        drawn = Counter(entry["masks_drawn"] for entry in change["files"].values())
        say(
            f"  {change['count']} images have an EXIF orientation; {drawn['upright']} masks were drawn on the upright "
            f"picture, {drawn['stored']} on the stored one, for {drawn[None]} it makes no difference (dataset.json)"
        )


def _fitting(
    frame: Frame, picture: Picture, mask: Picture, where: tuple[Path, Path | None], choice: Choice | None
) -> Frame:
    """The frame, if image and mask have one size in it."""
    height, width = frame.image(picture.pixels).shape[:2]
    found = frame.mask(mask.pixels).shape
    if found == (height, width):
        return frame
    note = "" if frame.orientation == 1 else f", EXIF orientation {frame.orientation} ({WORDS[frame.orientation]})"
    if note and choice:
        note += f", --orientation {choice}"
    raise SourceError(
        "mask has another size than its image",
        where=where[1],
        found=f"{mask.pixels.shape[1]}x{mask.pixels.shape[0]}",
        expected=f"{width}x{height} like {where[0].name}{note}",
        remedy="export the mask again at the image's size",
    )
