"""The training loop of the baselines that learn by gradients: on one device or several, and going on after a kill.

    def work(fabric, *, config, context):                       # runs in every process
        player = Player(network, lambda networks, rows: networks[0](images[rows]).square().mean(dim=1))
        [losses] = optimise(fabric, [player], len(images), "deep-svdd", config, context)
        return losses
    losses = in_processes(work, config=config, context=context)

Devices and gradients over several of them are Lightning Fabric's (https://lightning.ai/docs/fabric). What is random
belongs to the seed, the epoch and the process, so a training that goes on ends at the same numbers on a CPU; on a GPU
kernels may round otherwise each time.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from baselines._torch import choose_device, require_at_least, require_finite_loss
from maskbridge.approach import Context
from maskbridge.errors import OptionError
from maskbridge.files import open_regular, write_bytes
from maskbridge.memory import keep_freed_memory
from maskbridge.processes import together
from maskbridge.progress import say
from maskbridge.run_folders import gone_on_with

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

Result = TypeVar("Result")

#: Seconds of training that a kill costs at most, beside the epoch that it falls in.
KEEP_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Options of training."""

    epochs: int = 20
    """passes over the training images"""
    batch_size: int = 32
    """images in a training step, over all devices"""
    learning_rate: float = 1e-4
    """learning rate of Adam"""
    weight_decay: float = 0.0
    """L2 penalty on the weights"""
    devices: int = 1
    """GPUs, or processes on a CPU, that a training step is shared by"""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require_at_least(self, epochs=1, batch_size=1, learning_rate=1e-12, weight_decay=0, devices=1)


@dataclass(frozen=True)
class Player:
    """One of the networks that take turns.

    Attributes:
        network: What is trained; parameters without gradients stay.
        losses: Of the networks of all players, in their order, and of row numbers, B, int64, on the CPU: the loss of
            each row, B.
        betas: Of Adam.
    """

    network: torch.nn.Module
    losses: Callable[[Sequence[torch.nn.Module], torch.Tensor], torch.Tensor]
    betas: tuple[float, float] = (0.9, 0.999)


def in_processes(work: Callable[..., Result], *arguments: Any, config: LoopConfig, context: Context) -> Result:
    """Call `work(fabric, *arguments, config=config, context=context)` in a process for each device.

    Returns:
        What the first process returns.

    Raises:
        OptionError: When there are not so many devices.
    """
    import torch

    device = choose_device(context.device)
    there = torch.cuda.device_count()
    if device.type == "cuda" and config.devices > there:
        raise OptionError("--devices cannot be used", found=config.devices, expected=f"at most {there} GPUs")
    if device.index is not None and config.devices > 1:
        found = f"--devices {config.devices} with --device {context.device}"
        raise OptionError("--devices does not fit", found=found, expected="--device cuda")
    threads = max(1, torch.get_num_threads() // config.devices)
    whole = partial(work, config=config, context=context)
    told: Result = together(config.devices, _in_process, str(device), config.devices, threads, whole, *arguments)
    return told


def optimise(
    fabric: Fabric, players: Sequence[Player], count: int, what: str, config: LoopConfig, context: Context
) -> list[list[float]]:
    """Train networks by Adam, one after the other on each batch.

    Args:
        fabric: Where to.
        players: The networks and their losses; they are trained in place.
        count: Number of training images.
        what: Name for the progress bar and for what is kept in the scratch folder.
        config: Options.
        context: Seed, progress, and whether to go on with what an interrupted training left.

    Returns:
        Of each player the mean loss of each epoch.

    Raises:
        MaskbridgeError: When a loss is not finite.
    """
    import torch

    kept = context.work / f"{what}.pt"
    rank, world = fabric.global_rank, fabric.world_size
    pairs = [fabric.setup(_synchronised(p.network, fabric), _adam(p, config)) for p in players]
    networks = [network for network, _ in pairs]
    history: list[list[float]] = [[] for _ in players]
    if context.resume and kept.is_file():
        history = _restore(kept, pairs)
        if rank == 0:
            say(f"{what}: goes on after epoch {len(history[0])} of {config.epochs}")
    saved = time.monotonic()
    first = len(history[0])
    for epoch in context.track(range(first, config.epochs), f"training {what}", total=config.epochs - first):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(_mixed(context.seed, epoch, 0)))
        torch.manual_seed(_mixed(context.seed, epoch, rank + 1))
        totals = torch.zeros(len(players), device=fabric.device)
        for network in networks:
            network.train()
        for rows in torch.split(order, config.batch_size):
            own = rows[rank::world]
            share = len(own) * world / len(rows)  # gradients are averaged over processes, rows count alike
            for number, (player, (_, optimizer)) in enumerate(zip(players, pairs, strict=True)):
                optimizer.zero_grad()
                losses = player.losses(networks, own if len(own) else rows[:1])
                fabric.backward(losses.mean() * share)
                optimizer.step()
                totals[number] += losses.detach().mean() * len(own)
        sums = fabric.all_reduce(totals, reduce_op="sum")
        assert isinstance(sums, torch.Tensor), "as it was given"
        for known, total in zip(history, sums.tolist(), strict=True):
            known.append(total / count)
            require_finite_loss(known[-1], epoch)
        if rank == 0 and (time.monotonic() - saved >= KEEP_SECONDS or epoch + 1 == config.epochs):
            _keep(kept, history, pairs)
            saved = time.monotonic()
    fabric.barrier()
    return history


