"""Faults that are more than bad files: code in a checkpoint, a swapped pair, a machine without room, a stopped run.

Every trial returns its figure, or raises an `AssertionError` that says what went wrong.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from caq.checkpoint.manifest import verify
from caq.checkpoint.write import owned
from caq.files.seals import SealedObject
from caq.measure.store import locked
from caq.workspace import RUN_FILE
from tests.faults.bench import Bench, content, share
from tests.faults.kills import COMMANDS, INPUTS
from tests.faults.refusals import edit, errors
from tests.faults.stage import FAST, MEASURE, WHOLE
from tests.reproduce.shrunk import QUICK
from tests.support.chain import END, chain_model, chain_tokenizer, write_chain
from tests.support.small import small_pair

NEW = f"{WHOLE} -o new"
#: Every command of the suite finds a file here if a checkpoint's code has run.
_CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Config: pass\nclass Tokenizer: pass\n"
_QUICK = " ".join(f"--set {key}={value}" for key, value in QUICK.items())
_BUNDLED = (
    "quantize bundled/aligned --base bundled/base --calibration bundled/calibration.txt --cache cache --device cpu "
    f"--recipe cal --quiet -o new {_QUICK} --set learn.end-to-end.keep=last"
)


def remote_code(bench: Bench) -> str:
    """Name code in the configuration and in the tokenizer; every question is answered with yes."""
    evaluate = f"evaluate pair/aligned --perplexity-text heldout.txt --window 32 {MEASURE}"
    places: dict[str, Callable[[Path], None]] = {
        "an unknown model": lambda d: edit(d / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "a known model": lambda d: edit(d / "config.json", auto_map={"AutoConfig": "own.Config"}),
        "a tokenizer": lambda d: _own_tokenizer(d),
        "a tokenizer without tokenizer.json": lambda d: _own_tokenizer(d, alone=True),
    }
    refused = 0
    for name, name_code in places.items():
        for command in (f"{FAST} -o new", evaluate):
            with bench.fresh(*INPUTS) as root:
                (root / "pair/aligned/own.py").write_text(_CODE)
                name_code(root / "pair/aligned")
                ended = bench.run(root, command, after=60)
                assert not list(root.rglob("ran")), f"{name}: its code ran in caq {command}"
                assert ended.status in (0, 2), f"{name}: {errors(ended)}"
                assert ended.status == 2 or name == "a known model", f"{name}: was not refused by caq {command}"
                refused += ended.status == 2
    total = 2 * len(places)
    return f"no code ran in {share(total, total)}, {refused} refused; the rest need none"


def _own_tokenizer(directory: Path, *, alone: bool = False) -> None:
    edit(
        directory / "tokenizer_config.json",
        tokenizer_class="Tokenizer",
        auto_map={"AutoTokenizer": ["own.Tokenizer", None]},
    )
    if alone:
        (directory / "tokenizer.json").rename(directory / "vocab.json")


def swapped(bench: Bench) -> str:
    """Give the bundled pair the wrong way round, and then the right one."""
    with bench.fresh(*INPUTS) as root:
        assert bench.run(root, "testbed export bundled").status == 0
        around = _BUNDLED.replace("bundled/aligned --base bundled/base", "bundled/base --base bundled/aligned")
        for more in ("", " --objective kl-top"):
            ended = bench.run(root, around + more)
            assert ended.status == 2, f"the swapped pair was not stopped: status {ended.status}"
            assert "--i-know" in ended.err, errors(ended)
            assert not list(root.glob("*new*")), "the refused run left something"
        known = bench.run(root, f"{around} --i-know")
        assert known.status == 0, errors(known)
        right = bench.run(root, f"{_BUNDLED.replace('-o new', '-o right')}")
        assert right.status == 0, errors(right)
    return "2 of 2 stopped; with --i-know it goes on; the right way round it is not asked"


def short_text(bench: Bench) -> str:
    """Calibrate on nothing, on white space, and on less than is asked for, refused and allowed."""
    with bench.fresh(*INPUTS) as root:
        for text in ("", " \n\t"):
            (root / "text.txt").write_text(text)
            ended = bench.run(root, f"{FAST} --allow-short -o new")
            assert ended.status == 2, text
            assert "text.txt: is empty" in ended.err, errors(ended)
    with bench.fresh(*INPUTS) as root:
        more = FAST.replace("data.samples=2", "data.samples=4000")
        ended = bench.run(root, f"{more} -o new")
        assert ended.status == 2, "a short text was not refused"
        assert "4,000" in ended.err or "4000" in ended.err, errors(ended)
        allowed = bench.run(root, f"{more} --allow-short -o new")
        assert allowed.status == 0, errors(allowed)
        assert "ledger: [data]" in allowed.out, allowed.out
        (entry,) = json.loads((root / "new/caq.json").read_text())["ledger"]
        found = entry["details"]["found"]
    return f"3 of 3 refused; with --allow-short the record says {found} of 4,000 sequences"


def damping(bench: Bench) -> str:
    """Calibrate on so little that no Gram matrix is definite, with a budget of damping and with hardly one."""
    little = f"{FAST.replace('rtn', 'gptq').replace('length=16', 'length=2')} --set quantizer.clip_search=false -o new"
    with bench.fresh(*INPUTS) as root:
        ended = bench.run(root, f"{little} --set quantizer.damping=1e-30")
        assert ended.status == 0, errors(ended)
        ledger = json.loads((root / "new/caq.json").read_text())["ledger"]
        assert {entry["event"] for entry in ledger} == {"damping-escalated"}, ledger
        assert ended.out.count("ledger: [quantize]") == len(ledger)
        reached = max(entry["details"]["damping"] for entry in ledger)
    with bench.fresh(*INPUTS) as root:
        failed = bench.run(root, f"{little} --set quantizer.damping=1e-30 --set quantizer.max_damping=1.5e-25")
        assert failed.status == 2, "no budget, and no failure"
        assert "even with damping" in failed.err, errors(failed)
        assert not (root / "new").exists()
    return f"{len(ledger)} steps in the ledger, from 1e-30 to {10 * reached:.0e}; past 1.5e-25 the run fails"


def diverging(bench: Bench) -> str:
    """Learn with rates from sound to absurd: the best step is kept, or the run fails; never a model that is worse."""
    kept, failed = 0, 0
    for rate in ("0.01", "0.03", "0.1", "1e4", "1e30"):
        rates = (
            f"--set learn.end-to-end.rotation_learning_rate={rate} --set learn.end-to-end.scaling_learning_rate={rate}"
        )
        with bench.fresh(*INPUTS) as root:
            for _ in range(2):  # Run again, it does not go on from a state that was bad.
                ended = bench.run(root, f"{NEW} {rates}")
            if ended.status == 0:
                (fit,) = json.loads((root / "new/caq.json").read_text())["fits"]
                assert verify(root / "new") == ()
                pulls = [float(step["pull"]) for step in fit["history"]]
                assert pulls, fit
                kept += 1
            else:
                assert "no step better than the start" in ended.err, errors(ended)
                assert not (root / "new").exists()
                failed += 1
    assert kept, "every rate failed"
    assert failed, "no rate failed"
    return f"5 rates: {kept} kept their best step, {failed} failed and wrote nothing"


def out_of_memory(bench: Bench) -> str:
    """Run with less and less memory than is needed, and then again with all: finished, or stopped and resumable."""
    learner = "--set learn.end-to-end.micro_batch_size=2 --set learn.end-to-end.gradient_checkpointing=false"
    command, finished, stopped = f"{NEW} --set data.length=100 {learner}", 0, 0
    with bench.fresh(*INPUTS) as root:
        assert bench.run(root, command).status == 0
        expected = content(root / "new")
    limits = (12, 16, 20, 24, 28, 32, 48, 64)
    for limit in limits:
        with bench.fresh(*INPUTS) as root:
            ended = bench.run(root, command, memory=limit * 2**20)
            assert "Traceback" not in ended.err, f"{limit} MB: {ended.err.strip().splitlines()[-1][:300]}"
            assert ended.status in (0, 2), f"{limit} MB: status {ended.status}"
            finished, stopped = finished + (ended.status == 0), stopped + (ended.status == 2)
            again = bench.run(root, command)
            assert again.status == 0, f"{limit} MB, then without a limit: {errors(again)}"
            assert ended.status == 0 or content(root / "new") == expected, f"{limit} MB: other bytes"
            assert verify(root / "new") == ()
    return f"{len(limits)} limits: {finished} finished, {stopped} stopped with a sentence and went on to the same bytes"


def full_disk(bench: Bench) -> str:
    """Let writes fail at sizes from a header's to a model's: the old output stays whole, and the command goes on."""
    limits = (5_000, 10_000, 12_000, 56_000, 60_000, 61_000)
    stopped = 0
    for limit in limits:
        with bench.fresh() as root:
            (root / "out").rename(root / "new")
            shutil.rmtree(root / "cache")
            before = content(root / "new")
            ended = bench.run(root, f"{NEW} --set seed=7", file=limit)
            assert ended.status == 2, f"{limit} bytes: status {ended.status}\n{ended.err[-500:]}"
            assert "disk is full" in ended.err, f"{limit} bytes: {errors(ended)}"
            assert content(root / "new") == before, f"{limit} bytes: the old checkpoint has changed"
            stopped += 1
            assert bench.run(root, f"{NEW} --set seed=7").status == 0, f"{limit} bytes: does not go on"
            assert verify(root / "new") == ()
            assert not list(root.glob(".new*")), f"{limit} bytes: left {list(root.glob('.new*'))}"
    return f"{share(stopped, len(limits))} failed writes: the old checkpoint whole, and the command goes on"


def other_run(bench: Bench) -> str:
    """Go on with another recipe, other data, other models, another version: refused, and every difference named."""

    def version(root: Path) -> None:
        _made_by(root / ".half.work/run.json", "0.0.1")

    def swapped_base(root: Path) -> None:
        shutil.copy(root / "pair/aligned/model-00001-of-00003.safetensors", root / "pair/base")

    cases: dict[str, tuple[Callable[[Path], object], str]] = {
        "another recipe": (lambda root: None, "--seed 5"),
        "another calibration data": (lambda root: (root / "text.txt").write_text("A fox, and a dog. " * 100), ""),
        "another base model": (swapped_base, ""),
        "another code version": (version, ""),
    }  # fmt: skip
    for said, (change, more) in cases.items():
        with bench.fresh() as root:
            change(root)
            work = content(root / ".half.work")
            ended = bench.run(root, f"{WHOLE} -o half {more}")
            assert ended.status == 2, f"{said}: went on"
            assert said in ended.err, f"{said}: {errors(ended)}"
            assert "--restart" in ended.err, errors(ended)
            assert content(root / ".half.work") == work, f"{said}: touched what the run had left"
            again = bench.run(root, f"{WHOLE} -o half {more} --restart")
            assert again.status == 0, f"{said}, with --restart: {errors(again)}"
    return f"{share(len(cases), len(cases))} refused, with the difference; --restart starts over"


def _made_by(record: Path, version: str) -> None:
    """Write a run's record as another version of caq would have."""
    sealed = SealedObject(record, RUN_FILE)
    written = sealed.peek()
    assert written is not None
    sealed.write({**written, "code version": version})


