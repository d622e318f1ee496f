"""Predicting with a trained run: into its folder, or into a second run of the same weights with other options.

predict_run(run, run.dataset(), "test")
predict_run(run, run.dataset(), "test", changes={"prompts": "oracle"}, out=Path("runs/second"))

A run is never changed by it but for the part that is added.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskbridge import plugins
from maskbridge.approach import Approach, Context, PredictData, Prediction
from maskbridge.dataset import Dataset
from maskbridge.errors import OptionError, RunError
from maskbridge.files import link_file
from maskbridge.folders import final, held, staged_folder
from maskbridge.meters import Clock, PhaseMeter
from maskbridge.options import from_stored
from maskbridge.predictions import Run, refuse_not_finite, write_predictions
from maskbridge.progress import say
from maskbridge.run_folders import clear
from maskbridge.thresholds import fold_thresholds


def predict_run(
    run: Run,
    dataset: Dataset,
    part: str,
    *,
    device: str = "auto",
    changes: dict[str, Any] | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Predict the images of a part with a trained run.

    The part is added to the run, or exchanged for that of an earlier prediction once all of it is there; nothing else
    of the run changes.

    Args:
        run: A run of one fold.
        dataset: Its dataset.
        part: `val` or `test`.
        device: As in `Settings`.
        changes: Options of the approach to set anew; they need `out`.
        out: A run folder to make for it, with the same weights and thresholds fitted anew on `val`; the run itself is
            left as it is.
        overwrite: Replace `out` if it is a run.

    Raises:
        RunError: When the run is a merged cross-validation, or has no such part, or `out` lies in or around it.
        OptionError: When options change without `out`, or `out` is given on the official split, which has no `val`.
        MaskbridgeError: When `out` is taken, or another command works on the run.
    """
    fold = run.info["fold"]
    if fold == "all":
        raise RunError("is a merged cross-validation", where=run.path, remedy=f"predict one fold: {run.path}/fold0")
    if (run.path / "predictions").is_symlink():
        raise RunError("is a link, and predictions are written into the run alone", where=run.path / "predictions")
    dataset = dataset.read_at_depth(run.info.get("bit_depth", 8))
    approach: Approach = plugins.load("approach", run.info["approach"])
    config = from_stored(approach.Config, {**run.info["options"], **(changes or {})}, run.path / "run.json")
    old, options = run.info["options"], as_read_back(config)
    if getattr(config, "prompts", None) in (str(run.path), str(run.path.parent), os.path.abspath(out or run.path)):
        raise RunError("cannot prompt itself", where=run.path, remedy="name another run")
    split = dataset.split(fold)
    if not split.part(part):
        raise RunError(f"fold {fold} has no part {part}", where=run.path)
    free = getattr(approach, "SAME_RESULT_OPTIONS", ())
    changed = ", ".join(f"{k} {old.get(k)} -> {v}" for k, v in options.items() if old.get(k) != v and k not in free)
    if fold == "official" and (changed or out is not None):
        raise OptionError(
            "thresholds of the official split are those of the training, and there is no val to fit others on",
            where=run.path,
            found=changed or "--out",
            remedy="train again",
        )
    if changed and out is None:
        raise OptionError(
            "other options make another run", where=run.path, found=changed, remedy="name a folder for it with --out"
        )
    if out is None:
        with held(run.path):
            clear(run.path)
            info = _predict_into(run.path, run, run.info, approach, dataset, config, (part,), device)
    else:
        info = {
            **run.info,
            **truth_given(approach, config),
            "options": options,
            "trained_options": run.info.get("trained_options", old),
            **{
                cost: {"train": phases["train"]}
                for cost in ("seconds", "peak_memory_mb")
                if "train" in (phases := run.info.get(cost) or {})
            },
        }
        out = Path(os.path.abspath(out))
        with second_run(run, out, overwrite=overwrite) as folder:
            _link_weights(run.weights, folder / "weights")
            parts = tuple(dict.fromkeys(("val", part)))
            info = _predict_into(folder, run, info, approach, dataset, config, parts, device)
        say(f"{final(out)}: {changed or 'the same options'}; thresholds were fitted anew on val")
    say(f"{final(out or run.path)}: {len(split.part(part))} images of {part} predicted")
    return Run(out or run.path, info)


