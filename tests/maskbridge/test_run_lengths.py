from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from maskbridge.geometry import encode
from maskbridge.run_lengths import run_lengths


def test_every_defect_of_the_zoo_gives_its_runs(zoo):
    for mask in zoo.values():
        np.testing.assert_array_equal(run_lengths(encode(mask)["counts"]), runs_of(mask))


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(10, 40)), elements=st.integers(0, 1)))
def test_the_runs_of_any_mask_cover_the_image_and_its_area(mask):
    runs = run_lengths(encode(mask)["counts"])
    assert runs.sum() == mask.size
    assert runs[1::2].sum() == mask.sum()
    np.testing.assert_array_equal(runs, runs_of(mask))


@given(st.lists(st.integers(0, 2**22), min_size=1, max_size=9))
def test_runs_of_any_length_are_those_pycocotools_wrote(runs):
    packed = coco_mask.frPyObjects({"size": [sum(runs), 1], "counts": runs}, sum(runs), 1)
    assert run_lengths(packed["counts"].decode("ascii")).tolist() == runs


def test_no_text_is_no_run():
    assert run_lengths("").tolist() == []


@pytest.mark.parametrize("counts", ["o", "0o", "/", "p", "é", "\0", "O", "11N", "o" * 20 + "0"])
def test_what_is_none_is_refused(counts):
    with pytest.raises(ValueError, match=r"not a compressed|negative length|60 bits|ascii"):
        run_lengths(counts)


def runs_of(mask):
    """Lengths of runs in column order; the first one is of background, and may be 0."""
    flat = (mask > 0).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size])
    return np.concatenate([[0], lengths]) if flat[0] else lengths
