"""Cells of a grid computed by several processes of one thread each; what they find is in the grid's directory.

A cell is computed alone, and the same whoever computes it: a worker that dies costs the cell that it was at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

import torch

from caq.errors import CaqError

#: Computes one cell, of an arm and a seed.
Compute = Callable[[str, int], None]


@contextmanager
def working(compute: Compute, cells: Sequence[tuple[str, int]], jobs: int) -> Iterator[Compute]:
    """Yield what waits for a cell: the workers compute them all, in order; without workers it does nothing.

    `compute` is sent to the workers, each of which has one thread.

    Raises:
        CaqError: what a cell's computation raises, or a worker was killed.
    """
    if jobs == 1:
        yield lambda arm, seed: None
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), one_thread) as pool:
        futures = {cell: pool.submit(_told, compute, *cell) for cell in cells}

        def wait(arm: str, seed: int) -> None:
            try:
                problem = futures[arm, seed].result()
            except BrokenProcessPool as error:
                raise CaqError("a worker was killed, perhaps for want of memory; run again with fewer jobs") from error
            if problem is not None:
                raise CaqError(problem)

        try:
            yield wait
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def one_thread() -> None:
    """Compute with one thread: two that share a core are slower than one, and another number moves the last bits."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _told(compute: Compute, arm: str, seed: int) -> str | None:
    """Compute a cell; return what went wrong as text, which any process can read."""
    try:
        compute(arm, seed)
    except CaqError as error:
        return "\n".join([str(error), *getattr(error, "__notes__", ())])
    return None
