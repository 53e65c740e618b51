"""A model in memory as a runner."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.checkpoint.inspect import Checkpoint
from caq.runners.base import Running
from caq.runners.transformers import TransformersRunner


def runner(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices: int = 8, prompts: int = 8, tokens: int = 512
) -> TransformersRunner:
    checkpoint = Checkpoint(Path("model"), {"vocab_size": model.config.vocab_size}, {}, ())
    how = Running(torch.device("cpu"), choices=choices, prompts=prompts, tokens=tokens)
    return TransformersRunner(model, checkpoint, tokenizer, how)
