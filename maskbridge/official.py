"""Near-duplicates across the source's own parts: a test image whose copy was trained on is no test.

Folds keep such images together. The official parts are the source's and stay as they are, unless `maskbridge convert
--drop-leaks` leaves the copies out of the training part; so whoever converts, trains or reads a table is told.

    note = leak_note(dataset.images, dataset.splits["official"])    # None where there is nothing to tell
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from maskbridge.dataset import Image

REMEDY = "maskbridge convert --drop-leaks leaves the training copies out"


def leaking_images(images: Iterable[Image], official: Mapping[str, Sequence[int]] | None) -> list[Image]:
    """Test images of the official split that share a group with one of its training images, in order of `images`."""
    if official is None:
        return []
    known = list(images)
    trained, tested = set(official["train"]), set(official["test"])
    groups = {image.group for image in known if image.id in trained}
    return [image for image in known if image.id in tested and image.group in groups]


def leak_note(images: Iterable[Image], official: Mapping[str, Sequence[int]] | None) -> str | None:
    """What a reader of figures on the official split has to know; None where no test image leaks."""
    leaking = leaking_images(images, official)
    if official is None or not leaking:
        return None
    good = sum(image.is_good for image in leaking)
    return (
        f"{len(leaking)} of {len(official['test'])} test images of the official split ({good} of them good) share a "
        "group (near-duplicates) with its training part, so figures on it are too good"
    )


def two_types(pairs: Iterable[tuple[str, str]], type_of: Mapping[str, str]) -> list[list[str]]:
    """Pairs of near-duplicates that the source calls two different types.

    Args:
        pairs: File names of near-duplicates; names that `type_of` does not know are left out.
        type_of: Defect type by file name, good being a type.
    """
    return [
        [one, other] for one, other in pairs if one in type_of and other in type_of and type_of[one] != type_of[other]
    ]
