"""What the stored responses are: coherent or not, by the aligned model; refusals or not, by the judge.

Both run after the models that answered are gone, and over what is stored: another judge needs no model again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import torch

from caq.errors import InvalidInput
from caq.items.requests import Prompt
from caq.measure.coherence import likely, readable, surprise
from caq.measure.judges import NamedJudge
from caq.measure.judges.base import ABSTAINED, Judge
from caq.measure.measure import RESPONSES_FILE, Arm
from caq.measure.store import Row, fill, filled, read_rows
from caq.runners import runner_module
from caq.runners.base import Runner, Running

NO_HARM_IN_HARMLESS = "the judge looks for harm, and tells no refusal of a harmless prompt from an answer"


def check_coherence(
    directories: Sequence[Path], aligned: Arm | None, prompts: Sequence[Prompt], name: str, how: Running
) -> None:
    """Store for every response whether it is coherent; the aligned model is loaded if one is not known yet.

    Args:
        directories: of the arms, each with its responses; one without is passed over.
        aligned: the model that is asked; without one, the rule on the text decides alone.
        prompts: that were answered.
        name: of the file.
        how: the aligned model is run.
    """
    with ExitStack() as stack:

        @cache
        def runner() -> Runner:
            assert aligned is not None
            module = runner_module(aligned.source.runner)
            return stack.enter_context(module.running(aligned.source, aligned.tokenizer, how))

        def nats(asked: Sequence[str], texts: Sequence[str]) -> Sequence[float | None]:
            return [None] * len(texts) if aligned is None else surprise(runner(), aligned.tokenizer, asked, texts)

        vocabulary = 0 if aligned is None else len(aligned.tokenizer)
        for directory in _unfinished(directories, name, len(prompts)):
            _check(directory, prompts, name, nats, vocabulary)


def _check(
    directory: Path,
    prompts: Sequence[Prompt],
    name: str,
    nats: Callable[[Sequence[str], Sequence[str]], Sequence[float | None]],
    vocabulary: int,
) -> None:
    responses = read_rows(directory / RESPONSES_FILE)

    def rows(batch: slice) -> list[Row]:
        some = responses[batch]
        told = [index for index, row in enumerate(some) if readable(row["response"])]
        asked = [prompts[batch][index].prompt for index in told]
        surprises = dict(zip(told, nats(asked, [some[index]["response"] for index in told]), strict=True))
        return [
            {
                "id": row["id"],
                "coherent": index in surprises and _coherent(surprises[index], vocabulary),
                "nats": surprises.get(index),
            }
            for index, row in enumerate(some)
        ]

    fill(directory / name, len(responses), rows)


def _coherent(nats: float | None, vocabulary: int) -> bool:
    return nats is None or likely(nats, vocabulary)


def call(
    directories: Sequence[Path],
    prompts: Sequence[Prompt],
    coherence: str,
    name: str,
    named: NamedJudge,
    device: torch.device,
) -> str:
    """Store what the judge says of every coherent response; return why there is no judge, or nothing.

    Args:
        directories: of the arms.
        prompts: that were answered.
        coherence: name of the file that says what is coherent.
        name: of the file to write.
        named: the judge, which is loaded if a response was not judged yet.
        device: of the judge.
    """
    missing = _unfinished(directories, name, len(prompts))
    if not missing:
        return ""
    try:
        judge = named.open(device)
    except InvalidInput as error:
        return f"the judge {named.name} is missing: {error}"
    for directory in missing:
        _call(directory, prompts, coherence, name, judge)
    return ""


def _call(directory: Path, prompts: Sequence[Prompt], coherence: str, name: str, judge: Judge) -> None:
    responses, coherent = read_rows(directory / RESPONSES_FILE), read_rows(directory / coherence)

    def rows(batch: slice) -> list[Row]:
        told = [index for index, row in enumerate(coherent[batch]) if row["coherent"]]
        asked, some = prompts[batch], responses[batch]
        calls = judge([asked[index] for index in told], [some[index]["response"] for index in told])
        called = dict(zip(told, calls, strict=True))
        labels = [called.get(index, ABSTAINED) for index in range(len(some))]
        return [
            {"id": row["id"], "label": label.label, "score": label.score}
            for row, label in zip(some, labels, strict=True)
        ]

    fill(directory / name, len(responses), rows)


def _unfinished(directories: Sequence[Path], name: str, total: int) -> list[Path]:
    answered = [directory for directory in directories if (directory / RESPONSES_FILE).exists()]
    return [directory for directory in answered if not filled(directory / name, total)]
