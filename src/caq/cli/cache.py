"""`caq cache`: what is kept for later runs, and how it is cleared."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caq.errors import InvalidInput

if TYPE_CHECKING:
    from caq.files.kept import Entry

Root = Annotated[Path | None, typer.Option("--cache", help="The cache; by default $CAQ_CACHE or ~/.cache/caq.")]

cache = typer.Typer(help="What is kept for later runs: teachers' states, responses, texts, how models lean.")

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@cache.callback(invoke_without_command=True)
def show(context: typer.Context, root: Root = None) -> None:
    """List what is kept: size, last use, kind and name; the least recently used first."""
    from caq.files.cache import cache_root
    from caq.files.kept import entries

    context.obj = root
    if context.invoked_subcommand is not None:
        return
    chosen = cache_root(root)
    kept = entries(chosen)
    _list(kept)
    print(f"{chosen}: {_count(kept)}")


@cache.command()
def clear(
    context: typer.Context,
    older_than: Annotated[
        str | None, typer.Option(help="What was last used longer ago than this, such as 12h, 30d or 8w.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="The least recently used, until no more than this is left, such as 20GB.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only list what would be deleted.")] = False,
    root: Root = None,
) -> None:
    """Delete what is kept: all of it, or by age or size; never what a run holds."""
    from caq.files.cache import cache_root
    from caq.files.kept import clear as delete
    from caq.files.kept import entries, to_clear

    before = None if older_than is None else time.time() - _amount("--older-than", older_than, r"([mhdw])", _SECONDS)
    most = None if keep is None else int(_amount("--keep", keep, r"([kmgt]?)i?b?", _BYTES))
    chosen = to_clear(entries(cache_root(root or context.obj)), before=before, keep=most)
    if not yes:
        _list(chosen)
        print(f"nothing was deleted; to delete {_count(chosen)}, add --yes")
        return
    gone = [entry for entry in chosen if delete(entry)]
    for entry in chosen:
        if entry not in gone:
            print(f"{entry.path}: a run holds it; it stays")
    print(f"deleted {_count(gone)}")


def _amount(option: str, text: str, unit: str, sizes: dict[str, int]) -> float:
    found = re.fullmatch(rf"(\d{{1,15}}(?:\.\d+)?)\s*{unit}", text.strip().lower())
    if found is None:
        example = "30d" if sizes is _SECONDS else "20GB"
        raise InvalidInput(f"{option} {text}: should be a number and a unit, such as {example}")
    return float(found[1]) * sizes[found[2]]


def _list(kept: Iterable[Entry]) -> None:
    for entry in kept:
        last = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        print(f"{_size(entry.size):>10}  {last}  {entry.kind}/{entry.path.name}")


def _count(kept: Iterable[Entry]) -> str:
    sizes = [entry.size for entry in kept]
    return f"{len(sizes)} {'entry' if len(sizes) == 1 else 'entries'}, {_size(sum(sizes))}"


def _size(count: int) -> str:
    unit = next((name for name, size in reversed(_BYTES.items()) if count >= size), "")
    return f"{count} B" if not unit else f"{count / _BYTES[unit]:.1f} {unit.upper()}B"
