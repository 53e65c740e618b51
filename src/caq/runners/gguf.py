"""A GGUF file as a model to judge: what the comparison asks of every model, answered by llama.cpp.

Prompts are the instruct model's chats, in the file's own tokens. Distances are measured on the instruct model's tokens,
if the file's ids mean the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from caq.chat import render_chat
from caq.checkpoint.inspect import Checkpoint
from caq.data.sources import read_text
from caq.errors import InvalidInput
from caq.items.protocols import PROTOCOLS, choose_by
from caq.items.question_prompts import prompts as ask
from caq.items.questions import Question
from caq.items.safety import ANSWER_TOKENS, SafetyInputs, answer_by
from caq.items.tasks import Tasks
from caq.measure.provenance import Source
from caq.measure.questionnaire import Asked
from caq.measure.record import Distances
from caq.measure.results import PRIMARY_PROTOCOL, Answer
from caq.runners.base import Written
from caq.runners.distances import Passage, Reference, compare, counted, summarise
from caq.runners.llama_cpp import (
    CONTEXT,
    SUFFIX,
    Gguf,
    decode,
    encode,
    greedy,
    greedy_tokens,
    opened,
    predictions,
    scores,
    tokenization_problem,
    vocabulary_problem,
)
from caq.runners.perplexity import exp_mean
from caq.runners.states import logits, windows_of


def is_gguf(given: str | Path) -> bool:
    """Whether a model is named by a GGUF file."""
    return str(given).endswith(SUFFIX)


def open_gguf(given: str | Path) -> Source:
    """Find a file and check that llama.cpp reads its head.

    Raises:
        InvalidInput: there is no such file, it is no GGUF, or llama-cpp-python is not installed.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        raise InvalidInput([f"{path}: no such file; give a GGUF file on this machine"])
    with opened(path, vocabulary_only=True) as model:
        head, size = model.llama.metadata, model.vocabulary
        kind = _kinds(model).get(head.get("general.file_type", ""), "of an unnamed type")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "source": str(given),
        "sha256": sha256,
        "architecture": head.get("general.architecture", "not told"),
        "weights": f"{path.stat().st_size:,} bytes",
        "quantization": f"GGUF, {kind}",
        "computed": f"by llama-cpp-python {version('llama-cpp-python')} on cpu, keys and values in float32",
    }
    return Source(str(given), Checkpoint(path.resolve(), {"vocab_size": size}, {}, ()), sha256, (), facts)


def compare_tokens(source: Source, tokenizer: PreTrainedTokenizerBase, asked: Asked) -> Source:
    """Return the source with a fact: whether the file reads the prompts into the instruct model's tokens."""
    inputs = asked.inputs
    chats = [_chat(tokenizer, prompt.prompt) for prompt in inputs.prompts]
    plain: tuple[str, ...] = ()
    if inputs.safety is not None:
        asking = ask(inputs.safety.questions, inputs.safety.form, tokenizer)
        chats, plain = ([*chats, *asking], ()) if inputs.safety.form.chat else (chats, asking)
    with opened(source.checkpoint.path, vocabulary_only=True) as model:
        problems = [
            tokenization_problem(model, tokenizer, chats, add_special_tokens=False),
            tokenization_problem(model, tokenizer, plain, add_special_tokens=True),
        ]
    said = "; ".join(filter(None, problems)) or "the prompts have the instruct model's tokens"
    return replace(source, facts={**source.facts, "tokenization": said})


@contextmanager
def running(path: Path, tokenizer: PreTrainedTokenizerBase, tasks: Tasks) -> Iterator[GgufEngine]:
    """Yield a file's engine.

    Raises:
        InvalidInput: llama.cpp does not load it.
    """
    with opened(path, max(CONTEXT, tasks.window)) as model:
        yield GgufEngine(model, tokenizer, tasks)


