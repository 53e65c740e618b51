"""`caq` commands in processes of their own, forked from one that has imported everything; killed where a test says.

`python -m tests.faults.forks DIRECTORY` reads requests and writes answers, a line of JSON each: Python's audit events
tell when a command is about to change a file, and `SIGKILL` comes before the change that was asked for.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "fcntl.flock"}
#: What commands import when they run, so that no fork does it again.
_IMPORTED = (
    "caq.pipeline", "caq.comparison", "caq.evaluation", "caq.publish.evaluate", "caq.publish.push",
    "caq.reproduce.command", "datasets", "pyarrow.parquet", "compressed_tensors.linear.compressed_linear",
    "transformers.models.llama.modeling_llama", "transformers.generation.utils",
)  # fmt: skip
#: Longest part of an output that is kept.
_KEPT = 200_000


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: negative where a signal ended it.
        changes: how often it was to change a file.
        seconds: from its start to its end.
        memory: bytes, at the most, that were in memory.
        out: what it printed, or the beginning of it.
        err: what it said beside that.
    """

    status: int
    changes: int
    seconds: float
    memory: int
    out: str
    err: str


@dataclass(frozen=True)
class Forks:
    """The process that commands are forked from."""

    process: subprocess.Popen[str]

    def run(
        self,
        words: Sequence[str],
        *,
        kill_at: int | str | None = None,
        after: float | None = None,
        memory: int | None = None,
        file: int | None = None,
        by: signal.Signals = signal.SIGKILL,
        within: Path | None = None,
    ) -> Ended:
        """Run a command and wait for its end.

        Args:
            words: of the command line, without `caq`.
            kill_at: kill it, once, before its so-manieth change of a file, or the first of a path that holds this.
            after: end it by a signal after so many seconds.
            memory: bytes that it may map, beyond those that are mapped when it starts.
            file: bytes that a file may have; a write beyond them fails as on a disk that is full.
            by: the signal that it is killed with.
            within: the directory that it runs in.
        """
        assert self.process.stdin
        assert self.process.stdout
        place = None if within is None else str(within)
        limits = {"kill_at": kill_at, "after": after, "memory": memory, "file": file, "by": by}
        request = {"words": words, "within": place, **limits}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return Ended(**json.loads(self.process.stdout.readline()))


@contextmanager
def forks(directory: Path) -> Iterator[Forks]:
    """Start the process that commands are forked from; what they print is kept in files of `directory`."""
    command = [sys.executable, "-m", "tests.faults.forks", str(directory)]
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    kept = {"TOKENIZERS_PARALLELISM": "false", "CAQ_CACHE": str(directory / "cache")}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env={**os.environ, **fixed, **kept}, text=True, **pipes) as process:
        yield Forks(process)
        process.kill()


def _serve(directory: Path) -> None:
    from importlib import import_module

    from caq.cli.options import silence_libraries

    silence_libraries(os.environ)
    for module in _IMPORTED:
        import_module(module)
    answers = directory / "answers"
    answers.write_text("y\n" * 100)
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        started = time.monotonic()
        child = os.fork()
        if not child:
            _run(request, writer, directory)
        os.close(writer)
        _, status, used = os.wait4(child, 0)
        with os.fdopen(reader) as counted:
            changes = int(counted.read() or 0)
        ended = Ended(
            os.waitstatus_to_exitcode(status),
            changes,
            time.monotonic() - started,
            used.ru_maxrss * 1024,
            *((directory / name).read_bytes()[:_KEPT].decode(errors="replace") for name in ("out", "err")),
        )
        print(json.dumps(vars(ended)), flush=True)


def _run(request: Mapping[str, Any], writer: int, directory: Path) -> None:
    from caq.cli import main

    changes, place = 0, request["kill_at"]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes, place
        if event in _CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            changes += 1
            if changes == place or (isinstance(place, str) and place in str(arguments[0])):
                place = None
                os.kill(os.getpid(), request["by"])

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    # Whatever is asked, the answer is yes: a command that would run a checkpoint's code if told so must not ask.
    os.dup2(os.open(directory / "answers", os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (as long as the process)
    if request["within"]:
        os.chdir(request["within"])
    sys.argv = ["caq", *request["words"]]
    status: object = 1
    if request["after"]:
        signal.setitimer(signal.ITIMER_REAL, request["after"])
    if request["memory"]:
        most = _mapped() + request["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if request["file"]:
        # Python ignores the signal that comes with it, so that the write fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file"], request["file"]))
    sys.addaudithook(count)
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os.write(writer, str(changes).encode())
        os._exit(status if isinstance(status, int) else int(status is not None))


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
