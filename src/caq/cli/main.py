"""The command line. Every command imports what it needs when it runs, so that `caq --help` is instant."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caq.cli.compare import compare
from caq.cli.libraries import silence_libraries
from caq.cli.options import (
    BaseOption,
    ChatOption,
    DeviceOption,
    DevOption,
    FactsOption,
    FolderOption,
    JudgeOption,
    LanguageOption,
    OutputOption,
    PromptsOption,
    ProtocolOption,
    QuietOption,
    ReferenceOption,
    ResponseTokensOption,
    SafetyAnswersOption,
    SafetyOption,
    SettingsOption,
    ShotsOption,
    TextOption,
    WindowOption,
)
from caq.errors import CaqError, InvalidInput, is_out_of_space

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
    "A .txt, .jsonl or .parquet file, a data set's directory, wikitext2, c4, pile, ultrachat, "
    "or self: the model's own responses."
)


def main() -> None:
    """Run the command line; deliberate errors are printed without a traceback."""
    silence_libraries(os.environ)
    try:
        app()
    except CaqError as error:
        _say_wrong(error)
        sys.exit(error.status)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Inside a command, typer has turned the one into the other.
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        print(f"\nInterrupted. What is done is kept; go on with:\n  {_again()}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not is_out_of_space(error):
            raise
        print(
            f"error: {error}\nThe disk is full. What is done is kept; free some space and go on with:", file=sys.stderr
        )
        print(f"  {_again()}", file=sys.stderr)
        sys.exit(CaqError.status)


def _again() -> str:
    # --restart would throw away what is kept.
    return shlex.join(["caq", *(word for word in sys.argv[1:] if word != "--restart")])


def _say_wrong(error: CaqError) -> None:
    lines = error.problems if isinstance(error, InvalidInput) else (str(error),)
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(note, file=sys.stderr)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="The aligned (aligned) model: directory or hub name.")],
    output: OutputOption,
    base: BaseOption = None,
    recipe: Annotated[str, typer.Option(help="A recipe file, or a preset: default, paper, paper-code.")] = "default",
    scheme: Annotated[str | None, typer.Option(help="Number formats, such as W4A4 or W4A16.")] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="What is learned under: mse, kl, kl-top, contrastive-kl, contrastive-kl-top, cal."),
    ] = None,
    quantizer: Annotated[str | None, typer.Option(help="How weights are rounded: rtn, gptq.")] = None,
    calibration: Annotated[str | None, typer.Option(help=CALIBRATION_HELP)] = None,
    seed: Annotated[int | None, typer.Option(help="Decides data order and random rotations.")] = None,
    settings: SettingsOption = None,
    allow_short: Annotated[bool, typer.Option("--allow-short", help="Go on with less text than asked for.")] = False,
    device: DeviceOption = None,
    cache: Annotated[
        Path | None, typer.Option(help="Caches of texts and teachers; $CAQ_CACHE or ~/.cache/caq.")
    ] = None,
    evaluated: Annotated[
        bool,
        typer.Option("--evaluate", help="Then compare it with MODEL, and write the model card; ends as caq compare."),
    ] = False,
    perplexity_text: TextOption = None,
    safety: SafetyOption = None,
    facts: FactsOption = None,
    prompts: PromptsOption = None,
    window: WindowOption = 2048,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what was done for the same output.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Quantize MODEL into a checkpoint that Transformers and vLLM load."""
    given: dict[str, object] = {"scheme.preset": scheme, "objective.name": objective, "quantizer.name": quantizer}
    given |= {"data.text": calibration, "data.allow_short": allow_short or None}
    chosen = _recipe(recipe, {**given, "seed": seed}, settings or [])
    _print_recipe(chosen)
    from caq.pipeline import quantize as run

    measures = (perplexity_text, safety, facts, prompts)
    if any(measures) and not evaluated:
        raise InvalidInput(["what to measure is given, and nothing is measured: add --evaluate"])
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
    reference: ReferenceOption = None,
    base: BaseOption = None,
    perplexity_text: TextOption = None,
    safety: SafetyOption = None,
    safety_answers: SafetyAnswersOption = None,
    protocol: ProtocolOption = None,
    shots: ShotsOption = 0,
    dev: DevOption = None,
    chat: ChatOption = False,
    language: LanguageOption = None,
    facts: FactsOption = None,
    prompts: PromptsOption = None,
    window: WindowOption = 2048,
    tasks: Annotated[str | None, typer.Option(help="lm-eval's tasks by name: mmlu,zero-shot,mytask.")] = None,
    include_path: Annotated[list[Path] | None, typer.Option(help="More task files for lm-eval.")] = None,
    task_shots: Annotated[
        int | None, typer.Option(min=0, help="Solved examples; the field's number by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task of lm-eval, for trials.")] = None,
    response_tokens: ResponseTokensOption = 32,
    judge: JudgeOption = "phrases",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Directory of results.json; a stopped run goes on there.")
    ] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure MODEL and, on the same items, the aligned model and its base."""
    from caq.evaluation import DEFAULT_TEXT, safety_task, task_files
    from caq.evaluation import evaluate as run
    from caq.lm_eval.harness import Benchmarks, prepare

    asked = safety_task(safety, safety_answers, protocol, shots, dev, chat, language)
    names = tuple(name for name in (tasks or "").split(",") if name)
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
    """Check that every file of DIRECTORY is still what was written."""
    from caq.checkpoint.write import verify as changed_files

    changed = changed_files(directory)
    if changed:
        raise InvalidInput([f"{directory / name}: is missing or was changed after it was written" for name in changed])
    print(f"{directory}: every file is what was written")


@app.command()
def card(
    directory: Annotated[Path, typer.Argument(help="A checkpoint that CAQ wrote.")],
    source: Annotated[Path, typer.Argument(help="A results.json on it, or a Markdown file of your own.")],
) -> None:
    """Put SOURCE into DIRECTORY as its model card, README.md, and keep its hashes true."""
    from caq.publish.readme import put_card

    put_card(directory, source)
    print(f"wrote {directory / 'README.md'}")


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="A checkpoint that CAQ wrote.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Refuse a repository that is not private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; made if it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send it; without this, only say what would be sent.")] = False,
) -> None:
    """Upload DIRECTORY to REPO on the Hugging Face hub, if every file of it is still what was written."""
    from caq.publish.push import files_to_push
    from caq.publish.push import push as send

    if not yes:
        for name in files_to_push(directory):
            print(f"{(directory / name).stat().st_size:>15,}  {name}")
        print(f"nothing was sent; to send this to {repo}, add --yes")
        return
    print(send(directory, repo, private=private, revision=revision, message=message))


@app.command()
def demo(output: FolderOption = Path("demo"), settings: SettingsOption = None, quiet: QuietOption = False) -> None:
    """Quantize the bundled pair with CAL and with the baselines, one seed, and print the table."""
    reproduce("table1", output, seeds=1, settings=settings, keep=True, quiet=quiet)


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="table1, table2, table3, table4, tableS1 or calibration.")],
    output: FolderOption = Path("reproduce"),
    pair: Annotated[
        str, typer.Option(help="bundled, Llama-3.1-8B, Llama-2-7B, Qwen2-7B, Mistral-7B-v0.1, or ALIGNED:BASE.")
    ] = "bundled",
    preset: Annotated[str, typer.Option(help="Settings: default, paper, paper-code.")] = "default",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="How many runs of every row; the table's own number.")
    ] = None,
    settings: SettingsOption = None,
    perplexity_text: TextOption = None,
    safety: SafetyOption = None,
    facts: FactsOption = None,
    prompts: PromptsOption = None,
    window: WindowOption = 2048,
    keep: Annotated[bool, typer.Option("--keep-checkpoints", help="Leave every row's checkpoint on the disk.")] = False,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a table of the paper, row by row over seeds, and set the paper's figures beside the measured ones.

    What is measured, unless it is named: the bundled pair's own items, or WikiText-2 and SafetyBench.
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
def export(directory: Annotated[Path, typer.Argument(help="Where to write the pair and its data.")]) -> None:
    """Write the pair as two ordinary Transformers directories, with calibration and evaluation files."""
    from caq.testbed.export import export as write

    write(directory)
    print(f"wrote {directory}/aligned, {directory}/base and their data")


def _recipe(source: str, given: dict[str, object], settings: list[str]) -> Recipe:
    from caq.recipe import PRESETS, Recipe, parse_override, preset

    chosen = preset(source) if source in PRESETS else Recipe.from_yaml(Path(source))
    overrides = {key: value for key, value in given.items() if value is not None}
    return chosen.with_overrides({**overrides, **dict(parse_override(text) for text in settings)})


def _print_recipe(recipe: Recipe) -> None:
    print(recipe.to_yaml(), end="", file=sys.stderr)
    print(f"# recipe {recipe.fingerprint()[:12]}", file=sys.stderr)
