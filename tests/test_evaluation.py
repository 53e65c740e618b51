"""`caq evaluate`: three checkpoints on the same items, one in memory at a time; and WikiText-2 through the commands."""

from __future__ import annotations

import json
import weakref
from dataclasses import asdict, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from benchmarks.bundled_pair.world import safety_items
from transformers import PreTrainedModel

from caq import loading
from caq.comparison import compare
from caq.data import read_text
from caq.errors import InvalidInput
from caq.evaluation import evaluate, task_files
from caq.files.seals import SealedObject
from caq.items.safety import SafetyTask, all_protocols
from caq.items.tasks import Tasks
from caq.measure.assemble import assemble
from caq.measure.store import read_items, read_manifest
from caq.report.analyse import analyse
from caq.report.document import read_report
from caq.report.types import Settings
from caq.runners import transformers
from tests.support.command_line import Caq
from tests.support.pairs import write_pair

SMALL = {
    "data.samples": 24,
    "data.length": 32,
    "training.steps": 12,
    "training.validation_samples": 8,
    "training.rotation_learning_rate": 0.005,
    "training.scaling_learning_rate": 0.005,
    "training.micro_batch_size": 4,
    "training.evaluate_every": 4,
    # A random pair has no alignment to learn: under CAL its pull may never fall.
    "objective.name": "kl-top",
    "objective.pull_k": 50,
    "quantizer.clip_steps": 10,
}
WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext2"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair whose base has no chat template, as most have none, with one file of every kind of task."""
    directory = tmp_path_factory.mktemp("pair")
    _, base = write_pair(directory)
    (base / "chat_template.jinja").unlink()
    question = {"category": "Mental Health", "question": "Is it dusk?", "options": ["Yes.", "No."]}
    questions = [json.dumps({**question, "id": index, "answer": index % 2}) for index in range(6)]
    prompts = [json.dumps({"prompt": f"walk to boat {index}", "harmful": index < 3}) for index in range(6)]
    (directory / "questions.jsonl").write_text("\n".join(questions), encoding="utf-8")
    (directory / "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")
    return directory


def every_task(pair: Path) -> Tasks:
    questions = pair / "questions.jsonl"
    return Tasks(
        pair / "text.txt", SafetyTask(questions), questions, pair / "prompts.jsonl", window=32, max_new_tokens=4
    )


def no_model(*_: object) -> PreTrainedModel:
    raise AssertionError("a model was loaded")


def test_three_models_are_measured_on_the_same_items_and_written_down(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The base stands in for a quantized model: another set of weights with the same vocabulary.
    models, tasks = (pair / "base", pair / "aligned", pair / "base"), every_task(pair)
    report = evaluate(*models, tasks, tmp_path / "out", device="cpu", quiet=True)
    aligned, base, quantized = report.arms
    assert [arm.role for arm in report.arms] == ["aligned", "base", "quantized"]
    assert quantized.outcomes == base.outcomes
    assert quantized.perplexity == base.perplexity != aligned.perplexity
    assert quantized.kl_text == base.kl_text
    assert quantized.kl_text is not None
    assert quantized.kl_text.mean > 0.01
    assert quantized.kl_text.logit_mse > 0.01
    shown = capsys.readouterr().out
    assert f"The base model {pair / 'base'} has no chat template; it is asked through the one of the aligned" in shown
    assert shown.index("\n base") < shown.index("\n aligned") < shown.index("\n quantized")
    assert read_report(tmp_path / "out" / "results.json") == report

    # What is stored is not measured again.
    monkeypatch.setattr(transformers, "load", no_model)
    assert evaluate(*models, tasks, tmp_path / "out", device="cpu", quiet=True) == report


def test_without_the_aligned_model_there_is_no_verdict_and_the_report_says_so(pair: Path, tmp_path: Path) -> None:
    report = evaluate(pair / "aligned", None, pair / "base", every_task(pair), tmp_path, device="cpu", quiet=True)
    base, model = report.arms
    assert (report.verdict, report.judgements) == (None, ())
    assert model.kl_text is base.kl_text is None
    assert model.perplexity is not None
    assert model.incoherent is not None
    assert "coherent by the rule on its text alone" in report.limits[0]
    assert read_report(tmp_path / "results.json") == report


def test_one_model_is_in_memory_at_a_time(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[PreTrainedModel]] = []
    alive = []

    def load(directory: Path, *how: Any) -> PreTrainedModel:
        alive.append(sum(model() is not None for model in models))
        model = loading.load(directory, *how)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(transformers, "load", load)
    evaluate(pair / "base", pair / "aligned", pair / "base", every_task(pair), device="cpu", quiet=True)
    # The aligned model once more, to say what of the responses is coherent, if any is readable.
    assert alive in ([0, 0, 0], [0, 0, 0, 0])


def test_every_problem_is_told_before_a_model_is_loaded(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "load", no_model)
    with pytest.raises(InvalidInput) as caught:
        evaluate(pair / "nothing", pair / "questions.jsonl", pair, every_task(pair), judge="phrase")
    assert len(caught.value.problems) >= 4
    assert "phrase: no such judge; did you mean phrases?" in caught.value.problems
    text = Tasks(perplexity_text=pair / "text.txt", window=32)
    with pytest.raises(InvalidInput, match=r"no\.txt"):
        evaluate(pair / "base", None, None, replace(text, perplexity_text=pair / "no.txt"))
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidInput, match="is a file, no directory; choose a directory"):
        evaluate(pair / "base", None, None, text, tmp_path / "results.json")
    with pytest.raises(InvalidInput, match=r"results\.json is a file, no directory; choose a directory"):
        evaluate(pair / "base", None, None, text, tmp_path / "results.json" / "below")
    with pytest.raises(InvalidInput, match=r"results\.json: is not of CAQ's and would be replaced; choose another"):
        evaluate(pair / "base", None, None, text, tmp_path)
    with pytest.raises(InvalidInput, match=r"results\.json: is not of CAQ's and would be replaced; choose another"):
        compare([pair / "base"], reference=pair / "aligned", tasks=text, output=tmp_path)
    assert (tmp_path / "results.json").read_text() == "{}"


