"""What the three files of a dataset hold: types by which msgspec reads them, so that no value is of another kind.

    msgspec.json.decode(raw, type=Image)        # ids from 1, sides that an image can have, a hash that is one

`annotations.json` is read entry by entry, so that `maskbridge check` can name every damaged one. What one value alone
cannot tell (references, names, masks against their images) is in `maskbridge.dataset_rules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec

from maskbridge.geometry import RLE

GOOD = "good"
#: Type of defects that were made by `maskbridge synthesize`.
SYNTHETIC = "synthetic"
FoldName = int | Literal["official"]

#: The largest number that JavaScript, which reads reports, keeps exact.
_MOST = 2**53 - 1
#: OpenCV reads no image of more pixels a side, or of more in all.
MOST_SIDE, MOST_PIXELS = 2**20, 2**30

Id = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Side = Annotated[int, msgspec.Meta(ge=1, le=MOST_SIDE)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of a dataset."""

    id: Id
    file_name: Name
    width: Side
    height: Side
    sha256: Sha256
    origin: Name
    group: Annotated[int, msgspec.Meta(ge=-_MOST, le=_MOST)]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def part(self) -> str:
        """The source's own part: `train`, `test`, …, or `all`."""
        return self.origin.partition("/")[0]

    @property
    def defect_type(self) -> str:
        """Defect type by the source's folder; `good` for an image without a defect."""
        return self.origin.partition("/")[2]

    @property
    def is_good(self) -> bool:
        """Whether the source calls the image free of defects."""
        return self.defect_type == GOOD


class Annotation(TypedDict):
    """One defect instance: a COCO annotation."""

    id: Id
    image_id: Id
    category_id: Id
    segmentation: RLE
    bbox: Annotated[list[Count], msgspec.Meta(min_length=4, max_length=4)]
    area: Count
    iscrowd: Literal[0]


class Category(TypedDict):
    """One defect type; `supercategory` is the product."""

    id: Id
    name: Name
    supercategory: str


class Coco(TypedDict):
    """`annotations.json`: its entries are `Image`, `Annotation` and `Category`."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


class FoldParts(TypedDict):
    """Image ids of one fold."""

    train: list[Id]
    val: list[Id]
    test: list[Id]


class OfficialParts(TypedDict):
    """Image ids of the source's own parts."""

    train: list[Id]
    val: NotRequired[list[Id]]
    test: list[Id]


class Splits(TypedDict):
    """`splits.json`."""

    folds: list[FoldParts]
    official: OfficialParts | None


class _Named(TypedDict):
    count: Count
    files: list[str]


class _Dropped(TypedDict):
    count: Count
    areas_px: dict[str, list[Count]]


class _Synthetic(TypedDict):
    method: str
    images_per_fold: Count


class _Ignored(_Named):
    reasons: NotRequired[dict[str, list[str]]]


class _Oriented(TypedDict):
    orientation: Annotated[int, msgspec.Meta(ge=2, le=8)]
    masks_drawn: Literal["stored", "upright"] | None


class _Orientation(TypedDict):
    count: Count
    files: dict[str, _Oriented]


#: Names of two files.
Pair = Annotated[list[str], msgspec.Meta(min_length=2, max_length=2)]


class _Changes(TypedDict):
    dropped_instances: _Dropped
    empty_masks: _Named
    ignored_files: _Ignored
    orientation: NotRequired[_Orientation]
    one_picture_two_types: NotRequired[list[Pair]]
    official_leaks: NotRequired[str | None]
    official_leaks_dropped: NotRequired[list[str]]
    train_images_left_out: dict[str, list[str]]
    types_smaller_than_folds: dict[str, Count]
    groups_across_official_parts: dict[str, list[str]]
    synthetic: NotRequired[_Synthetic]


class _MaskFile(TypedDict):
    above_zero_px: Count
    defect_px: Count


class _Binarisation(TypedDict):
    rule: str
    masks: NotRequired[Count]
    values: NotRequired[list[Count]]
    highest: NotRequired[list[Count]]
    files: NotRequired[dict[str, _MaskFile]]


class _Groups(TypedDict):
    groups: Count
    largest: Count
    by: str
    near_duplicates: NotRequired[list[Pair]]


class _Rules(TypedDict):
    instances: Literal["components", "image"]
    min_area: Id
    binarisation: dict[str, _Binarisation]
    groups: _Groups


class _Quantiles(TypedDict):
    min: float
    median: float
    max: float


class _Class(TypedDict):
    images: Count
    instances: Count
    images_per_part: dict[str, Count]
    area_px: _Quantiles | None


class _Totals(TypedDict):
    images: Count
    instances: Count
    types: Count


class _LongTail(TypedDict):
    good: Count
    defective: Count
    good_to_defective: float | None
    largest_to_smallest_type: float | None


class _Sizes(TypedDict):
    count: Count
    most_common: dict[str, Count]


class _FoldCounts(TypedDict):
    train: Count
    val: Count
    test: Count


class _OfficialCounts(TypedDict):
    train: Count
    test: Count


class _SplitCounts(TypedDict):
    folds: list[_FoldCounts]
    official: _OfficialCounts | None


class _Source(TypedDict):
    layout: str
    path: str
    licence: str | None


class AnyCard(TypedDict):
    """What every `dataset.json` holds, whichever version or hand wrote it."""

    product: Name
    bit_depth: NotRequired[Literal[8, 10, 12, 14, 16]]
    sha256: NotRequired[dict[str, str]]


class Card(AnyCard):
    """What a whole one holds, as far as it is relied on."""

    totals: _Totals
    classes: dict[str, _Class]
    area_share: _Quantiles | None
    long_tail: _LongTail
    combined: str | None
    image_sizes: _Sizes
    splits: _SplitCounts
    rules: _Rules
    source: _Source
    options: dict[str, Any]
    changes: _Changes
