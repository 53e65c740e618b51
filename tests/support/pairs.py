"""Tiny random pairs on disk, with real tokenizers, for tests of the whole path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import tiny_model

TEXT = "The keeper of the lamp walks to the harbour at dusk, and the boats come home one by one. " * 200
#: Settings of a run of the preset `cal` that ends in a second.
SMALL = {
    "data.samples": 6,
    "data.length": 32,
    "learn.end-to-end.steps": 6,
    "learn.end-to-end.batch_size": 2,
    "learn.end-to-end.evaluate_every": 2,
    "learn.end-to-end.validation_samples": 2,
    "quantizer.clip_steps": 10,
}
#: The same for the default.
SMALL_DEFAULT = {
    **{name: value for name, value in SMALL.items() if not name.startswith("learn.")},
    "learn.local.steps": 6,
    "learn.local.validation_samples": 2,
    "learn.refine.steps": 6,
    "learn.refine.batch_size": 2,
    "learn.refine.evaluate_every": 2,
    "learn.refine.validation_samples": 2,
}
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with chat tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=TEMPLATE,
    )


def write_pair(
    directory: Path, family: str = "llama", *, dtype: torch.dtype = torch.bfloat16, **sizes: Any
) -> tuple[Path, Path]:
    """Write `aligned` and `base`, sharded, with `text.txt` beside them; return the two directories."""
    tokenizer = make_tokenizer(320)
    shapes = {"vocab_size": 320, "max_position_embeddings": 128, **sizes}
    for seed, name in enumerate(("aligned", "base")):
        model = tiny_model(family, seed=seed, dtype=dtype, **shapes)
        model.save_pretrained(directory / name, max_shard_size="60KB")
        tokenizer.save_pretrained(directory / name)
    (directory / "text.txt").write_text(TEXT, encoding="utf-8")
    return directory / "aligned", directory / "base"
