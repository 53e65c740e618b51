"""A tokenizer's chat template and what it makes of a chat, rendered by `sandbox` within limits of time and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from caq.chat.sandbox import CPU_SECONDS, DAY
from caq.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A message has `role` and `content`.
Messages = Sequence[Mapping[str, object]]
#: What the templates of LLaMA 3.1 and later write; by default they write today's date, and a recipe's tokens would
#: change from day to day.
DATE = f"{DAY:%d %b %Y}"
#: The longest template in use has 20,000 characters.
LONGEST_TEMPLATE = 1_000_000
_WAY_OUT = "take the model's own template again, from its source"
_SANDBOX = Path(__file__).with_name("sandbox.py")
# One request at a time, for the answers come in order.
_TURN = Lock()


class Refused(InvalidInput):
    """A template does not take a chat, or a variable's value."""


@dataclass(frozen=True)
class Template:
    """A chat template's source, and the special tokens that it may write, by their names."""

    source: str
    tokens: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Named:
    """What a template names: variables that it does not set itself, and texts."""

    variables: frozenset[str]
    texts: tuple[str, ...]


def find_template(tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """Return a tokenizer's template, of several the default one; None if it has none.

    Raises:
        InvalidInput: there are several and none is the default, it is no text, or it is too long.
    """
    found: Any = tokenizer.chat_template
    if isinstance(found, Mapping):
        if found and "default" not in found:
            names = ", ".join(sorted(map(str, found)))
            raise InvalidInput(f"chat_template: there are several ({names}) and none is called default; name one so")
        found = found.get("default")
    if not found:
        return None
    if not isinstance(found, str):
        raise InvalidInput(f"chat_template: is a {type(found).__name__}, not a text; {_WAY_OUT}")
    if len(found) > LONGEST_TEMPLATE:
        raise InvalidInput(f"chat_template: has {len(found):,} characters, more than {LONGEST_TEMPLATE:,}; shorten it")
    special = tokenizer.special_tokens_map.items()
    return Template(found, tuple((name, str(token)) for name, token in special if not isinstance(token, list | tuple)))


def render(template: Template, messages: Messages, variables: Mapping[str, object], *, answer: bool) -> str:
    """Return a chat as a template writes it; with `answer` the text ends where the assistant's next turn begins.

    Raises:
        Refused: the template does not take the chat.
        Unsupported: it takes too much time or memory.
    """
    given = {**dict(template.tokens), "date_string": DATE, "tools": None, "documents": None, **variables}
    # As Transformers: a key without a value is as good as missing.
    told = [{key: value for key, value in message.items() if value is not None} for message in messages]
    given |= {"messages": told, "add_generation_prompt": answer}
    return str(_ask({"template": template.source, "variables": given})["text"])


@lru_cache
def named_in(template: Template) -> Named:
    """Return what a template names.

    Raises:
        Refused: it is no template.
        Unsupported: it takes too much time or memory.
    """
    said = _ask({"template": template.source})
    return Named(frozenset(said["names"]), tuple(said["texts"]))


def _ask(request: Mapping[str, object]) -> Mapping[str, Any]:
    line = json.dumps(request) + "\n"
    with _TURN:
        # A process that was forked has its own, or it would read its parent's answers.
        process = _process(os.getpid())
        answer = ""
        try:
            answer = _exchange(process, line)
        finally:
            if not answer:
                # It has ended, or this was interrupted, and the next request would get the answer to this one.
                process.kill()
                process.communicate()
                _process.cache_clear()
    if not answer:
        raise Unsupported(f"chat_template: {_why(process.returncode)}; {_WAY_OUT}")
    said: Mapping[str, Any] = json.loads(answer)
    if "refused" in said:
        raise Refused(f"the chat template refuses it: {said['refused']}")
    if "failed" in said:
        raise Refused(
            f"chat_template: cannot write the chat: {str(said['failed']).rstrip('.')}; give the tokenizer one that can"
        )
    if "error" in said:
        raise Unsupported(f"chat_template: {said['error']}; {_WAY_OUT}")
    return said


def _exchange(process: subprocess.Popen[str], line: str) -> str:
    """Return the answer to a line, or nothing from a process that has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return ""


def _why(status: int) -> str:
    if status == -signal.SIGPROF:
        return f"takes more than {CPU_SECONDS} seconds for one chat"
    return f"cannot be rendered, the program that does it ended with {status}"


@cache
def _process(owner: int) -> subprocess.Popen[str]:
    # Without this directory among its paths, where files are called as modules that jinja2 imports; and in a session
    # of its own, so that Ctrl-C reaches it as the end of its input.
    return subprocess.Popen(
        [sys.executable, "-I" if sys.flags.isolated else "-P", str(_SANDBOX)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        encoding="ascii", start_new_session=True, env={**os.environ, "TZ": "UTC", "PYTHONHASHSEED": "0"},
    )  # fmt: skip