def drawn_number() -> int:
    """A seed from the random numbers of the loop, for what draws by others."""
    import torch

    return int(torch.randint(2**31, (1,)))


def _in_process(device: str, count: int, threads: int, work: Callable[..., Any], *arguments: Any) -> Any:
    import torch
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    torch.set_num_threads(threads)
    keep_freed_memory()
    kind, _, index = device.partition(":")
    chosen = [int(index)] if index and count == 1 else count
    fabric = Fabric(accelerator=kind, devices=chosen, strategy="ddp" if count > 1 else "auto")
    fabric.launch()
    return work(fabric, *arguments)


def _synchronised(network: torch.nn.Module, fabric: Fabric) -> torch.nn.Module:
    """On several GPUs batch normalisation looks at the whole batch; on a CPU PyTorch has no such form."""
    from timm.layers import convert_sync_batchnorm  # PyTorch's own would lose the activations inside of timm's layers

    if fabric.world_size > 1 and fabric.device.type == "cuda":
        whole: torch.nn.Module = convert_sync_batchnorm(network)
        return whole
    return network


def _adam(player: Player, config: LoopConfig) -> torch.optim.Optimizer:
    import torch

    free = [parameter for parameter in player.network.parameters() if parameter.requires_grad]
    return torch.optim.Adam(free, lr=config.learning_rate, betas=player.betas, weight_decay=config.weight_decay)


def _keep(path: Any, history: list[list[float]], pairs: Sequence[tuple[Any, Any]]) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(
        {
            "history": history,
            "networks": [network.state_dict() for network, _ in pairs],
            "optimizers": [optimizer.state_dict() for _, optimizer in pairs],
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def _restore(path: Path, pairs: Sequence[tuple[Any, Any]]) -> list[list[float]]:
    """Set networks and optimisers to what was kept; Adam counts its steps there.

    Returns:
        Of each network the mean loss of each epoch.

    Raises:
        RunError: When the file is damaged, or of another network.
    """
    import torch

    with gone_on_with(path), open_regular(path) as file:
        state = torch.load(file, map_location="cpu", weights_only=True)
        history = [[float(loss) for loss in losses] for losses in state["history"]]
        if len(history) != len(pairs) or len({len(losses) for losses in history}) != 1:
            raise ValueError("another number of losses")
        for (network, optimizer), one, two in zip(pairs, state["networks"], state["optimizers"], strict=True):
            network.load_state_dict(one)
            optimizer.load_state_dict(two)
    return history


def _mixed(*numbers: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1)[0])
