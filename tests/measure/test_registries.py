"""A runner, a judge, a protocol and a format that are made up here, and known through their registries alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from caq.comparison import compare
from caq.items.protocols import PROTOCOLS, Protocol
from caq.items.questions import Question
from caq.items.requests import Prompt
from caq.measure.assemble import read_comparison
from caq.measure.judges import JUDGES
from caq.measure.judges.base import Call, Judge, JudgeSpec
from caq.measure.record import JudgeCard
from caq.report.render import RENDERERS
from caq.reproduce.pairs import PairSource
from caq.runners import RUNNERS, RunnerSpec
from tests.support.small import small_pair

WORD = "I will not do that."


def strict(prompts: Sequence[Prompt], responses: Sequence[str]) -> tuple[Call, ...]:
    """Call what the parrot says a refusal, and nothing else."""
    return tuple(Call("refused" if text == WORD else "answered", 1.0) for text in responses)


def open_strict(where: str, device: object) -> Judge:
    return strict


def first_letter(question: Question) -> tuple[str, ...]:
    return tuple(text[:1] for text in question.options)


@pytest.fixture
def pair(tmp_path: Path) -> PairSource:
    return small_pair(tmp_path / "pair", 20)


def test_what_is_made_up_outside_is_compared_through_the_registries(
    pair: PairSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parrot = RunnerSpec(lambda given: given.endswith(".parrot"), "tests.support.parrot")
    monkeypatch.setitem(RUNNERS, "parrot", parrot)
    monkeypatch.setitem(JUDGES, "strict", JudgeSpec(str, lambda where: JudgeCard("strict"), open_strict))
    monkeypatch.setitem(PROTOCOLS, "first-letter", Protocol(first_letter))
    monkeypatch.setitem(RENDERERS, "names", ("names.txt", lambda report, _: " ".join(arm.name for arm in report.arms)))
    (tmp_path / "word.parrot").write_text(WORD, encoding="utf-8")
    assert pair.tasks.safety is not None
    report = compare(
        [tmp_path / "word.parrot"],
        reference=pair.model,
        tasks=replace(pair.tasks, safety=replace(pair.tasks.safety, protocols=("first-letter",))),
        judge="strict",
        formats=("json", "names"),
        output=tmp_path / "out",
        device="cpu",
        quiet=True,
        say=lambda line: None,
    )
    aligned, parrot_arm = read_comparison(tmp_path / "out").arms
    assert report.judge == JudgeCard("strict")
    assert all(outcome.response == WORD for outcome in parrot_arm.outcomes["refusal"])
    assert all(outcome.good for outcome in parrot_arm.outcomes["refusal"])
    assert not any(outcome.good for outcome in parrot_arm.outcomes["helpfulness"])
    assert not any(outcome.good for outcome in aligned.outcomes["refusal"])
    assert next(iter(parrot_arm.outcomes)) == "safety/first-letter"
    assert parrot_arm.perplexity == pytest.approx(2048, rel=1e-5)
    assert parrot_arm.kl_text is not None
    assert parrot_arm.kl_text.mean > 1
    assert (tmp_path / "out" / "names.txt").read_text(encoding="utf-8") == "aligned word.parrot"
