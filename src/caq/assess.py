"""`caq evaluate`: one checkpoint beside the aligned model and its base, all on the same items."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from caq.checkpoint.inspect import inspect
from caq.checkpoint.source import resolve
from caq.data import NAMED, read_text
from caq.errors import InvalidInput
from caq.evaluate.results import Results
from caq.evaluate.suite import Tasks, compare, evaluate, reference_answers
from caq.evaluate.table import rich_table
from caq.loading import load, load_tokenizer

DEFAULT_TEXT = "wikitext2-test"


def task_files(
    perplexity_text: str | None, safety: Path | None, facts: Path | None, prompts: Path | None, window: int
) -> Tasks:
    """Return the tasks of a command line; perplexity on WikiText-2's test set if nothing is named."""
    if not any((perplexity_text, safety, facts, prompts)):
        perplexity_text = DEFAULT_TEXT
    return Tasks(_text_file(perplexity_text), safety, facts, prompts, window)


def _text_file(source: str | None) -> Path | None:
    if source is None or source not in NAMED or Path(source).exists():
        return None if source is None else Path(source)
    kept = Path("~/.cache/caq/texts").expanduser() / f"{source}.txt"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(read_text(source), encoding="utf-8")
    return kept


def assess(
    model: str | Path,
    reference: str | Path | None,
    base: str | Path | None,
    tasks: Tasks,
    output: Path | None = None,
    *,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Results]:
    """Measure the models, print their table, write `results.json`; return the results by name.

    The aligned model comes first, because the others' distance to it is measured on its states; one model is in
    memory at a time.

    Raises:
        InvalidInput: every problem of the checkpoints and of the task files.
    """
    from rich.console import Console

    sources = {"fine-tuned": reference, "pre-trained": base, "quantized": model}
    paths = _checked({name: source for name, source in sources.items() if source is not None})
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    states, found = None, {}
    for name, path in paths.items():
        loaded, tokenizer = load(path, compute_dtype(place)).to(place), load_tokenizer(path)
        if name == "fine-tuned":
            states = reference_answers(loaded, tokenizer, tasks)
        found[name] = evaluate(loaded, tokenizer, tasks, reference=states, quiet=quiet)
    order = [name for name in ("pre-trained", "fine-tuned", "quantized") if name in found]
    Console().print(rich_table({name: [found[name]] for name in order}))
    if output is not None:
        write_results(found, output)
    return found


def compute_dtype(device: torch.device) -> torch.dtype | None:
    """Return float32 on a CPU, which computes bf16 slowly; the checkpoint's own dtype elsewhere."""
    return torch.float32 if device.type == "cpu" else None


def write_results(found: Mapping[str, Results], output: Path) -> None:
    """Write `results.json`: every result, and each one's paired differences from the fine-tuned model."""
    output.mkdir(parents=True, exist_ok=True)
    reference = found.get("fine-tuned")
    differences = {
        name: {rate: _plain(paired) for rate, paired in compare(one, reference).items()}
        for name, one in found.items()
        if reference is not None and one is not reference
    }
    data = {
        "results": {name: one.as_dict() for name, one in found.items()},
        "against_fine_tuned": differences,
    }
    (output / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _plain(paired: object) -> object:
    from dataclasses import asdict

    return asdict(paired)  # type: ignore[call-overload]


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
