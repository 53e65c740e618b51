"""The JSON form of any frozen dataclass of plain fields: strict, deterministic, without NaN.

Pydantic decodes; numbers that JSON lacks are the texts "NaN", "Infinity" and "-Infinity": a broken model's perplexity
is reported. Encoding is done here, because pydantic's writes no text with half a character in it, as paths may have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, SchemaValidator, core_schema

from caq.errors import InvalidInput, shown

T = TypeVar("T")

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
#: Types that JSON cannot tell from another: lists for tuples, objects for dataclasses.
_CONTAINERS = ("tuple", "dict", "dataclass")


def encode(value: object) -> Any:
    """Return plain data: dataclasses and mappings as dicts in their order, tuples as lists."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def parse(text: str) -> Any:
    """Return what a JSON text holds, without the constants that JSON lacks.

    Raises:
        ValueError: it is not JSON, or is nested beyond sense.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def decode(kind: type[T], value: Any, name: str) -> T:
    """Return plain data as a value of a type.

    Args:
        kind: a dataclass or a plain type.
        value: what `parse` gave.
        name: what messages call the value.

    Raises:
        InvalidInput: fields are missing, unknown or of another type, with every problem at once.
    """
    try:
        return cast(T, _validator(cast(Hashable, kind)).validate_python([value])[0])
    except ValidationError as error:
        raise InvalidInput([_sentence(name, problem) for problem in error.errors(include_url=False)]) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number in JSON")


@cache
def _validator(kind: Any) -> SchemaValidator:
    # The tuple hands the configuration on to dataclasses, which have none of their own.
    config = ConfigDict(strict=True, extra="forbid")
    return SchemaValidator(_for_json(TypeAdapter(tuple[kind], config=config).core_schema))


def _for_json(schema: Any) -> Any:
    """Return a schema that takes lists for tuples, objects for dataclasses, and texts for numbers that JSON lacks."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_for_json, schema))
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "float":
        return core_schema.no_info_before_validator_function(_number, core_schema.float_schema(strict=True))
    lenient = {"strict": False} if schema.get("type") in _CONTAINERS else {}
    return {key: _for_json(item) for key, item in schema.items()} | lenient


def _number(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _sentence(name: str, problem: ErrorDetails) -> str:
    # The first part is the place in the tuple around the value.
    _, *parents = problem["loc"]
    if problem["type"] == "missing":
        return f"{_where(name, parents[:-1])} lacks the field {parents[-1]!r}"
    if problem["type"] == "unexpected_keyword_argument":
        return f"{_where(name, parents[:-1])} has a field {parents[-1]!r} that this version does not know"
    message = problem["msg"]
    return f"{_where(name, parents)} is {shown(problem['input'])}: {message[0].lower()}{message[1:]}"


def _where(name: str, parts: Sequence[int | str]) -> str:
    return name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
