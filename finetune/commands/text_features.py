"""Write text features of prompts, for training YOLO-World where there is no text encoder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from maskbridge.progress import show


def add_arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the command."""
    parser.add_argument("out", type=Path, metavar="OUT", help=".npz file to write, for --text-features")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="further texts to write features of")
    parser.add_argument("--dataset", type=Path, metavar="DATASET", help="dataset whose defect types are prompts")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar='TYPE="TEXT"',
        help="what a type of the dataset is called, as in training (default: product and type with spaces)",
    )
    parser.add_argument(
        "--coco",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the 80 COCO names too, by which forgetting is measured (default: yes)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from finetune import _yolo_world_text as text
    from finetune._yolo_world_prompts import prompts
    from maskbridge.dataset import Dataset
    from maskbridge.errors import OptionError

    texts = list(arguments.texts)
    if arguments.dataset is not None:
        texts += prompts(Dataset.open(arguments.dataset), arguments.prompt).values()
    elif arguments.prompt:
        raise OptionError("--prompt is of a dataset's types", expected="--dataset DATASET beside it")
    if not texts:
        raise OptionError("nothing to write features of", expected="texts, or --dataset DATASET")
    if arguments.out.suffix != ".npz":
        raise OptionError("text features are an .npz file", found=arguments.out)
    if arguments.coco:
        from finetune._yolo_world_models import coco_names

        texts += coco_names()
    texts = list(dict.fromkeys(texts))
    text.write_features(arguments.out, texts, text.encode(texts), text.encoder_name())
    show(f"{arguments.out}: {len(texts)} texts")
    return 0
