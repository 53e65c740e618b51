"""What the stored responses are: language or not, by the instruct model; refusals or not, by the judge.

Both run after the models that answered are gone, and over what is stored: another judge needs no model again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from caq.errors import InvalidInput
from caq.measure.coherence import likely, readable, surprise
from caq.measure.judges import ABSTAINED, Judge, NamedJudge, open_judge
from caq.measure.measure import RESPONSES_FILE, Arm, load_model
from caq.measure.questionnaire import Asked
from caq.measure.store import Row, fill, filled, read_rows

NO_HARM_IN_HARMLESS = "the judge looks for harm, and tells no refusal of a harmless prompt from an answer"


def check_coherence(directories: Sequence[Path], instruct: Arm, asked: Asked, name: str, place: torch.device) -> None:
    """Store for every response whether it is language; the instruct model is loaded if one is not known yet.

    Args:
        directories: of the arms, each with its responses; one without is passed over.
        instruct: the model that is asked.
        asked: the prompts.
        name: of the file.
        place: the device.
    """

    @cache
    def model() -> PreTrainedModel:
        return load_model(instruct.source.checkpoint.path, place)

    for directory in _unfinished(directories, name, len(asked.inputs.prompts)):
        rows = read_rows(directory / RESPONSES_FILE)

        def said(lot: slice, rows: Sequence[Row] = rows) -> list[Row]:
            texts = [row["response"] for row in rows[lot]]
            prompts = [prompt.prompt for prompt in asked.inputs.prompts[lot]]
            told = [place for place, text in enumerate(texts) if readable(text)]
            batch = asked.tasks.prompts_batch
            found = surprise(
                model(), instruct.tokenizer, [prompts[one] for one in told], [texts[one] for one in told], batch
            )
            nats = dict(zip(told, found, strict=True))
            return [
                {
                    "id": row["id"],
                    "coherent": one in nats and likely(nats[one], len(instruct.tokenizer)),
                    "nats": nats.get(one),
                }
                for one, row in enumerate(rows[lot])
            ]

        fill(directory / name, len(rows), said)


def call(
    directories: Sequence[Path], asked: Asked, coherence: str, name: str, named: NamedJudge, place: torch.device
) -> str:
    """Store what the judge says of every coherent response; return why there is no judge, or nothing.

    Args:
        directories: of the arms.
        asked: the prompts.
        coherence: name of the file that says what is language.
        name: of the file to write.
        named: the judge, which is loaded if a response was not judged yet.
        place: the device.
    """
    missing = _unfinished(directories, name, len(asked.inputs.prompts))
    if not missing:
        return ""
    try:
        judge = open_judge(named, place)
    except InvalidInput as error:
        return f"the judge {named.name} is missing: {error}"
    for directory in missing:
        _call(directory, asked, coherence, name, judge)
    return ""


def _call(directory: Path, asked: Asked, coherence: str, name: str, judge: Judge) -> None:
    responses, language = read_rows(directory / RESPONSES_FILE), read_rows(directory / coherence)

    def said(lot: slice) -> list[Row]:
        told = [place for place, row in enumerate(language[lot]) if row["coherent"]]
        prompts, rows = asked.inputs.prompts[lot], responses[lot]
        calls = judge([prompts[one] for one in told], [rows[one]["response"] for one in told])
        found = dict(zip(told, calls, strict=True))
        labels = [found.get(one, ABSTAINED) for one in range(len(rows))]
        return [
            {"id": row["id"], "label": one.label, "score": one.score} for row, one in zip(rows, labels, strict=True)
        ]

    fill(directory / name, len(responses), said)


def _unfinished(directories: Sequence[Path], name: str, total: int) -> list[Path]:
    answered = [directory for directory in directories if (directory / RESPONSES_FILE).exists()]
    return [directory for directory in answered if not filled(directory / name, total)]
