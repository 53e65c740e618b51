"""The JSON form of a report, and of any frozen dataclass of plain fields: strict, deterministic, without NaN.

Numbers that JSON lacks are the texts "NaN", "Infinity" and "-Infinity": a broken model's perplexity is told.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from caq.errors import InvalidInput
from caq.report.types import SCHEMA, Report

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(report: Report) -> str:
    """Return the report as JSON in ASCII; equal reports give equal texts."""
    return json.dumps(encode(report), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """Return the report that `to_json` wrote.

    Raises:
        InvalidInput: the text is not JSON, of another schema, has fields that are missing, mistyped or unknown, or
            outcomes that do not fit its items; with every problem at once.
    """
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidInput([f"the report is not JSON ({error}); give the file that `caq compare` wrote"]) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise InvalidInput(
            [f"the report has schema {found!r}, and this version reads {SCHEMA}; make it again with this version"]
        )
    problems: list[str] = []
    report = cast(Report, decode(Report, data, "report", problems))
    if not problems:
        problems += _contradictions(report)
    if problems:
        raise InvalidInput(problems)
    return report


def _contradictions(report: Report) -> list[str]:
    return [
        f"{arm.name}'s outcomes of {measure} are not {report.items.get(measure, 0)} marks of `1`, `0` and `-`"
        for arm in report.arms
        for measure, marks in arm.outcomes.items()
        if len(marks) != report.items.get(measure) or set(marks) - set("10-")
    ]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")


def encode(value: object) -> Any:
    """Return plain data: dataclasses and mappings as dicts in their order, tuples as lists."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [encode(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def decode(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Return plain data as a value of a type, adding every problem on the way; the value is of no use if there is any.

    Args:
        kind: a dataclass, `tuple[T, ...]`, `Mapping[str, T]`, `T | None`, a `Literal`, `str`, `bool`, `int`, `float`,
            or `object` for anything.
        value: what JSON gave.
        where: what a problem calls the value.
        problems: found so far.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is object:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else decode(_some(arguments), value, where, problems)
    if is_dataclass(kind):
        return _decode_fields(kind, value, where, problems)
    if origin is tuple and isinstance(value, list):
        return tuple(decode(arguments[0], one, f"{where}[{index}]", problems) for index, one in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: decode(arguments[1], one, f"{where}.{key}", problems) for key, one in value.items()}
    if origin is Literal and value in arguments:
        return value
    if kind is float and (type(value) is float or (type(value) is int and abs(value) <= 2**53)):
        return float(value)
    if kind is float and isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if kind is not float and type(value) is kind:
        return value
    problems.append(f"{where} is {_short(value)} and must be {_name(kind)}")
    return None


def _decode_fields(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{where} is {_short(value)} and must be {_name(kind)}")
        return None
    hints = get_type_hints(kind)
    problems += [f"{where} has a field {name!r} that this version does not know" for name in value if name not in hints]
    problems += [f"{where} lacks the field {name!r}" for name in hints if name not in value]
    found = {name: decode(hints[name], value[name], f"{where}.{name}", problems) for name in hints if name in value}
    return kind(**found) if len(found) == len(hints) else None


def _some(arguments: tuple[Any, ...]) -> Any:
    return next(one for one in arguments if one is not type(None))


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return {tuple: "a list", Mapping: "an object"}.get(get_origin(kind), getattr(kind, "__name__", str(kind)))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
