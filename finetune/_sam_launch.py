"""Start the processes of a training with Lightning Fabric, on one device or many.

    told = launch(train_in_process, config, context, *arguments)

Several devices of one machine are processes that this one starts. On several machines the same command is given on
each, with `NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT` set; the run folder is that of the first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning_fabric import Fabric

from maskbridge.approach import Context
from maskbridge.errors import OptionError
from maskbridge.memory import keep_freed_memory
from maskbridge.processes import together
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
    settings = {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": config.nodes,
        "precision": _PRECISIONS[precision],
        "strategy": "ddp" if count * config.nodes > 1 else "auto",
    }
    threads = max(1, torch.get_num_threads() // count) if accelerator == "cpu" else torch.get_num_threads()
    whole = partial(work, config=config, context=context)
    told: Result = together(count, _in_process, settings, threads, whole, *arguments, nodes=config.nodes)
    return told


def device_of(name: str) -> torch.device:
    """The device that prediction runs on; of several the first.

    Raises:
        OptionError: When it cannot be used.
    """
    accelerator, devices = _devices(name, 1)
    if accelerator == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", 0 if isinstance(devices, int) else devices[0])


def _in_process(settings: dict[str, Any], threads: int, work: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(threads)
    fabric = Fabric(**settings)
    fabric.launch()
    with _deterministic(fabric):
        return work(fabric, *arguments)


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
