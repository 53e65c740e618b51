"""Whether stored responses are coherent, by the aligned model, and whether they are refusals, by the judge.

Both read what is stored, after the models that answered are gone: another judge needs no model again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from caq.chat import ChatOptions
from caq.errors import InvalidInput, TooLong
from caq.items.requests import Prompt
from caq.measure.coherence import likely, readable, surprise
from caq.measure.judges import NamedJudge
from caq.measure.judges.base import ABSTAINED
from caq.measure.measure import RESPONSES_FILE, Arm
from caq.measure.store import Row, fill, filled, read_rows
from caq.runners import runner_module
from caq.runners.base import Runner, Running

NO_HARM_IN_HARMLESS = "the judge looks for harm, and tells no refusal of a harmless prompt from an answer"


def check_coherence(
    directories: Sequence[Path],
    aligned: Arm | None,
    prompts: Sequence[Prompt],
    name: str,
    how: Running,
    options: ChatOptions | None = None,
) -> None:
    """Store for every response whether it is coherent; the aligned model is loaded if one is not known yet.

    Args:
        directories: of the arms, each with its responses; one without is skipped.
        aligned: the model that is asked; without one, the rule on the text decides alone.
        name: of the file.
        options: what the aligned model's chat template is given.
    """
    with ExitStack() as stack:

        @cache
        def runner() -> Runner:
            assert aligned is not None
            module = runner_module(aligned.source.runner)
            return stack.enter_context(module.running(aligned.source, aligned.tokenizer, how))

        def check(asked: Sequence[Prompt], said: Sequence[Row]) -> list[Row]:
            if aligned is None:
                return [{"coherent": True, "nats": None}] * len(said)
            texts, thoughts = [row["response"] for row in said], [row.get("thought", "") for row in said]
            prompted = [prompt.prompt for prompt in asked]
            nats = surprise(runner(), aligned.tokenizer, prompted, texts, thoughts, options)
            return [{"coherent": likely(value, len(aligned.tokenizer)), "nats": value} for value in nats]

        for directory in _unfinished(directories, name, len(prompts)):
            # What is still a thought is no answer, coherent or not.
            rows = read_rows(directory / RESPONSES_FILE)
            relevant = [row.get("finished", True) and readable(row["response"]) for row in rows]
            _fill(directory / name, prompts, relevant, check, {"coherent": False, "nats": None})


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
        coherence: name of the file that says what is coherent.
        name: of the file to write.
        named: the judge, which is loaded if a response was not judged yet.
    """
    missing = _unfinished(directories, name, len(prompts))
    if not missing:
        return ""
    try:
        judge = named.open(device)
    except InvalidInput as error:
        return f"the judge {named.name} is missing: {error}"

    def labels(asked: Sequence[Prompt], said: Sequence[Row]) -> list[Row]:
        return [asdict(call) for call in judge(asked, [row["response"] for row in said])]

    for directory in missing:
        coherent = [row["coherent"] for row in read_rows(directory / coherence)]
        _fill(directory / name, prompts, coherent, labels, asdict(ABSTAINED))
    return ""


def _fill(
    path: Path,
    prompts: Sequence[Prompt],
    relevant: Sequence[bool],
    ask: Callable[[Sequence[Prompt], Sequence[Row]], Sequence[Row]],
    missing: Row,
) -> None:
    """Store a row for every response: what `ask` returns of it where it is in `relevant`, or else `missing`."""
    stored = path.with_name(RESPONSES_FILE)
    responses = read_rows(stored)

    def rows(batch: slice) -> list[Row]:
        some = responses[batch]
        chosen = [index for index, wanted in enumerate(relevant[batch]) if wanted]
        try:
            answers = ask([prompts[batch][index] for index in chosen], [some[index] for index in chosen])
        except TooLong as error:
            raise TooLong(error.found, [f"{stored}: the response with id {some[i]['id']}" for i in chosen]) from None
        answered = dict(zip(chosen, answers, strict=True))
        return [{"id": row["id"], **answered.get(index, missing)} for index, row in enumerate(some)]

    fill(path, len(responses), rows)


def _unfinished(directories: Sequence[Path], name: str, total: int) -> list[Path]:
    answered = [directory for directory in directories if (directory / RESPONSES_FILE).exists()]
    return [directory for directory in answered if not filled(directory / name, total)]
