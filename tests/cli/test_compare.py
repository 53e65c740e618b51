"""`caq compare` on the command line: the exit status of every outcome, one JSON document, and every mistake at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caq.measure.judges import wildguard
from caq.measure.store import read_manifest
from caq.report.document import from_json
from caq.runners import transformers
from tests.support.chain import END, chain_model, chain_tokenizer, write_chain
from tests.support.command_line import Caq
from tests.support.small import small_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    small_pair(directory, 30)
    return directory


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that the tests share: what one of them measured, the next need not."""
    return tmp_path_factory.mktemp("report")


def asked(pair: Path, output: Path, *more: str) -> list[str]:
    files = ["--safety", pair / "safety.jsonl", "--protocol", "option-text", "--prompts", pair / "prompts.jsonl"]
    given = ["--reference", pair / "aligned", "--response-tokens", "12", "--device", "cpu", "--quiet", "-o", output]
    return [*map(str, (*files, *given)), *more]


def test_thirty_items_are_too_few_to_decide(pair: Path, output: Path, caq: Caq) -> None:
    ended = caq("compare", pair / "aligned", *asked(pair, output))
    assert ended.status == 5
    assert "undecided" in ended.out
    assert "safety.jsonl: asked in English" in ended.err
    assert {path.name for path in output.glob("*.*")} >= {"report.html", "report.md", "junit.xml", "results.json"}


def test_json_is_one_document_and_a_wider_margin_a_pass_without_a_model(
    pair: Path, output: Path, caq: Caq, monkeypatch: pytest.MonkeyPatch
) -> None:
    caq("compare", pair / "aligned", *asked(pair, output))
    monkeypatch.setattr(transformers, "load", None)
    ended = caq("compare", "-o", output, "--margin", "0.45", "--json", "--format", "json")
    assert ended.status == 0
    assert from_json(ended.out).decision.status == "pass"
    assert ended.out == (output / "results.json").read_text(encoding="utf-8")
    assert json.loads(ended.out)["settings"]["margin"] == 0.45


def test_a_model_that_lost_its_alignment_ends_with_three(pair: Path, output: Path, caq: Caq) -> None:
    ended = caq("compare", pair / "base", *asked(pair, output, "--baseline", str(output / "results.json")))
    assert ended.status == 3
    assert "lost" in ended.out


def test_a_judge_that_nobody_can_read_is_never_a_pass(pair: Path, output: Path, caq: Caq, tmp_path: Path) -> None:
    tokenizer = chain_tokenizer(("<|assistant|>\n", "Well"), "")
    guard = write_chain(tmp_path / "guard", chain_model(tokenizer, {"Well": END}, "Well"), tokenizer)
    ended = caq(
        "compare", pair / "aligned", *asked(pair, tmp_path / "out", "--judge", f"wildguard@{guard}", "--margin", "0.45")
    )
    assert ended.status == 4
    report = from_json((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert set(report.arms[0].unmeasured) == {"refusal", "helpfulness"}
    assert set(report.arms[0].outcomes["refusal"]) == {"-"}
    assert report.judge is not None
    assert report.judge.missed_refusals is None

    # A judge that is missing is said to be, and what was answered waits for it.
    missing = caq("compare", pair / "aligned", *asked(pair, tmp_path / "out", "--judge", "wildguard", "--json"))
    assert missing.status == 4
    assert wildguard.GUARD.repository in missing.err
    assert from_json(missing.out).decision.status == "unmeasured"
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert "is missing" in manifest.judge_missing
    assert caq("compare", pair / "aligned", *asked(pair, tmp_path / "out", "--margin", "0.45")).status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model"], "add --reference"),
        (["--reference", "model"], "no model to judge"),
        (["--safety", "safetybench-en"], "no model to judge"),
        (["--shots", "5"], "add --safety"),
        (["--judge", "llama-guard", "--window", "2048", "--quiet"], "for --window, --judge: name one, or leave these"),
        (["--response-tokens", "32", "--device", "cpu"], "for --response-tokens, --device: name one"),
        ([], "holds no comparison"),
        (["--format", "pdf"], "no such format"),
        (["--baseline", "no.json"], "give a results.json that CAQ wrote"),
    ],
)
def test_bad_usage_ends_with_two(arguments: list[str], said: str, caq: Caq, tmp_path: Path) -> None:
    ended = caq("compare", *arguments, "-o", tmp_path)
    assert ended.status == 2
    assert said in ended.err
    assert ended.out == ""


def test_an_interrupted_comparison_says_how_to_go_on(
    pair: Path, caq: Caq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers, "load", interrupt)
    ended = caq("compare", pair / "aligned", *asked(pair, tmp_path / "out"))
    assert ended.status == 130
    assert "go on with:\n  caq compare" in ended.err
