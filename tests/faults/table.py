"""The table of faults: `python -m tests.faults.table` tries every row and writes what it measured into the docs."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tests.faults import flips, fuzz, kills, refusals, trials
from tests.faults.bench import Bench
from tests.faults.forks import forks
from tests.faults.stage import write_stage

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- written by make test-faults -->", "<!-- until here -->"
#: Mutations that the table tells of.
MUTATIONS = 300


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        name: what goes wrong.
        behaviour: what caq does then.
        tried: how that is tried.
        trial: tries it, and returns the figure.
    """

    name: str
    behaviour: str
    tried: str
    trial: Callable[[Bench], str]


def _refused(cases: Mapping[str, refusals.Case], *more: str) -> Callable[[Bench], str]:
    return lambda bench: refusals.refused(bench, cases, *more)


def _every_kill(bench: Bench) -> str:
    return "; ".join(kills.sweep(bench, name, places) for name, places in kills.PLACES.items())


def _every_flip(bench: Bench) -> str:
    written = f"checkpoint: {flips.in_output(bench)}; comparison: {flips.in_comparison(bench)}"
    return f"{written}; workspace: {flips.in_workspace(bench)}; cache: {flips.in_cache(bench)}"


FAULTS: Mapping[int, Fault] = {
    1: Fault(
        "A checkpoint has pickled weights only (.bin, .pt)",
        "Refused; the message says how to convert it",
        "four kinds of pickled files instead of the shards",
        _refused(refusals.PICKLED),
    ),
    2: Fault(
        "A model needs code from its checkpoint",
        "Refused, and never run, whatever standard input answers",
        "code named for configuration and tokenizer, in quantize and evaluate, every question answered with y",
        trials.remote_code,
    ),
    3: Fault(
        "A shard is missing, truncated, or a pointer of Git LFS",
        "Refused before any compute; the file is named",
        "one shard removed, cut by a byte, cut in half, emptied, replaced by a pointer, and cut in the base",
        _refused(refusals.SHARDS),
    ),
    4: Fault(
        "A safetensors header claims an absurd size, or tensors leave holes or overlap",
        "Refused, in bounded time and memory",
        "lengths up to 2⁶⁴ − 1, and offsets with holes, overlapping, backwards, negative, beyond the end",
        _refused(refusals.HEADERS),
    ),
    5: Fault(
        "A shard index names `../` or an absolute path",
        "Refused; the index and the path are named",
        "eight such paths",
        _refused(refusals.PLACES),
    ),
    6: Fault(
        "The weights hold NaN or infinity",
        "Refused; the tensor is named",
        "one value of embedding, norm, linear or head, of the aligned model and of the base",
        _refused(refusals.NUMBERS),
    ),
    7: Fault(
        "The two models differ in vocabulary, shape or tokenizer",
        "Refused before loading; every difference is listed",
        "bases of another width, depth, number of heads, number of rows, and with two tokens swapped",
        _refused(refusals.DIFFERENCES),
    ),
    8: Fault(
        "The base is the aligned model, or a model is quantized already",
        "Refused",
        "the same directory, a copy, a copy in another dtype, and a checkpoint of caq",
        _refused(refusals.SAME, "out"),
    ),
    9: Fault(
        "Aligned model and base are swapped",
        "Stopped by a probe; `--i-know` goes on",
        "the bundled pair the wrong way round, with and without the base's part, and the right way round",
        trials.swapped,
    ),
    10: Fault(
        "A recipe has an unknown key or a wrong type",
        "Every error at once, with the nearest right name; exit status 2",
        "ten recipes, with several mistakes each, no YAML, no mapping, and a bomb of aliases",
        _refused(refusals.RECIPES),
    ),
    11: Fault(
        "The calibration set is empty, or shorter than asked for",
        "Refused; with `--allow-short`, an entry in the ledger",
        "an empty text, white space, and 3 kB for 4,000 sequences",
        trials.short_text,
    ),
    12: Fault(
        "Cholesky fails in GPTQ",
        "The damping escalates, every step in the ledger; past its budget the run fails; never RTN in silence",
        "two sequences of two tokens and a damping of 1e-30, with a budget of 1 and of 1.5e-25",
        trials.damping,
    ),
    13: Fault(
        "The loss is NaN, or learning diverges",
        "Back to the best step; if none is better than the start, the run fails",
        "learning rates from 0.01 to 1e30, each run twice",
        trials.diverging,
    ),
    14: Fault(
        "Memory runs out",
        "A smaller micro-batch, in the ledger, or an exit that can be resumed",
        "limits from a part of what a run maps to more than that, on the CPU; then the same command without a limit",
        trials.out_of_memory,
    ),
    15: Fault(
        "The disk is full",
        "Checked before; a failed write leaves the old output whole, and the same command goes on",
        "files limited to sizes from a block's to the model's, over an older checkpoint",
        trials.full_disk,
    ),
    16: Fault(
        "SIGKILL at any write",
        "The same command ends with the same bytes, and nothing is left of the killed run",
        "killed before changes of files: every one of quantize, compare and evaluate, a sample of reproduce's",
        _every_kill,
    ),
    17: Fault(
        "A run goes on with another recipe, data, model or version",
        "Refused; the differences are listed; `--restart` starts over",
        "each of the four, on the workspace of a run that was killed",
        trials.other_run,
    ),
    18: Fault(
        "Two processes write one output",
        "The second is refused",
        "quantize, compare, evaluate and reproduce, while another process holds the output, and after it",
        trials.two_processes,
    ),
    19: Fault(
        "A judge is missing, or what it says cannot be read",
        "“Unmeasured”, exit status 4; never a pass",
        "a model compared with itself by a judge that is not there, by one that answers nonsense, and by phrases",
        trials.judges,
    ),
    20: Fault(
        "A bit flips in a file that caq wrote",
        "`caq verify` names the file; what a run keeps is named, or made again",
        "four bits of every file of a checkpoint, a workspace, a cache and a comparison",
        _every_flip,
    ),
    21: Fault(
        "Ctrl-C",
        "Exit status 130; what is done is kept, and the command that goes on is printed",
        "at 24 moments of a run, and three times while Python imports",
        trials.interrupted,
    ),
    22: Fault(
        "Any other change of any file that caq reads",
        f"A sentence, within {fuzz.SECONDS} s and {fuzz.MEMORY / 1e9:.0f} GB; no traceback, nothing written elsewhere",
        f"the first {MUTATIONS:,} of the fuzz set, seed {fuzz.SEED}",
        partial(fuzz.several, numbers=range(MUTATIONS)),
    ),
}


