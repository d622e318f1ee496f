from pathlib import Path

import cv2
import numpy as np
import pytest

from maskbridge.binarisation import (
    MORE_VALUES,
    TWO_VALUES,
    Values,
    is_lossy,
    mask_values,
    named_losses,
    refuse_labels,
    rules_of,
)
from maskbridge.errors import SourceError


def of_values(*values: int, dtype: type = np.uint8) -> Values:
    """A mask of rows of single pixels, one of each value, apart from each other, in black; 24 x 36."""
    mask = np.zeros((24, 36), dtype)
    for row, value in enumerate(values):
        mask[2 + 2 * row, 3 : 3 + 20] = value
    return mask_values(mask)


def refuse(**masks: np.ndarray) -> None:
    refuse_labels({name: mask_values(mask) for name, mask in masks.items()}, Path("source"))


@pytest.mark.parametrize(
    ("values", "dtype", "threshold"),
    [
        ((1,), np.uint8, 1),
        ((100,), np.uint8, 1),
        ((255,), np.uint8, 1),
        ((65535,), np.uint16, 1),
        ((300,), np.uint16, 1),
        ((127, 128, 255), np.uint8, 128),
        ((88, 176), np.uint8, 88),
        ((2, 4), np.uint8, 2),
        ((2, 5), np.uint8, 3),
        ((255, 65535), np.uint16, 32768),
        ((7, 4095), np.uint16, 2048),
    ],
)
def test_the_cut_of_a_file_is_at_zero_or_at_half_its_highest_value(
    values: tuple[int, ...], dtype: type, threshold: int
) -> None:
    found = of_values(*values, dtype=dtype)
    assert found.distinct == (0, *values)
    assert found.threshold == threshold
    assert found.defect_px == 20 * sum(value >= threshold for value in values)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_mask_of_one_value_is_all_or_nothing(value: int) -> None:
    values = mask_values(np.full((24, 36), value, np.uint8))
    assert (values.threshold, values.defect_px) == (1, 24 * 36 if value else 0)


def test_the_values_of_a_mask_are_all_found() -> None:
    mask = np.array([[0, 65535, 7], [0, 0, 256]], np.uint16)
    assert mask_values(mask) == Values(
        distinct=(0, 7, 256, 65535), above_zero_px=3, middle_px=2, defect_px=1, patches=()
    )


def test_masks_of_0_and_1_beside_0_and_255_and_16_bit_are_none_of_labels() -> None:
    refuse_labels(
        {"a": of_values(1), "b": of_values(255), "c": of_values(65535, dtype=np.uint16), "d": of_values(2)}, Path("s")
    )


