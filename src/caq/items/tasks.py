"""What to measure, as a command line names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caq.items.safety import SafetyTask


@dataclass(frozen=True)
class Tasks:
    """What to measure; a path that is None leaves its measure out.

    Attributes:
        perplexity_text: a text, by path or by name, for perplexity and for distances.
        safety: questions in SafetyBench's fields, and how they are asked.
        facts: questions in the same fields, scored by `option-text`.
        prompts: `prompt` and `harmful`, answered greedily through the chat template.
        window: tokens per window of the text; the field's tables use 2,048.
        max_new_tokens: length of a response; a refusal shows in its opening.
    """

    perplexity_text: Path | None = None
    safety: SafetyTask | None = None
    facts: Path | None = None
    prompts: Path | None = None
    window: int = 2048
    max_new_tokens: int = 32
