"""A dataset with synthetic defects in its training parts, for approaches that learn from labelled ones.

    synthesize(Dataset.open("datasets/bottle"), Path("datasets/bottle-cutpaste"), SynthesisOptions(method="cutpaste"))

Each fold has synthetic images of its own, made of good images of its training part alone, so that nothing of `val` or
`test` gets into it; they have the type `synthetic` and the group of the image they were made of. `val`, `test` and the
source's own parts stay as they are, and so do all ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from baselines._anomalies import Maker, Method, maker
from baselines._gan import SIDE
from baselines._loop import LoopConfig, in_processes
from baselines._torch import load_images, require_at_least
from maskbridge.approach import Context
from maskbridge.card import make_card
from maskbridge.dataset import SYNTHETIC, Dataset, Image
from maskbridge.errors import DatasetError, OptionError
from maskbridge.export import place_image
from maskbridge.files import sha256_bytes, sha256_file, write_bytes, write_json
from maskbridge.folders import scratch_folder, staged_folder
from maskbridge.geometry import instances
from maskbridge.options import require_usable
from maskbridge.progress import say, track

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Part of the source that the images are said to be of.
PART = "train"


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """Options of `maskbridge synthesize`."""

    method: Method = "cutpaste"
    """pieces of the image pasted elsewhere, or blended in along random noise, or the changes of a small GAN trained on
    the good images of the fold"""
    count: int = 50
    """synthetic images in the training part of each fold"""
    seed: int = 0
    """seed of everything random"""
    device: str = "auto"
    """where a GAN is trained: auto (a GPU where there is one), cpu, cuda or cuda:N"""
    link: Literal["hard", "copy", "symlink"] = "hard"
    """how the images of DATASET are put into OUT"""
    overwrite: bool = False
    """replace a dataset that is there"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require_usable(SynthesisOptions, vars(self))
        require_at_least(self, count=1)


@dataclass(frozen=True)
class _Made:
    """Synthetic images of a fold, and their instances."""

    images: list[Image]
    annotations: list[dict[str, Any]]


def synthesize(dataset: Dataset, out: Path, options: SynthesisOptions) -> None:
    """Write the dataset folder `out`, whole or not at all.

    Args:
        dataset: The dataset; it is only read.
        out: The folder to make.
        options: See `SynthesisOptions`.

    Raises:
        DatasetError: When it has synthetic defects already, or a fold has no good image to make them of.
        OptionError: When `out` lies in the dataset or around it.
        MaskbridgeError: When `out` is taken.
    """
    _refuse(dataset, out)
    with staged_folder(out, overwrite=options.overwrite, kind="dataset") as folder:
        ways = Counter(
            place_image(dataset, image, folder / "images" / image.file_name, options.link)
            for image in track(dataset.images, "linking images")
        )
        category = 1 + max((each["id"] for each in dataset.categories), default=0)
        images = list(dataset.images)
        annotations: list[dict[str, Any]] = [{**annotation} for annotation in dataset.annotations]
        splits = {**dataset.splits, "folds": [dict(parts) for parts in dataset.splits["folds"]]}
        for fold, parts in enumerate(splits["folds"]):
            next_image = 1 + max(image.id for image in images)
            next_annotation = 1 + max((annotation["id"] for annotation in annotations), default=0)
            made = _of_fold(dataset, fold, folder, options, next_image, next_annotation, category)
            images += made.images
            annotations += made.annotations
            parts["train"] = [*parts["train"], *(image.id for image in made.images)]
        told = {"method": options.method, "images_per_fold": options.count, "seed": options.seed}
        changes = {SYNTHETIC: told, "images_put_there_by": dict(sorted(ways.items()))}
        _write(dataset, folder, images, annotations, category, splits, changes)
    say(
        f"{out}: {options.count} synthetic images in the training part of each of {dataset.fold_count} folds, "
        f"{len(annotations) - len(dataset.annotations)} defects in all"
    )


