"""The command line. Every command imports what it needs when it runs, so that `caq --help` is instant."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from caq.cli import options as option
from caq.cli.compare import compare
from caq.errors import CaqError, InvalidInput, attempt, is_out_of_space, refuse

if TYPE_CHECKING:
    from caq.recipe import Recipe

app = typer.Typer(
    help="Quantize an aligned language model to 4 bits, keep its alignment, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
testbed = typer.Typer(help="The bundled pair: a tiny base model and the model aligned from it.", no_args_is_help=True)
app.add_typer(testbed, name="testbed")

INTERRUPTED = 130
CALIBRATION_HELP = (
    "Calibration data: a .txt, .jsonl or .parquet file, the directory of a data set, wikitext2, c4, pile, ultrachat, "
    "or self for the model's own responses."
)


def main() -> None:
    """Run the command line; deliberate errors are printed without a traceback."""
    option.silence_libraries(os.environ)
    try:
        app()
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


def _stopped(reason: str, status: int) -> NoReturn:
    # --restart would throw away what is kept.
    again = shlex.join(["caq", *(word for word in sys.argv[1:] if word != "--restart")])
    print(f"{reason}\n  {again}", file=sys.stderr)
    sys.exit(status)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="The aligned model: directory or hub name.")],
    output: option.Output,
    base: option.Base = None,
    recipe: Annotated[str, typer.Option(help="A recipe file, or a preset: default, paper, paper-code.")] = "default",
    scheme: Annotated[str | None, typer.Option(help="Bits of weights and activations, such as W4A4 or W4A16.")] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="What learning minimises: mse, kl, kl-top, contrastive-kl, contrastive-kl-top, cal."),
    ] = None,
    quantizer: Annotated[str | None, typer.Option(help="How weights are rounded: rtn, gptq.")] = None,
    calibration: Annotated[str | None, typer.Option(help=CALIBRATION_HELP)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the data order and of random rotations.")] = None,
    settings: option.Settings = None,
    allow_short: Annotated[
        bool, typer.Option("--allow-short", help="Continue with less calibration data than the recipe asks for.")
    ] = False,
    device: option.Device = None,
    cache: Annotated[
        Path | None, typer.Option(help="Cache of texts and teacher targets; by default $CAQ_CACHE or ~/.cache/caq.")
    ] = None,
    evaluated: Annotated[
        bool,
        typer.Option(
            "--evaluate", help="Then compare the result with MODEL and write its model card; exits as caq compare does."
        ),
    ] = False,
    perplexity_text: option.Text = None,
    safety: option.Safety = None,
    facts: option.Facts = None,
    prompts: option.Prompts = None,
    window: option.Window = 2048,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over, without what was done for this output.")
    ] = False,
    quiet: option.Quiet = False,
) -> None:
    """Quantize MODEL into a checkpoint in compressed-tensors' format."""
    given: dict[str, object] = {"scheme.preset": scheme, "objective.name": objective, "quantizer.name": quantizer}
    given |= {"data.text": calibration, "data.allow_short": allow_short or None}
    chosen = _recipe(recipe, {**given, "seed": seed}, settings or [])
    print(f"{chosen.to_yaml()}# recipe {chosen.fingerprint()[:12]}", file=sys.stderr)
    from caq.pipeline import quantize as run

    measures = (perplexity_text, safety, facts, prompts)
    if any(measures) and not evaluated:
        raise InvalidInput("there are items to measure on, and nothing is measured: add --evaluate")
    if evaluated:
        from caq.publish.evaluate import evaluate as judge
        from caq.publish.evaluate import evaluation_tasks
        from caq.report.types import EXIT

        tasks = evaluation_tasks(model, *measures, window)
    result = run(model, base, chosen, output, cache_dir=cache, device=device, restart=restart, quiet=quiet)
    print(f"{'found' if result.found else 'wrote'} {result.output} (unquantized logits kept to {result.preserved:.1e})")
    for entry in result.ledger:
        print(f"ledger: [{entry.stage}] {entry.message}")
    if evaluated:
        verdict = judge(result.output, model, base, tasks, device=device, quiet=quiet).decision
        print(f"{verdict.status}: {verdict.sentence}")
        raise typer.Exit(EXIT[verdict.status])


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint, CAQ's or any other: directory, hub name or .gguf file.")],
    reference: option.Reference = None,
    base: option.Base = None,
    perplexity_text: option.Text = None,
    safety: option.Safety = None,
    safety_answers: option.SafetyAnswers = None,
    protocol: option.Protocol = None,
    shots: option.Shots = 0,
    dev: option.Dev = None,
    chat: option.Chat = False,
    language: option.Language = None,
    facts: option.Facts = None,
    prompts: option.Prompts = None,
    window: option.Window = 2048,
    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks, such as mmlu,zero-shot,mytask.")] = None,
    include_path: Annotated[
        list[Path] | None, typer.Option(help="Directory of more lm-eval task files; may be repeated.")
    ] = None,
    task_shots: Annotated[
        int | None, typer.Option(min=0, help="Solved examples in lm-eval tasks; by default as the field reports them.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items per lm-eval task, for trial runs.")] = None,
    response_tokens: option.ResponseTokens = 32,
    judge: option.Judge = "phrases",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory for results.json; a stopped run continues from it.")
    ] = None,
    device: option.Device = None,
    quiet: option.Quiet = False,
) -> None:
    """Measure MODEL and, on the same items, the aligned model and its base."""
    from caq.evaluation import DEFAULT_TEXT, safety_task, task_files
    from caq.evaluation import evaluate as run
    from caq.lm_eval.harness import Benchmarks, prepare

    problems: list[str] = []
    asked = attempt(problems, lambda: safety_task(safety, safety_answers, protocol, shots, dev, chat, language))
    names = tuple(name for name in (tasks or "").split(",") if name)
    of_tasks = {"--include-path": include_path, "--task-shots": task_shots, "--limit": limit}
    idle = [name for name, value in of_tasks.items() if value is not None]
    if idle and not names:
        problems.append(f"there are no lm-eval tasks for {', '.join(idle)}: add --tasks")
    refuse(problems)
    abilities = prepare(Benchmarks(names, tuple(include_path or ()), task_shots, limit)) if names else None
    text = None if names else DEFAULT_TEXT
    files = task_files(perplexity_text, asked, facts, prompts, window, response_tokens, default_text=text)
    run(model, reference, base, files, output, judge=judge, abilities=abilities, device=device, quiet=quiet)


