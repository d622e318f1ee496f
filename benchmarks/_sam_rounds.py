"""Interleaved rounds of calls on one device: medians, ranges, what a call adds to memory, shares of the device's peak.

bench = Bench(arguments); bench.compare("encoder", theirs, ours); bench.alone("encoder", ours, flops=3e12)
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

MIB = 2**20
Call = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a ViT image encoder: channels, heads, tokens along a side, of a window's side, blocks, which are global."""

    dim: int
    heads: int
    grid: int
    window: int
    depth: int
    everywhere: tuple[int, ...]


VIT_B = Shape(dim=768, heads=12, grid=64, window=14, depth=12, everywhere=(2, 5, 8, 11))
#: To try the commands with.
SMALL = Shape(dim=64, heads=4, grid=8, window=3, depth=2, everywhere=(1,))


class Bench:
    """Measures calls.

    Args:
        arguments: `repeat`, `device`, `dtype` (fp32 or bf16), `peak_tflops` (None: no shares) and `small`.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Nothing is measured yet."""
        self.arguments, self.device = arguments, torch.device(arguments.device)
        self.shape = SMALL if arguments.small else VIT_B

    def rounds(self, calls: Sequence[Call]) -> list[list[float]]:
        """Seconds of each call in each of `repeat` rounds, after one to warm up."""
        times: list[list[float]] = [[] for _ in calls]
        for number in range(self.arguments.repeat + 1):
            for call, seconds in zip(calls, times, strict=True):
                start = self.now()
                call()
                if number:
                    seconds.append(self.now() - start)
        return times

    def compare(self, name: str, theirs: Call, ours: Call) -> None:
        """One line: the ratio, both times, both peaks, shares of the device's peak."""
        calls = [self.cast(theirs), self.cast(ours)]
        times = self.rounds(calls)
        middle = [statistics.median(seconds) for seconds in times]
        ratio = spread(ratios(*times))
        peaks = [self.peak(call) for call in calls]
        line = f"{name:34} x {ratio}   {middle[0] * 1e3:.1f} -> {middle[1] * 1e3:.1f} ms"
        line += f"   {peaks[0] / MIB:.0f} -> {peaks[1] / MIB:.0f} MiB"
        if self.arguments.peak_tflops:
            with FlopCounterMode(display=False) as counter:  # knows no autocast; the number is the same
                theirs()
            shares = [counter.get_total_flops() / t / self.arguments.peak_tflops / 1e12 for t in middle]
            line += f"   {shares[0]:.1%} -> {shares[1]:.1%} of the peak"
        print(line, flush=True)

    def alone(self, name: str, call: Call, flops: float | None = None) -> None:
        """One line: median and range, what it adds at its peak, and with `flops`, of one call, how fast that is."""
        seconds = self.rounds([call])[0]
        line = f"{name:44} {spread([1e3 * each for each in seconds])} ms   {self.peak(call) / MIB:.0f} MiB"
        if flops is not None:
            speed = flops / statistics.median(seconds) / 1e12
            line += f"   {speed:.4g} TFLOP/s"
            if self.arguments.peak_tflops:
                line += f", {speed / self.arguments.peak_tflops:.2%} of {self.arguments.peak_tflops:g}"
        print(line, flush=True)

    def cast(self, call: Call) -> Call:
        """The call under autocast, where that is asked for."""

        def run() -> None:
            half = self.arguments.dtype == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16) if half else contextlib.nullcontext():
                call()

        return run

    def now(self) -> float:
        """Seconds, when the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self, call: Call) -> float:
        """Bytes that a call adds at its peak."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return torch.cuda.max_memory_allocated() - before
        ctypes.CDLL(None).malloc_trim(0)
        done, first = threading.Event(), resident()
        peak = first

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.002):
                peak = max(peak, resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        call()
        done.set()
        watcher.join()
        return peak - first


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the range in brackets."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
