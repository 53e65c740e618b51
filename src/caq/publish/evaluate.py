"""`caq quantize --evaluate`: the questions are read first; the checkpoint is then compared, and its card written."""

from __future__ import annotations

from pathlib import Path

from caq.chat import ChatOptions, find_template, unknown_options
from caq.checkpoint.inspect import inspect
from caq.checkpoint.source import resolve
from caq.comparison import compare
from caq.errors import CaqError, InvalidInput, refuse
from caq.evaluation import task_files
from caq.items.safety import SafetyTask
from caq.items.tasks import Tasks
from caq.loading import load_tokenizer
from caq.measure.questionnaire import read_questionnaire
from caq.measure.store import require_reports
from caq.publish.readme import write_card
from caq.report.render import report_files
from caq.report.types import Report
from caq.runners.context import context_of


def evaluation_tasks(
    model: str,
    perplexity_text: str | None,
    safety: str | None,
    facts: Path | None,
    prompts: Path | None,
    window: int | None,
    response_tokens: int = 32,
    chat_options: ChatOptions | None = None,
    *,
    checkpoint: Path,
) -> Tasks:
    """Return what is to be measured, read once, so that a mistake shows before the hours of a quantization.

    Raises:
        InvalidInput: nothing that decides is asked for, every problem of the files, or the report cannot be written
            beside the checkpoint.
    """
    require_reports(report_directory(checkpoint), report_files())
    if safety is None and prompts is None:
        raise InvalidInput("--evaluate: nothing is asked that decides; add --safety safetybench-en, or --prompts FILE")
    asked = SafetyTask(Path(safety)) if safety else None
    tasks = task_files(
        perplexity_text, asked, facts, prompts, window, response_tokens, default_text=None, chat_options=chat_options
    )
    aligned = inspect(resolve(model))
    tokenizer = load_tokenizer(aligned.path)
    put = read_questionnaire(tasks.fitted({model: context_of(aligned)}), tokenizer)
    if put.chats:
        template = find_template(tokenizer)
        refuse([*unknown_options([template] if template else [], tasks.chat_options)])
        put.texts(tokenizer)
    return tasks


def report_directory(checkpoint: Path) -> Path:
    """Return where a checkpoint's report goes."""
    return checkpoint.with_name(f"{checkpoint.name}-report")


def evaluate(
    checkpoint: Path, model: str, base: str | None, tasks: Tasks, *, device: str | None = None, quiet: bool = False
) -> Report:
    """Compare what `caq quantize` wrote with the full-precision model; write the report beside it, the card into it.

    Raises:
        CaqError: the comparison's; a note says that the checkpoint is there.
    """
    output = report_directory(checkpoint)
    try:
        report = compare(
            [checkpoint], reference=model, base=base, tasks=tasks, output=output, device=device, quiet=quiet
        )
    except CaqError as error:
        error.add_note(f"{checkpoint} was written and is whole; the same command goes on from there")
        raise
    write_card(checkpoint, report)
    return report
