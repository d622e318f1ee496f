"""Several processes of one training, started together and ended together.

    told = together(4, work, argument)          # work(argument) in four processes; what the first one returned

Each has `LOCAL_RANK`, `NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT` in its environment, by which Lightning Fabric and
torch.distributed find the others. On several machines the same command is given on each with the last three set.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar, cast

from maskbridge.errors import MaskbridgeError
from maskbridge.folders import scratch_folder
from maskbridge.progress import QUIET_VARIABLE

Result = TypeVar("Result")

#: Seconds that a process which has lost another one waits to be ended before it tells of that itself.
GRACE_SECONDS = 3.0
_RESULT, _ERROR = "result", "error"


def together(count: int, work: Callable[..., Result], *arguments: Any, nodes: int = 1) -> Result:
    """Call `work(*arguments)` in `count` processes on this machine; in this very process where it is the only one.

    Args:
        count: Processes on this machine.
        work: A function of a module, or a `functools.partial` of one.
        arguments: What can be pickled.
        nodes: Number of machines.

    Returns:
        What the first process of this machine returned.

    Raises:
        MaskbridgeError: What one of them raised, or that one was stopped from outside.
        OSError: What one of them raised.
    """
    if count * nodes == 1:
        return work(*arguments)
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())} if nodes == 1 else {}
    start = multiprocessing.get_context("spawn")
    with scratch_folder("processes") as folder:
        processes = [
            start.Process(target=_one, args=(rank, {**places, "LOCAL_RANK": str(rank)}, folder, work, arguments))
            for rank in range(count)
        ]
        try:
            for process in processes:
                process.start()
            _until_done(processes)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                if process.pid is not None:
                    process.join()
        return cast(Result, _told(processes, folder))


def _one(
    rank: int, environment: dict[str, str], folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """One process: what it returns or what the user can mend is left in the folder, which nobody else can write to."""
    os.environ.update(environment)
    if rank or os.environ.get("NODE_RANK", "0") != "0":
        os.environ[QUIET_VARIABLE] = "1"
    try:
        result = work(*arguments)
    except (MaskbridgeError, OSError) as error:
        kept = type(error)(str(error)) if isinstance(error, MaskbridgeError) else error
        (folder / f"{_ERROR}{rank}").write_bytes(pickle.dumps(kept))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(1) from None
    except RuntimeError:  # a lost connection, if another process has gone wrong: then the first one ends this one
        time.sleep(GRACE_SECONDS)
        raise
    if rank == 0:
        (folder / _RESULT).write_bytes(pickle.dumps(result))


def _until_done(processes: Sequence[SpawnProcess]) -> None:
    """Until all have ended or one has gone wrong."""
    running = list(processes)
    while running and not any(process.exitcode for process in processes):
        wait([process.sentinel for process in running])
        running = [process for process in running if process.is_alive()]


def _told(processes: Sequence[SpawnProcess], folder: Path) -> Any:
    left = sorted(folder.glob(f"{_ERROR}*"))
    if left:
        raise pickle.loads(left[0].read_bytes())
    if (folder / _RESULT).is_file() and not any(process.exitcode for process in processes):
        return pickle.loads((folder / _RESULT).read_bytes())
    codes = [process.exitcode or 0 for process in processes]
    # those that were ended because another one had stopped were killed
    stopped = next((code for code in codes if code not in (0, -signal.SIGKILL)), -signal.SIGKILL)
    found = signal.Signals(-stopped).name if stopped < 0 else f"exit code {stopped}"
    raise MaskbridgeError("a process of the training was stopped", found=found, remedy="is the memory enough?")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
