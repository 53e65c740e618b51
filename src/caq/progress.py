"""What a run says while it goes on, on standard error, so that standard output stays parseable."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

Advance = Callable[[], None]


@contextmanager
def progress(description: str, total: int, *, quiet: bool = False) -> Iterator[Advance]:
    """Yield the function that advances a stage by one of `total` steps, and show how far it is.

    A terminal shows a bar with elapsed and remaining time; a file or a pipe gets one line when the stage has ended.
    """
    if quiet:
        yield lambda: None
    elif sys.stderr.isatty():
        with _bar(description, total) as advance:
            yield advance
    else:
        started = time.monotonic()
        yield lambda: None
        elapsed = timedelta(seconds=round(time.monotonic() - started))
        remark(f"{description}: done in {elapsed}")


def remark(message: str) -> None:
    """Say one line."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
