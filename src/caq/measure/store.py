"""What measuring leaves in its directory, and continues from.

    comparison.json   the arms, the judge and the data: from it and the rest a report is drawn again
    items.jsonl       what was asked, once
    arms/ROLE-HASH/   of one model, under a hash of all that decides its answers:
        safety.jsonl, facts.jsonl, responses.jsonl     a line an item, as the model gave it
        coherence-HASH.jsonl, calls-HASH.jsonl         a line a response: is it coherent, and what the judge says
        text-HASH.json, chat-HASH.json                 perplexity and distances
        abilities-HASH.json                            of lm-eval's tasks
        states/                                        of the aligned model and of the base, from which these are

Lines are written in batches, each flushed to the disk; half a batch that a stopped run left is cut off and made
again, so that files end with the same bytes however often a run was stopped. Other files appear whole. Every line and
every file of one object is sealed: what was changed is made again where a model is at hand, and refused elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from caq.errors import InvalidInput, refuse
from caq.files import lock
from caq.files.codec import decode, encode, parse
from caq.files.place import require_directory
from caq.files.seals import SealedObject, seal, unseal
from caq.files.whole import sweep_directory, write_text
from caq.ledger import Entry
from caq.measure.record import Item, JudgeCard, Role
from caq.progress import remark

#: Items that are computed before they are written: a multiple of what runs together.
BATCH = 512
MANIFEST, ITEMS, ARMS, LOCK = "comparison.json", "items.jsonl", "arms", ".lock"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class StoredArm:
    """One arm and where its answers are.

    Attributes:
        directory: inside `arms`.
        provenance: source, hashes and code, in words.
        ledger: of the run that made it.
    """

    name: str
    role: Role
    directory: str
    provenance: Mapping[str, str]
    ledger: tuple[Entry, ...]


@dataclass(frozen=True)
class Manifest:
    """What a comparison consists of.

    Attributes:
        group: hash of the questions, the aligned model and the base; arms of another hash do not compare.
        distances: the hash in the names of files of distances.
        coherence, calls: names of the files of what the responses are.
        abilities: the hash in the names of files of abilities; empty if none were asked for.
        data: what was asked, in words.
        arms: the aligned model, the base if there is one, the models to judge.
        judge: of the responses; None if there are none.
        judge_missing: why there was no judge; empty if there was.
        judges_harmless: whether the judge tells a refusal of a harmless prompt from an answer.
    """

    group: str
    distances: str
    coherence: str
    calls: str
    abilities: str
    data: Mapping[str, str]
    arms: tuple[StoredArm, ...]
    judge: JudgeCard | None = None
    judge_missing: str = ""
    judges_harmless: bool = True


def require_reports(output: Path, names: Sequence[str]) -> None:
    """Check that reports can go into a directory, which need not exist yet, and would replace no file of others.

    Args:
        output: the directory.
        names: of the reports that may be written there.

    Raises:
        InvalidInput: nothing can be written there; or files that CAQ did not write have those names; or as
            `read_manifest`.
    """
    require_directory(output, "choose a directory for the report")
    if read_manifest(output) is None and not (output / ARMS).is_dir():
        taken = [name for name in (*names, ITEMS, ARMS) if os.path.lexists(output / name)]
        refuse([f"{output / name}: is not of CAQ's and would be replaced; choose another directory" for name in taken])


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the directory, made where it is missing, for one process.

    Raises:
        InvalidInput: another process holds it, it is no directory, or it cannot be written.
    """
    require_directory(output, "choose a directory for the report")
    with lock.locked(output, output / LOCK):
        sweep_directory(output)
        yield


def fill(path: Path, total: int, make: Callable[[slice], Sequence[Row]]) -> None:
    """Write `total` lines to a file, batch by batch, continuing after the last whole batch that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, identity = _keep_batches(path, total), _identity(path)
    with path.open("ab") as file:
        for start in range(done, total, BATCH):
            rows = make(slice(start, min(start + BATCH, total)))
            sealed = (seal(row, f"{identity}:{number}") for number, row in enumerate(rows, start))
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sealed).encode())
            file.flush()
            os.fsync(file.fileno())


def filled(path: Path, total: int) -> bool:
    """Whether a file has all of its lines as they were written, and nothing more."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.count(b"\n") == total and content.endswith(b"\n")
    return whole and all(row is not None for row in _rows(content, _identity(path)))


def read_rows(path: Path, total: int | None = None) -> list[dict[str, Any]]:
    """Read a file's lines, of which there are `total` where that is known.

    Raises:
        InvalidInput: it is missing, or was changed.
    """
    rows = _read_lines(path, _identity(path))
    if total is not None and len(rows) != total:
        raise InvalidInput(f"{path}: has {len(rows)} of {total} lines; remove it and compare again")
    return rows


