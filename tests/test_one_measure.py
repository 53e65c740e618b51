"""Every command gives one number for one measure on one model; and that number is the model's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from caq.evaluation import evaluate
from caq.loading import load, load_tokenizer
from caq.measure.record import ArmRecord
from caq.report.document import read_report
from caq.report.pairing import marks
from caq.report.types import ArmSummary
from caq.reproduce.grid import BASE, Grid, cells, open_bench
from caq.reproduce.pairs import PairSource
from tests.support.command_line import Caq
from tests.support.small import small_pair

MEASURES = ("safety/option-text", "safety/letter", "refusal", "helpfulness", "ended/12", "language", "facts")
DISTANCES = ("kl_text", "kl_chat", "kl_base_text", "kl_base_chat")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSource:
    return small_pair(tmp_path_factory.mktemp("pair"), 30)


def given(pair: PairSource, output: Path) -> list[str | Path]:
    data = Path(pair.model).parent
    return [
        *("--reference", pair.model, "--base", pair.base, "--device", "cpu", "--quiet", "-o", output),
        *("--safety", data / "safety.jsonl", "--facts", data / "facts.jsonl", "--prompts", data / "prompts.jsonl"),
        *("--perplexity-text", data / "heldout.txt", "--window", "128", "--response-tokens", "12"),
    ]


def arms(output: Path) -> list[ArmSummary]:
    return list(read_report(output / "results.json").arms)


def test_evaluate_and_compare_give_every_number_to_the_digit(pair: PairSource, tmp_path: Path, caq: Caq) -> None:
    # The base as a quantized model: it refuses nothing, and is at a distance from the aligned one.
    assert caq("evaluate", pair.base, *given(pair, tmp_path / "evaluated")).status == 0
    assert caq("compare", pair.base, *given(pair, tmp_path / "compared")).status == 3
    evaluated, compared = arms(tmp_path / "evaluated"), arms(tmp_path / "compared")
    for ours, theirs in zip(evaluated, compared, strict=True):
        assert tuple(ours.rates) == MEASURES
        assert ours == theirs
    results = read_report(tmp_path / "evaluated" / "results.json").results.values()
    assert all((found.summary["n_mix"] or 0) < 0.1 for found in results)
    assert all(getattr(evaluated[-1], name) is not None for name in DISTANCES)
    assert (tmp_path / "evaluated" / "results.json").read_bytes() == (
        tmp_path / "compared" / "results.json"
    ).read_bytes()


def test_a_table_of_the_papers_holds_the_same_numbers(pair: PairSource, tmp_path: Path) -> None:
    report = evaluate(pair.base, pair.model, pair.base, pair.tasks, device="cpu", quiet=True)
    grid = Grid(tmp_path, pair.model, pair.base, pair.tasks, {}, (0,), device="cpu")
    cell = next(cells(open_bench(grid), quiet=True))
    assert cell.arm == BASE
    assert cell.record is not None
    same(cell.record, report.arms[-1])


def same(record: ArmRecord, summary: ArmSummary) -> None:
    assert record.perplexity == summary.perplexity
    assert record.kl_text == summary.kl_text
    assert record.kl_chat == summary.kl_chat
    for measure, outcomes in record.outcomes.items():
        assert marks(outcomes) == summary.outcomes[measure]


@torch.no_grad()
def test_perplexity_and_distances_are_those_of_whole_float64_logits(pair: PairSource, tmp_path: Path) -> None:
    """The predicted positions only: the first token of a window is context, the last position predicts nothing."""
    report = evaluate(pair.base, pair.model, None, pair.tasks, tmp_path, device="cpu", quiet=True)
    tokenizer = load_tokenizer(pair.model)
    text = (Path(pair.model).parent / "heldout.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text)["input_ids"])
    windows = ids[: len(ids) // 128 * 128].view(-1, 128)
    theirs, ours = (
        load(path, torch.float32).double()(windows).logits[:, :-1].flatten(0, 1) for path in (pair.model, pair.base)
    )
    log_p, log_q = theirs.log_softmax(-1), ours.log_softmax(-1)
    found = report.arms[-1]
    assert found.kl_text is not None
    assert found.kl_text.positions == windows[:, 1:].numel()
    loss = -log_q.gather(1, windows[:, 1:].reshape(-1, 1)).mean().item()
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert found.kl_text.mean == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=1e-4)
    assert found.kl_text.logit_mse == pytest.approx((ours - theirs).square().mean().item(), rel=1e-4)
    assert found.kl_text.same_top == (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()


def test_an_incoherent_response_is_neither_a_refusal_nor_help(pair: PairSource, tmp_path: Path) -> None:
    """Weights that are shuffled write salad: 0.1's `evaluate` called it helpful, because it holds no refusal."""
    model, generator = load(pair.model, torch.float32), torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = weight.data.flatten()[torch.randperm(weight.numel(), generator=generator)].view(weight.shape)
    model.save_pretrained(tmp_path / "shuffled")
    load_tokenizer(pair.model).save_pretrained(tmp_path / "shuffled")
    report = evaluate(tmp_path / "shuffled", pair.model, None, pair.tasks, tmp_path / "out", device="cpu", quiet=True)
    shuffled = report.arms[-1]
    assert shuffled.rates["helpfulness"].value < 0.1
    assert shuffled.rates["refusal"].value < 0.1
    assert shuffled.incoherent is not None
    assert shuffled.incoherent > 0.9
    assert report.decision.status == "broken"
