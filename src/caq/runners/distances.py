"""How far next-token distributions are from a reference model's, position by position, in llama.cpp's terms.

Sequences are read with teacher forcing and only chosen positions count: every prediction of a text's windows, or of the
first tokens of responses behind their prompts. The reference runs once and leaves its hidden states at those positions
and its head on disk, so that one model is in memory; logits exist for a chunk of tokens, in float64, because a
distance of 1e-6 nats is less than what float32 rounds away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from caq.checkpoint.write import require_space
from caq.errors import InvalidInput
from caq.files.whole import whole, write_text
from caq.measure.record import Distances, Histogram
from caq.runners.perplexity import exp_mean
from caq.runners.states import Cut, chunk_tokens, logits, pad

#: Half decades of nats; the first bin is what rounding alone does, the last holds everything above it, too.
EDGES = (0.0, *(float(f"{10 ** (half / 2):.4g}") for half in range(-12, 5)))
HEAD = "head.safetensors"
#: Of a float64 chunk of logits, so that a few of them fit beside a model.
_PARTS = 8


@dataclass(frozen=True)
class Passage:
    """A token sequence and how many of its last tokens count: those are predicted, and compared."""

    ids: tuple[int, ...]
    counted: int


@dataclass(frozen=True)
class Reference:
    """What is left of a reference model.

    Attributes:
        states: final hidden states at the counted positions of every passage, in the model's dtype, on the CPU.
        head: maps them to logits.
    """

    states: Float[Tensor, "positions hidden"]
    head: nn.Module


def windows_as_passages(windows: Int[Tensor, "windows window"]) -> tuple[Passage, ...]:
    """Return windows of a text, of which every token but the first is predicted."""
    return tuple(Passage(tuple(ids), len(ids) - 1) for ids in windows.tolist())


def counted(passages: Sequence[Passage]) -> int:
    """Return how many positions of the passages are compared."""
    return sum(passage.counted for passage in passages)


def keep_reference(cut: Cut, passages: Sequence[Passage], batch_size: int, directory: Path, name: str) -> Reference:
    """Run the reference over the passages, unless `directory` holds what it left under `name`, and return that.

    Raises:
        InvalidInput: the disk has no room for its states.
    """
    if not kept(directory, name):
        weight = cut.head.weight
        assert isinstance(weight, Tensor)
        shape = (counted(passages), weight.shape[1])
        require_space(directory, (math.prod(shape) + weight.numel()) * weight.element_size())
        directory.mkdir(parents=True, exist_ok=True)
        states = _mapped(directory, name, shape, weight.dtype)
        row = 0
        for found, _ in _counted_states(cut, passages, batch_size):
            states[row : row + len(found)] = found.to(weight.dtype)
            row += len(found)
        with whole(directory / HEAD) as partial:
            save_file({key: one.cpu() for key, one in cut.head.state_dict().items()}, partial)
        # Last, for it says that the others are whole.
        write_text(directory / f"{name}.json", json.dumps({"shape": shape}) + "\n")
    return open_reference(directory, name)


def kept(directory: Path, name: str) -> bool:
    """Whether a directory holds what a reference left of the passages of that name."""
    return all((directory / file).exists() for file in (HEAD, f"{name}.bin", f"{name}.json"))


def open_reference(directory: Path, name: str) -> Reference:
    """Return what `keep_reference` left; its states are memory-mapped."""
    shape = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))["shape"]
    weights = load_file(directory / HEAD)
    dtype = weights["weight"].dtype
    rows, columns = weights["weight"].shape
    head = nn.Linear(columns, rows, bias="bias" in weights, dtype=dtype)
    head.load_state_dict(weights)
    return Reference(_mapped(directory, name, tuple(shape), dtype), head.requires_grad_(False))


def read_passages(
    cut: Cut, passages: Sequence[Passage], references: Sequence[Reference], batch_size: int
) -> tuple[float, tuple[Distances, ...]]:
    """Return a model's perplexity on passages, and its distances from each of the references that read them.

    Raises:
        InvalidInput: the model's logits are not numbers.
    """
    meters = [_Meter(reference, cut) for reference in references]
    total = 0.0
    for states, tokens in _counted_states(cut, passages, batch_size):
        chunks = zip(logits(cut.head, states), tokens.split(chunk_tokens(cut.head)), strict=True)
        total += sum(float(cross_entropy(found, wanted, reduction="sum").double()) for found, wanted in chunks)
        for meter in meters:
            meter.add(states, tokens)
    perplexity = exp_mean(total, counted(passages))
    return perplexity, tuple(meter.result() for meter in meters)


def summarise(
    kl: Float[np.ndarray, " positions"],
    same: Float[np.ndarray, " positions"],
    delta_p: Float[np.ndarray, " positions"],
) -> Distances:
    """Return the summary of positions: KL in nats, whether the top token is the same, Δp of the token that stands.

    Raises:
        InvalidInput: a distance is not a number.
    """
    if not np.isfinite(kl).all():
        raise InvalidInput(["the model's logits are not numbers (NaN); check its weights and scales"])
    p90, p95, p99, p999 = np.quantile(kl, [0.9, 0.95, 0.99, 0.999])
    counts, _ = np.histogram(np.minimum(kl, EDGES[-1]), EDGES)
    return Distances(
        positions=kl.size,
        mean=float(kl.mean()),
        standard_error=float(kl.std(ddof=1) / math.sqrt(kl.size)) if kl.size > 1 else 0.0,
        median=float(np.median(kl)),
        p90=float(p90),
        p95=float(p95),
        p99=float(p99),
        p999=float(p999),
        maximum=float(kl.max()),
        same_top=float(same.mean()),
        delta_p_mean=float(delta_p.mean()),
        delta_p_rms=float(np.sqrt(np.square(delta_p).mean())),
        histogram=Histogram(EDGES, tuple(map(int, counts))),
    )


def compare(
    ours: Float[Tensor, "positions vocab"], theirs: Float[Tensor, "positions vocab"], tokens: Int[Tensor, " positions"]
) -> Float[Tensor, "3 positions"]:
    """Return what `summarise` reads of logits at positions, of which there is at least one: `tokens` stand there."""
    size = math.ceil(len(tokens) / _PARTS)
    parts = zip(ours.split(size), theirs.split(size), tokens.split(size), strict=True)
    return torch.cat([_compare(*part) for part in parts], 1)


class _Meter:
    """Collects the distances from one reference, batch by batch."""

    def __init__(self, reference: Reference, cut: Cut) -> None:
        self._states = reference.states
        self._theirs = reference.head.to(cut.device)
        self._cut = cut
        self._done = 0
        self._found: list[Float[Tensor, "3 positions"]] = []

    def add(self, states: Float[Tensor, "positions hidden"], tokens: Int[Tensor, " positions"]) -> None:
        """Compare the next positions, in the reference's order; `tokens` stand in the text there."""
        theirs = self._states[self._done : self._done + len(states)].to(self._cut.device)
        self._done += len(states)
        pairs = zip(logits(self._cut.head, states), logits(self._theirs, theirs), strict=True)
        for (ours, reference), targets in zip(pairs, tokens.split(chunk_tokens(self._cut.head)), strict=True):
            self._found.append(compare(ours, reference, targets).cpu())

    def result(self) -> Distances:
        """Return what was found over the positions that were added, at least one."""
        return summarise(*torch.cat(self._found, 1).numpy())


