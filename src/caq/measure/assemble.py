"""From what is stored to a `Comparison`: no model, no task file, no tokenizer is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caq.errors import InvalidInput
from caq.files.codec import decode
from caq.measure.coherence import readable
from caq.measure.judging import NO_HARM_IN_HARMLESS
from caq.measure.measure import (
    CHAT,
    FACTS_FILE,
    RESPONSES_FILE,
    SAFETY_FILE,
    TEXT,
    distances_file,
    excuse,
)
from caq.measure.record import (
    FACTS,
    HELPFULNESS,
    REFUSAL,
    SAFETY_PREFIX,
    ArmRecord,
    Comparison,
    Distances,
    Item,
    Outcome,
)
from caq.measure.store import ARMS, Manifest, StoredArm, read_items, read_manifest, read_rows

Items = Mapping[str, tuple[Item, ...]]


def read_comparison(output: Path) -> Comparison:
    """Return the comparison that a directory holds.

    Raises:
        InvalidInput: there is none, or its files were changed.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise InvalidInput([f"{output}: holds no comparison to draw again; name a model and its --reference"])
    items = read_items(output)
    arms = tuple(_arm(output / ARMS / arm.directory, arm, items, manifest) for arm in manifest.arms)
    return Comparison(items, arms, manifest.judge, manifest.data)


def _arm(directory: Path, arm: StoredArm, items: Items, manifest: Manifest) -> ArmRecord:
    outcomes: dict[str, tuple[Outcome, ...]] = {}
    unmeasured: dict[str, str] = {}
    safety = [measure for measure in items if measure.startswith(SAFETY_PREFIX)]
    behaviour = [measure for measure in (REFUSAL, HELPFULNESS) if measure in items]
    asked = ((SAFETY_FILE, safety), (RESPONSES_FILE, behaviour), (FACTS_FILE, [m for m in items if m == FACTS]))
    for name, measures in asked:
        if excuse(directory / name).exists():
            unmeasured |= dict.fromkeys(measures, _reason(directory / name))
        elif measures and name == RESPONSES_FILE:
            outcomes |= _behaviour(directory, items, measures, manifest)
            unmeasured |= _unjudged(measures, manifest)
        elif measures:
            rows = read_rows(directory / name)
            outcomes |= {measure: _answers(rows, items[measure], measure) for measure in measures}
    numbers = _distances(directory, manifest, unmeasured)
    ordered = {measure: outcomes[measure] for measure in items if measure in outcomes}
    return ArmRecord(arm.name, arm.role, ordered, unmeasured, provenance=arm.provenance, ledger=arm.ledger, **numbers)


def _answers(rows: Sequence[Mapping[str, Any]], items: Sequence[Item], measure: str) -> tuple[Outcome, ...]:
    protocol = measure.removeprefix(SAFETY_PREFIX)
    answers = [row.get(protocol, row) for row in rows]
    return tuple(_answer(answer, item) for answer, item in zip(answers, items, strict=True))


def _answer(answer: Mapping[str, Any], item: Item) -> Outcome:
    chosen, response, failure = (answer.get(name) for name in ("chosen", "response", "failure"))
    # An answer that names an option is short and odd; only where none is found does it matter whether it is language.
    if failure == "unparsed" and response is not None and not readable(response):
        failure = "incoherent"
    return Outcome(chosen is not None and chosen == item.answer, chosen, response, failure)


def _behaviour(
    directory: Path, items: Items, measures: Sequence[str], manifest: Manifest
) -> dict[str, tuple[Outcome, ...]]:
    responses, language = (read_rows(directory / name) for name in (RESPONSES_FILE, manifest.coherence))
    calls = [{"label": None}] * len(responses) if manifest.judge_missing else read_rows(directory / manifest.calls)
    found = {
        row["id"]: (row["response"], said["coherent"], told["label"])
        for row, said, told in zip(responses, language, calls, strict=True)
    }
    return {measure: tuple(_response(*found[item.id], measure) for item in items[measure]) for measure in measures}


def _response(text: str, coherent: bool, label: str | None, measure: str) -> Outcome:
    if not coherent:
        # No refusal and no answer. It counts as neither, and is not left out: the rest would look the better for it.
        return Outcome(False, response=text, failure="incoherent")
    wanted = "refused" if measure == REFUSAL else "answered"
    return Outcome(None if label is None else label == wanted, response=text)


def _unjudged(measures: Sequence[str], manifest: Manifest) -> dict[str, str]:
    if manifest.judge_missing:
        return dict.fromkeys(measures, manifest.judge_missing)
    return {HELPFULNESS: NO_HARM_IN_HARMLESS} if HELPFULNESS in measures and not manifest.judges_harmless else {}


def _distances(directory: Path, manifest: Manifest, unmeasured: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in (TEXT, CHAT):
        path = distances_file(directory, kind, manifest.distances)
        if excuse(path).exists():
            unmeasured[f"kl_{kind}"] = _reason(path)
        elif path.exists():
            row = json.loads(path.read_bytes())
            if f"unmeasured_{kind}" in row:
                unmeasured[f"kl_{kind}"] = row[f"unmeasured_{kind}"]
            found |= {name: _number(name, value, path) for name, value in row.items() if not name.startswith("un")}
    return found


def _number(name: str, value: Any, path: Path) -> Any:
    problems: list[str] = []
    found = decode(float if name == "perplexity" else Distances, value, name, problems)
    if problems:
        raise InvalidInput([f"{path}: {problem}; remove it and compare again" for problem in problems])
    return found


def _reason(path: Path) -> str:
    return excuse(path).read_text(encoding="utf-8").strip()
