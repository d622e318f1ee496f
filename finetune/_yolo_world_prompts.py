"""What YOLO-World is asked for: a text for each defect type.

prompts(dataset, ["broken_large=large break in the glass rim"])     # {"broken_large": "large break …", …}
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from maskbridge.dataset import Dataset
from maskbridge.errors import DatasetError, OptionError

#: Ultralytics caps the classes of a YOLO-World in training here.
MOST_TYPES = 80


def prompts(dataset: Dataset, given: Sequence[str] = ()) -> dict[str, str]:
    """Prompt of each defect type, in class order.

    Args:
        dataset: The dataset.
        given: `type=text` for types whose prompt is not product and type with underscores as spaces.

    Raises:
        DatasetError: When there are too many types, or Ultralytics would cut a name.
        OptionError: When a given prompt does not fit, or two types have the same one.
    """
    names = [category["name"] for category in dataset.categories]
    if len(names) > MOST_TYPES:
        raise DatasetError(
            "too many defect types", where=dataset.path, found=len(names), expected=f"at most {MOST_TYPES}"
        )
    for name in names:
        if name != name.strip():
            raise DatasetError(
                "a defect type begins or ends with a space, which Ultralytics takes off",
                where=dataset.path,
                found=repr(name),
                remedy="rename the type in the source and convert it again",
            )
        if "/" in name:
            raise DatasetError(
                "a defect type has a slash, where YOLO-World cuts names",
                where=dataset.path,
                found=name,
                remedy="rename the type in the source and convert it again",
            )
    texts = {name: default_prompt(dataset.product, name) for name in names}
    for word in given:
        name, separator, text = word.partition("=")
        if not separator or not text.strip():
            raise OptionError("--prompt is not understood", found=word, expected='type="text"')
        if name not in texts:
            near = difflib.get_close_matches(name, names, n=1)
            raise OptionError(
                "--prompt names no defect type",
                found=name,
                expected=", ".join(names),
                remedy=f"did you mean {near[0]}?" if near else None,
            )
        texts[name] = text.strip()
    of_text: dict[str, str] = {}
    for name, text in texts.items():
        read = as_read(text)
        if read in of_text:
            raise OptionError(
                "two defect types have the same prompt, and could not be told apart",
                found=f"{of_text[read]} and {name}: {text}",
                remedy=f'give one of them another: --prompt {name}="…"',
            )
        of_text[read] = name
    return texts


def as_read(text: str) -> str:
    """What CLIP's text encoder sees of a text: small letters, single spaces."""
    return " ".join(text.casefold().split())


def default_prompt(product: str, name: str) -> str:
    """Product and type, underscores as spaces."""
    return f"{product} {name}".replace("_", " ")
