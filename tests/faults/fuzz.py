"""The fuzz set: `python -m tests.faults.fuzz --seed S --number N` tries one of its mutations again.

A trial copies the stage, changes one file of it, and runs the command that reads that file.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from caq.checkpoint.manifest import verify
from tests.faults.bench import Bench, content, share
from tests.faults.forks import Ended, Forks, forks
from tests.faults.mutations import Mutant, mutate
from tests.faults.stage import write_stage
from tests.faults.targets import TARGETS, Target

SEED = 11
SECONDS, MEMORY, SAID = 30, 3 * 10**9, 100_000
#: Kept, lost, unmeasured and undecided are verdicts of a comparison; everything else that fails ends with 2.
STATUSES = {0, 2, 3, 4, 5}


@dataclass(frozen=True)
class Trial:
    """One mutation, the command that read what it left, and what was wrong with its end; nothing, if all is well."""

    number: int
    target: Target
    file: str
    mutant: Mutant
    ended: Ended
    faults: tuple[str, ...]

    def __str__(self) -> str:
        again = f"python -m tests.faults.fuzz --seed {SEED} --number {self.number}"
        said = "\n".join(self.ended.err.splitlines()[-12:])[-2000:]
        told = f"{self.file}: {self.mutant.name}\n  caq {self.target.command}\n  status {self.ended.status}"
        return f"{'; '.join(self.faults) or 'fine'}\n  {told}, {self.ended.seconds:.1f} s\n  {again}\n{said}"


def attempt(number: int, stage: Path, scratch: Path, forking: Forks, seed: int = SEED) -> Trial:
    """Try the mutation of a seed and a number, in a directory that does not exist yet and is removed again."""
    chance = random.Random(f"{seed} {number}")
    target = TARGETS[number % len(TARGETS)]
    root = scratch / "within"
    shutil.copytree(stage, root)
    before = set(scratch.rglob("*"))
    file = chance.choice(sorted(root.glob(target.pattern)) or [root / target.pattern])
    mutant = mutate(target.kind, file.read_bytes() if file.is_file() else b"{}", chance)
    _put(file, mutant)
    ended = forking.run(target.command.split(), after=SECONDS, memory=MEMORY, within=root)
    faults = (*_faults(ended), *_left(scratch, before, ended), *_other_bytes(target, stage, root, ended))
    shutil.rmtree(scratch)
    return Trial(number, target, file.relative_to(root).as_posix(), mutant, ended, faults)


def several(bench: Bench, numbers: Iterable[int]) -> str:
    """Try mutations; return the figure.

    Raises:
        AssertionError: with everything about those that a command did not survive.
    """
    tried = [attempt(number, bench.stage, bench.scratch / "trial", bench.forking) for number in numbers]
    wrong = [trial for trial in tried if trial.faults]
    assert not wrong, "\n\n".join(map(str, wrong))
    refused = sum(trial.ended.status == 2 for trial in tried)
    slowest = max(trial.ended.seconds for trial in tried)
    largest = max(trial.ended.memory for trial in tried) / 1e9
    return f"{share(refused, len(tried))} refused, the others survived; at most {slowest:.1f} s, {largest:.2f} GB"


def _put(file: Path, mutant: Mutant) -> None:
    file.unlink(missing_ok=True)
    if mutant.instead == "file":
        file.write_bytes(mutant.content)
    elif mutant.instead == "directory":
        file.mkdir()
    elif mutant.instead == "loop":
        file.symlink_to(file.name)


def _faults(ended: Ended) -> Iterator[str]:
    said = ended.out + ended.err
    if ended.status not in STATUSES:
        yield f"no answer within {SECONDS} s" if ended.status == -14 else f"status {ended.status}"
    if "Traceback" in ended.err:
        yield "a traceback"
    if len(said) > SAID:
        yield "a message without end"
    if ended.status == 2 and "rror" not in ended.err:
        yield "no word of what is wrong"
    if ended.memory > MEMORY:
        yield f"{ended.memory / 1e9:.1f} GB"


def _left(scratch: Path, before: set[Path], ended: Ended) -> Iterator[str]:
    """Yield what should not have been left: parts of files, files in other places, a checkpoint that is not whole."""
    fresh = set(scratch.rglob("*")) - before
    root = scratch / "within"
    for path in sorted(fresh):
        if ".partial-" in path.name:
            yield f"left {path.relative_to(scratch)}"
        elif root not in path.parents:
            yield f"wrote {path.relative_to(scratch)}"
    new = root / "new"
    if new.exists() and (ended.status == 2 or verify(new)):
        yield "a checkpoint that is not whole, or of a run that failed"


def _other_bytes(target: Target, stage: Path, root: Path, ended: Ended) -> Iterator[str]:
    """What a run had kept for itself decides nothing, damaged or not: with it, without it, the output is the same."""
    made = {"half": "out", "new": "out" if "--base" in target.command else "own"}
    for made_now, before in made.items():
        kept = target.pattern.startswith((".half", "cache")) and target.command.endswith(f"-o {made_now}")
        if kept and ended.status == 0 and content(root / made_now) != content(stage / before):
            yield "other bytes, and no word of it"


def main() -> None:
    """Try one mutation, or a range of them, and tell what came of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--count", type=int, default=1, help="so many, from that number on; tells of the faults only")
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name, forks(Path(name)) as forking:
        stage = Path(name) / "stage"
        stage.mkdir()
        write_stage(stage, forking)
        for number in range(given.number, given.number + given.count):
            trial = attempt(number, stage, Path(name) / "scratch", forking, given.seed)
            failed += bool(trial.faults)
            if trial.faults or given.count == 1:
                print(trial, end="\n\n", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