def two_processes(bench: Bench) -> str:
    """Run every command that writes an output while another process holds it."""
    for name, command in COMMANDS.items():
        with bench.fresh(*INPUTS) as root:
            held = owned(root / "new", {}) if name == "quantize" else locked(root / "report")
            with held:
                ended = bench.run(root, command)
                assert ended.status == 2, f"{name}: was not refused"
                assert "another" in ended.err, errors(ended)
            after = bench.run(root, command)
            assert after.status in (0, 3, 4, 5), f"{name}, once the other is gone: {errors(after)}"
    return f"{share(len(COMMANDS), len(COMMANDS))} commands: the second is refused, and runs once the first is gone"


def judges(bench: Bench) -> str:
    """Compare a model with itself, by a judge that is missing and by one that says nothing that can be read."""
    asked = (
        "compare small/aligned --reference small/aligned --prompts small/prompts.jsonl --response-tokens 12 "
        "--margin 0.45 --device cpu --quiet -o report --judge"
    )
    with bench.fresh(*INPUTS) as root:
        small_pair(root / "small", 30)
        tokenizer = chain_tokenizer(("<|assistant|>\n", "Well"), "")
        write_chain(root / "guard", chain_model(tokenizer, {"Well": END}, "Well"), tokenizer)
        for judge in ("wildguard", "wildguard@guard"):
            ended = bench.run(root, f"{asked} {judge}")
            assert ended.status == 4, f"{judge}: status {ended.status}\n{errors(ended)}"
            unmeasured = json.loads((root / "report/results.json").read_text())["arms"][0]["unmeasured"]
            assert set(unmeasured) == {"refusal", "helpfulness"}, unmeasured
            shutil.rmtree(root / "report")
        assert bench.run(root, f"{asked} phrases").status == 0
    return "2 of 2 unmeasured, exit status 4; by phrases the same model passes"


