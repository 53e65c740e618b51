"""A tiny random LLaMA with a real byte-level BPE tokenizer trained on the spot, and a second model near it."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

WORDS = [
    "how",
    "do",
    "I",
    "bake",
    "fix",
    "open",
    "a",
    "the",
    "door",
    "bread",
    "lock",
    "kettle",
    "Yes",
    "No",
    "sorry",
    "cannot",
    "help",
    "with",
    "that",
]
CORPUS = [
    f"Question: {a} {b} {c}?\nOptions:\n(A) {b}.\n(B) {c}.\nAnswer:" for a in WORDS for b in WORDS for c in WORDS[:5]
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", chat_template=TEMPLATE)


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Large, so that a random model's choices differ from question to question.
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def neighbour(model: PreTrainedModel) -> PreTrainedModel:
    """The model with a little noise on every weight."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return other
