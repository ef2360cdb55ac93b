"""NumPy's work on many arrays, such as eigenvectors, spread over the cores while the main thread goes on."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits  # comes with scikit-learn

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 8  # threads: each may hold arrays of a hundred megabytes


@contextmanager
def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Sequence[Future[Result]]]:
    """Call a function on every item, in threads; give what will hold the results, in the items' order.

    One item a core, each with BLAS of one thread: matrices of a Transformer are too small for more, whose threads wait
    for each other by spinning. What has not begun when the block is left is not begun any more.
    """
    with threadpool_limits(1, user_api="blas"):
        pool = ThreadPoolExecutor(min(os.cpu_count() or 1, MOST))
        try:
            yield [pool.submit(function, item) for item in items]
        finally:
            pool.shutdown(cancel_futures=True)


def collect(results: Iterable[Future[Result]], tick: Callable[[], Any] = lambda: None) -> list[Result]:
    """Wait for every result, and call `tick` after each."""
    found = []
    for each in results:
        found.append(each.result())
        tick()
    return found