@dataclass(frozen=True)
class GgufEngine:
    """A file in memory; an `Engine` that nothing is measured from. `tokenizer` is the instruct model's."""

    model: Gguf
    tokenizer: PreTrainedTokenizerBase
    tasks: Tasks

    def answer(self, inputs: SafetyInputs, protocols: Sequence[str]) -> Mapping[str, tuple[Answer, ...]]:
        """As `Engine`."""
        special = not inputs.form.chat
        return answer_by(
            lambda choices: scores(self.model, choices, add_special_tokens=special),
            lambda texts: greedy(self.model, texts, ANSWER_TOKENS, add_special_tokens=special),
            self.tokenizer,
            inputs,
            protocols,
        )

    def choose(self, questions: Sequence[Question]) -> tuple[int, ...]:
        """As `Engine`."""
        protocol = {PRIMARY_PROTOCOL: PROTOCOLS[PRIMARY_PROTOCOL]}
        found = choose_by(lambda choices: scores(self.model, choices), self.tokenizer, questions, protocol)
        return found[PRIMARY_PROTOCOL]

    def respond(self, prompts: Sequence[str]) -> tuple[Written, ...]:
        """As `Engine`."""
        chats = (_chat(self.tokenizer, text) for text in prompts)
        encoded = list(encode(self.model, chats, add_special_tokens=False))
        found = greedy_tokens(self.model, encoded, self.tasks.max_new_tokens)
        return tuple(Written(decode(self.model, tokens), tokens) for tokens in found)

    def windows(self, text: Path) -> Int[Tensor, "windows window"]:
        """As `Engine`."""
        (ids,) = encode(self.model, [read_text(text)], add_special_tokens=True)
        return windows_of(torch.tensor(ids, dtype=torch.long), self.tasks.window)

    def read(
        self, passages: Sequence[Passage], references: Sequence[Reference], batch_size: int
    ) -> tuple[float, tuple[Distances, ...]]:
        """As `Engine`."""
        return read_passages(self.model, passages, references)

    def leave_states(self, passages: Sequence[Passage], batch_size: int, directory: Path, kind: str) -> None:
        """As `Engine`, but that llama.cpp keeps its states to itself.

        Raises:
            InvalidInput: always.
        """
        raise InvalidInput([f"{self.model.path}: nothing is measured from a GGUF file; give what it was made from"])

    def stranger(self, instruct: Checkpoint) -> str:
        """As `Engine`."""
        ours, theirs = self.model.vocabulary, instruct.config.get("vocab_size")
        problem = f"{ours} tokens, and {theirs} in the instruct model" if ours != theirs else ""
        problem = problem or vocabulary_problem(self.model, self.tokenizer)
        return problem and f"{problem}: their distributions do not compare"


def read_passages(
    model: Gguf, passages: Sequence[Passage], references: Sequence[Reference]
) -> tuple[float, tuple[Distances, ...]]:
    """Return a file's perplexity on passages, and its distances from each of the references that read them.

    Raises:
        InvalidInput: a passage longer than the context, or logits that are not numbers.
    """
    total, row = 0.0, 0
    found: list[list[Float[Tensor, "3 positions"]]] = [[] for _ in references]
    for passage in passages:
        for ours, tokens in predictions(model, passage.ids, passage.counted):
            targets = torch.tensor(tokens)
            total += float(cross_entropy(ours, targets, reduction="sum").double())
            for reference, parts in zip(references, found, strict=True):
                theirs = torch.cat([*logits(reference.head, reference.states[row : row + len(ours)])])
                parts.append(compare(ours, theirs, targets))
            row += len(ours)
    perplexity = exp_mean(total, counted(passages))
    return perplexity, tuple(summarise(*torch.cat(parts, 1).numpy()) for parts in found)


def _chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    return render_chat(tokenizer, [{"role": "user", "content": prompt}], answer=True)


def _kinds(model: Gguf) -> dict[str, str]:
    """Return llama.cpp's names of file types by their number, such as Q4_K_M."""
    mark = "LLAMA_FTYPE_"
    names = [name for name in vars(model.engine) if name.startswith(mark)]
    return {str(getattr(model.engine, name)): name.removeprefix(mark).removeprefix("MOSTLY_") for name in names}
