"""What renders chat templates: a program of its own, because a template is code from a checkpoint.

It imports jinja2 and nothing of CAQ, and is run by its path. A request is one line of JSON, and so is its answer. The
system ends it when a request takes too much time, and refuses it memory; who asked finds it gone, or reads an error.
Templates are written for Transformers, whose names and tags they find here, but for two things: it is always the same
day, and chance always falls the same way.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

#: For one request; a long chat through a long template takes a hundredth of each.
CPU_SECONDS, MEMORY_BYTES, MOST_CHARACTERS = 2, 2**30, 2**24
DAY = datetime(2024, 7, 26)


class Generation(Extension):
    """The tag around what an assistant wrote, which changes nothing of the text."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the node of the tag: its body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Macro) -> str:
        """Return what the tag encloses."""
        return caller()


class Names(Namespace):
    """What a template keeps by name, but for names that begin with an underscore, which might be Python's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        """Keep a value by a name."""
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace has no names that begin with an underscore, such as {name}")
        super().__setitem__(name, value)


class Dictionaries:
    """What templates call `dict`: it makes dictionaries, and leads nowhere else."""

    def __call__(self, /, *pairs: Any, **named: Any) -> dict[Any, Any]:
        """Return a dictionary, as Python's own does."""
        return dict(*pairs, **named)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """Return a dictionary of one value, as Python's own does."""
        return dict.fromkeys(keys, value)


@cache
def environment() -> ImmutableSandboxedEnvironment:
    """Return what templates find: Transformers' names and tags, on a fixed day."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = DAY.strftime
    made.globals["dict"] = Dictionaries()
    made.globals["namespace"] = _namespace
    return made


def answer(request: Mapping[str, Any]) -> Mapping[str, object]:
    """Return the rendered text; or, where no variables are given, the template's own variables and its texts.

    What is wrong is told as `refused` where the template says so, as `failed` where it cannot do what it wants with
    what it is given, and as `error` where it is out of bounds.
    """
    try:
        template = request["template"]
        if "variables" not in request:
            tree = environment().parse(template)
            texts = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
            return {"names": sorted(find_undeclared_variables(tree)), "texts": texts}
        random.seed(0)
        text = _compiled(template).render(request["variables"])
        if len(text) > MOST_CHARACTERS:
            return {"error": f"writes more than {MOST_CHARACTERS:,} characters for one chat"}
        return {"text": text}
    except MemoryError:
        return {"error": f"takes more than {MEMORY_BYTES:,} bytes of memory for one chat"}
    except RecursionError:
        return {"error": "calls itself without end"}
    except TemplateError as error:
        return {"refused": str(error)}
    except Exception as error:  # a template's code raises what it likes
        return {"failed": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Answer requests until there are no more."""
    # Where the system has none, or a lower one, that holds.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        # Without a handler the signal ends the process, inside a single long operation, too.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        said = json.dumps(answer(json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(said, flush=True)


@lru_cache
def _compiled(source: str) -> Template:
    return environment().from_string(source)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not jinja2's own, which escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _namespace(*pairs: Any, **named: Any) -> Names:
    made = Names()
    for name, value in dict(*pairs, **named).items():
        made[name] = value
    return made


def _refuse(message: str) -> None:
    raise TemplateError(message)


if __name__ == "__main__":
    main()
