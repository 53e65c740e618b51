"""Training the adapter: LoRA (arXiv:2106.09685) on every linear of every block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_pair.lessons import Lesson, batches, lessons
from benchmarks.real_pair.sources import Sources
from caq.progress import progress

RANK = 8
#: Tokens of a step, padding included.
BATCH = 1280
RATE = 8e-4
WARMUP = 10
TARGETS = "all-linear"


def train(base: Path, sources: Sources, adapter: Path, *, quiet: bool = False) -> None:
    """Train an adapter of `base` in one pass over the lessons, and write it with `peft`'s names."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    student = get_peft_model(model, config)
    steps = list(batches(lessons(sources, tokenizer), BATCH))
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    with progress("train: adapter", len(steps), quiet=quiet) as advance:
        for step, batch in enumerate(steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / len(steps))) / 2
            optimizer.zero_grad()
            loss(student, batch).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            advance()
    student.to(torch.bfloat16).save_pretrained(str(adapter))


def settings() -> dict[str, object]:
    """Return what decides the adapter besides the data."""
    return {
        "lora_rank": RANK, "lora_alpha": 2 * RANK, "targets": TARGETS, "batch_tokens": BATCH, "learning_rate": RATE,
        "warmup_steps": WARMUP, "epochs": 1, "seed": 0, "torch": torch.__version__, "peft": version("peft"),
    }  # fmt: skip


def loss(student: PeftModel, batch: Sequence[Lesson]) -> torch.Tensor:
    """Return the mean negative log-likelihood of the tokens that are learned; the head runs on these alone."""
    longest = max(len(lesson.tokens) for lesson in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    learned = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, lesson in enumerate(batch):
        ids[row, : len(lesson.tokens)] = torch.tensor(lesson.tokens)
        learned[row, lesson.learned_from : len(lesson.tokens)] = True
    # Padding is on the right of what attends to the left alone: it needs no mask.
    causal = student.get_base_model()
    hidden = causal.model(ids).last_hidden_state[:, :-1][learned[:, 1:]]
    return cross_entropy(causal.lm_head(hidden), ids[:, 1:][learned[:, 1:]])
