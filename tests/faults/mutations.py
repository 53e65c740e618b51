"""What is done to a file: a mutation is a pure function of a seed, a number, and the file's bytes.

Half of the mutations know the file's structure and leave it readable; the others change bytes, or the file as a whole.
"""

from __future__ import annotations

import csv
import io
import json
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.faults.values import ODD_TEXTS, changed_value, dumped

Instead = Literal["file", "nothing", "directory", "loop"]
DTYPES = ("F16", "F64", "I8", "BOOL", "F8_E4M3", "C64", "nope", "", "bf16", "F4", "U64")


@dataclass(frozen=True)
class Mutant:
    """A changed file.

    Attributes:
        name: what was changed, in words.
        content: the new bytes.
        instead: what is there now: the file, or something else, or nothing.
    """

    name: str
    content: bytes
    instead: Instead = "file"


Mutate = Callable[[random.Random, bytes], Mutant]


def mutate(kind: str, content: bytes, chance: random.Random) -> Mutant:
    """Change a file of one of the `KINDS`; where its structure cannot be read, its bytes."""
    draw = chance.random()
    if draw < 0.03:
        return Mutant("something else in its place", b"", chance.choice(("nothing", "directory", "loop")))
    try:
        return (KINDS[kind] if draw < 0.65 else any_bytes)(chance, content)
    except (ValueError, IndexError, struct.error, csv.Error):
        return any_bytes(chance, content)


def any_bytes(chance: random.Random, content: bytes) -> Mutant:
    """Change bytes without a thought for what they mean."""
    at, length = chance.randrange(len(content) + 1), chance.choice((1, 2, 8, 100, 4_096))
    changes: Mapping[str, Callable[[], bytes]] = {
        "flipped bits": lambda: flipped(content, [chance.randrange(8 * len(content) or 1) for _ in range(1 + at % 3)]),
        "cut off": lambda: content[:at],
        "its beginning cut off": lambda: content[at:],
        "empty": lambda: b"",
        "a part cut out": lambda: content[:at] + content[at + length :],
        "a part zeroed": lambda: content[:at] + bytes(len(content[at : at + length])) + content[at + length :],
        "random bytes put in": lambda: content[:at] + chance.randbytes(length) + content[at:],
        "a part doubled": lambda: content[:at] + content[max(0, at - length) :],
        "twice": lambda: content * 2,
        "a byte order mark": lambda: b"\xef\xbb\xbf" + content,
        "UTF-16": lambda: content.decode("latin-1").encode("utf-16"),
        "white space": lambda: b" \n\t\r\n" * length,
        "line breaks of Windows": lambda: content.replace(b"\n", b"\r\n"),
        "no line break": lambda: content.replace(b"\n", b""),
        "a pointer of LFS": lambda: (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
        ),
        "a page of an error": lambda: b"<!DOCTYPE html><title>403</title>",
    }
    name = chance.choice(tuple(changes))
    return Mutant(name, changes[name]())


def flipped(content: bytes, bits: Sequence[int]) -> bytes:
    """Return the content with some bits flipped."""
    changed = bytearray(content)
    for bit in bits:
        if bit // 8 < len(changed):
            changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def any_json(chance: random.Random, content: bytes) -> Mutant:
    """Change one place of a JSON document, or two."""
    value = json.loads(content)
    names = []
    for _ in range(chance.choice((1, 1, 1, 2))):
        name, value = changed_value(chance, value)
        names.append(name)
    return Mutant(", ".join(names), dumped(value, chance))


