"""A LLaMA that says what it was told to: every token is followed by a chosen one, whatever came before it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tests.support.pairs import make_tokenizer

END = "</s>"


def chain_tokenizer(phrases: tuple[str, ...], template: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer in which each phrase is one token."""
    tokenizer = make_tokenizer(320)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    tokenizer.chat_template = template
    return tokenizer


def chain_model(tokenizer: PreTrainedTokenizerBase, follows: Mapping[str, str], otherwise: str) -> PreTrainedModel:
    """Return a model in which `follows` says what comes after a token, and `otherwise` after any other one.

    Attention and MLP are zero, so that the hidden state is the last token's own direction, which the head maps.
    """
    size = -(-len(tokenizer) // 8) * 8
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    model.model.embed_tokens.weight.copy_(torch.eye(size))
    next_token = torch.full((size,), tokenizer.convert_tokens_to_ids(otherwise))
    for token, following in follows.items():
        next_token[tokenizer.convert_tokens_to_ids(token)] = tokenizer.convert_tokens_to_ids(following)
    model.lm_head.weight[next_token, torch.arange(size)] = 1.0
    return model


def write_chain(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save both; return the directory."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
