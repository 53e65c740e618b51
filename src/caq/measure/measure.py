"""One model's answers to everything that is asked: one model in memory, and only what is not stored yet is computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.errors import CaqError, InvalidInput
from caq.evaluation import compute_dtype
from caq.files.cache import digest
from caq.files.codec import encode
from caq.files.whole import write_text
from caq.loading import load
from caq.measure.provenance import Source, online_files
from caq.measure.questionnaire import CHAT_TOKENS, Asked
from caq.measure.record import Distances, Role
from caq.measure.refusal import encode_prompts
from caq.measure.store import Row, fill, filled, read_rows
from caq.runners.base import Engine, TransformersEngine
from caq.runners.distances import Passage, kept, open_reference, windows_as_passages
from caq.runners.gguf import is_gguf, running

TEXT, CHAT, STATES = "text", "chat", "states"
SAFETY_FILE, FACTS_FILE, RESPONSES_FILE = "safety.jsonl", "facts.jsonl", "responses.jsonl"


@dataclass(frozen=True)
class Arm:
    """A model that takes part.

    Attributes:
        name, role: as in the report.
        source: its files.
        tokenizer: its own, perhaps with the chat template of another.
        directory: where its answers are kept.
    """

    name: str
    role: Role
    source: Source
    tokenizer: PreTrainedTokenizerBase
    directory: Path


def arm_directory(
    role: Role, source: Source, tokenizer: PreTrainedTokenizerBase, asked: Asked, conditions: Sequence[str]
) -> str:
    """Return the name of the directory of a model's answers: its role, and the hash of all that decides them."""
    return f"{role}-" + digest(
        source.sha256,
        asked.identity,
        tokenizer.chat_template or "",
        *conditions,
        source.facts.get("computed", ""),
        *(part for name, content in online_files(source.checkpoint).items() for part in (name, content)),
    )


def load_model(path: Path, place: torch.device) -> PreTrainedModel:
    """Load a model of any kind that Transformers knows, on a device.

    Raises:
        InvalidInput: Transformers cannot.
    """
    try:
        return load(path, compute_dtype(place), place)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise InvalidInput([f"{path}: cannot be loaded: {error}"]) from error


def measure_arm(arm: Arm, asked: Asked, references: Mapping[Role, Arm], distances: str, place: torch.device) -> None:
    """Answer what is not answered yet, and store it. The model is loaded for that only, and gone on return.

    A measure that a model to judge cannot be given is told in its place; the instruct model and the base must have all.

    Args:
        arm: the model.
        asked: what is asked.
        references: from which distances are measured: the instruct model and, if its tokens are the same, the base;
            measured before this one, or this one itself.
        distances: hash of the references, in the names of files of distances.
        place: the device.

    Raises:
        InvalidInput: the model cannot be loaded; or a measure of the instruct model or the base fails.
    """
    missing = [part for part in _Run(arm, asked, references, distances).parts() if not part.done()]
    if not missing:
        return
    with _running(arm, asked, place) as engine:
        for part in missing:
            try:
                part.make(engine)
            except CaqError as error:
                error.add_note(f"in {arm.name}")
                if arm.role != "quantized":
                    raise
                write_text(excuse(part.path), f"{error}\n")


@contextmanager
def _running(arm: Arm, asked: Asked, place: torch.device) -> Iterator[Engine]:
    checkpoint = arm.source.checkpoint
    if is_gguf(checkpoint.path):
        with running(checkpoint.path, arm.tokenizer, asked.tasks) as engine:
            yield engine
    else:
        yield TransformersEngine(load_model(checkpoint.path, place), checkpoint, arm.tokenizer, asked.tasks)


def excuse(path: Path) -> Path:
    """Return where the reason stands why a file is missing."""
    return path.with_name(f"{path.name}.unmeasured")


@dataclass(frozen=True)
class _Part:
    """One file of an arm's, whether it is whole, and how it is made."""

    path: Path
    whole: Callable[[], bool]
    make: Callable[[Engine], None]

    def done(self) -> bool:
        return self.whole() or excuse(self.path).exists()


