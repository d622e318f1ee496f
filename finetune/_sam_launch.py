"""Start the processes of a training with Lightning Fabric, on one device or many.

    told = launch(train_in_process, config, context, *arguments)

Several devices of one machine are processes that this one starts. On several machines the same command is given on
each, with `NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT` set; the run folder is that of the first.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from finetune._memory import keep_freed_memory
from maskbridge.approach import Context
from maskbridge.errors import MaskbridgeError, OptionError
from maskbridge.progress import QUIET_VARIABLE
from maskbridge.weights import AUTO

if TYPE_CHECKING:
    from finetune.sam import Config

Result = TypeVar("Result")

keep_freed_memory()
# Fabric tells of every process that it starts; each of them imports this module first.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def launch(work: Callable[..., Result], config: Config, context: Context, *arguments: Any) -> Result:
    """Call `work(fabric, *arguments, config, context)` in every process.

    Returns:
        What the first process returns.

    Raises:
        OptionError: When devices, nodes or precision cannot be had.
    """
    accelerator, devices = _devices(context.device, config.devices)
    count = devices if isinstance(devices, int) else len(devices)
    precision = config.precision
    if precision == AUTO:
        precision = "bf16" if accelerator == "cuda" and torch.cuda.is_bf16_supported() else "32"
    if precision == "16" and accelerator == "cpu":
        raise OptionError("--precision 16 needs a GPU", expected="32 or bf16")
    if config.nodes < 1:
        raise OptionError("--nodes cannot be used", found=config.nodes, expected="1 or more")
    several = count * config.nodes > 1
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=config.nodes,
        precision=_PRECISIONS[precision],  # type: ignore[arg-type]
        strategy=DDPStrategy(start_method="spawn") if several else "auto",
    )
    threads = max(1, torch.get_num_threads() // count) if accelerator == "cpu" else torch.get_num_threads()
    if several:
        whole = partial(work, config=config, context=context)
        with TemporaryDirectory() as folder:
            try:
                told = fabric.launch(partial(_spawned, threads, whole, arguments, Path(folder)))
            except ProcessException as error:
                raise _reason(error, Path(folder)) from None
        return cast(Result, pickle.loads(told))  # of our own process; Fabric takes the things that it knows apart
    fabric.launch()
    with _deterministic(fabric):
        return work(fabric, *arguments, config=config, context=context)


def device_of(name: str) -> torch.device:
    """The device that prediction runs on; of several the first.

    Raises:
        OptionError: When it cannot be used.
    """
    accelerator, devices = _devices(name, 1)
    if accelerator == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", 0 if isinstance(devices, int) else devices[0])


def _spawned(
    threads: int, work: Callable[..., Result], arguments: tuple[Any, ...], folder: Path, fabric: Fabric
) -> bytes:
    """One of several processes: its result, pickled; what the user can mend is left in the folder.

    The other processes only notice that this one is gone.
    """
    torch.set_num_threads(threads)
    if not fabric.is_global_zero:
        os.environ[QUIET_VARIABLE] = "1"
    try:
        with _deterministic(fabric):
            return pickle.dumps(work(fabric, *arguments))
    except (MaskbridgeError, OSError) as error:
        kept = type(error)(str(error)) if isinstance(error, MaskbridgeError) else error
        (folder / f"{fabric.global_rank}").write_bytes(pickle.dumps(kept))
        raise


def _reason(error: ProcessException, folder: Path) -> Exception:
    """Why processes stopped: what one of them left in the folder, which nobody else can write to."""
    left = sorted(folder.iterdir())
    if left:
        return cast(Exception, pickle.loads(left[0].read_bytes()))
    if isinstance(error, ProcessExitedException):
        found = error.signal_name or f"exit code {error.exit_code}"
        return MaskbridgeError("a process of the training was stopped", found=found, remedy="is the memory enough?")
    return error


@contextmanager
def _deterministic(fabric: Fabric) -> Iterator[None]:
    """On a CPU the same numbers each time; on a GPU some of what is needed has no such form."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or fabric.device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _devices(name: str, count: int) -> tuple[str, int | list[int]]:
    """Accelerator, and number of devices or which ones."""
    if count < 1:
        raise OptionError("--devices cannot be used", found=count, expected="1 or more")
    kind, _, numbers = name.partition(":")
    if kind == AUTO:
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind.replace(",", "").isdecimal():
        kind, numbers = "cuda", kind
    if kind not in ("cpu", "cuda") or not all(number.isdecimal() for number in numbers.split(",") if numbers):
        raise OptionError("--device cannot be used", found=name, expected="auto, cpu, cuda, cuda:N, N or 0,1")
    if kind == "cpu":
        return kind, count
    chosen = [int(number) for number in numbers.split(",")] if numbers else list(range(count))
    if numbers and count not in (1, len(chosen)):
        found = f"--devices {count} with --device {name}"
        raise OptionError("--devices does not fit", found=found, expected=f"{len(chosen)}, or --device cuda")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if max(chosen) >= there:
        expected = f"one of {there} GPUs"
        raise OptionError("--device cannot be used", found=name, expected=expected, remedy="try --device auto")
    return kind, chosen
