"""Options that several commands of the command line have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def _no_bars(quiet: bool) -> bool:
    """Turn the libraries' own progress bars off as well; they look here when they are imported, which is later."""
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    return quiet


OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Directory to write; it appears whole or not at all.")
]
FolderOption = Annotated[
    Path, typer.Option("--output", "-o", help="Directory of reports, and of what a stopped run has done.")
]
BaseOption = Annotated[str | None, typer.Option("--base", help="The model's base: directory or hub name.")]
ReferenceOption = Annotated[
    str | None, typer.Option("--reference", "--aligned", help="The aligned model: directory or hub name.")
]
JudgeOption = Annotated[
    str, typer.Option(help="Of responses: phrases, wildguard, llama-guard; NAME@REVISION or NAME@DIRECTORY.")
]
ResponseTokensOption = Annotated[int, typer.Option(min=1, help="Length of a response to a prompt.")]
QuietOption = Annotated[bool, typer.Option("--quiet", callback=_no_bars, help="Show no progress.")]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", help="Any other setting: learn.end-to-end.steps=60.")
]
TextOption = Annotated[
    str | None, typer.Option("--perplexity-text", help="A text by path, or wikitext2-test, c4-test.")
]
SafetyOption = Annotated[
    str | None,
    typer.Option(help="Questions in SafetyBench's fields, or safetybench-en, safetybench-zh, safetybench-zh-subset."),
]
FactsOption = Annotated[Path | None, typer.Option(help="Factual questions in the same format.")]
PromptsOption = Annotated[
    Path | None, typer.Option(help="JSON lines of prompt and harmful, or the CSV of XSTest, HarmBench or AdvBench.")
]
WindowOption = Annotated[int, typer.Option(help="Tokens per perplexity window.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the accelerator, if there is one, by default.")]
SafetyAnswersOption = Annotated[Path | None, typer.Option(help="Their answers, where they are in a file apart.")]
ProtocolOption = Annotated[
    list[str] | None, typer.Option(help="option-text, option-text-normalized, letter, generate; may be repeated.")
]
ShotsOption = Annotated[int, typer.Option(min=0, help="Solved examples before each safety question: 0 or 5.")]
DevOption = Annotated[Path | None, typer.Option(help="A file of solved examples, such as dev_en.json.")]
ChatOption = Annotated[bool, typer.Option("--chat", help="Ask safety questions through the chat template.")]
LanguageOption = Annotated[str | None, typer.Option(help="Of the safety prompt: en or zh.")]
