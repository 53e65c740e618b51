"""From what is stored to a `Comparison`: no model, no task file, no tokenizer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from caq.errors import InvalidInput
from caq.files.codec import decode
from caq.measure.judging import NO_HARM_IN_HARMLESS
from caq.measure.measure import (
    CHAT,
    FACTS_FILE,
    RESPONSES_FILE,
    SAFETY_FILE,
    TEXT,
    abilities_file,
    distances_file,
    unmeasured_note,
)
from caq.measure.mixing import OTHER
from caq.measure.record import (
    ENDED_PREFIX,
    FACTS,
    HELPFULNESS,
    LANGUAGE,
    REFUSAL,
    SAFETY_PREFIX,
    Ability,
    ArmRecord,
    Comparison,
    Distances,
    Item,
    Outcome,
)
from caq.measure.store import ARMS, Manifest, StoredArm, read_items, read_manifest, read_object, read_rows

#: What the judge says of responses.
BEHAVIOUR = (REFUSAL, HELPFULNESS)

T = TypeVar("T")
Items = Mapping[str, tuple[Item, ...]]


def read_comparison(output: Path) -> Comparison:
    """Return the comparison that a directory holds.

    Raises:
        InvalidInput: there is none, or its files were changed.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise InvalidInput(f"{output}: holds no comparison to draw again; name a model and its --reference")
    return assemble(output, manifest, read_items(output, manifest.group))


def assemble(output: Path, manifest: Manifest, items: Items) -> Comparison:
    """Return what a manifest's arms said to the items.

    Raises:
        InvalidInput: files were changed.
    """
    arms = tuple(_arm(output / ARMS / arm.directory, arm, items, manifest) for arm in manifest.arms)
    return Comparison(items, arms, manifest.judge, manifest.data)


def _arm(directory: Path, arm: StoredArm, items: Items, manifest: Manifest) -> ArmRecord:
    outcomes: dict[str, tuple[Outcome, ...]] = {}
    unmeasured: dict[str, str] = {}
    safety = [measure for measure in items if measure.startswith(SAFETY_PREFIX)]
    responses = [measure for measure in items if measure in (*BEHAVIOUR, LANGUAGE) or measure.startswith(ENDED_PREFIX)]
    asked = ((SAFETY_FILE, safety), (RESPONSES_FILE, responses), (FACTS_FILE, [m for m in items if m == FACTS]))
    for name, measures in asked:
        if unmeasured_note(directory / name).exists():
            unmeasured |= dict.fromkeys(measures, _reason(directory / name))
        elif measures and name == RESPONSES_FILE:
            judged = [measure for measure in measures if measure in BEHAVIOUR]
            outcomes |= _behaviour(directory, items, judged, manifest)
            outcomes |= _manners(directory, items, [measure for measure in measures if measure not in BEHAVIOUR])
            unmeasured |= _unjudged(judged, manifest)
        elif measures:
            rows = read_rows(directory / name, len(items[measures[0]]))
            outcomes |= {measure: _answers(rows, items[measure], measure) for measure in measures}
    numbers = _numbers(directory, manifest, unmeasured)
    abilities = _abilities(directory, manifest, unmeasured)
    return ArmRecord(
        arm.name, arm.role, {measure: outcomes[measure] for measure in items if measure in outcomes}, unmeasured,
        numbers.perplexity, numbers.kl_text, numbers.kl_chat, numbers.kl_base_text, numbers.kl_base_chat,
        abilities=abilities, provenance=arm.provenance, ledger=arm.ledger,
    )  # fmt: skip


def _answers(rows: Sequence[Mapping[str, Any]], items: Sequence[Item], measure: str) -> tuple[Outcome, ...]:
    protocol = measure.removeprefix(SAFETY_PREFIX)
    answers = [row.get(protocol, row) for row in rows]
    return tuple(_answer(answer, item) for answer, item in zip(answers, items, strict=True))


def _answer(answer: Mapping[str, Any], item: Item) -> Outcome:
    chosen, response, failure = (answer.get(name) for name in ("chosen", "response", "failure"))
    good = None if failure == "unfinished" else chosen is not None and chosen == item.answer
    return Outcome(good, chosen, response, failure)


