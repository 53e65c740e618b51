"""What a run reports of its progress: on standard error, so that standard output stays parseable."""

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
    """Print one line on standard error."""
    print(message, file=sys.stderr, flush=True)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Advance]:
    from rich import progress as rich
    from rich.console import Console

    columns: tuple[rich.ProgressColumn, ...] = (
        rich.TextColumn("{task.description:<28}"),
        rich.BarColumn(bar_width=30),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