app.command()(compare)


@app.command()
def tasks() -> None:
    """Print where SafetyBench's tasks for lm-eval are: lm_eval --include_path $(caq tasks)."""
    from caq.lm_eval.tasks import task_directory

    print(task_directory())


@app.command()
def verify(directory: Annotated[Path, typer.Argument(help="A checkpoint that CAQ wrote.")]) -> None:
    """Check that no file of DIRECTORY has changed since it was written."""
    from caq.checkpoint.write import verify as changed_files

    changed = changed_files(directory)
    if changed:
        raise InvalidInput([f"{directory / name}: is missing or was changed after it was written" for name in changed])
    print(f"{directory}: every file is what was written")


@app.command()
def card(
    directory: Annotated[Path, typer.Argument(help="A checkpoint that CAQ wrote.")],
    source: Annotated[Path, typer.Argument(help="A results.json that judges it, or your own Markdown file.")],
) -> None:
    """Write SOURCE into DIRECTORY as its model card, README.md, and update the hashes."""
    from caq.publish.readme import put_card

    put_card(directory, source)
    print(f"wrote {directory / 'README.md'}")


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="A checkpoint that CAQ wrote.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; created if it does not exist.")],
    private: Annotated[
        bool, typer.Option("--private", help="Create the repository private, and refuse a public one.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; created if it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it, only list what would be uploaded.")] = False,
) -> None:
    """Upload DIRECTORY to REPO on the Hugging Face hub, after checking that no file of it has changed."""
    from caq.publish.push import files_to_push
    from caq.publish.push import push as send

    if not yes:
        for name in files_to_push(directory):
            print(f"{(directory / name).stat().st_size:>15,}  {name}")
        print(f"nothing was sent; to send this to {repo}, add --yes")
        return
    print(send(directory, repo, private=private, revision=revision, message=message))


@app.command()
def demo(output: option.Folder = Path("demo"), settings: option.Settings = None, quiet: option.Quiet = False) -> None:
    """Quantize the bundled pair with CAL and with the baselines, under one seed, and print the table."""
    reproduce("table1", output, seeds=1, settings=settings, keep=True, quiet=quiet)


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="table1, table2, table3, table4, tableS1 or calibration.")],
    output: option.Folder = Path("reproduce"),
    pair: Annotated[
        str, typer.Option(help="bundled, Llama-3.1-8B, Llama-2-7B, Qwen2-7B, Mistral-7B-v0.1, or ALIGNED:BASE.")
    ] = "bundled",
    preset: Annotated[str, typer.Option(help="Preset of the recipes: default, paper, paper-code.")] = "default",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of every row; by default the table's number.")] = None,
    settings: option.Settings = None,
    perplexity_text: option.Text = None,
    safety: option.Safety = None,
    facts: option.Facts = None,
    prompts: option.Prompts = None,
    window: option.Window = 2048,
    keep: Annotated[bool, typer.Option("--keep-checkpoints", help="Keep every row's checkpoint.")] = False,
    device: option.Device = None,
    quiet: option.Quiet = False,
) -> None:
    """Run a table of the paper, row by row and seed by seed, and print the paper's figures beside the measured ones.

    Unless something else is named, measures the bundled pair's own items, or WikiText-2 and SafetyBench.
    """
    from caq.evaluation import task_files
    from caq.items.safety import SafetyTask
    from caq.recipe import parse_override
    from caq.reproduce.command import Request, run

    overrides = dict(parse_override(text) for text in settings or [])
    asked = SafetyTask(Path(safety)) if safety else None
    named = any((perplexity_text, asked, facts, prompts))
    tasks = task_files(perplexity_text, asked, facts, prompts, window) if named else None
    run(Request(table, pair, preset, output.resolve(), seeds, overrides, device, keep, tasks), quiet=quiet)


@testbed.command()
def export(directory: Annotated[Path, typer.Argument(help="Directory to write the pair and its data to.")]) -> None:
    """Write the pair as two ordinary Transformers directories, with calibration and evaluation files."""
    from caq.testbed.export import export as write

    write(directory)
    print(f"wrote {directory}/aligned, {directory}/base and their data")


def _recipe(source: str, given: dict[str, object], settings: list[str]) -> Recipe:
    from caq.recipe import PRESETS, Recipe, parse_override, preset

    chosen = preset(source) if source in PRESETS else Recipe.from_yaml(Path(source))
    overrides = {key: value for key, value in given.items() if value is not None}
    return chosen.with_overrides({**overrides, **dict(parse_override(text) for text in settings)})
