"""A bit flipped in any file that caq has written: it is named, or the file is made again as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from caq.checkpoint.manifest import HASHES, verify
from caq.errors import InvalidInput
from tests.faults.bench import Bench, Content, content, share
from tests.faults.mutations import flipped
from tests.faults.stage import COMPARE, SELF, WHOLE

#: Places in a file: its start, its middle, its end, and one that chance takes.
PLACES = 4


def bits(path: Path) -> list[int]:
    """Return the bits of a file that are flipped, one at a time."""
    size = 8 * path.stat().st_size
    chance = random.Random(path.name)
    return [
        chance.randrange(8),
        size // 2 + chance.randrange(8),
        size - 1 - chance.randrange(8),
        chance.randrange(size),
    ]


def in_output(bench: Bench) -> str:
    """Flip bits in every file of a checkpoint: `caq verify` names the file."""
    tried = 0
    with bench.fresh("out") as root:
        for path in sorted((root / "out").iterdir()):
            whole = path.read_bytes()
            for bit in bits(path):
                path.write_bytes(flipped(whole, [bit]))
                named = _named(root / "out")
                # A hash that was flipped is another file's.
                assert any(path.name in line or path.name == HASHES for line in named), f"{path.name}, bit {bit}"
                tried += 1
            path.write_bytes(whole)
        assert verify(root / "out") == ()
    return f"{share(tried, tried)} flips named"


def _named(directory: Path) -> tuple[str, ...]:
    try:
        return verify(directory)
    except InvalidInput as error:
        return error.problems


def in_workspace(bench: Bench, places: int = PLACES) -> str:
    """Flip bits in the workspace of a run that was stopped: the run ends with the bytes of one that was not."""
    expected = content(bench.stage / "out")
    return _made_again(bench, ".half.work", f"{WHOLE} -o half", places, lambda root: content(root / "half") == expected)


def in_cache(bench: Bench, places: int = PLACES) -> str:
    """Flip bits in what a cache holds: the run that reads it ends with the same bytes, and the cache is whole again."""
    expected, cache = content(bench.stage / "out"), content(bench.stage / "cache")

    def same(root: Path) -> bool:
        return content(root / "new") == expected and content(root / "cache") == cache

    teachers = _made_again(bench, "cache/teachers", f"{WHOLE} -o new", places, same)
    responses = _made_again(
        bench, "cache/responses", f"{SELF} -o new", places, lambda root: content(root / "cache") == cache
    )
    return f"targets: {teachers}; responses: {responses}"


def in_comparison(bench: Bench, places: int = PLACES) -> str:
    """Flip bits in the files of a comparison, which one more model joins: the report is the same, or names the file."""
    joining = COMPARE.replace("pair/base", "out")
    with bench.fresh() as root:
        assert bench.run(root, joining).status in (0, 3, 4, 5)
        expected = _reports(root)
    return _made_again(bench, "report", joining, places, lambda root: _reports(root) == expected)


def _reports(root: Path) -> Content:
    return {path.name: path.read_bytes() for path in (root / "report").iterdir() if path.is_file()}


def _made_again(bench: Bench, directory: str, command: str, places: int, is_same: Callable[[Path], bool]) -> str:
    """Flip bits in a directory's files, or in one of each kind, and run the command that reads them."""
    wrong, made, named = [], 0, 0
    for name, bit in _flips(bench.stage / directory, places):
        with bench.fresh() as root:
            path = root / directory / name
            path.write_bytes(flipped(path.read_bytes(), [bit]))
            ended = bench.run(root, command)
            if "Traceback" in ended.err:
                wrong.append(f"{directory}/{name}, bit {bit}: {ended.err.strip().splitlines()[-1][:200]}")
            elif ended.status == 2 and (path.name in ended.err or path.parent.name in ended.err):
                named += 1
            elif is_same(root):
                made += 1
            else:
                why = f"status {ended.status}, other bytes, and not named"
                wrong.append(f"{directory}/{name}, bit {bit}: {why}\n{ended.err[-300:]}")
    assert not wrong, "\n".join(wrong)
    return f"{share(made, made + named)} flips made again, {named} named"


def _flips(directory: Path, places: int) -> Iterator[tuple[str, int]]:
    """Yield files and bits; with fewer than all places, one file of each kind."""
    kinds = set()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        kind = (path.parent.name.partition("-")[0], path.stem.partition("-")[0], path.suffix)
        kind = kind if not path.stem.isdigit() else (kind[0], "", path.suffix)
        if places < PLACES and kind in kinds:
            continue
        kinds.add(kind)
        for bit in bits(path)[-places:]:
            yield path.relative_to(directory).as_posix(), bit