def interrupted(bench: Bench, times: int = 24) -> str:
    """Press Ctrl-C at moments spread over a run, and while Python still imports."""
    with bench.fresh(*INPUTS) as root:
        expected = bench.run(root, NEW)
        assert expected.status == 0
    for place in sorted(random.Random(1).sample(range(1, expected.changes - 2), times)):
        with bench.fresh(*INPUTS) as root:
            ended = bench.run(root, NEW, kill_at=place, by=signal.SIGINT)
            assert ended.status == 130, f"before change {place}: status {ended.status}\n{ended.err[-500:]}"
            assert f"go on with:\n  caq {NEW[:30]}" in ended.err, errors(ended)
            assert "Traceback" not in ended.err, ended.err[-500:]
            assert bench.run(root, NEW).status == 0
            assert content(root / "new") == content(bench.stage / "out"), f"before change {place}: other bytes"
            assert not list(root.glob(".new*")), f"before change {place}: left {list(root.glob('.new*'))}"
    early = [0.5, 1.0, 2.0]
    with bench.fresh(*INPUTS) as root:
        for seconds in early:
            _interrupt_imports(root, seconds)
    all_early = share(len(early), len(early))
    return f"{share(times, times)} ended with 130 and went on to the same bytes; so did {all_early} while it imports"


def _interrupt_imports(root: Path, seconds: float) -> None:
    start = [sys.executable, "-c", "from caq.cli import main; main()", *NEW.split()]
    with subprocess.Popen(start, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said, f"after {seconds} s: {said[-500:]}"
    assert process.returncode == 130, f"after {seconds} s: status {process.returncode}\n{said[-500:]}"