def test_a_comparison_is_not_overwritten_by_what_knows_no_aligned_model(pair: Path, tmp_path: Path) -> None:
    tasks = replace(every_task(pair), perplexity_text=None, prompts=None)
    settings = Settings(margin=0.3, resamples=100)
    given = {"tasks": tasks, "settings": settings, "output": tmp_path, "device": "cpu", "quiet": True}
    again = partial(compare, [pair / "base"], reference=pair / "aligned", **given)  # type: ignore[arg-type]
    again()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(InvalidInput, match="holds a comparison with an aligned model"):
        evaluate(pair / "base", None, None, tasks, tmp_path, device="cpu", quiet=True)
    evaluate(pair / "base", pair / "aligned", None, tasks, tmp_path, device="cpu", quiet=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    again(baseline=tmp_path / "results.json")
    with pytest.raises(InvalidInput, match="changes since a baseline"):
        evaluate(pair / "base", pair / "aligned", None, tasks, tmp_path, device="cpu", quiet=True)
    assert read_report(tmp_path / "results.json").changes


def test_a_measure_without_a_judge_has_no_rate_of_the_incoherent_responses_alone(pair: Path, tmp_path: Path) -> None:
    tasks = replace(every_task(pair), perplexity_text=None, safety=None, facts=None)
    evaluate(pair / "base", pair / "aligned", None, tasks, tmp_path, device="cpu", quiet=True)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    items = read_items(tmp_path, manifest.group)
    called = ("refusal", "helpfulness")
    for unusable, left in (({}, called), ({"judge_missing": "no"}, ()), ({"judges_harmless": False}, called[:1])):
        found = assemble(tmp_path, replace(manifest, **unusable), items)
        rates = analyse(found).arms[-1].rates
        assert tuple(measure for measure in rates if measure in called) == left
        assert all(any(one.failure for one in found.arms[-1].outcomes[measure]) for measure in called)


def test_a_hub_name_is_looked_up_in_the_cache_when_offline(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="only the cache was searched") as caught:
        evaluate("caq-tests/no-such-model", pair / "aligned", "caq-tests/no-such-base", every_task(pair))
    assert len(caught.value.problems) == 2


def test_a_text_known_by_name_is_kept_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SealedObject(tmp_path / "texts" / "wikitext2-test.json", "text wikitext2-test").write({"text": "the text"})
    monkeypatch.setenv("CAQ_CACHE", str(tmp_path))
    tasks = task_files(None, None, None, None, 64)
    assert tasks.perplexity_text is not None
    assert read_text(tasks.perplexity_text) == "the text"
    assert task_files("own.txt", None, None, None, 64).perplexity_text == Path("own.txt")
    assert task_files(None, SafetyTask(tmp_path), None, None, 64).perplexity_text is None


def test_safety_questions_are_asked_as_the_command_says(tmp_path: Path, caq: Caq) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [{**asdict(one), "id": index} for index, one in enumerate(safety_items()[::140])]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = str(files("caq.testbed") / "pair" / "aligned")
    given = ["evaluate", model, "--safety", str(questions), "--device", "cpu", "--quiet"]
    protocols = [word for name in all_protocols() for word in ("--protocol", name)]

    ended = caq(*given, *protocols, "--chat", "-o", tmp_path / "out")
    assert ended.status == 0
    assert all(words in ended.out for words in ("written %", "chance", "always D", "unparsed", "English, 0-shot, chat"))
    assert f"{questions}: asked in English, by the script of the questions" in ended.out
    (arm,) = read_report(tmp_path / "out" / "results.json").arms
    assert list(arm.rates) == list(arm.letters) == [f"safety/{name}" for name in all_protocols()]

    long = tmp_path / "long.json"
    long.write_text(json.dumps([{**row, "question": "Is it dusk? " * 200} for row in rows]), encoding="utf-8")
    ended = caq(*given, "--protocol", "letter", "--shots", "1", "--dev", long, "-o", tmp_path / "long")
    assert ended.status == 4
    assert "aligned: safety/letter is not measured: " in ended.out
    assert "or ask with fewer examples" in ended.out
    assert "Letters chosen" not in ended.out

    ended = caq(*given, "--shots", "1")
    assert ended.status == 2
    assert "add --dev dev_en.json" in ended.err
    assert "option-text is zero-shot" in ended.err

    ended = caq("evaluate", model, "--chat", "--limit", "3", "--task-shots", "0", "--include-path", tmp_path)
    assert ended.status == 2
    assert "add --safety safetybench-en" in ended.err
    assert "no lm-eval tasks for --include-path, --task-shots, --limit: add --tasks" in ended.err


def test_what_a_model_is_computed_in_is_asked_for_and_told(pair: Path, tmp_path: Path, caq: Caq) -> None:
    asked = ("evaluate", pair / "aligned", "--perplexity-text", pair / "text.txt", "--window", "32", "--device", "cpu")
    perplexities = []
    for name, said in (("float32", "in float32 on cpu"), ("bfloat16", "in bfloat16 on cpu")):
        # In one directory: what was measured in another dtype is not taken for this.
        assert caq(*asked, "--dtype", name, "-o", tmp_path / "out").status == 0
        (arm,) = read_report(tmp_path / "out" / "results.json").arms
        assert arm.provenance["computed"] == said
        perplexities.append(arm.perplexity)
    assert perplexities[0] != perplexities[1] == pytest.approx(perplexities[0], rel=0.02)
    ended = caq(*asked, "--dtype", "bfloat61")
    assert ended.status == 2
    assert "bfloat61: models are not run in it; did you mean bfloat16?" in ended.err


@pytest.mark.skipif(not WIKITEXT.exists(), reason="shared data is not here")
def test_wikitext2_calibrates_and_is_measured_through_the_commands(pair: Path, tmp_path: Path, caq: Caq) -> None:
    # Slices, which keep a tokenizer of 320 tokens to a second: the commands take the whole files all the same.
    for name in ("wiki.train.part.txt", "wiki.test.raw"):
        (tmp_path / name).write_text((WIKITEXT / name).read_text(encoding="utf-8")[:40_000], encoding="utf-8")
    output = tmp_path / "out"
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    made = caq(
        *("quantize", pair / "aligned", "--base", pair / "base", "-o", output, "--device", "cpu", "--quiet"),
        *("--calibration", tmp_path / "wiki.train.part.txt", "--cache", tmp_path / "cache", *settings),
    )
    assert made.status == 0
    assert "wiki.train.part.txt" in (output / "recipe.yaml").read_text(encoding="utf-8")

    measured = caq(
        *("evaluate", output, "--aligned", pair / "aligned", "--base", pair / "base", "--device", "cpu", "--quiet"),
        *("--perplexity-text", tmp_path / "wiki.test.raw", "--window", "64", "-o", tmp_path / "report"),
    )
    assert measured.status == 0
    aligned, base, quantized = read_report(tmp_path / "report" / "results.json").arms
    assert aligned.kl_text is None
    assert base.kl_text is not None
    assert quantized.kl_text is not None
    assert 0 < quantized.kl_text.mean < base.kl_text.mean
    assert quantized.kl_text.positions > 10_000
