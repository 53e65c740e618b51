"""`caq` commands that die: forked from one process that has imported everything, and killed where a test says.

`python -m tests.support.killed` reads requests and writes answers, a line of JSON each: Python's audit events tell when
a command is about to change a file, and `SIGKILL` comes before the change that was asked for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "fcntl.flock"}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, negative where a signal ended it, and how often it was to change a file."""

    status: int
    changes: int


@dataclass(frozen=True)
class Forks:
    """The process that commands are forked from."""

    process: subprocess.Popen[str]

    def run(self, words: Sequence[str], *, kill_at: int | None = None, after: float | None = None) -> Ended:
        """Run a command; kill it before its `kill_at`-th change of a file, or after so many seconds."""
        assert self.process.stdin
        assert self.process.stdout
        request = {"words": words, "kill_at": kill_at, "after": after}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return Ended(**json.loads(self.process.stdout.readline()))


@contextmanager
def forks(environment: Mapping[str, str], log: Path) -> Iterator[Forks]:
    """Start the process that commands are forked from; what they print goes to `log`."""
    command = [sys.executable, "-m", "tests.support.killed", str(log)]
    changed = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=changed, text=True, **pipes) as process:
        yield Forks(process)
        process.kill()


def _serve(log: Path) -> None:

    import caq.pipeline  # noqa: F401 (what every command would import)

    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            _run(request, writer, log)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reader) as counted:
            answer = {"status": os.waitstatus_to_exitcode(status), "changes": int(counted.read() or 0)}
        print(json.dumps(answer), flush=True)


def _run(request: Mapping[str, Any], writer: int, log: Path) -> None:
    from caq.cli import main

    changes = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event in _CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            changes += 1
            if changes == request["kill_at"]:
                os.kill(os.getpid(), signal.SIGKILL)

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["caq", *request["words"]]
    status: object = 1
    if request["after"]:
        signal.setitimer(signal.ITIMER_REAL, request["after"])
    sys.addaudithook(count)
    try:
        main()
        status = 0
    except SystemExit as stop:
        status = stop.code
    finally:
        os.write(writer, str(changes).encode())
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
