"""Questions of unequal lengths, and the likelihood of a text behind another, one sequence at a time."""

from __future__ import annotations

import copy
import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caq.items.questions import Question
from tests.support.models import WORDS


def question(index: int) -> Question:
    """Make a question of its own length, with two to four options of unequal lengths."""
    words = [WORDS[(index * 7 + offset * 5) % len(WORDS)] for offset in range(12)]
    options = [" ".join(words[i : i + 1 + (index + i) % 3]) + "." for i in range(2 + index % 3)]
    return Question(str(index), "any", " ".join(words[: 3 + index % 9]) + "?", tuple(options), 0)


QUESTIONS = [question(index) for index in range(24)]


@torch.no_grad()
def naive_score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, tail: str) -> float:
    """Sum log P of `tail`'s tokens after `prompt`, on one unpadded sequence in float64."""
    context, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + tail)["input_ids"]
    assert whole[: len(context)] == context
    log_prob = copy.deepcopy(model).double()(torch.tensor([whole])).logits[0].log_softmax(-1)
    return math.fsum(log_prob[place - 1, whole[place]].item() for place in range(len(context), len(whole)))
