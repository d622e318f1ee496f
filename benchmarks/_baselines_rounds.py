"""Seconds, memory and ratios, as the benchmarks of the baselines print them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(values: Any) -> float:
    return statistics.median(values)


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def told(what: str, ratios: Sequence[float]) -> None:
    print(f"{what}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