@pytest.mark.parametrize(("size_hw", "is_label"), [((3, 3), True), ((2, 30), False), ((30, 2), False)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_middle_value_that_fills_a_patch_is_a_label(size_hw: tuple[int, int], is_label: bool, dtype: type) -> None:
    """Beside many values, so that their number does not speak of labels."""
    mask = np.zeros((40, 50), dtype)
    mask[4:10, 5:45] = 200
    mask[12, 5:15] = np.arange(1, 11)
    mask[20 : 20 + size_hw[0], 10 : 10 + size_hw[1]] = 77
    assert mask_values(mask).patches == ((77,) if is_label else ())
    if not is_label:
        return refuse(mask=mask)
    with pytest.raises(SourceError, match=r"values 0, 1, 2.* in 1 of 1 masks, the first mask, where 77 fills 3x3"):
        refuse(mask=mask)


def test_a_patch_at_the_frame_of_the_image_is_a_label_and_one_cut_off_by_it_is_none() -> None:
    mask = np.zeros((24, 36), np.uint8)
    mask[10:15, 10:15] = 255
    mask[:3, :3] = 9
    assert mask_values(mask).patches == (9,)
    mask[2] = 0
    assert mask_values(mask).patches == ()


def test_two_labels_without_a_background_are_labels() -> None:
    mask = np.ones((24, 36), np.uint8)
    mask[4:9, 5:20] = 2
    with pytest.raises(SourceError, match=r"source: masks hold labels.*found values 1, 2 in 1 of 1 masks, .*1 fills"):
        refuse(mask=mask)


def test_a_defect_of_1_with_a_border_of_255_to_be_ignored_is_refused() -> None:
    mask = np.zeros((24, 36), np.uint8)
    mask[4:12, 5:20] = 255
    mask[5:11, 6:19] = 1
    with pytest.raises(SourceError, match=r"values 0, 1, 255 in 1 of 1 masks"):
        refuse(mask=mask)


def test_140_numbered_instances_are_refused() -> None:
    mask = np.zeros((70, 100), np.uint8)
    for number in range(140):
        y, x = divmod(number, 20)
        mask[10 * y : 10 * y + 4, 5 * x : 5 * x + 3] = number + 1
    with pytest.raises(SourceError, match=r"values 0, 1, 2, .* and 129 more in 1 of 1 masks.*1 fills 3x3 pixels"):
        refuse(mask=mask)


@pytest.mark.parametrize(("middle", "refused"), [(1, False), (2, False), (3, True)])
def test_thin_labels_are_told_from_a_rim_by_their_share(middle: int, refused: bool) -> None:
    """Of 200 pixels above 0, 1 % are 2."""
    mask = np.zeros((40, 50), np.uint8)
    mask[5:9, :] = 2
    mask[5, :middle] = 1
    if not refused:
        return refuse(mask=mask)
    with pytest.raises(SourceError, match=r"values 0, 1, 2 in 1 of 2 masks, the first mask; expected"):
        refuse(other=(mask == 2).astype(np.uint8), mask=mask)


def test_thin_labels_are_counted_over_the_files_that_have_three_values_alone() -> None:
    """The middle ones are 20 of 40 pixels there, of 4,000 in the source."""
    plain = np.full((60, 66), 1, np.uint8)
    plain[0] = 0
    with pytest.raises(SourceError, match=r"values 0, 1, 2 in 1 of 2 masks"):
        refuse_labels({"plain": mask_values(plain), "thin": of_values(1, 2)}, Path("s"))


@pytest.mark.parametrize(("others", "refused"), [((3, 4), True), ((3, 4, 5), False)])
def test_from_six_values_of_the_source_on_thin_middle_ones_are_no_labels(
    others: tuple[int, ...], refused: bool
) -> None:
    files = {"thin": of_values(1, 2), **{str(value): of_values(value) for value in others}}
    if not refused:
        return refuse_labels(files, Path("s"))
    with pytest.raises(SourceError, match="masks hold labels"):
        refuse_labels(files, Path("s"))


def test_a_soft_rim_is_cut_at_half_in_8_and_16_bit(zoo: dict[str, np.ndarray]) -> None:
    soft = cv2.GaussianBlur(zoo["ring"], (5, 5), 0)
    for mask, threshold in ((soft, 128), (soft.astype(np.uint16) * 257, 32768)):
        values = mask_values(mask)
        refuse_labels({"mask": values}, Path("s"))
        assert values.threshold == threshold
        assert values.defect_px == np.count_nonzero(soft >= 128)


def test_the_few_values_of_a_good_jpeg_are_no_labels() -> None:
    """Noise of one level beside 0 and 255: three values, most of the pixels of a middle one."""
    mask = np.zeros((24, 36), np.uint8)
    mask[3:9, 4:20] = 255
    mask[3, 4:20] = 254
    refuse_labels({"mask": mask_values(mask, lossy=True)}, Path("s"))
    with pytest.raises(SourceError, match="values 0, 254, 255"):
        refuse_labels({"mask": mask_values(mask)}, Path("s"))


@pytest.mark.parametrize("quality", [30, 75, 95, 100])
def test_the_noise_of_a_jpeg_is_no_label(zoo: dict[str, np.ndarray], quality: int) -> None:
    for name in ("ring", "several", "corner", "line", "frame"):
        data = cv2.imencode(".jpg", zoo[name], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        assert is_lossy(data)
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        refuse_labels({"mask": mask_values(mask, lossy=True)}, Path("s"))


@pytest.mark.parametrize(("value", "is_label"), [(63, False), (64, True), (191, True), (192, False)])
def test_labels_of_a_jpeg_lie_between_a_quarter_and_three_quarters(value: int, is_label: bool) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[8:24, 8:32], mask[32:48, 8:32] = 255, value
    assert mask_values(mask).patches == (value,)
    assert mask_values(mask, lossy=True).patches == ((value,) if is_label else ())


@pytest.mark.parametrize(
    ("suffix", "options", "lossy"),
    [
        (".png", [], False),
        (".bmp", [], False),
        (".tif", [], False),
        (".jpg", [], True),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80], True),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101], False),
    ],
)
def test_lossy_files_are_known_by_their_content(photo, suffix: str, options: list[int], lossy: bool) -> None:
    assert is_lossy(cv2.imencode(suffix, photo(1), options)[1].tobytes()) == lossy


def test_what_the_rules_made_of_every_file_is_told() -> None:
    soft, at_half = of_values(100, 101, 255), of_values(127, 128, 255)
    told = rules_of({"a": of_values(1), "b": of_values(255), "c": of_values(200, 255), "d": soft, "e": at_half})
    assert told[TWO_VALUES] == {"rule": "defect where > 0", "masks": 2, "values": [0, 1, 255]}
    assert told[MORE_VALUES]["masks"] == 3
    assert told[MORE_VALUES]["highest"] == [255]
    assert told[MORE_VALUES]["files"] == {
        "c": {"threshold": 128, "above_zero_px": 40, "defect_px": 40},
        "d": {"threshold": 128, "above_zero_px": 60, "defect_px": 20},
        "e": {"threshold": 128, "above_zero_px": 60, "defect_px": 40},
    }
    assert named_losses(told) == {"d": "40 of 60 px", "e": "20 of 60 px"}
    assert rules_of({}) == named_losses({}) == {}


@pytest.mark.parametrize(("lost", "named"), [(19, False), (20, True)])
def test_a_mask_is_named_from_a_fifth_of_its_pixels_on(lost: int, named: bool) -> None:
    mask = np.zeros((24, 36), np.uint8)
    mask[3, :20] = mask[5, :20] = mask[7, :20] = mask[9, :20] = mask[11, :20] = 255
    mask[3, :lost] = 20
    assert bool(named_losses(rules_of({"m": mask_values(mask)}))) == named


@pytest.mark.parametrize(("compression", "lossy"), [(1, False), (5, False), (7, True)])
def test_jpeg_in_a_tiff_changes_values_and_other_compressions_do_not(
    tmp_path: Path, compression: int, lossy: bool
) -> None:
    path = tmp_path / "a.tif"
    assert cv2.imwrite(str(path), np.zeros((16, 24), np.uint8), [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    assert is_lossy(path.read_bytes()) is lossy
