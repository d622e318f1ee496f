"""Work that several threads share, in order.

for result in in_order(decode, paths, workers=4): …
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Map over a few threads, in order, with a bounded number of results waiting."""
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        source = iter(items)
        waiting: list[Future[Result]] = [pool.submit(work, item) for item in islice(source, 4 * workers)]
        try:
            while waiting:
                result = waiting.pop(0).result()
                waiting.extend(pool.submit(work, item) for item in islice(source, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
