"""`caq evaluate`: one checkpoint beside the aligned model and its base, all on the same items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from caq.checkpoint.inspect import inspect
from caq.checkpoint.source import resolve
from caq.errors import InvalidInput
from caq.files.whole import write_text
from caq.items.safety import DEFAULT_PROTOCOLS, SafetyTask
from caq.items.tasks import Tasks, check, compare, evaluate, reference_answers
from caq.lm_eval.harness import Benchmarks, Prepared, measure, prepare
from caq.loading import load, load_tokenizer
from caq.measure.results import Results
from caq.report.safety_table import floor_table, letter_table
from caq.report.table import rich_table, wide_console
from caq.runners.distribution import ReferenceStates

DEFAULT_TEXT = "wikitext2-test"


def task_files(
    perplexity_text: str | None,
    safety: SafetyTask | None,
    facts: Path | None,
    prompts: Path | None,
    window: int,
    default_text: str | None = DEFAULT_TEXT,
) -> Tasks:
    """Return the tasks of a command line; if nothing is named, perplexity on `default_text`."""
    if not any((perplexity_text, safety, facts, prompts)):
        perplexity_text = default_text
    return Tasks(None if perplexity_text is None else Path(perplexity_text), safety, facts, prompts, window)


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
        InvalidInput: it is told how to ask, and not what.
    """
    if questions is not None:
        chosen = tuple(protocols or DEFAULT_PROTOCOLS)
        return SafetyTask(Path(questions), answers, chosen, shots, examples, chat, language)
    if answers or protocols or shots or examples or chat or language:
        raise InvalidInput(["how to ask safety questions is given, and no questions: add --safety safetybench-en"])
    return None


def assess(
    model: str | Path,
    reference: str | Path | None,
    base: str | Path | None,
    tasks: Tasks,
    output: Path | None = None,
    *,
    benchmarks: Benchmarks | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Results]:
    """Measure the models, print their table, write `results.json`; return the results by name.

    The aligned model comes first, because the others' distance to it is measured on its states; one model is in
    memory at a time. A model whose tokenizer has no chat template, as most bases, is asked through the aligned
    model's, and a line says so.

    Args:
        model: the model to judge: a directory or a hub name, like the two that follow. Without a network
            (`HF_HUB_OFFLINE=1`) a hub name is looked up in the hub's local cache only.
        reference: the aligned model, or None.
        base: its pre-trained base, or None.
        tasks: what to measure.
        output: directory of `results.json`; None writes nothing.
        benchmarks: what to measure by lm-eval, besides the tasks.
        device: None takes the accelerator if there is one.
        quiet: show no progress.

    Raises:
        InvalidInput: every problem of the checkpoints, or of the task files, or of the benchmarks; nothing is computed
            before.
    """
    sources = {"fine-tuned": reference, "pre-trained": base, "quantized": model}
    paths = _checked({name: source for name, source in sources.items() if source is not None})
    tokenizers = {name: load_tokenizer(path) for name, path in paths.items()}
    console = wide_console()
    lent = tuple(lend_template(tokenizers))
    for line in (*lent, *check(tasks, next(iter(tokenizers.values())))):
        console.print(line, highlight=False, soft_wrap=True)
    prepared = None if benchmarks is None else prepare(benchmarks)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    states: ReferenceStates | None = None
    found = {}
    for name, path in paths.items():
        found[name], states = _measure(
            path, tokenizers[name], tasks, prepared, states, place, quiet, keep=name == "fine-tuned"
        )
    order = [name for name in ("pre-trained", "fine-tuned", "quantized") if name in found]
    console.print(rich_table({name: [found[name]] for name in order}))
    if tasks.safety is not None:
        console.print(floor_table(found[order[0]]))
        console.print(letter_table({name: found[name] for name in order}))
    if output is not None:
        write_results(found, output)
    return found


def _measure(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    prepared: Prepared | None,
    states: ReferenceStates | None,
    place: torch.device,
    quiet: bool,
    *,
    keep: bool,
) -> tuple[Results, ReferenceStates | None]:
    """Measure one model, which is gone on return; `keep` its states and measure the distance to itself, zero."""
    model = load(path, compute_dtype(place), place)
    if keep:
        states = reference_answers(model, tokenizer, tasks)
    results = evaluate(model, tokenizer, tasks, reference=states, quiet=quiet)
    return results if prepared is None else replace(results, abilities=measure(model, tokenizer, prepared)), states


def lend_template(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> Iterator[str]:
    """Give tokenizers without a chat template the first one that another has; yield a line for each."""
    lender = next((name for name, tokenizer in tokenizers.items() if tokenizer.chat_template), None)
    for name, tokenizer in tokenizers.items():
        if lender and not tokenizer.chat_template:
            tokenizer.chat_template = tokenizers[lender].chat_template
            yield f"The {name} model has no chat template; it is asked through the {lender} model's."


def compute_dtype(device: torch.device) -> torch.dtype | None:
    """Return float32 on a CPU, which computes bf16 slowly; the checkpoint's own dtype elsewhere."""
    return torch.float32 if device.type == "cpu" else None


def write_results(found: Mapping[str, Results], output: Path) -> None:
    """Write `results.json`: every result, and each one's paired differences from the fine-tuned model."""
    reference = found.get("fine-tuned")
    differences = {
        name: {rate: asdict(paired) for rate, paired in compare(one, reference).items()}
        for name, one in found.items()
        if reference is not None and one is not reference
    }
    data = {
        "results": {name: one.as_dict() for name, one in found.items()},
        "against_fine_tuned": differences,
    }
    write_text(output / "results.json", json.dumps(data, indent=1) + "\n")


def _checked(sources: Mapping[str, str | Path]) -> dict[str, Path]:
    problems: list[str] = []
    paths = {}
    for name, source in sources.items():
        try:
            paths[name] = resolve(source)
            inspect(paths[name], allow_quantized=True)
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise InvalidInput(problems)
    return paths
