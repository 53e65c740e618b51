"""What an evaluation found: per-item outcomes, the summary drawn from them, and the JSON form of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from caq.items.floors import Floors
from caq.items.questions import LETTERS, Question
from caq.lm_eval.abilities import Ability
from caq.measure.refusal import Response
from caq.runners.distribution import Divergence

# The protocol of the paper's tables comes first wherever both are shown.
PRIMARY_PROTOCOL = "option-text"

Failure = Literal["unparsed", "refused"]


@dataclass(frozen=True)
class Answer:
    """One question's outcome: option indices of the right answer and of the model's choice.

    Attributes:
        id: unique among the questions.
        category: of the question.
        answer: the right option.
        chosen: the model's; None where it chose none. A written answer may name a letter that the question lacks.
        failure: why there is no choice: the response is a refusal, or no option can be read out of it.
        response: what the model wrote, under `generate`.
    """

    id: str
    category: str
    answer: int
    chosen: int | None
    failure: Failure | None = None
    response: str | None = None

    @property
    def right(self) -> bool:
        """Whether the choice is the answer."""
        return self.chosen == self.answer


@dataclass(frozen=True)
class LetterCounts:
    """How often each letter is right, how often each was chosen, and how often none was."""

    right: Mapping[str, int]
    chosen: Mapping[str, int]
    unparsed: int
    refused: int


@dataclass(frozen=True)
class Results:
    """Measures of one model; a task that was not asked for is None or empty.

    Attributes:
        window: tokens per window of the perplexity text.
        perplexity: of the text, or None.
        divergence: distance to the reference on the same windows, or None.
        safety: outcomes by protocol, in the file's order.
        facts: outcomes of the factual questions, by the primary protocol.
        responses: to harmful and harmless prompts, in the file's order.
        safety_format: how the safety questions were put, in words; results of two formats do not compare.
        floors: what the safety questions give to who does not read them, or None.
        abilities: outcomes of lm-eval's tasks, by their names.
    """

    window: int
    perplexity: float | None = None
    divergence: Divergence | None = None
    safety: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)
    facts: tuple[Answer, ...] = ()
    responses: tuple[Response, ...] = ()
    safety_format: str = ""
    floors: Floors | None = None
    abilities: Mapping[str, Ability] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """Return every measured quantity by name: rates are in [0, 1], `kl` in nats, abilities as lm-eval has them."""
        found: dict[str, float] = {}
        if self.perplexity is not None:
            found["perplexity"] = self.perplexity
        if self.divergence is not None:
            found |= {name: getattr(self.divergence, name) for name in ("logit_mse", "kl", "same_top")}
        found |= {name: rate(items) for name, items in self.outcomes().items()}
        return found | {f"ability/{name}": ability.value for name, ability in self.abilities.items()}

    def outcomes(self) -> dict[str, tuple[float, ...]]:
        """Return the outcomes behind each rate of the summary, in the order of the items: yes or no, or a share.

        Names: `safety/<protocol>`, `facts`, `refusal` (harmful prompts refused), `over_refusal` (harmless
        ones refused), `ability/<task>` where the task's value is a mean over items.
        """
        found: dict[str, tuple[float, ...]] = {
            f"safety/{name}": _right(answers) for name, answers in self.safety.items()
        }
        found["facts"] = _right(self.facts)
        found["refusal"] = tuple(r.refused for r in self.responses if r.harmful)
        found["over_refusal"] = tuple(r.refused for r in self.responses if not r.harmful)
        found |= {f"ability/{name}": ability.outcomes for name, ability in self.abilities.items()}
        return {name: items for name, items in found.items() if items}

    def categories(self, protocol: str = PRIMARY_PROTOCOL) -> dict[str, tuple[bool, ...]]:
        """Return the safety outcomes of one protocol by category, in order of first appearance."""
        found: dict[str, list[bool]] = {}
        for answer in self.safety.get(protocol, ()):
            found.setdefault(answer.category, []).append(answer.right)
        return {name: tuple(items) for name, items in found.items()}

    def letters(self, protocol: str = PRIMARY_PROTOCOL) -> LetterCounts:
        """Return how often each letter was chosen under one protocol, beside how often it was right."""
        found = self.safety.get(protocol, ())
        right = Counter(LETTERS[answer.answer] for answer in found)
        chosen = Counter(LETTERS[answer.chosen] for answer in found if answer.chosen is not None)
        failures = Counter(answer.failure for answer in found)
        return LetterCounts(_sorted(right), _sorted(chosen), failures["unparsed"], failures["refused"])

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready data: the summary, safety per category and letters first, then every item."""
        categories = {
            protocol: {name: rate(items) for name, items in self.categories(protocol).items()}
            for protocol in self.safety
        }
        letters = {protocol: asdict(self.letters(protocol)) for protocol in self.safety}
        return {"summary": self.summary(), "categories": categories, "letters": letters, **asdict(self)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Results:
        """Return the results that `as_dict` wrote; the summary is computed again, not read."""
        divergence = data["divergence"]
        return Results(
            window=data["window"],
            perplexity=data["perplexity"],
            divergence=None if divergence is None else Divergence(**divergence),
            safety={name: _answers(items) for name, items in data["safety"].items()},
            facts=_answers(data["facts"]),
            responses=tuple(Response(**item) for item in data["responses"]),
            safety_format=data["safety_format"],
            floors=None if data["floors"] is None else Floors.from_dict(data["floors"]),
            abilities={name: _ability(item) for name, item in data["abilities"].items()},
        )


def answers(questions: Sequence[Question], chosen: Iterable[int]) -> tuple[Answer, ...]:
    """Join questions with the options a protocol chose."""
    return tuple(Answer(q.id, q.category, q.answer, index) for q, index in zip(questions, chosen, strict=True))


def rate(outcomes: Sequence[float]) -> float:
    """Return the mean of the outcomes, of at least one; of yes-or-no outcomes it is the share of yes."""
    return sum(outcomes) / len(outcomes)


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _answers(items: Iterable[Mapping[str, Any]]) -> tuple[Answer, ...]:
    return tuple(Answer(**item) for item in items)


def _ability(item: Mapping[str, Any]) -> Ability:
    return Ability(**{**item, "outcomes": tuple(item["outcomes"])})


def _right(items: Iterable[Answer]) -> tuple[bool, ...]:
    return tuple(item.right for item in items)
