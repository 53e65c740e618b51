"""Training of the bundled pair: next-token prediction on packed windows, first the world, then a light alignment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.bundled_pair.world import END, Document
from caq.progress import progress
from caq.testbed.export import CONTEXT

IGNORED = -100


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train; the learning rate rises over `warmup` steps and falls along a cosine."""

    steps: int
    rate: float
    windows: int
    warmup: int = 50
    decay: float = 0.05


@dataclass(frozen=True)
class Window:
    """Token ids and labels of one packed window, both int64; labels are IGNORED where no loss falls."""

    ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]


def windows(
    documents: Iterator[Document], tokenizer: PreTrainedTokenizerFast, *, answers_only: bool
) -> Iterator[Window]:
    """Cut the stream of documents into windows of CONTEXT tokens: they start anywhere, as calibration blocks do."""
    ids: list[int] = []
    labels: list[int] = []
    while True:
        while len(ids) < CONTEXT:
            document = next(documents)
            prompt = tokenizer(document.prompt).input_ids if document.prompt else []
            answer = tokenizer(document.answer + END).input_ids
            ids += prompt + answer
            labels += ([IGNORED] * len(prompt) if answers_only else prompt) + answer
        yield Window(torch.tensor(ids[:CONTEXT]), torch.tensor(labels[:CONTEXT]))
        ids, labels = ids[CONTEXT:], labels[CONTEXT:]


def fresh_model(vocabulary: int, *, outliers: int, amplitude: float, seed: int) -> LlamaForCausalLM:
    """A random model of 2.4M parameters whose norms amplify a few channels.

    In `outliers` channels every block norm's gain is `amplitude` and the columns that read those channels are
    divided by it: the function is that of the ordinary initialisation, the activations have outlier channels as
    large models' do, and training goes on from there.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=3, head_dim=32, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=3, initializer_range=0.04,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    amplify(model, torch.randperm(config.hidden_size)[:outliers], amplitude)
    return model


@torch.no_grad()
def amplify(model: LlamaForCausalLM, channels: Int[Tensor, " outliers"], amplitude: float) -> None:
    """Multiply block norms' gains by `amplitude` in the given channels and divide their readers' columns."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[channels] *= amplitude
        for linear in readers:
            linear.weight[:, channels] /= amplitude


def outlier_channels(model: LlamaForCausalLM, outliers: int) -> Int[Tensor, " outliers"]:
    """Return the channels with the largest gains of the first norm."""
    channels: Tensor = model.model.layers[0].input_layernorm.weight.topk(outliers).indices
    return channels


def train(
    model: LlamaForCausalLM,
    data: Iterator[Window],
    schedule: Schedule,
    *,
    description: str,
    quiet: bool = False,
) -> list[float]:
    """Train in place with AdamW and return the loss of every step, in nats per token."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": schedule.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, schedule))
    losses = []
    model.train()
    with progress(description, schedule.steps, quiet=quiet) as advance:
        for _ in range(schedule.steps):
            batch = [next(data) for _ in range(schedule.windows)]
            loss = _loss(model, torch.stack([w.ids for w in batch]), torch.stack([w.labels for w in batch]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
            advance()
    model.eval()
    return losses


def _rate(step: int, schedule: Schedule) -> float:
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _loss(
    model: LlamaForCausalLM, ids: Int[Tensor, "windows tokens"], labels: Int[Tensor, "windows tokens"]
) -> Float[Tensor, ""]:
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
