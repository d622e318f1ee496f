"""What a phase costs: seconds, peak memory, milliseconds per image.

with PhaseMeter() as training:
...
training.seconds, training.peak_mb
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from maskbridge.approach import Prediction


class PhaseMeter:
    """Seconds and peak memory of a phase.

    Args:
        spared: Seconds that caches spared (`Context.spared`); those of the phase count as spent.

    Peak memory is that of the process in MiB (the kernel's counter is reset where it can be, else it covers
    everything before as well).
    """

    def __init__(self, spared: Sequence[float] = ()) -> None:
        """Nothing is measured yet."""
        self._spared = spared

    def __enter__(self) -> PhaseMeter:
        """Start."""
        with contextlib.suppress(OSError):  # not Linux, or not allowed: the counter covers the whole process
            Path("/proc/self/clear_refs").write_text("5")
        self._start, self._before = time.perf_counter(), len(self._spared)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = round(time.perf_counter() - self._start + sum(self._spared[self._before :]), 3)
        self.peak_mb = round(_peak_bytes() / 2**20, 1)


class Clock:
    """Milliseconds per image once the model is loaded: the first image's wait is left out where there are more.

    Args:
        spared: As for `PhaseMeter`.
    """

    ms_per_image: float | None = None

    def __init__(self, spared: Sequence[float] = ()) -> None:
        """Nothing is measured yet."""
        self._spared = spared

    def measure(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Pass predictions on, and time the waits for them."""
        waits: list[float] = []
        iterator = iter(predictions)
        while True:
            start, before = time.perf_counter(), len(self._spared)
            try:
                prediction = next(iterator)
            except StopIteration:
                break
            waits.append(time.perf_counter() - start + sum(self._spared[before:]))
            yield prediction
        counted = waits[1:] or waits
        if counted:
            self.ms_per_image = round(1000 * sum(counted) / len(counted), 3)


def _peak_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