def any_lines(chance: random.Random, content: bytes) -> Mutant:
    """Change one line of a file of JSON objects, or the order of lines."""
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    changes: Mapping[str, Callable[[], list[bytes]]] = {
        "missing": lambda: lines[:at] + lines[at + 1 :],
        "twice": lambda: [*lines, lines[at]],
        "blank": lambda: [*lines[:at], b"", *lines[at:]],
        "cut off": lambda: [*lines[:at], lines[at][: len(lines[at]) // 2], *lines[at + 1 :]],
        "no object": lambda: [*lines[:at], chance.choice((b"[]", b"1", b"null", b'"x"', b"NaN")), *lines[at + 1 :]],
        "joined": lambda: [*lines[:at], b"".join(lines[at : at + 2]), *lines[at + 2 :]],
        "without an end": lambda: [*lines[:at], b"[" * 100_000, *lines[at + 1 :]],
        "many": lambda: lines * 300,
    }
    if chance.random() < 0.7:
        name, value = changed_value(chance, json.loads(lines[at]))
        changes = {name: lambda: [*lines[:at], dumped(value, chance), *lines[at + 1 :]]}
    name = chance.choice(tuple(changes))
    return Mutant(f"line {at + 1}: {name}", b"\n".join(changes[name]()) + b"\n")


def any_csv(chance: random.Random, content: bytes) -> Mutant:
    """Change one cell, row or column of a CSV."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    at, column = chance.randrange(len(rows)), chance.randrange(len(rows[0]))
    changes: Mapping[str, Callable[[], list[list[str]]]] = {
        "a cell": lambda: _cell(rows, at, column, chance.choice(ODD_TEXTS)),
        "a long cell": lambda: _cell(rows, at, column, "a" * 200_000),
        "a column less": lambda: [row[:column] + row[column + 1 :] for row in rows],
        "a cell less": lambda: [row[:-1] if place == at else row for place, row in enumerate(rows)],
        "a cell more": lambda: [[*row, "x"] if place == at else row for place, row in enumerate(rows)],
        "a column twice": lambda: [[*row, row[column]] for row in rows],
        "a row missing": lambda: rows[:at] + rows[at + 1 :],
        "columns only": lambda: rows[:1],
        "many": lambda: rows + rows[1:] * 300,
    }
    name = chance.choice(tuple(changes))
    text = io.StringIO()
    csv.writer(text, delimiter=chance.choice(",,,,;\t"), lineterminator="\n").writerows(changes[name]())
    written = text.getvalue() + chance.choice(("", "", "", '"', "\0", "\r"))
    return Mutant(f"row {at + 1}, column {column + 1}: {name}", written.encode("utf-8", "surrogatepass"))


def _cell(rows: list[list[str]], at: int, column: int, text: str) -> list[list[str]]:
    return [
        [text if (place, index) == (at, column) else cell for index, cell in enumerate(row)]
        for place, row in enumerate(rows)
    ]


def any_text(chance: random.Random, content: bytes) -> Mutant:
    """Put an odd text into a plain one, or in its place."""
    return _with_odd(chance, content, ODD_TEXTS)


def any_template(chance: random.Random, content: bytes) -> Mutant:
    """Put what a template should not do into one, or in its place."""
    return _with_odd(chance, content, (*ODD_TEXTS[:4], *_TEMPLATES))


def _with_odd(chance: random.Random, content: bytes, odds: Sequence[str]) -> Mutant:
    at, odd = chance.randrange(len(content) + 1), chance.choice(odds)
    changes = {
        "odd text put in": content[:at] + odd.encode("utf-8", "surrogatepass") + content[at:],
        "odd text alone": odd.encode("utf-8", "surrogatepass"),
        "a line without an end": content.replace(b"\n", b"") * 50,
        "many short lines": b"x\n" * 20_000,
    }
    name = chance.choice(tuple(changes))
    return Mutant(f"{name} ({odd[:20]!a})", changes[name])


_TEMPLATES = (
    "{% for i in range(10**8) %}{% for j in range(10**8) %}{% endfor %}{% endfor %}", "{{ 'x' * 10**10 }}",
    "{{ messages[99].content }}", "{{ raise_exception('no') }}", "{% if %}", "{{ ''.__class__.__mro__ }}",
    "{{ strftime_now('%Y') }}", "{% include 'x' %}", "{{ 1 // 0 }}",
    "{{ 'x' * 10**8 }}", "{{ range(10**5) | list * 10**4 }}", "{{ 9 ** 9 ** 9 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% set x = 'x' * 10**6 %}{{ x * 10**5 }}",
)  # fmt: skip


def any_yaml(chance: random.Random, content: bytes) -> Mutant:
    """Change one place of a YAML document, or write what only YAML has."""
    import yaml

    if chance.random() < 0.3:
        name = chance.choice(tuple(_YAML))
        return Mutant(name, _YAML[name] if chance.random() < 0.5 else content + b"\n" + _YAML[name])
    name, value = changed_value(chance, yaml.safe_load(content))
    return Mutant(name, dumped(value, chance))


_YAML: Mapping[str, bytes] = {
    "a bomb of aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (name + 1, name + 1, b",".join([b"*%c" % name] * 9)) for name in range(97, 109)),
    "an alias of itself": b"scheme: &a [*a]\n",
    "a merge of itself": b"scheme: &a {<<: *a}\n",
    "an object of Python": b"seed: !!python/object/apply:os.system ['true']\n",
    "an unknown tag": b"seed: !x 1\n",
    "tabs": b"data:\n\tsamples: 1\n",
    "two documents": b"---\nseed: 1\n---\nseed: 2\n",
    "a date": b"seed: 2001-01-01\n",
    "a set": b"scheme: !!set {a, b}\n",
    "bytes": b"seed: !!binary aGVsbG8=\n",
    "a sexagesimal": b"seed: 1:30:00\n",
    "keys that are no texts": b"1: 2\n[a, b]: 3\nnull: 4\n",
    "a key of a mapping": b"? {a: b}\n: 1\n",
    "a control character": b"seed: \x07\n",
    "yes": b"seed: yes\ndtype: on\n",
    "a number of many digits": b"seed: " + b"9" * 5_000 + b"\n",
    "flow without an end": b"seed: " + b"[" * 20_000 + b"\n",
    "an exponent": b"data: {samples: 1e3}\n",
}


def any_tensors(chance: random.Random, content: bytes) -> Mutant:
    """Change a safetensors file: its length, its header, one tensor's line in it, or its data."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    tensor = chance.choice([name for name in header if name != "__metadata__"])
    line = header[tensor]
    draw = chance.random()
    if draw < 0.2:
        lengths = (0, 1, length - 1, length + 1, len(content), 100_000_001, 2**40, 2**63, 2**64 - 1)
        named = chance.choice(lengths)
        return Mutant(f"a header of {named} bytes", struct.pack("<Q", named) + content[8:])
    if draw < 0.35:
        at = chance.randrange(len(data))
        fill = chance.choice((b"\xff" * 64, b"\x00\x7f" * 32, b"\x80\x7f" * 32, chance.randbytes(64)))
        return Mutant(
            "NaN, infinity or noise in the data", content[: 8 + length + at] + fill[: len(data) - at] + data[at + 64 :]
        )
    if draw < 0.55:
        name, changed = changed_value(chance, header)
        text = dumped(changed, chance)
        return Mutant(f"header: {name}", struct.pack("<Q", len(text)) + text + data)
    start, end = line["data_offsets"]
    shapes: tuple[list[Any], ...] = (
        [],
        [0],
        [-1],
        [2**40, 2**40],
        line["shape"][::-1],
        [*line["shape"], 1],
        ["3"],
        [1.5],
    )
    changes: Mapping[str, Any] = {
        "another dtype": {"dtype": chance.choice(DTYPES)},
        "another shape": {"shape": chance.choice(shapes)},
        "an offset beyond the end": {"data_offsets": [start, end + len(data)]},
        "swapped offsets": {"data_offsets": [end, start]},
        "an overlap": {"data_offsets": [max(0, start - 2), max(0, end - 2)]},
        "huge offsets": {"data_offsets": [2**63, 2**64 - 1]},
        "negative offsets": {"data_offsets": [-4, end]},
        "no offsets": {"data_offsets": []},
    }  # fmt: skip
    name = chance.choice(tuple(changes))
    text = json.dumps({**header, tensor: {**line, **changes[name]}}).encode()
    return Mutant(f"{tensor}: {name}", struct.pack("<Q", len(text)) + text + data)


KINDS: Mapping[str, Mutate] = {
    "json": any_json,
    "lines": any_lines,
    "csv": any_csv,
    "text": any_text,
    "template": any_template,
    "yaml": any_yaml,
    "tensors": any_tensors,
    "bytes": any_bytes,
}