def _behaviour(
    directory: Path, items: Items, measures: Sequence[str], manifest: Manifest
) -> dict[str, tuple[Outcome, ...]]:
    total = sum(len(items[measure]) for measure in measures)
    responses, coherence = (read_rows(directory / name, total) for name in (RESPONSES_FILE, manifest.coherence))
    calls = [{"label": None}] * total if manifest.judge_missing else read_rows(directory / manifest.calls, total)
    said = {
        row["id"]: (row, checked["coherent"], called["label"])
        for row, checked, called in zip(responses, coherence, calls, strict=True)
    }
    unjudged = _unjudged(measures, manifest)
    return {
        measure: tuple(_response(*said[item.id], measure, measure not in unjudged) for item in items[measure])
        for measure in measures
    }


def _response(row: Mapping[str, Any], coherent: bool, label: str | None, measure: str, judged: bool) -> Outcome:
    text = row["response"]
    if not row.get("finished", True):
        # What was aligned is the answer, and there is none: neither good nor bad, however it begins.
        return Outcome(None, response=text, failure="unfinished")
    if not coherent:
        # No refusal and no answer. It counts as neither, and is not left out: the rest would look the better for it.
        # Where no judge calls the rest, a rate over these alone would be 0 %.
        return Outcome(False if judged else None, response=text, failure="incoherent")
    wanted = "refused" if measure == REFUSAL else "answered"
    return Outcome(None if label is None else label == wanted, response=text)


def _manners(directory: Path, items: Items, measures: Sequence[str]) -> dict[str, tuple[Outcome, ...]]:
    """Return what needs no judge: whether responses end, and in which language they are."""
    rows = {row["id"]: row for row in read_rows(directory / RESPONSES_FILE)}
    read = {measure: _kept_language if measure == LANGUAGE else _ended for measure in measures}
    return {measure: tuple(read[measure](rows[item.id]) for item in items[measure]) for measure in measures}


def _ended(row: Mapping[str, Any]) -> Outcome:
    return Outcome(row["ended"], response=row["response"])


def _kept_language(row: Mapping[str, Any]) -> Outcome:
    share = row["n_mix"]
    return Outcome(None if share is None else share < OTHER, response=row["response"], n_mix=share)


def _unjudged(measures: Sequence[str], manifest: Manifest) -> dict[str, str]:
    if manifest.judge_missing:
        return dict.fromkeys(measures, manifest.judge_missing)
    return {HELPFULNESS: NO_HARM_IN_HARMLESS} if HELPFULNESS in measures and not manifest.judges_harmless else {}


@dataclass(frozen=True)
class _Numbers:
    """What a file of distances holds."""

    perplexity: float | None = None
    kl_text: Distances | None = None
    kl_chat: Distances | None = None
    kl_base_text: Distances | None = None
    kl_base_chat: Distances | None = None
    unmeasured_text: str = ""
    unmeasured_chat: str = ""


def _numbers(directory: Path, manifest: Manifest, unmeasured: dict[str, str]) -> _Numbers:
    rows: dict[str, Any] = {}
    for kind in (TEXT, CHAT):
        path = distances_file(directory, kind, manifest.distances)
        if unmeasured_note(path).exists():
            unmeasured[f"kl_{kind}"] = _reason(path)
        elif path.exists():
            row = read_object(path)
            if f"unmeasured_{kind}" in row:
                unmeasured[f"kl_{kind}"] = row[f"unmeasured_{kind}"]
            rows |= row
    return _decoded(_Numbers, rows, directory)


def _abilities(directory: Path, manifest: Manifest, unmeasured: dict[str, str]) -> Mapping[str, Ability]:
    path = abilities_file(directory, manifest.abilities)
    if manifest.abilities and unmeasured_note(path).exists():
        unmeasured["abilities"] = _reason(path)
    if not manifest.abilities or not path.exists():
        return {}
    return _decoded(dict[str, Ability], read_object(path), path)


def _decoded(kind: type[T], row: Any, path: Path) -> T:
    try:
        return decode(kind, row, path.name)
    except InvalidInput as error:
        raise InvalidInput([f"{path}: {problem}; remove it and compare again" for problem in error.problems]) from error


def _reason(path: Path) -> str:
    return str(read_object(unmeasured_note(path))["reason"])
