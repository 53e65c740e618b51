"""How commands end that did not come to their end: statuses, words, and the command that goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from caq.cli.ending import again, told
from caq.errors import InvalidInput

MEMORY = [
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
]


def ended(error: BaseException | None = None) -> int:
    with pytest.raises(SystemExit) as exit, told():
        if error:
            raise error
    assert isinstance(exit.value.code, int)
    return exit.value.code


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: str(error)[:20])
def test_memory_that_ran_out_is_said_with_how_to_go_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["caq", "quantize", "a model", "--restart"])
    assert ended(error) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert "\n  caq quantize 'a model'\n" in said
    assert "micro_batch_size" in said


def test_every_other_ending_keeps_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended() == 0
    assert ended(SystemExit(4)) == 4
    assert ended(InvalidInput(["one", "two"])) == 2
    assert capsys.readouterr().err == "error: one\nerror: two\n"
    assert ended(OSError(5, "Input/output error", "a share")) == 2
    assert "error: [Errno 5] Input/output error: 'a share'" in capsys.readouterr().err
    assert ended(KeyboardInterrupt()) == 130
    assert ended(BrokenPipeError()) == 141
    with pytest.raises(ZeroDivisionError), told():
        raise ZeroDivisionError


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_told_whatever_became_of_it(
    number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit, told():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            raise ImportError("a module that was half imported") from error
    assert exit.value.code == status
    assert "What is done is kept; go on with:" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_the_command_is_the_one_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/a/b/caq/__main__.py", "quantize", "--restart", "m"])
    assert shlex.split(again()) == [sys.executable, "-m", "caq", "quantize", "m"]


def test_an_interruption_during_the_imports_shows_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "caq", "evaluate", str(tmp_path / "none")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.rstrip().endswith("typer.main"):
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
    assert process.wait() == 130
    assert "Interrupted. What is done is kept; go on with:" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("full", "status"), [(False, 141), (True, 2)])
def test_a_standard_output_that_takes_no_more_shows_no_traceback(full: bool, status: int) -> None:
    if full and not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    reader, writer = os.pipe()
    os.close(reader)
    output = os.open("/dev/full", os.O_WRONLY) if full else writer
    code = "from caq.cli.ending import told\nwith told(): print('words')"
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    run = subprocess.run([sys.executable, "-c", code], stdout=output, stderr=-1, text=True, env=buffered, check=False)
    assert run.returncode == status
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr
    assert ("standard output" in run.stderr) == full
    os.close(writer)
