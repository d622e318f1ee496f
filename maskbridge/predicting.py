"""Predicting with a trained run: into its folder, or into a second run of the same weights with other options.

predict_run(run, run.dataset(), "test")
predict_run(run, run.dataset(), "test", changes={"prompts": "oracle"}, out=Path("runs/second"))
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
from maskbridge.files import link_file, staged_folder
from maskbridge.meters import Clock, PhaseMeter
from maskbridge.options import from_stored
from maskbridge.predictions import Run, refuse_not_finite, write_predictions
from maskbridge.progress import say
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

    Nothing of the run, or of a run in the place of `out`, is touched before all predictions are there.

    Args:
        run: A run of one fold.
        dataset: Its dataset.
        part: `val` or `test`.
        device: As in `Settings`.
        changes: Options of the approach to set anew. Thresholds are then fitted again on `val`, and predictions
            made with other options are removed.
        out: A run folder to make for it, with the same weights; the run itself is left as it is.
        overwrite: Replace `out` if it is a run.

    Raises:
        RunError: When the run is a merged cross-validation, or has no such part, or `out` lies in or around it.
        OptionError: When options are changed on the official split, whose held-back model is gone, or `out` is given.
        MaskbridgeError: When `out` is taken.
    """
    fold = run.info["fold"]
    if fold == "all":
        raise RunError("is a merged cross-validation", where=run.path, remedy=f"predict one fold: {run.path}/fold0")
    if (run.path / "predictions").is_symlink():
        raise RunError("is a link, and predictions are written into the run alone", where=run.path / "predictions")
    approach: Approach = plugins.load("approach", run.info["approach"])
    config = from_stored(approach.Config, {**run.info["options"], **(changes or {})}, run.path / "run.json")
    old, options = run.info["options"], as_read_back(config)
    if getattr(config, "prompts", None) in (str(run.path), str(run.path.parent), os.path.abspath(out or run.path)):
        raise RunError("cannot prompt itself", where=run.path, remedy="name another run")
    split = dataset.split(fold)
    if not split.part(part):
        raise RunError(f"fold {fold} has no part {part}", where=run.path)
    if fold == "official" and options != old:
        raise OptionError(
            "thresholds of the official split were set with other options", where=run.path, remedy="train again"
        )
    if fold == "official" and out is not None:
        raise OptionError("a second run fits its thresholds on val, and the official split has none", where=run.path)
    anew = options != old or out is not None
    path = run.path if out is None else Path(os.path.abspath(out))
    info = {**run.info, "options": options}
    if anew:
        info |= {**truth_given(approach, config), "trained_options": run.info.get("trained_options", old)}
    with contextlib.nullcontext(run.path) if out is None else second_run(run, path, overwrite=overwrite) as folder:
        context = Context(device=device, seed=run.info.get("seed") or 0, work=folder / "work")
        fresh = Run(context.work / "predicted", info)
        seconds = {phase: value for phase, value in (info.get("seconds") or {}).items() if phase == "train" or not anew}
        peak_mb = {phase: value for phase, value in (info.get("peak_memory_mb") or {}).items() if phase in seconds}
        try:
            for each in dict.fromkeys(("val", part) if anew else (part,)):
                clock = Clock(context.spared)
                with PhaseMeter(context.spared) as predicting:
                    predictions = predict_images(approach, run, dataset, split.part(each), config, context, each)
                    write_predictions(fresh.path, each, clock.measure(predictions))
                seconds[each], peak_mb[each] = predicting.seconds, predicting.peak_mb
            thresholds = {str(fold): fold_thresholds(fresh, dataset)} if anew else info.get("thresholds")
            if out is not None:
                _link_weights(run.weights, folder / "weights")
            info |= {"thresholds": thresholds, "seconds": seconds, "peak_memory_mb": peak_mb}
            info["predict_ms_per_image"] = clock.ms_per_image
            if anew:  # a kill from here on leaves predictions out, and never those of other options
                shutil.rmtree(folder / "predictions", ignore_errors=True)
            Run(folder, info).save()
            _replace_predictions(folder, fresh.path)
        finally:
            shutil.rmtree(context.work, ignore_errors=True)
    if anew:
        changed = ", ".join(f"{k} {old.get(k)} -> {v}" for k, v in options.items() if old.get(k) != v)
        say(f"{path}: from now on {changed or 'the same options'}; thresholds were fitted anew on val")
    say(f"{path}: {len(split.part(part))} images of {part} predicted")
    return Run(path, info)


@contextlib.contextmanager
def second_run(run: Run, out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to make a second run of the same weights in; it becomes `out` when the block ends well.

    Raises:
        RunError: When `out` lies in or around the first run, or is it.
        MaskbridgeError: When `out` is taken.
    """
    place = out.resolve()
    if place == run.path or place in run.path.parents or run.path in place.parents:
        raise RunError("lies in or around the run itself", where=out, found=run.path, remedy="name another folder")
    with staged_folder(out, overwrite=overwrite, kind="run") as folder:
        yield folder


def as_read_back(config: Any) -> dict[str, Any]:
    """Options as a run.json gives them back."""
    options: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return options


def truth_given(approach: Approach, config: Any) -> dict[str, Any]:
    """`truth_given` of run.json: what of the truth the predictions are given; None for honest ones."""
    hook = getattr(approach, "truth_given", None)
    return {"truth_given": None if hook is None else hook(config)}


def _replace_predictions(folder: Path, fresh: Path) -> None:
    """Move the predictions of one run folder into another."""
    for part in sorted((fresh / "predictions").iterdir()):
        shutil.rmtree(folder / "predictions" / part.name, ignore_errors=True)
        (folder / "predictions").mkdir(exist_ok=True)
        os.replace(part, folder / "predictions" / part.name)


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