def _refuse(dataset: Dataset, out: Path) -> None:
    if any(category["name"] == SYNTHETIC for category in dataset.categories):
        raise DatasetError("has synthetic defects already", where=dataset.path, remedy="take the dataset without them")
    here, there = out.resolve(), dataset.path.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise OptionError("OUT and DATASET lie in each other", where=out, remedy="choose a folder elsewhere")
    for fold in range(dataset.fold_count or 1):  # the first is refused where there are none
        if not _good(dataset, fold):
            raise DatasetError(f"fold {fold} has no good image in its training part", where=dataset.path)


def _good(dataset: Dataset, fold: int) -> list[int]:
    return [image_id for image_id in dataset.split(fold).train if dataset.image_by_id[image_id].is_good]


def _of_fold(
    dataset: Dataset,
    fold: int,
    folder: Path,
    options: SynthesisOptions,
    next_image: int,
    next_annotation: int,
    category: int,
) -> _Made:
    """Make the synthetic images of a fold, their ids counted from the next ones."""
    sources = _good(dataset, fold)
    rng = np.random.default_rng([options.seed, fold])
    with scratch_folder("synthesis") as work:
        context = Context(device=options.device, seed=options.seed + fold, work=work)
        make = in_processes(_maker, dataset, sources, options.method, config=LoopConfig(), context=context)
    drawn = [sources[i] for _ in range(-(-options.count // len(sources))) for i in rng.permutation(len(sources))]
    made = _Made([], [])
    for number, source in enumerate(track(drawn[: options.count], f"fold {fold}"), start=1):
        changed, mask = make(dataset.read_image(source), rng)
        file_name = f"{PART}/{SYNTHETIC}/fold{fold}-{number:04}.png"
        data = cv2.imencode(".png", changed[..., ::-1])[1].tobytes()
        write_bytes(folder / "images" / file_name, data)
        image = Image(
            id=next_image + len(made.images),
            file_name=file_name,
            width=changed.shape[1],
            height=changed.shape[0],
            sha256=sha256_bytes(data),
            origin=f"{PART}/{SYNTHETIC}",
            group=dataset.image_by_id[source].group,
        )
        made.images.append(image)
        for instance in instances(mask, split=dataset.whole_card["rules"]["instances"] == "components")[0]:
            ids = {"id": next_annotation + len(made.annotations), "image_id": image.id, "category_id": category}
            made.annotations.append({**ids, **instance, "iscrowd": 0})
    return made


def _maker(
    fabric: Fabric, dataset: Dataset, sources: Sequence[int], method: Method, *, config: LoopConfig, context: Context
) -> Maker:
    images = load_images(dataset, sources if method == "gan" else (), SIDE, context)
    return maker(method, images, fabric, context, dataset.whole_card["rules"]["min_area"])


def _write(
    dataset: Dataset,
    folder: Path,
    images: Sequence[Image],
    annotations: Sequence[dict[str, Any]],
    category: int,
    splits: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    categories = [*map(dict, dataset.categories), {"id": category, "name": SYNTHETIC, "supercategory": dataset.product}]
    write_json(
        folder / "annotations.json",
        {
            "info": {"description": dataset.product, "contributor": "maskbridge synthesize"},
            "images": [asdict(image) for image in images],
            "annotations": annotations,
            "categories": categories,
        },
    )
    write_json(folder / "splits.json", splits)
    card = make_card(
        product=dataset.product,
        images=images,
        bit_depth=dataset.bit_depth,
        annotations=annotations,
        categories=categories,
        splits=splits,
        rules=dataset.whole_card["rules"],
        origin=dataset.whole_card["source"],
        options=dataset.whole_card["options"],
        changes={**dataset.whole_card["changes"], **changes},
        sha256={name: sha256_file(folder / name) for name in ("annotations.json", "splits.json")},
    )
    write_json(folder / "dataset.json", card)
