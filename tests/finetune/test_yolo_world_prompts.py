from __future__ import annotations

import dataclasses

import pytest

from finetune._yolo_world_prompts import MOST_TYPES, prompts
from maskbridge.dataset import Category, Dataset
from maskbridge.errors import DatasetError, OptionError

NAMES = ["chip", "scratch", "stain"]


@pytest.fixture
def dataset(plates):
    return Dataset.open(plates)


def with_types(dataset, names):
    categories = tuple(
        Category(id=number, name=name, supercategory=dataset.product) for number, name in enumerate(names, 1)
    )
    return dataclasses.replace(dataset, categories=categories)


def test_without_a_prompt_it_is_product_and_type_with_spaces(dataset):
    assert prompts(dataset) == {name: f"plate {name}" for name in NAMES}
    assert prompts(with_types(dataset, ["broken_large"])) == {"broken_large": "plate broken large"}


def test_a_prompt_is_given_by_type_and_may_hold_anything_else(dataset):
    found = prompts(dataset, ["stain=a=b, c/d", "chip= a chip in the rim "])
    assert found == {"chip": "a chip in the rim", "scratch": "plate scratch", "stain": "a=b, c/d"}
    assert list(found) == NAMES, "class order"


@pytest.mark.parametrize("word", ["chip", "chip=", "chip=  ", ""])
def test_a_word_without_a_text_is_refused(dataset, word):
    with pytest.raises(OptionError, match=r"--prompt is not understood; found .*; expected type=\"text\""):
        prompts(dataset, [word])


def test_a_type_that_is_not_there_is_refused_with_the_nearest(dataset):
    with pytest.raises(OptionError, match=r"names no defect type; found scrath; .*did you mean scratch"):
        prompts(dataset, ["scrath=x"])


def test_two_types_with_one_prompt_are_refused(dataset):
    with pytest.raises(OptionError, match=r"the same prompt.*found chip and stain: plate stain"):
        prompts(dataset, ["chip=plate stain"])
    with pytest.raises(OptionError, match="found a_b and a b: plate a b"):
        prompts(with_types(dataset, ["a_b", "a b"]))


def test_prompts_that_clip_reads_alike_are_the_same(dataset):
    with pytest.raises(OptionError, match="the same prompt"):
        prompts(dataset, ["chip=A  Dent", "stain=a dent"])
    with pytest.raises(OptionError, match="the same prompt"):
        prompts(with_types(dataset, ["Scratch", "scratch"]))


def test_a_name_with_outer_spaces_is_refused(dataset):
    with pytest.raises(DatasetError, match="begins or ends with a space"):
        prompts(with_types(dataset, ["chip "]))


def test_a_name_that_ultralytics_would_cut_is_refused(dataset):
    with pytest.raises(DatasetError, match="has a slash, where YOLO-World cuts names; found chip/rim"):
        prompts(with_types(dataset, ["chip/rim"]))


def test_more_types_than_ultralytics_trains_are_refused(dataset):
    names = [f"type{number}" for number in range(MOST_TYPES + 1)]
    assert len(prompts(with_types(dataset, names[:-1]))) == 80
    with pytest.raises(DatasetError, match="too many defect types; found 81; expected at most 80"):
        prompts(with_types(dataset, names))
