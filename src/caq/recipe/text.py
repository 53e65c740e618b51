"""Recipes as text: YAML without silent surprises."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml

from caq.errors import InvalidInput, shown

#: Characters of the longest text, and values of the largest document, that is read as a recipe.
LONGEST, _MOST_VALUES = 200_000, 20_000
#: Characters of YAML's own message that are shown.
_TOLD = 500


class _Loader(yaml.SafeLoader):
    """Safe YAML, except that 1e-3 is a number (YAML 1.2) and a repeated key is an error."""


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes the texts which `_Loader` would read as numbers."""


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _quoted_breaks(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Other styles fold line breaks, of which YAML has more than a line feed, into spaces.
    style = '"' if any(mark in text for mark in "\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _quoted_breaks)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    counts = Counter(str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    repeated = {key for key, count in counts.items() if count > 1}
    if repeated:
        problem = f"given more than once: {', '.join(sorted(repeated))}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Parse a YAML mapping; an empty text is an empty mapping. Errors call the text `origin`, such as a file's name.

    Raises:
        InvalidInput: not YAML, a repeated key, something other than a mapping, or more than any recipe holds.
    """
    if len(text) > LONGEST:
        raise InvalidInput(f"{origin}: has more than {LONGEST:,} characters; give a recipe")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _require_few(node)
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"{origin}: not readable as YAML: {' '.join(str(error).split())[:_TOLD]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidInput(f"{origin}: a recipe is a mapping of sections, this is a {type(values).__name__}")
    return {key if isinstance(key, str) else shown(key): value for key, value in values.items()}


def _require_few(root: yaml.Node | None) -> None:
    """Check that a document is small with each alias in full: a few nested ones stand for billions of values.

    Raises:
        ValueError: it is not, or holds itself.
    """
    held, count = [root], 0
    while held:
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"with its aliases it holds more than {_MOST_VALUES:,} values; write them out")
        node = held.pop()
        if isinstance(node, yaml.MappingNode):
            held += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            held += node.value


def dump_yaml(values: Mapping[str, object]) -> str:
    """Write plain data as YAML, keys in their given order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
