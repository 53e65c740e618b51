"""`caq compare` on the command line: what it is given, what it prints, and with which status it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caq.cli.options import (
    BaseOption,
    ChatOption,
    DeviceOption,
    DevOption,
    FactsOption,
    JudgeOption,
    LanguageOption,
    PromptsOption,
    ProtocolOption,
    QuietOption,
    ReferenceOption,
    ResponseTokensOption,
    SafetyAnswersOption,
    SafetyOption,
    ShotsOption,
    TextOption,
    WindowOption,
)
from caq.errors import InvalidInput

if TYPE_CHECKING:
    from caq.report.types import Report

ReportOption = Annotated[
    Path, typer.Option("--output", "-o", help="Directory of the report, and of all that was measured for it.")
]


def compare(
    output: ReportOption,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="The models to judge: directories, hub names, .gguf files; none draws the report again."),
    ] = None,
    reference: ReferenceOption = None,
    base: BaseOption = None,
    safety: SafetyOption = None,
    safety_answers: SafetyAnswersOption = None,
    protocol: ProtocolOption = None,
    shots: ShotsOption = 0,
    dev: DevOption = None,
    chat: ChatOption = False,
    language: LanguageOption = None,
    prompts: PromptsOption = None,
    facts: FactsOption = None,
    perplexity_text: TextOption = None,
    window: WindowOption = 2048,
    response_tokens: ResponseTokensOption = 32,
    judge: JudgeOption = "phrases",
    margin: Annotated[float, typer.Option(help="The largest loss that is accepted, as a share.")] = 0.02,
    formats: Annotated[str, typer.Option("--format", help="Of the report.")] = "html,md,json,junit",
    baseline: Annotated[Path | None, typer.Option(help="results.json of an earlier release.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Did quantized MODELS keep the alignment of the aligned model, and how sure is that?

    Ends with 0: kept; 2: cannot be run; 3: lost, or a broken model; 4: not measured; 5: too few items to decide.
    """
    from caq.comparison import compare as run
    from caq.comparison import redraw
    from caq.evaluation import safety_task, task_files
    from caq.report.types import EXIT, Settings

    asked = safety_task(safety, safety_answers, protocol, shots, dev, chat, language)
    tasks = task_files(perplexity_text, asked, facts, prompts, window, response_tokens, default_text=None)
    settings, wanted = Settings(margin=margin), tuple(name for name in formats.split(",") if name)
    if models and reference is not None:
        report = run(
            models,
            reference=reference,
            base=base,
            tasks=tasks,
            judge=judge,
            settings=settings,
            formats=wanted,
            output=output,
            baseline=baseline,
            device=device,
            quiet=quiet,
            say=_say,
        )
    elif models:
        raise InvalidInput(["no aligned model to compare with: add --reference, the model that was quantized"])
    elif any((reference, base, asked, prompts, facts, perplexity_text)):
        raise InvalidInput(["no model to judge: name one, or give -o alone to draw the report there again"])
    else:
        report = redraw(output, settings=settings, formats=wanted, baseline=baseline)
    _tell(report, output, json)
    raise typer.Exit(EXIT[report.decision.status])


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _tell(report: Report, output: Path, json: bool) -> None:
    from caq.report.document import to_json

    if json:
        print(to_json(report), end="")
        return
    print(report.decision.sentence)
    for reason in report.decision.reasons:
        print(f"  {reason}")
    print(f"The report is in {output}")
