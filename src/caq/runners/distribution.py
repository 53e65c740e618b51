"""How far a model's next-token distributions are from a reference model's, on windows of plain text.

The two models are never needed at once: `reference_states` runs the reference and keeps its final hidden
states (in memory, or memory-mapped in a folder) and its head; `divergence` then streams the other model
against them, so that logits of either exist for one chunk of tokens at a time. An 8B model's states of
WikiText-2's test set are 2.8 GB in bfloat16; its logits would be 175 GB.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from caq.errors import InvalidInput
from caq.runners.states import head_shape, inference, logits, window_states


@dataclass(frozen=True)
class ReferenceStates:
    """What is left of a reference model: the windows it read, its final states (on CPU) and its own head.

    Attributes:
        windows: token ids.
        states: final hidden states, in the reference's dtype.
        head: maps states to logits; a copy, on CPU.
    """

    windows: Int[Tensor, "windows window"]
    states: Float[Tensor, "windows window hidden"]
    head: nn.Module


@dataclass(frozen=True)
class Divergence:
    """Means over every position of every window, between reference R and model Q.

    Attributes:
        logit_mse: mean squared difference of the logits, over positions and vocabulary.
        kl: KL(R || Q) in nats.
        same_top: share of positions whose most likely token is the same.
        positions: how many positions were compared.
    """

    logit_mse: float
    kl: float
    same_top: float
    positions: int


def reference_states(
    model: PreTrainedModel,
    windows: Int[Tensor, "windows window"],
    batch_size: int,
    directory: Path | None = None,
) -> ReferenceStates:
    """Run the reference once; with `directory`, its states are a memory-mapped file there."""
    with inference(model) as cut:
        hidden, dtype = head_shape(cut.head)[1], model.dtype
        states = _room((*windows.shape, hidden), dtype, directory)
        row = 0
        for ids, batch in window_states(cut, windows, batch_size):
            states[row : row + ids.shape[0]] = batch.to(dtype)
            row += ids.shape[0]
        return ReferenceStates(windows, states, copy.deepcopy(cut.head).to("cpu"))


def _room(shape: tuple[int, int, int], dtype: torch.dtype, directory: Path | None) -> Tensor:
    if directory is None:
        return torch.empty(shape, dtype=dtype)
    directory.mkdir(parents=True, exist_ok=True)
    size = shape[0] * shape[1] * shape[2]
    path = str(directory / "reference_states.bin")
    return torch.from_file(path, shared=True, size=size, dtype=dtype).view(shape)


def divergence(model: PreTrainedModel, reference: ReferenceStates, batch_size: int) -> Divergence:
    """Compare a model with the stored reference on the reference's own windows.

    Raises:
        InvalidInput: the vocabularies differ in size.
    """
    with inference(model) as cut:
        compare = Comparison(reference, cut.head, cut.device)
        for _, states in window_states(cut, reference.windows, batch_size):
            compare.add(states)
    return compare.result()


class Comparison:
    """Adds up the comparison batch by batch, for callers that use the states for something else too."""

    def __init__(self, reference: ReferenceStates, head: nn.Module, device: torch.device) -> None:
        _check_vocabulary(reference.head, head)
        self._reference = reference
        self._theirs = copy.deepcopy(reference.head).to(device)
        self._ours = head
        self._device = device
        self._windows = 0
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, states: Float[Tensor, "batch window hidden"]) -> None:
        """Compare the next batch of windows, in the order of the reference's."""
        batch = self._reference.states[self._windows : self._windows + states.shape[0]]
        theirs = logits(self._theirs, batch.to(self._device).flatten(0, 1))
        for ours, reference in zip(logits(self._ours, states.flatten(0, 1)), theirs, strict=True):
            self._sums += _chunk_sums(ours, reference)
        self._windows += states.shape[0]

    def result(self) -> Divergence:
        """Return the means over what was added."""
        positions = self._windows * self._reference.windows.shape[1]
        mse, kl, same = (self._sums / positions).tolist()
        return Divergence(mse, kl, same, positions)


def _chunk_sums(ours: Float[Tensor, "chunk vocab"], reference: Float[Tensor, "chunk vocab"]) -> Float[Tensor, " sums"]:
    """Sum over a chunk: squared error a vocabulary entry, KL(reference || ours), same top token."""
    error = (ours - reference).square().mean(-1)
    log_p, log_q = reference.log_softmax(-1), ours.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    same = (ours.argmax(-1) == reference.argmax(-1)).float()
    return torch.stack([error, kl, same]).double().sum(-1)


def _check_vocabulary(reference: nn.Module, ours: nn.Module) -> None:
    theirs, mine = head_shape(reference)[0], head_shape(ours)[0]
    if theirs != mine:
        raise InvalidInput(
            [f"the reference has {theirs} tokens and the model {mine}: compare models of one vocabulary"]
        )