def _predict_into(
    folder: Path,
    run: Run,
    info: dict[str, Any],
    approach: Approach,
    dataset: Dataset,
    config: Any,
    parts: tuple[str, ...],
    device: str,
) -> dict[str, Any]:
    """Write predictions of parts into a run folder, then its run.json; thresholds are fitted where `val` is one."""
    context = Context(device=device, seed=info.get("seed") or 0, work=folder / "work")
    seconds, peak_mb, fold = dict(info.get("seconds") or {}), dict(info.get("peak_memory_mb") or {}), info["fold"]
    try:
        for part in parts:
            clock = Clock(context.spared)
            with PhaseMeter(context.spared) as predicting:
                ids = dataset.split(fold).part(part)
                predictions = predict_images(approach, run, dataset, ids, config, context, part)
                write_predictions(folder, part, clock.measure(predictions))
            seconds[part], peak_mb[part] = predicting.seconds, predicting.peak_mb
        info = {**info, "seconds": seconds, "peak_memory_mb": peak_mb, "predict_ms_per_image": clock.ms_per_image}
        if folder != run.path:
            info["thresholds"] = {str(fold): fold_thresholds(Run(folder, info), dataset)}
        return Run(folder, info).save().info
    finally:
        shutil.rmtree(context.work, ignore_errors=True)


@contextlib.contextmanager
def second_run(run: Run, out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to make a second run of the same weights in; it becomes `out` when the block ends well.

    Raises:
        RunError: When `out` lies in or around the first run, or is it.
        MaskbridgeError: When `out` is taken, or another command changes the first run.
    """
    place = out.resolve()
    if place == run.path or place in run.path.parents or run.path in place.parents:
        raise RunError("lies in or around the run itself", where=out, found=run.path, remedy="name another folder")
    with held(run.path, shared=True), staged_folder(out, overwrite=overwrite, kind="run") as folder:
        yield folder


def as_read_back(config: Any) -> dict[str, Any]:
    """Options as a run.json gives them back."""
    options: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return options


def truth_given(approach: Approach, config: Any) -> dict[str, Any]:
    """`truth_given` of run.json: what of the truth the predictions are given; None for honest ones."""
    hook = getattr(approach, "truth_given", None)
    return {"truth_given": None if hook is None else hook(config)}


def _link_weights(weights: Path, out: Path) -> None:
    """The same files in another folder, hard-linked where possible."""
    out.mkdir()
    for source in sorted(path for path in weights.rglob("*") if path.is_file()):
        link_file(source, out / source.relative_to(weights), "hard")


def predict_images(
    approach: Approach,
    run: Run,
    dataset: Dataset,
    image_ids: tuple[int, ...],
    config: Any,
    context: Context,
    part: str = "val",
) -> Iterator[Prediction]:
    """Predictions of some images, checked, with a progress bar."""
    context.work.mkdir(parents=True, exist_ok=True)
    data = PredictData(dataset=dataset, image_ids=image_ids, fold=run.info["fold"], part=part)
    predictions = in_order(approach.predict(data, config, run.weights, context), image_ids, run.path)
    return context.track(predictions, f"{run.info['approach']} predicts", total=len(image_ids))


def in_order(predictions: Iterable[Prediction], image_ids: tuple[int, ...], where: Path) -> Iterator[Prediction]:
    """Pass on finite predictions, one for each image, in order; refuse others."""
    asked = iter(image_ids)
    for prediction in predictions:
        if prediction.image_id != (expected := next(asked, None)):
            raise RunError(
                "the approach predicted another image than it was asked for",
                where=where,
                found=prediction.image_id,
                expected=expected,
            )
        refuse_not_finite(prediction, where)
        yield prediction
    if (left_out := next(asked, None)) is not None:
        raise RunError(f"the approach did not predict image {left_out}", where=where)
