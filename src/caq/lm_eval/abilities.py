"""What lm-eval found, read into plain frozen data: value, standard error, and the outcome of every item."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from statistics import fmean
from typing import Any

from caq.measure.record import Ability

# lm-eval computes means in float64; anything farther off is another statistic, such as a perplexity.
MEAN_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Metric:
    """A metric of lm-eval and the filter its responses passed through before."""

    name: str
    filter: str

    @property
    def key(self) -> str:
        """lm-eval's key for the value."""
        return f"{self.name},{self.filter}"

    @property
    def error_key(self) -> str:
        """lm-eval's key for the value's standard error."""
        return f"{self.name}_stderr,{self.filter}"

    @property
    def title(self) -> str:
        """The name, and the filter where there is one."""
        return self.name if self.filter == "none" else self.key


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
    metric = _metric(values, wanted)
    samples = [one for member in members for one in results["samples"][member] if one["filter"] == metric.filter]
    value, error = float(values[metric.key]), values.get(metric.error_key)
    return Ability(
        metric=metric.title,
        value=value,
        standard_error=float(error) if isinstance(error, Real) else None,
        higher_is_better=results["higher_is_better"][members[0]].get(metric.name, True),
        shots=results["n-shot"][members[0]],
        count=len(samples),
        truncated=truncated,
        outcomes=_outcomes([one.get(metric.name) for one in samples], value),
        items=_fingerprint(samples),
        parts={name: float(results["results"][name][metric.key]) for name in members if name != task},
    )


def _metric(values: Mapping[str, Any], wanted: str | None) -> Metric:
    keys = [key for key in values if "," in key and "_stderr," not in key]
    metrics = [Metric(*key.split(",", 1)) for key in keys]
    return next((metric for metric in metrics if metric.name == wanted), metrics[0])


def _outcomes(scores: Sequence[object], value: float) -> tuple[float, ...]:
    numbers = tuple(_numbers(scores))
    shares = len(numbers) == len(scores) and all(0 <= number <= 1 for number in numbers)
    return numbers if shares and math.isclose(fmean(numbers), value, abs_tol=MEAN_TOLERANCE) else ()


def _numbers(scores: Sequence[object]) -> Iterator[float]:
    return (float(score) for score in scores if isinstance(score, Real))


def _fingerprint(samples: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256("".join(one["doc_hash"] for one in samples).encode()).hexdigest()
