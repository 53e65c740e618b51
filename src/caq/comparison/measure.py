"""One model's answers to everything that is asked: one model in memory, and only what is not stored yet is computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.assess import compute_dtype
from caq.cache import digest, write_text
from caq.checkpoint.inspect import Checkpoint
from caq.checkpoint.vocabulary import tokenizer_differences
from caq.comparison.asked import CHAT_TOKENS, Asked
from caq.comparison.codec import encode
from caq.comparison.distances import (
    Passage,
    keep_reference,
    kept,
    open_reference,
    read_passages,
    windows_as_passages,
)
from caq.comparison.provenance import Source, online_files
from caq.comparison.record import Distances, Role
from caq.comparison.store import Row, fill, filled, read_rows
from caq.errors import CaqError, InvalidInput
from caq.evaluate.generation import greedy_tokens
from caq.evaluate.multiple_choice import PROTOCOLS, choose
from caq.evaluate.perplexity import read_tokens
from caq.evaluate.refusal import encode_prompts
from caq.evaluate.results import PRIMARY_PROTOCOL
from caq.evaluate.safety import answer_safety
from caq.evaluate.states import inference, windows_of
from caq.loading import load

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
        *(part for name, content in online_files(source.checkpoint).items() for part in (name, content)),
    )


def load_model(path: Path, place: torch.device) -> PreTrainedModel:
    """Load a model of any kind that Transformers knows, on a device.

    Raises:
        InvalidInput: Transformers cannot.
    """
    try:
        model = load(path, compute_dtype(place))
        # What bitsandbytes packs is placed as it is loaded, and cannot be moved.
        return model if model.device.type == place.type else model.to(place)
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
    model = load_model(arm.source.checkpoint.path, place)
    for part in missing:
        try:
            part.make(model)
        except CaqError as error:
            error.add_note(f"in {arm.name}")
            if arm.role != "quantized":
                raise
            write_text(excuse(part.path), f"{error}\n")


def excuse(path: Path) -> Path:
    """Return where the reason stands why a file is missing."""
    return path.with_name(f"{path.name}.unmeasured")


@dataclass(frozen=True)
class _Part:
    """One file of an arm's, whether it is whole, and how it is made."""

    path: Path
    whole: Callable[[], bool]
    make: Callable[[PreTrainedModel], None]

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

    def _lines(self, name: str, total: int, answer: Callable[[PreTrainedModel, slice], Sequence[Row]]) -> _Part:
        path = self.arm.directory / name
        return _Part(
            path, partial(filled, path, total), lambda model: fill(path, total, lambda lot: answer(model, lot))
        )

    def _distances(self, kind: str, make: Callable[[PreTrainedModel], Row]) -> _Part:
        path = distances_file(self.arm.directory, kind, self.distances)
        return _Part(
            path,
            lambda: path.exists() and (kept(self.arm.directory / STATES, kind) or not self.refers),
            lambda model: write_text(path, json.dumps(encode(make(model)), indent=1) + "\n"),
        )

    def _safety(self, model: PreTrainedModel, lot: slice) -> list[Row]:
        inputs, task = self.asked.inputs.safety, self.asked.tasks.safety
        assert inputs is not None
        assert task is not None
        some = replace(inputs, questions=inputs.questions[lot])
        found = answer_safety(model, self.arm.tokenizer, some, task.protocols, self.asked.tasks.questions_batch)
        return [
            {"id": question.id, **{name: _answer(asdict(found[name][place])) for name in found}}
            for place, question in enumerate(some.questions)
        ]

    def _facts(self, model: PreTrainedModel, lot: slice) -> list[Row]:
        some = self.asked.inputs.facts[lot]
        protocol = {PRIMARY_PROTOCOL: PROTOCOLS[PRIMARY_PROTOCOL]}
        found = choose(model, self.arm.tokenizer, some, self.asked.tasks.questions_batch, protocol)[PRIMARY_PROTOCOL]
        return [{"id": question.id, "chosen": chosen} for question, chosen in zip(some, found, strict=True)]

    def _responses(self, model: PreTrainedModel, lot: slice) -> list[Row]:
        tasks, tokenizer = self.asked.tasks, self.arm.tokenizer
        encoded = encode_prompts(tokenizer, [prompt.prompt for prompt in self.asked.inputs.prompts[lot]])
        found = greedy_tokens(model, tokenizer, encoded, tasks.max_new_tokens, tasks.prompts_batch)
        texts = tokenizer.batch_decode(found, skip_special_tokens=True)
        # The tokens are what distances are read behind: a text need not give them back.
        return [
            {"id": str((lot.start or 0) + place), "response": text, "opening": list(tokens[:CHAT_TOKENS])}
            for place, (text, tokens) in enumerate(zip(texts, found, strict=True))
        ]

    def _text(self, model: PreTrainedModel) -> Row:
        """Perplexity on the text, and distances where the tokens are the instruct model's."""
        windows, tasks = self.asked.inputs.windows, self.asked.tasks
        assert windows is not None
        assert tasks.perplexity_text is not None
        if self._stranger():
            windows = windows_of(read_tokens(tasks.perplexity_text, self.arm.tokenizer), tasks.window)
        perplexity, found = self._read(model, windows_as_passages(windows), TEXT, tasks.windows_batch)
        return {"perplexity": perplexity, **found}

    def _chat(self, model: PreTrainedModel) -> Row:
        return self._read(model, self._openings(), CHAT, self.asked.tasks.prompts_batch)[1]

    def _openings(self) -> tuple[Passage, ...]:
        """Return the prompts with the first tokens of the instruct model's responses, which are what counts."""
        rows = read_rows(self.instruct.directory / RESPONSES_FILE)
        encoded = encode_prompts(self.instruct.tokenizer, [prompt.prompt for prompt in self.asked.inputs.prompts])
        return tuple(
            Passage((*ids, *row["opening"]), len(row["opening"])) for ids, row in zip(encoded, rows, strict=True)
        )

    def _read(
        self, model: PreTrainedModel, passages: Sequence[Passage], kind: str, batch_size: int
    ) -> tuple[float, dict[str, Distances | str]]:
        stranger = self._stranger()
        if stranger and kind == CHAT:
            return 0.0, {f"unmeasured_{kind}": stranger}
        others = [] if stranger else self._earlier()
        references = [open_reference(one.directory / STATES, kind) for one in others]
        with inference(model) as cut:
            if self.refers:
                keep_reference(cut, passages, batch_size, self.arm.directory / STATES, kind)
            perplexity, found = read_passages(cut, passages, references, batch_size)
        named: dict[Role, str] = {"instruct": f"kl_{kind}", "base": f"kl_base_{kind}"}
        measured = dict(zip((named[one.role] for one in others), found, strict=True))
        return perplexity, {**measured, **({f"unmeasured_{kind}": stranger} if stranger else {})}

    def _earlier(self) -> list[Arm]:
        """Return the references that were measured before this arm: all, of a model to judge."""
        roles = list(self.references)
        return [self.references[role] for role in roles[: roles.index(self.arm.role) if self.refers else None]]

    def _stranger(self) -> str:
        """Why the arm's tokens are not the instruct model's; empty if they are."""
        return other_vocabulary(self.arm.source.checkpoint, self.instruct.source.checkpoint)


def distances_file(directory: Path, kind: str, distances: str) -> Path:
    """Return where an arm's distances on the text or on the chats are kept."""
    return directory / f"{kind}-{distances}.json"


def other_vocabulary(ours: Checkpoint, theirs: Checkpoint) -> str:
    """Return why a model's tokens are not the instruct model's; empty if they are."""
    sizes = [one.config.get("vocab_size") for one in (ours, theirs)]
    if sizes[0] != sizes[1]:
        return f"{sizes[0]} tokens, and {sizes[1]} in the instruct model: their distributions do not compare"
    if ours.path != theirs.path and any(tokenizer_differences(theirs, ours)):
        return "other tokens than the instruct model's: their distributions do not compare"
    return ""


def _answer(answer: dict[str, object]) -> Row:
    # What every arm has in common is in the items.
    return {name: answer[name] for name in ("chosen", "failure", "response") if answer[name] is not None}