@dataclass(frozen=True)
class _Run:
    arm: Arm
    asked: Asked
    references: Mapping[Role, Arm]
    distances: str

    @property
    def instruct(self) -> Arm:
        return self.references["instruct"]

    @property
    def refers(self) -> bool:
        """Whether others are measured from this one."""
        return self.arm.role in self.references

    def parts(self) -> list[_Part]:
        """Return what is asked of the arm, the instruct model's responses before what is read of them."""
        inputs = self.asked.inputs
        found = []
        if inputs.safety is not None:
            found.append(self._lines(SAFETY_FILE, len(inputs.safety.questions), self._safety))
        if inputs.facts:
            found.append(self._lines(FACTS_FILE, len(inputs.facts), self._facts))
        if inputs.prompts:
            found.append(self._lines(RESPONSES_FILE, len(inputs.prompts), self._responses))
        if inputs.windows is not None:
            found.append(self._distances(TEXT, self._text))
        if inputs.prompts:
            found.append(self._distances(CHAT, self._chat))
        return found

    def _lines(self, name: str, total: int, answer: Callable[[Engine, slice], Sequence[Row]]) -> _Part:
        path = self.arm.directory / name
        return _Part(
            path, partial(filled, path, total), lambda engine: fill(path, total, lambda lot: answer(engine, lot))
        )

    def _distances(self, kind: str, make: Callable[[Engine], Row]) -> _Part:
        path = distances_file(self.arm.directory, kind, self.distances)
        return _Part(
            path,
            lambda: path.exists() and (kept(self.arm.directory / STATES, kind) or not self.refers),
            lambda engine: write_text(path, json.dumps(encode(make(engine)), indent=1) + "\n"),
        )

    def _safety(self, engine: Engine, lot: slice) -> list[Row]:
        inputs, task = self.asked.inputs.safety, self.asked.tasks.safety
        assert inputs is not None
        assert task is not None
        some = replace(inputs, questions=inputs.questions[lot])
        found = engine.answer(some, task.protocols)
        return [
            {"id": question.id, **{name: _answer(asdict(found[name][place])) for name in found}}
            for place, question in enumerate(some.questions)
        ]

    def _facts(self, engine: Engine, lot: slice) -> list[Row]:
        some = self.asked.inputs.facts[lot]
        return [
            {"id": question.id, "chosen": chosen} for question, chosen in zip(some, engine.choose(some), strict=True)
        ]

    def _responses(self, engine: Engine, lot: slice) -> list[Row]:
        found = engine.respond([prompt.prompt for prompt in self.asked.inputs.prompts[lot]])
        # The tokens are what distances are read behind: a text need not give them back.
        return [
            {"id": str((lot.start or 0) + place), "response": one.text, "opening": list(one.tokens[:CHAT_TOKENS])}
            for place, one in enumerate(found)
        ]

    def _text(self, engine: Engine) -> Row:
        """Perplexity on the text, and distances where the tokens are the instruct model's."""
        windows, tasks = self.asked.inputs.windows, self.asked.tasks
        assert windows is not None
        assert tasks.perplexity_text is not None
        if engine.stranger(self.instruct.source.checkpoint):
            windows = engine.windows(tasks.perplexity_text)
        perplexity, found = self._read(engine, windows_as_passages(windows), TEXT, tasks.windows_batch)
        return {"perplexity": perplexity, **found}

    def _chat(self, engine: Engine) -> Row:
        return self._read(engine, self._openings(), CHAT, self.asked.tasks.prompts_batch)[1]

    def _openings(self) -> tuple[Passage, ...]:
        """Return the prompts with the first tokens of the instruct model's responses, which are what counts."""
        rows = read_rows(self.instruct.directory / RESPONSES_FILE)
        encoded = encode_prompts(self.instruct.tokenizer, [prompt.prompt for prompt in self.asked.inputs.prompts])
        return tuple(
            Passage((*ids, *row["opening"]), len(row["opening"])) for ids, row in zip(encoded, rows, strict=True)
        )

    def _read(
        self, engine: Engine, passages: Sequence[Passage], kind: str, batch_size: int
    ) -> tuple[float, dict[str, Distances | str]]:
        stranger = engine.stranger(self.instruct.source.checkpoint)
        if stranger and kind == CHAT:
            return 0.0, {f"unmeasured_{kind}": stranger}
        others = [] if stranger else self._earlier()
        references = [open_reference(one.directory / STATES, kind) for one in others]
        if self.refers:
            engine.leave_states(passages, batch_size, self.arm.directory / STATES, kind)
        perplexity, found = engine.read(passages, references, batch_size)
        named: dict[Role, str] = {"instruct": f"kl_{kind}", "base": f"kl_base_{kind}"}
        measured = dict(zip((named[one.role] for one in others), found, strict=True))
        return perplexity, {**measured, **({f"unmeasured_{kind}": stranger} if stranger else {})}

    def _earlier(self) -> list[Arm]:
        """Return the references that were measured before this arm: all, of a model to judge."""
        roles = list(self.references)
        return [self.references[role] for role in roles[: roles.index(self.arm.role) if self.refers else None]]


def distances_file(directory: Path, kind: str, distances: str) -> Path:
    """Return where an arm's distances on the text or on the chats are kept."""
    return directory / f"{kind}-{distances}.json"


def _answer(answer: dict[str, object]) -> Row:
    # What every arm has in common is in the items.
    return {name: answer[name] for name in ("chosen", "failure", "response") if answer[name] is not None}
