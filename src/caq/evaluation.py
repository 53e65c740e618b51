"""`caq evaluate`: one model, and the aligned model and its base on the same items, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from caq.chat import ChatOptions
from caq.errors import InvalidInput, attempt
from caq.items.safety import DEFAULT_PROTOCOLS, SafetyTask
from caq.items.tasks import Tasks
from caq.measure.assemble import read_comparison
from caq.measure.judges import DEFAULT_JUDGE, find_judge
from caq.measure.measure import AbilityMeasure
from caq.measure.record import Comparison
from caq.measure.run import Named, measure_into, prepare, running_on
from caq.measure.store import locked, read_manifest, require_reports
from caq.report.analyse import analyse
from caq.report.document import RESULTS_FILE, read_report
from caq.report.measures import by_role
from caq.report.render import RENDERERS, report_files, write_report
from caq.report.safety_table import floor_table, letter_table
from caq.report.table import rich_table, wide_console
from caq.report.types import Report, Settings

DEFAULT_TEXT = "wikitext2-test"


def task_files(
    perplexity_text: str | None,
    safety: SafetyTask | None,
    facts: Path | None,
    prompts: Path | None,
    window: int | None,
    response_tokens: int = 32,
    default_text: str | None = DEFAULT_TEXT,
    chat_options: ChatOptions | None = None,
) -> Tasks:
    """Return the tasks of a command line; if nothing is named, perplexity on `default_text`."""
    if not any((perplexity_text, safety, facts, prompts)):
        perplexity_text = default_text
    text = None if perplexity_text is None else Path(perplexity_text)
    return Tasks(text, safety, facts, prompts, window, response_tokens, chat_options or {})


def safety_task(
    questions: str | None,
    answers: Path | None = None,
    protocols: Sequence[str] | None = None,
    shots: int = 0,
    examples: Path | None = None,
    chat: bool = False,
    language: str | None = None,
) -> SafetyTask | None:
    """Return the safety task of a command line, or None.

    Raises:
        InvalidInput: options of safety questions are given without the questions.
    """
    if questions is not None:
        chosen = tuple(protocols or DEFAULT_PROTOCOLS)
        return SafetyTask(Path(questions), answers, chosen, shots, examples, chat, language)
    if answers or protocols or shots or examples or chat or language:
        raise InvalidInput("there are options for safety questions and no questions: add --safety safetybench-en")
    return None


def evaluate(
    model: str | Path,
    reference: str | Path | None,
    base: str | Path | None,
    tasks: Tasks,
    output: Path | None = None,
    *,
    judge: str = DEFAULT_JUDGE,
    abilities: AbilityMeasure | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quiet: bool = False,
) -> Report:
    """Measure the models, print their table, write `results.json`; return what it holds.

    A model whose tokenizer has no chat template, as most bases, is asked through the aligned model's, and a line says
    so. Without the aligned model there are no distances and no verdict, and a response is coherent if its text is.

    Args:
        model: the model to judge: a directory, a hub name or a GGUF file. Without a network (`HF_HUB_OFFLINE=1`) a hub
            name is looked up in the hub's local cache only.
        reference: the aligned model, or None.
        base: its base, or None.
        tasks: what to measure.
        output: directory of `results.json` and of all that is measured, from which a stopped run continues; None keeps
            nothing.
        judge: who calls a response a refusal, as `caq.compare` takes it.
        abilities: what to measure besides, such as lm-eval's tasks.
        device: None takes CUDA where there is one.
        dtype: float32, bfloat16 or float16; None takes float32 on a CPU, and elsewhere each checkpoint's own.
        quiet: show no progress.

    Raises:
        InvalidInput: every problem of the checkpoints and the task files, before a model is loaded.
    """
    if output is not None:
        # By itself, before a model is looked for on the hub.
        require_reports(output, report_files())
    problems: list[str] = []
    named = attempt(problems, lambda: find_judge(judge))
    models: Named = [("aligned", reference), ("base", base), ("quantized", model)]
    setup = prepare(models, tasks, named, running_on(device, tasks, dtype), problems, abilities)
    console = wide_console()
    _say(console, setup.lines)
    kept: AbstractContextManager[str] = (
        TemporaryDirectory(prefix="caq-evaluate-") if output is None else nullcontext(str(output))
    )
    with kept as name, locked(directory := Path(name)):
        settings = _settings(directory, reference)
        manifest = measure_into(directory, setup, quiet=quiet)
        _say(console, filter(None, [manifest.judge_missing]))
        comparison = read_comparison(directory)
        report = analyse(comparison, settings)
        # Where a comparison left a page, it is drawn again: it shows the same arms.
        drawn = [name for name, (file, _) in RENDERERS.items() if name == "json" or (directory / file).exists()]
        write_report(directory, report, comparison, drawn)
    _show(console, comparison)
    gaps = ((arm.name, name, why) for arm in report.arms for name, why in arm.unmeasured.items())
    _say(console, (f"{model}: {name} is not measured: {why}" for model, name, why in gaps))
    return report


def _say(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _settings(output: Path, reference: str | Path | None) -> Settings:
    """Return what decides: in a comparison's directory what decided there, or else the defaults."""
    stored, results = read_manifest(output), output / RESULTS_FILE
    if stored is None or not any(arm.role == "aligned" for arm in stored.arms):
        return Settings()
    if reference is None:
        raise InvalidInput(
            f"{output}: holds a comparison with an aligned model; name it by --reference, or choose another directory"
        )
    earlier = read_report(results) if results.exists() else None
    if earlier is not None and earlier.changes:
        raise InvalidInput(
            f"{output}: its report tells changes since a baseline, which this would drop; "
            "use caq compare with --baseline, or choose another directory"
        )
    return Settings() if earlier is None else earlier.settings


def _show(console: Console, comparison: Comparison) -> None:
    arms = by_role(comparison.arms)
    console.print(rich_table({name: [arm] for name, arm in arms.items()}))
    for table in (floor_table(comparison), letter_table(arms, comparison)):
        if table is not None:
            console.print(table)