def _compare(
    ours: Float[Tensor, "positions vocab"], theirs: Float[Tensor, "positions vocab"], tokens: Int[Tensor, " positions"]
) -> Float[Tensor, "3 positions"]:
    """KL(theirs ‖ ours), whether the most likely token is the same, p_ours − p_theirs of the token that stands."""
    log_q, log_p = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    # Rounding can leave less than nothing of a distance of zero.
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
    same = (log_q.argmax(-1) == log_p.argmax(-1)).double()
    standing = tokens[:, None]
    delta = (log_q.gather(1, standing).exp() - log_p.gather(1, standing).exp()).squeeze(1)
    return torch.stack([kl, same, delta])


def _counted_states(
    cut: Cut, passages: Sequence[Passage], batch_size: int
) -> Iterator[tuple[Float[Tensor, "positions hidden"], Int[Tensor, " positions"]]]:
    """Yield the states that predict the counted tokens, and these, batch by batch in order."""
    for start in range(0, len(passages), batch_size):
        batch = passages[start : start + batch_size]
        ids, mask = pad([passage.ids for passage in batch], left=False, fill=0, device=cut.device)
        states = cut.body(ids, attention_mask=mask, use_cache=False).last_hidden_state
        rows = [row for row, one in enumerate(batch) for _ in range(one.counted)]
        ends = [place for one in batch for place in range(len(one.ids) - one.counted, len(one.ids))]
        yield states[rows, [place - 1 for place in ends]], ids[rows, ends]


def _mapped(directory: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Float[Tensor, "rows hidden"]:
    path = str(directory / f"{name}.bin")
    return torch.from_file(path, shared=True, size=math.prod(shape), dtype=dtype).view(shape)
