"""Commands that are killed before a change of a file and run again: the same bytes, and nothing of the killed one."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.bench import Bench, Content, content, share
from tests.faults.stage import COMPARE, MEASURE, WHOLE

#: What every command starts from.
INPUTS = ("pair", "text.txt", "heldout.txt", "safety.jsonl", "prompts.jsonl")
COMMANDS: Mapping[str, str] = {
    "quantize": f"{WHOLE} -o new",
    "compare": COMPARE.replace("pair/base --reference", "pair/base --base pair/base --reference"),
    "evaluate": (
        f"evaluate pair/aligned --prompts prompts.jsonl --perplexity-text heldout.txt --window 32 -o report {MEASURE}"
    ),
    "reproduce": (
        "reproduce table1 --pair pair/aligned:pair/base --seeds 1 --perplexity-text heldout.txt --window 32 -o report "
        "--device cpu --quiet --set data.text=text.txt --set learn=[] --set data.samples=2 --set data.length=16"
    ),
}
#: At how many changes of a file each is killed; None: at every one.
PLACES: Mapping[str, int | None] = {"quantize": None, "compare": None, "evaluate": None, "reproduce": 8}
_VERDICTS = (0, 3, 4, 5)


def whole(bench: Bench, name: str) -> tuple[Content, int]:
    """Run a command that nobody kills; return what it leaves and how often it changed a file."""
    with bench.fresh(*INPUTS) as root:
        ended = bench.run(root, COMMANDS[name])
        assert ended.status in _VERDICTS, ended.err
        return _left(root), ended.changes


def sweep(bench: Bench, name: str, places: int | None = None) -> str:
    """Kill a command at every change of a file, or at so many spread over it and its end; return the figure.

    Raises:
        AssertionError: other bytes, or something left, after a kill; it says where.
    """
    expected, changes = whole(bench, name)
    chosen = range(1, changes + 1) if places is None else _spread(changes, places)
    wrong = [
        f"{name}, before change {place}: {why}" for place in chosen if (why := _killed(bench, name, place, expected))
    ]
    assert not wrong, "\n".join(wrong)
    return f"{name}: {share(len(chosen), len(chosen))} kills, same bytes"


def _spread(changes: int, places: int) -> Sequence[int]:
    """Return places over the whole run; every other of them among its last, where outputs appear."""
    early, late = random.Random(0).sample(range(1, changes - 8), places // 2), range(changes, 0, -2)
    return sorted({*early, *late[: places - places // 2]})


def _killed(bench: Bench, name: str, place: int, expected: Content) -> str | None:
    with bench.fresh(*INPUTS) as root:
        killed = bench.run(root, COMMANDS[name], kill_at=place)
        if killed.status != -signal.SIGKILL:
            return f"was not killed, status {killed.status}"
        again = bench.run(root, COMMANDS[name])
        if again.status not in _VERDICTS:
            return f"then status {again.status}: {again.err[-300:]}"
        found = _left(root)
    other = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    return (
        "; ".join(
            f"{what}: {', '.join(names[:5])}"
            for what, names in {
                "other bytes": other,
                "left": sorted(found.keys() - expected.keys()),
                "missing": sorted(expected.keys() - found.keys()),
            }.items()
            if names
        )
        or None
    )


def _left(root: Path) -> Content:
    # In a cache, a lock's file stays where its holder was killed after its last write; the next holder takes it over.
    found = {name: held for name, held in content(root, besides=INPUTS).items() if not _is_cache_lock(name)}
    return {name: _without_times(held) if "/cells/" in name else held for name, held in found.items()}


def _without_times(cell: bytes) -> bytes:
    """Return a table's cell without how long it took, and the seal over that."""
    return json.dumps({**json.loads(cell), "seconds": None, "seal": None}).encode()


def _is_cache_lock(name: str) -> bool:
    return name.startswith(("cache/", "report/cache/")) and name.endswith("/.lock")
