"""What lm-eval found, read into plain frozen data: value, standard error, and the outcome of every item."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from statistics import fmean
from typing import Any

from caq.measure.record import Ability

# lm-eval computes means in float64; anything farther off is another statistic, such as a perplexity.
MEAN_TOLERANCE = 1e-9


def read_ability(
    task: str, members: Sequence[str], results: Mapping[str, Any], wanted: str | None, truncated: int
) -> Ability:
    """Read one task or group out of what lm-eval's `simple_evaluate` returned with its samples.

    Args:
        task: the task or the group.
        members: the tasks of a group; the task itself otherwise.
        results: what `simple_evaluate` returned.
        wanted: the metric to report; None, or one that the task lacks, takes the task's first.
        truncated: of `Ability`.
    """
    values = results["results"][task]
    name, passed = _metric(values, wanted)
    key, error = f"{name},{passed}", values.get(f"{name}_stderr,{passed}")
    samples = [one for member in members for one in results["samples"][member] if one["filter"] == passed]
    value = float(values[key])
    return Ability(
        metric=name if passed == "none" else key,
        value=value,
        standard_error=float(error) if isinstance(error, Real) else None,
        higher_is_better=results["higher_is_better"][members[0]].get(name, True),
        shots=results["n-shot"][members[0]],
        count=len(samples),
        truncated=truncated,
        outcomes=_outcomes([one.get(name) for one in samples], value),
        items=_fingerprint(samples),
        parts={member: float(results["results"][member][key]) for member in members if member != task},
    )


def _metric(values: Mapping[str, Any], wanted: str | None) -> tuple[str, str]:
    """Return the metric's name and the filter that responses passed through before; the two are lm-eval's key."""
    keys = (key for key in values if "," in key and "_stderr," not in key)
    metrics = [(name, passed) for name, _, passed in (key.partition(",") for key in keys)]
    return next((metric for metric in metrics if metric[0] == wanted), metrics[0])


def _outcomes(scores: Sequence[object], value: float) -> tuple[float, ...]:
    numbers = tuple(_numbers(scores))
    shares = len(numbers) == len(scores) and all(0 <= number <= 1 for number in numbers)
    return numbers if shares and math.isclose(fmean(numbers), value, abs_tol=MEAN_TOLERANCE) else ()


def _numbers(scores: Sequence[object]) -> Iterator[float]:
    return (float(score) for score in scores if isinstance(score, Real))


def _fingerprint(samples: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256("".join(one["doc_hash"] for one in samples).encode()).hexdigest()
