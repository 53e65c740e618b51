"""The command line. Every command imports what it needs when it runs, so that `caq --help` is instant."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from caq.cli import options as option
from caq.cli.compare import compare
from caq.cli.evaluate import evaluate
from caq.cli.publish import card, push, verify
from caq.cli.quantize import quantize
from caq.cli.reproduce import demo, reproduce
from caq.errors import CaqError, InvalidInput, is_out_of_space
from caq.files.content import at_home

app = typer.Typer(
    help="Quantize an aligned language model to 4 bits, keep its alignment, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
testbed = typer.Typer(help="The bundled pair: a tiny base model and the model aligned from it.", no_args_is_help=True)
app.add_typer(testbed, name="testbed")

INTERRUPTED = 130


def main() -> None:
    """Run the command line; deliberate errors are printed without a traceback."""
    option.silence_libraries(os.environ)
    try:
        app(_at_home(sys.argv[1:]))
    except CaqError as error:
        for line in error.problems if isinstance(error, InvalidInput) else (str(error),):
            print(f"error: {line}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        sys.exit(error.status)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Inside a command, typer has turned the one into the other.
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        _stopped("\nInterrupted. What is done is kept; go on with:", INTERRUPTED)
    except Exception as error:
        if not is_out_of_space(error):
            raise
        reason = f"error: {error}\nThe disk is full. What is done is kept; free some space and go on with:"
        _stopped(reason, CaqError.status)


def _at_home(words: Iterable[str]) -> list[str]:
    """Return the words of a command with `~/` as the home directory behind `=`, too, where shells leave it alone."""
    parts = (word.rpartition("=") for word in words)
    return [option + sign + (at_home(value) if "/" in value else value) for option, sign, value in parts]


def _stopped(reason: str, status: int) -> NoReturn:
    # --restart would throw away what is kept.
    again = shlex.join(["caq", *(word for word in sys.argv[1:] if word != "--restart")])
    print(f"{reason}\n  {again}", file=sys.stderr)
    sys.exit(status)


for command in (quantize, evaluate, compare, verify, card, push, demo, reproduce):
    app.command()(command)


@app.command()
def tasks() -> None:
    """Print where SafetyBench's tasks for lm-eval are: lm_eval --include_path $(caq tasks)."""
    from caq.lm_eval.tasks import task_directory

    print(task_directory())


@testbed.command()
def export(directory: Annotated[Path, typer.Argument(help="Directory to write the pair and its data to.")]) -> None:
    """Write the pair as two ordinary Transformers directories, with calibration and evaluation files."""
    from caq.testbed.export import export as write

    write(directory)
    print(f"wrote {directory}/aligned, {directory}/base and their data")