def stored_object(path: Path) -> SealedObject:
    """Return a file of one object, which belongs to the arm it is in."""
    return SealedObject(path, _identity(path))


def read_object(path: Path) -> dict[str, Any]:
    """Read a file of one object.

    Raises:
        InvalidInput: it was changed, or belongs to another model.
    """
    fields = stored_object(path).peek()
    if fields is None:
        raise InvalidInput(f"{path}: is not as it was written; remove it and compare again")
    return fields


def write_manifest(output: Path, manifest: Manifest, items: Mapping[str, tuple[Item, ...]]) -> None:
    """Write what a comparison consists of, and its items."""
    lines = (seal(line, f"{manifest.group}:{number}") for number, line in enumerate(_lines(items)))
    write_text(output / ITEMS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    SealedObject(output / MANIFEST, MANIFEST).write(encode(manifest))


def read_manifest(output: Path) -> Manifest | None:
    """Return what an earlier comparison consists of, or None if there was none.

    Raises:
        InvalidInput: the file was changed, or another version wrote it.
    """
    path = output / MANIFEST
    if not path.exists():
        return None
    try:
        fields = unseal(parse(path.read_bytes().decode()), MANIFEST)
        if fields is None:
            raise ValueError("its seal is broken")
        manifest = decode(Manifest, fields, "comparison")
        _check_names(manifest)
        return manifest
    except (OSError, ValueError, InvalidInput) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInput(f"{path}: is not as this version writes it ({reason}); choose another directory") from error


def _check_names(manifest: Manifest) -> None:
    """Refuse a manifest that would have files outside of its directory read or written.

    Raises:
        ValueError: naming the first such place.
    """
    files = (manifest.distances, manifest.coherence, manifest.calls, manifest.abilities)
    for name in (*files, *(arm.directory for arm in manifest.arms)):
        if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ValueError(f"{name!r} is no plain name")


def read_items(output: Path, group: str) -> dict[str, tuple[Item, ...]]:
    """Return the items of a manifest's group by measure.

    Raises:
        InvalidInput: as `read_rows`.
    """
    items: dict[str, list[Item]] = {}
    problems: list[str] = []
    for row in _read_lines(output / ITEMS, group):
        for measure in row.pop("measures"):
            try:
                items.setdefault(measure, []).append(decode(Item, row, measure))
            except InvalidInput as error:
                problems += error.problems
    if problems:
        raise InvalidInput([f"{output / ITEMS}: {problem}; compare again" for problem in problems])
    return {measure: tuple(asked) for measure, asked in items.items()}


def _lines(items: Mapping[str, tuple[Item, ...]]) -> list[dict[str, Any]]:
    """Return a line an item; what several protocols ask is one."""
    joined: dict[str, dict[str, Any]] = {}
    for measure, asked in items.items():
        for item in asked:
            line, kind = encode(item), "answer" if item.options else "prompt"
            key = json.dumps([measure.partition("/")[0], kind, line])
            joined.setdefault(key, {"measures": [], **line})["measures"].append(measure)
    return list(joined.values())


def _identity(path: Path) -> str:
    """Return what a file's lines belong to: its name, and the arm's directory, which hashes what decides them."""
    return f"{path.parent.name}/{path.name}"


def _rows(content: bytes, identity: str) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of lines; None for one that is not as it was written, or not in its place."""
    # Not splitlines(): U+2028 and its kin are allowed inside JSON strings.
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else ()):
        try:
            yield unseal(parse(line.decode()), f"{identity}:{number}")
        except ValueError:
            yield None


def _read_lines(path: Path, identity: str) -> list[dict[str, Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error}); compare again") from error
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(_rows(content, identity), start=1):
        if row is None:
            raise InvalidInput(f"{path}:{number}: is not as it was written; remove the file and compare again")
        rows.append(row)
    return rows


def _keep_batches(path: Path, total: int) -> int:
    """Cut what is no whole batch off a file's end, and what follows a changed line; return how many lines stay."""
    content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")[:-1]
    intact = sum(1 for _ in takewhile(lambda row: row is not None, _rows(b"\n".join(lines), _identity(path))))
    if intact < len(lines):
        remark(f"{path}:{intact + 1}: is damaged; it is made again from there")
    whole = total if len(lines) == intact == total else min(intact, total) // BATCH * BATCH
    keep = sum(len(line) + 1 for line in lines[:whole])
    if keep < len(content):
        os.truncate(path, keep)
    return whole
