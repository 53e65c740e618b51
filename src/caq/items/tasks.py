"""What to measure, as a command line names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from caq.chat import ChatOptions
from caq.errors import InvalidInput
from caq.items.safety import SafetyTask

#: Tokens per window of the field's tables; a window is shorter only where a model reads less.
WINDOW = 2048


@dataclass(frozen=True)
class Tasks:
    """What to measure; a path that is None leaves its measure out.

    Attributes:
        perplexity_text: a text, by path or by name, for perplexity and for distances.
        safety: questions in SafetyBench's fields, and how they are asked.
        facts: questions in the same fields, scored by `option-text`.
        prompts: `prompt` and `harmful`, answered greedily through the chat template.
        window: tokens per window of the text; None takes `WINDOW`, or the shortest context of the models.
        max_new_tokens: length of a response; a refusal shows in its opening.
        chat_options: what chat templates are given by name, in place of what they are given by default.
    """

    perplexity_text: Path | None = None
    safety: SafetyTask | None = None
    facts: Path | None = None
    prompts: Path | None = None
    window: int | None = None
    max_new_tokens: int = 32
    chat_options: ChatOptions = field(default_factory=dict)

    def fitted(self, contexts: Mapping[str, int | None]) -> Tasks:
        """Return the tasks with a window that every model reads; a context that is not known has any room.

        Args:
            contexts: tokens that each model reads, by how it was named.

        Raises:
            InvalidInput: the window was given, and is beyond a model's context.
        """
        known = {name: context for name, context in contexts.items() if context is not None}
        if self.window is None:
            return replace(self, window=min([WINDOW, *known.values()]))
        short = [f"{name} reads {context:,}" for name, context in known.items() if context < self.window]
        if short and self.perplexity_text is not None:
            said = f"a window of {self.window:,} tokens is too long: {', '.join(short)}"
            raise InvalidInput(f"{said}; give a shorter --window, or none")
        return self
