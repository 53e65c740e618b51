"""How one place of a JSON value is changed, into what nobody expects there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: What text can be at worst: lone surrogates, NUL, right to left, combining without end, line breaks of all kinds.
ODD_TEXTS = (
    "", " ", "\0", "\ud800", "\udfff\ud800", "\u202e txt", "e" + "\u0301" * 500, "\u2028", "\r\n\x0b\x0c\x85", "\ufeff",
    "\U0001f9ff" * 50, "a" * 100_000, "[bold]", "%s %d {0} {x}", "../outside", "../../outside", "/dev/null", "~",
    "~nobody/x", "C:\\x", "a/b", ".", "..", "-o", "NaN", "null", "true", "1", "1e400", "{{ x }}",
    "{% for i in range(10**9) %}x{% endfor %}", "<s>" * 5_000,
)  # fmt: skip
ODD_NUMBERS = (
    0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**63 - 1, 2**63, 10**19, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
#: Stand for what `json.dumps` would not write; put in once the rest is text.
_DEEP, _TWICE = "\x01deep\x01", "\x01twice\x01"
_DEPTHS = (50, 500, 5_000, 100_000)


def dumped(value: Any, chance: random.Random) -> bytes:
    """Return a changed value as JSON text, with what JSON forbids where that was put in."""
    depth = chance.choice(_DEPTHS)
    deep = chance.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth))
    text = json.dumps(value, ensure_ascii=chance.random() < 0.9, allow_nan=True)
    text = text.replace(json.dumps(_DEEP), deep).replace('"' + _DEEP + '"', deep)
    text = text.replace(json.dumps(_TWICE)[1:-1], "").replace(_TWICE, "")
    return text.encode("utf-8", "surrogatepass")


def changed_value(chance: random.Random, value: Any) -> tuple[str, Any]:
    """Return a JSON value with one place changed, and the change in words."""
    places = list(_places(value))
    # The nearer to the root, the likelier: what holds thousands of entries would else be all that is changed.
    weights = [0.4 ** len(place) for place in places]
    place = chance.choices(places, weights)[0]
    name, new = _other_value(chance, _at(value, place))
    return f"{'.'.join(map(str, place)) or 'the whole'}: {name}", _with(value, place, new)


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield before
    if isinstance(value, dict | list) and len(before) < 6:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from _places(value[key], (*before, key))


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


_GONE = object()


def _with(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return None if new is _GONE else new
    key, *rest = place
    inner = _with(value[key], tuple(rest), new) if rest else new
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    kept = [(name, inner if name == key else old) for name, old in items if not (name == key and inner is _GONE)]
    return dict(kept) if isinstance(value, dict) else [old for _, old in kept]


def _other_value(chance: random.Random, value: Any) -> tuple[str, Any]:
    options: dict[str, Callable[[], Any]] = {
        "gone": lambda: _GONE,
        "null": lambda: None,
        "a number": lambda: chance.choice(ODD_NUMBERS),
        "a text": lambda: chance.choice(ODD_TEXTS),
        "a list": lambda: chance.choice(([], [[]], [None], ["a", 1], list(range(5_000)))),
        "an object": lambda: chance.choice(({}, {"a": 1}, {"": {}}, {"__class__": "x"})),
        "true or false": lambda: chance.random() < 0.5,
        "without an end": lambda: _DEEP,
    }
    if isinstance(value, bool):
        options |= {"the other": lambda: not value}
    elif isinstance(value, int | float):
        options |= {"a little more": lambda: value + 1, "negative": lambda: -value, "half": lambda: value / 2}
        options |= {"as a text": lambda: str(value), "a thousand times": lambda: value * 1000}
    elif isinstance(value, str):
        options |= {
            "longer": lambda: value + "x",
            "another case": lambda: value.swapcase(),
            "a path": lambda: f"../{value}",
        }
        options |= {"in a list": lambda: [value], "with white space": lambda: f" {value}\n"}
    elif isinstance(value, dict) and value:
        options |= {"a key twice": lambda: _key_twice(chance, value), "an unknown key": lambda: {**value, "alfa": 1}}
        options |= {
            "two values swapped": lambda: _swapped(chance, value),
            "a key renamed": lambda: _renamed(chance, value),
        }
    elif isinstance(value, list) and value:
        options |= {"an entry twice": lambda: [*value, chance.choice(value)], "reversed": lambda: value[::-1]}
        options |= {"shuffled with text": lambda: [*value, "x"], "cut short": lambda: value[:-1]}
    own = list(options)[8:]
    name = chance.choice(own) if own and chance.random() < 0.4 else chance.choice(list(options))
    return name, options[name]()


def _key_twice(chance: random.Random, value: Mapping[str, Any]) -> dict[str, Any]:
    key = chance.choice(list(value))
    return {**value, key + _TWICE: chance.choice((None, 0, "", [], {}, value[key]))}


def _swapped(chance: random.Random, value: Mapping[str, Any]) -> dict[str, Any]:
    one, other = chance.choice(list(value)), chance.choice(list(value))
    return {**value, one: value[other], other: value[one]}


def _renamed(chance: random.Random, value: Mapping[str, Any]) -> dict[str, Any]:
    key, other = chance.choice(list(value)), chance.choice(ODD_TEXTS)
    return {other if name == key else name: held for name, held in value.items()}
