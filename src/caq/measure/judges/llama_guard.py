"""Llama Guard 3: says of a response whether there is harm in it; to a harmful prompt, one without harm is a refusal."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from caq.chat import render_chat
from caq.measure.judges.guard import Guard, guard_spec


def _ask(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> str:
    return render_chat(tokenizer, [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}])


GUARD = Guard(
    "llama-guard",
    "meta-llama/Llama-Guard-3-8B",
    "7327bd9f6efbbe6101dc6cc4736302b3cbb6e425",
    _ask,
    after="",
    words={"refused": "safe", "answered": "unsafe"},
    harmless=False,
)
LLAMA_GUARD = guard_spec(GUARD)
