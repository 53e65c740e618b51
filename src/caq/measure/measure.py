"""One model's answers to everything that is asked: one model in memory, and only what is not stored yet is computed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from caq.chat import encode_chat
from caq.errors import CaqError, InvalidInput, TooLong
from caq.measure.answers import Answer, Reply, answer, choose_facts, respond
from caq.measure.distances import read_passages, windows_of
from caq.measure.mixing import n_mix
from caq.measure.questionnaire import CHAT_TOKENS, Questionnaire
from caq.measure.record import Ability, Distances, Role
from caq.measure.store import Row, fill, filled, read_rows, stored_object
from caq.runners import runner_module
from caq.runners.base import Passage, Runner, Running, Source
from caq.runners.reference import is_saved, open_reference, save_reference
from caq.runners.transformers import TransformersRunner

TEXT, CHAT, STATES = "text", "chat", "states"
NO_ANSWERS = "the aligned model's responses are thoughts, of which none is finished"
SAFETY_FILE, FACTS_FILE, RESPONSES_FILE = "safety.jsonl", "facts.jsonl", "responses.jsonl"


@dataclass(frozen=True)
class Arm:
    """A model that takes part.

    Attributes:
        tokenizer: its own, which may have the chat template of another.
        directory: where its answers are kept.
    """

    name: str
    role: Role
    source: Source
    tokenizer: PreTrainedTokenizerBase
    directory: Path


class AbilityMeasure(Protocol):
    """What measures abilities, such as lm-eval's tasks."""

    @property
    def identity(self) -> str:
        """A hash of all that decides the values: the tasks, and how they are asked."""

    def __call__(self, runner: Runner) -> Mapping[str, Ability]:
        """Return each task of a model in memory.

        Raises:
            CaqError: the runner cannot be asked.
        """


@dataclass(frozen=True)
class Plan:
    """What all arms have in common.

    Attributes:
        references: from which distances are measured: the aligned model and, if its tokens are the same, the base.
        distances: hash of the references, in the names of files of distances.
        abilities: what else is measured, or None.
    """

    questionnaire: Questionnaire
    how: Running
    references: Mapping[Role, Arm]
    distances: str
    abilities: AbilityMeasure | None = None


def measure_arm(arm: Arm, plan: Plan) -> None:
    """Answer what is not answered yet, and store it. The model is loaded for that only, and gone on return.

    Why a model to judge lacks a measure is stored in its place; the aligned model and the base must have all.
    References are measured before other arms, or are this one.

    Raises:
        InvalidInput: the model cannot be loaded; or a measure of the aligned model or the base fails.
    """
    missing = [part for part in _ArmRun(arm, plan).parts() if not part.done()]
    if not missing:
        return
    with runner_module(arm.source.runner).running(arm.source, arm.tokenizer, plan.how) as runner:
        for part in missing:
            unmeasured_note(part.path).unlink(missing_ok=True)
            try:
                part.make(runner)
            except CaqError as error:
                error.add_note(f"in {arm.name}")
                if arm.role != "quantized":
                    raise
                stored_object(unmeasured_note(part.path)).write({"reason": str(error).strip()})


def unmeasured_note(path: Path) -> Path:
    """Return where the reason is kept why a file is missing."""
    return path.with_name(f"{path.name}.unmeasured")


def distances_file(directory: Path, kind: str, distances: str) -> Path:
    """Return where an arm's distances on the text or on the chats are kept."""
    return directory / f"{kind}-{distances}.json"


def abilities_file(directory: Path, identity: str) -> Path:
    """Return where an arm's abilities are kept."""
    return directory / f"abilities-{identity}.json"


@dataclass(frozen=True)
class _Part:
    """One file of an arm's, whether it is whole, and how it is made."""

    path: Path
    whole: Callable[[], bool]
    make: Callable[[Runner], None]

    def done(self) -> bool:
        return self.whole() or stored_object(unmeasured_note(self.path)).peek() is not None