def rows(page: str) -> Mapping[int, tuple[str, ...]]:
    """Return the cells of the page's table, by the row's number."""
    lines = re.findall(r"^\| (\d+) \| (.+) \|$", page, flags=re.MULTILINE)
    return {int(number): tuple(cells.split(" | ")) for number, cells in lines}


def written(page: str, figures: Mapping[int, str]) -> str:
    """Return the page with the table that the figures give, in the place of the one that is there."""
    head = ["| # | fault | what caq does | how it was tried | measured |", "|---|---|---|---|---|"]
    lines = [
        f"| {number} | {fault.name} | {fault.behaviour} | {fault.tried} | {figures[number]} |"
        for number, fault in FAULTS.items()
    ]
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    measured = f"Measured with caq {version('caq')}, Python {sys.version.split()[0]}."
    return "\n".join([f"{before}{BEGIN}", measured, "", *head, *lines, f"{END}{after}"])


@contextmanager
def bench() -> Iterator[Bench]:
    """Make a bench of its own."""
    with tempfile.TemporaryDirectory(prefix="caq-faults-") as name, forks(Path(name)) as forking:
        stage, scratch = Path(name) / "stage", Path(name) / "scratch"
        stage.mkdir()
        scratch.mkdir()
        write_stage(stage, forking)
        yield Bench(forking, stage, scratch)


def main() -> None:
    """Try the rows that are named, or every one; what was not tried keeps its figure."""
    page = PAGE.read_text(encoding="utf-8")
    figures = {number: cells[-1] for number, cells in rows(page).items()}
    failed = []
    with bench() as prepared:
        for number in map(int, sys.argv[1:] or map(str, FAULTS)):
            try:
                figures[number] = FAULTS[number].trial(prepared.cleared())
            except AssertionError as error:
                failed.append(number)
                figures[number] = "does not hold"
                print(f"{number}. {FAULTS[number].name}: {error}", file=sys.stderr, flush=True)
            print(f"{number}. {FAULTS[number].name}: {figures[number]}", flush=True)
            told = {row: figures.get(row, "not tried yet") for row in FAULTS}
            PAGE.write_text(written(page, told), encoding="utf-8")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
