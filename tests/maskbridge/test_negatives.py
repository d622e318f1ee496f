from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskbridge.errors import OptionError
from maskbridge.negatives import choose_negatives, negative_count


@pytest.mark.parametrize(
    ("negatives", "count"),
    [
        ("all", 30), ("0", 0), ("1", 1), ("20", 20), ("31", 30), ("0.5", 5), ("1.0", 10), ("2x", 20), ("1x", 10),
        ("0.05", 0), ("9.9", 30), ("1e9x", 30), ("0.0", 0),
    ],
)  # fmt: skip
def test_all_a_number_or_a_ratio(negatives, count):
    assert negative_count(negatives, good=30, defective=10) == count


@pytest.mark.parametrize(
    "negatives", ["", "x", "many", "-1", "-0.5", "nanx", "infx", "nan", "inf", "1e500x", "1:2", "50%"]
)
def test_anything_else_is_refused_with_the_three_ways(negatives):
    with pytest.raises(OptionError, match=r"--negatives is not understood; found .*; expected all, a number .* ratio"):
        negative_count(negatives, good=30, defective=10)


@given(st.sets(st.integers(1, 10**6), max_size=40), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_the_choice_is_a_sorted_seeded_subset_of_the_size_asked_for(good, count, seed):
    ids = sorted(good)
    chosen = choose_negatives(str(count), good=ids, defective=3, seed=seed)
    assert chosen == sorted(set(chosen)) == choose_negatives(str(count), good=ids, defective=3, seed=seed)
    assert set(chosen) <= good
    assert len(chosen) == min(count, len(good))


def test_another_seed_chooses_others():
    ids = range(1, 101)
    assert choose_negatives("10", good=ids, defective=0, seed=0) != choose_negatives(
        "10", good=ids, defective=0, seed=1
    )