@dataclass(frozen=True)
class _ArmRun:
    arm: Arm
    plan: Plan

    @property
    def asked(self) -> Questionnaire:
        return self.plan.questionnaire

    @property
    def refers(self) -> bool:
        """Whether others are measured from this one."""
        return self.arm.role in self.plan.references

    def parts(self) -> list[_Part]:
        """Return what is asked of the arm, the aligned model's responses before what is read of them."""
        asked, aligned = self.asked, self.plan.references.get("aligned")
        parts = []
        if asked.safety is not None and asked.tasks.safety is not None:
            names = [f"{asked.tasks.safety.questions}: the question with id {q.id}" for q in asked.safety.questions]
            parts.append(self._lines(SAFETY_FILE, names, self._safety))
        if asked.facts:
            names = [f"{asked.tasks.facts}: the question with id {question.id}" for question in asked.facts]
            parts.append(self._lines(FACTS_FILE, names, self._facts))
        if asked.prompts:
            count = len(asked.prompts)
            names = [f"{asked.tasks.prompts}: prompt {number} of {count}" for number in range(1, count + 1)]
            parts.append(self._lines(RESPONSES_FILE, names, self._responses))
        if asked.windows:
            parts.append(self._distances(TEXT, self._text))
        if asked.prompts and aligned is not None:
            parts.append(self._distances(CHAT, partial(self._chat, aligned)))
        if self.plan.abilities is not None:
            path = abilities_file(self.arm.directory, self.plan.abilities.identity)
            parts.append(_Part(path, partial(_stored, path), partial(_store, path, self.plan.abilities)))
        return parts

    def _lines(self, name: str, names: Sequence[str], answer: Callable[[Runner, slice], Sequence[Row]]) -> _Part:
        path, total = self.arm.directory / name, len(names)

        def rows(runner: Runner, batch: slice) -> Sequence[Row]:
            try:
                return answer(runner, batch)
            except TooLong as error:
                if batch == slice(0, total):
                    raise TooLong(error.found, names) from None
                # Lengths come before any compute: asked for all at once, the model only says which do not fit.
                return rows(runner, slice(0, total))

        return _Part(path, partial(filled, path, total), lambda runner: fill(path, total, partial(rows, runner)))

    def _distances(self, kind: str, make: Callable[[Runner], Row]) -> _Part:
        path = distances_file(self.arm.directory, kind, self.plan.distances)
        return _Part(
            path,
            partial(self._has, path, kind),
            partial(_store, path, make),
        )

    def _has(self, path: Path, kind: str) -> bool:
        stored = stored_object(path).read()
        if stored is None:
            return False
        saved = not self.refers or is_saved(self.arm.directory / STATES, kind)
        return saved or f"unmeasured_{kind}" in stored

    def _safety(self, runner: Runner, batch: slice) -> list[Row]:
        inputs, task = self.asked.safety, self.asked.tasks.safety
        assert inputs is not None
        assert task is not None
        some = replace(inputs, questions=inputs.questions[batch])
        answers = answer(runner, self.arm.tokenizer, some, task.protocols)
        return [
            {"id": question.id, **{name: _answer(answers[name][index]) for name in answers}}
            for index, question in enumerate(some.questions)
        ]

    def _facts(self, runner: Runner, batch: slice) -> list[Row]:
        some = self.asked.facts[batch]
        chosen = choose_facts(runner, self.arm.tokenizer, some)
        return [{"id": question.id, "chosen": option} for question, option in zip(some, chosen, strict=True)]

    def _responses(self, runner: Runner, batch: slice) -> list[Row]:
        texts = [prompt.prompt for prompt in self.asked.prompts[batch]]
        tasks = self.asked.tasks
        replies = respond(runner, self.arm.tokenizer, texts, tasks.max_new_tokens, tasks.chat_options)
        return [
            {"id": str(number), **self._row(reply), "ended": reply.ended, "n_mix": n_mix(text, reply.text)}
            for number, (text, reply) in enumerate(zip(texts, replies, strict=True), batch.start or 0)
        ]

    def _row(self, reply: Reply) -> Row:
        # The tokens are what distances are read behind: a text need not give them back.
        if not reply.finished:
            return {"response": reply.thought, "opening": [], "finished": False}
        if not reply.thought:
            return {"response": reply.text, "opening": list(reply.tokens[:CHAT_TOKENS])}
        begin = self._tokens_of(reply)
        opening = list(reply.tokens[: begin + CHAT_TOKENS])
        return {"response": reply.text, "opening": opening, "begin": begin, "thought": reply.thought}

    def _tokens_of(self, reply: Reply) -> int:
        """Return how many of a response's tokens are its thought, to the end of the last of them."""
        decode = partial(self.arm.tokenizer.decode, skip_special_tokens=False)
        counts = range(len(reply.tokens))
        # Distances are read behind references' responses alone, whose tokens are the tokenizer's.
        if not self.refers:
            return 0
        return bisect_left(counts, len(reply.thought), key=lambda count: len(decode(list(reply.tokens[:count]))))

    def _text(self, runner: Runner) -> Row:
        """Perplexity on the text, in the aligned model's tokens where they are its own, too, and distances on them."""
        aligned = self.plan.references.get("aligned")
        mismatch = "" if aligned is None else runner.vocabulary_mismatch(aligned.source.checkpoint)
        shared = aligned is not None and not mismatch
        windows = self.asked.windows if shared else windows_of(runner.encode(self.asked.text), self.asked.window)
        perplexity, distances = self._read(runner, windows, TEXT, mismatch)
        return {"perplexity": perplexity, **distances}

    def _chat(self, aligned: Arm, runner: Runner) -> Row:
        mismatch = runner.vocabulary_mismatch(aligned.source.checkpoint)
        passages = () if mismatch else self._openings(aligned)
        if not passages:
            return {"unmeasured_chat": mismatch or NO_ANSWERS}
        return self._read(runner, passages, CHAT, "")[1]

    def _openings(self, aligned: Arm) -> tuple[Passage, ...]:
        """Return the prompts with the first tokens of the aligned model's answers, which are what counts.

        Between the two are its thoughts; one that is not finished has no answer, and its prompt is left out.
        """
        rows = read_rows(aligned.directory / RESPONSES_FILE)
        turns = ([{"role": "user", "content": prompt.prompt}] for prompt in self.asked.prompts)
        options = self.asked.tasks.chat_options
        encoded = (encode_chat(aligned.tokenizer, turn, options, answer=True) for turn in turns)
        answers = ((ids, row["opening"], row.get("begin", 0)) for ids, row in zip(encoded, rows, strict=True))
        return tuple(
            Passage((*ids, *opening), len(opening) - begin) for ids, opening, begin in answers if len(opening) > begin
        )

    def _read(
        self, runner: Runner, passages: Sequence[Passage], kind: str, mismatch: str
    ) -> tuple[float, dict[str, Distances | str]]:
        # The references that were measured before this arm: all, of a model to judge.
        others = [] if mismatch else [*takewhile(lambda arm: arm.role != self.arm.role, self.plan.references.values())]
        references = [open_reference(arm.directory / STATES, kind) for arm in others]
        if self.refers:
            if not isinstance(runner, TransformersRunner):
                raise InvalidInput(f"{self.arm.source.given}: a reference must be one that Transformers loads")
            save_reference(runner, passages, self.arm.directory / STATES, kind)
        perplexity, distances = read_passages(runner, passages, references)
        named: dict[Role, str] = {"aligned": f"kl_{kind}", "base": f"kl_base_{kind}"}
        measured = dict(zip((named[arm.role] for arm in others), distances, strict=True))
        return perplexity, {**measured, **({f"unmeasured_{kind}": mismatch} if mismatch else {})}


def _store(path: Path, make: Callable[[Runner], Mapping[str, object]], runner: Runner) -> None:
    stored_object(path).write(make(runner))


def _stored(path: Path) -> bool:
    return stored_object(path).read() is not None


def _answer(given: Answer) -> Row:
    # What every arm has in common is in the items.
    return {name: value for name, value in vars(given).items() if value is not None}
