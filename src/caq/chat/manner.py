"""How a model is asked: what its chat template is given, so that it answers without thinking first where it can.

Templates have switches of many names. Which of them one has is read in its source, and what turns them off is found by
rendering: a value that the template refuses, or writes out as a word, is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from caq.chat.template import Messages, Named, Refused, Template, named_in, render
from caq.chat.thought import left_open
from caq.errors import nearest

#: What a user gives to templates by name, such as `enable_thinking: true`.
ChatOptions = Mapping[str, object]

_THOUGHT = r"(?:think|thinking|thought|thoughts|reasoning|cot)"
_ON = re.compile(rf"(?:(?:enable|use|include|add|show|with|do|force|is)_?)?{_THOUGHT}(?:_enabled)?")
_OFF = re.compile(rf"(?:disable|skip|no|without)_?{_THOUGHT}")
_BUDGET = re.compile(rf"{_THOUGHT}_(?:budget|tokens)")
_WORD = re.compile(rf"{_THOUGHT}_(?:effort|mode|level|strategy)")
#: The least of thinking, as templates call it; the first that a template names is taken.
_LEAST = ("none", "off", "disabled", "no_think", "nothink", "non-thinking", "non_thinking", "chat", "minimal", "low")
#: What templates without a switch of their own look for in the system's turn.
#: What every chat is rendered from, and nobody chooses.
_GIVEN = frozenset({"messages", "add_generation_prompt"})
_DIRECTIVE = "/no_think"
_PROBE = "Is the lamp of the harbour lit?"


@dataclass(frozen=True)
class Manner:
    """How chats are put to a model.

    Attributes:
        variables: what the template is given besides the chat: what a user said, and its switches, off.
        directive: a system's turn before chats without one; empty for none.
        closing: what closes the thought that the template opens all the same; empty if it opens none.
    """

    variables: ChatOptions = field(default_factory=dict)
    directive: str = ""
    closing: str = ""

    def begun(self, messages: Messages) -> Messages:
        """Return a chat with the directive before it."""
        if not self.directive or (messages and messages[0].get("role") == "system"):
            return messages
        return [{"role": "system", "content": self.directive}, *messages]

    @property
    def words(self) -> str:
        """The manner in words, for a report; empty where there is nothing to say."""
        given = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in self.variables.items()]
        told = [*given, *filter(None, [self.directive])]
        said = [f"asked with {', '.join(told)}"] if told else []
        return "; ".join([*said, *([f"answers begin behind {self.closing}"] if self.closing else [])])


def manner(template: Template, options: ChatOptions) -> Manner:
    """Return how chats are put to a model through a template; what a user gave stays as it is.

    Raises:
        Refused: it is no template.
        Unsupported: it takes too much time or memory.
    """
    return _manner(template, json.dumps(options))


def unknown_options(templates: Sequence[Template], options: ChatOptions) -> Iterator[str]:
    """Yield a problem for every option that no template names: it would change nothing.

    Raises:
        Refused, Unsupported: as `named_in`.
    """
    known = sorted(frozenset().union(*(named_in(template).variables for template in templates)) - _GIVEN)
    for name in options:
        if name not in known:
            yield f"--chat-option {name}: no chat template names it{nearest(name, known)}"


@lru_cache
def _manner(template: Template, options: str) -> Manner:
    variables: dict[str, object] = json.loads(options)
    named = named_in(template)
    # Who turns one switch has thought of thinking: the others stay as the template has them.
    own = any(_is_switch(name) for name in variables)
    for name in [] if own else sorted(named.variables - variables.keys()):
        value = next((value for value in _off(name, named) if _taken(template, variables, name, value)), None)
        if value is not None:
            variables[name] = value
    try:
        plain = Manner(variables, closing=_closing(template, Manner(variables)))
    except Refused:
        # It may take other chats, such as those that begin with a system's turn.
        return Manner(variables)
    if own or not plain.closing or not any(_DIRECTIVE in text for text in named.texts):
        return plain
    told = Manner(variables, _DIRECTIVE)
    return plain if _closing(template, told) else told


def _is_switch(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_ON, _OFF, _BUDGET, _WORD))


def _off(name: str, named: Named) -> Iterator[object]:
    """Yield the values that may turn a variable's thoughts off, the likeliest first; none if it is no switch."""
    if _ON.fullmatch(name):
        yield False
    elif _OFF.fullmatch(name):
        yield True
    elif _BUDGET.fullmatch(name):
        yield 0
    if _ON.fullmatch(name) or _WORD.fullmatch(name):
        yield from (word for word in _LEAST if word in named.texts)
    if name.endswith("_effort"):
        yield "low"


def _taken(template: Template, variables: ChatOptions, name: str, value: object) -> bool:
    """Tell whether a template takes a value: it does not refuse it, nor write it out as a word of Python's."""
    word, given = str(value), {**variables, name: value}
    try:
        after = _probe(template, Manner(given))
        return not isinstance(value, bool) or after.count(word) <= _probe(template, Manner(variables)).count(word)
    except Refused:
        return False


def _closing(template: Template, asked: Manner) -> str:
    return left_open(_probe(template, asked).rpartition(_PROBE)[2])


def _probe(template: Template, asked: Manner) -> str:
    return render(template, asked.begun([{"role": "user", "content": _PROBE}]), asked.variables, answer=True)
