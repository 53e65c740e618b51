"""`caq evaluate`: three checkpoints on the same items, one in memory at a time; and WikiText-2 through the commands."""

from __future__ import annotations

import json
import weakref
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from benchmarks.bundled_pair.world import safety_items
from caq.measure.results import Results
from caq.runners.perplexity import perplexity, read_tokens
from transformers import PreTrainedModel
from typer.testing import CliRunner

from caq import evaluation as assessing
from caq import loading
from caq.cli.main import app, main
from caq.data import read_text
from caq.errors import InvalidInput
from caq.evaluation import assess, task_files
from caq.items.safety import ALL_PROTOCOLS, SafetyTask
from caq.items.tasks import Tasks
from tests.support.pairs import write_pair

SMALL = {
    "data.samples": 24,
    "data.length": 32,
    "learn.end-to-end.steps": 12,
    "learn.end-to-end.validation_samples": 8,
    "learn.end-to-end.rotation_learning_rate": 0.005,
    "learn.end-to-end.scaling_learning_rate": 0.005,
    "learn.end-to-end.micro_batch_size": 4,
    "learn.end-to-end.evaluate_every": 4,
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


def test_three_models_are_measured_on_the_same_items_and_written_down(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The base stands in for a quantized model: another set of weights with the same vocabulary.
    found = assess(
        pair / "base", pair / "aligned", pair / "base", every_task(pair), tmp_path / "out", device="cpu", quiet=True
    )
    assert list(found) == ["fine-tuned", "pre-trained", "quantized"]
    assert found["quantized"] == found["pre-trained"] != found["fine-tuned"]
    assert found["fine-tuned"].summary()["logit_mse"] == 0
    assert found["quantized"].summary()["kl"] > 0.01
    shown = capsys.readouterr().out
    assert "pre-trained model has no chat template; it is asked through the fine-tuned model's" in shown
    assert shown.index("\n pre-trained") < shown.index("\n fine-tuned") < shown.index("\n quantized")

    data = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {name: Results.from_dict(one) for name, one in data["results"].items()} == found
    assert set(data["against_fine_tuned"]) == {"pre-trained", "quantized"}
    assert data["against_fine_tuned"]["quantized"]["safety/letter"]["items"] == 6


def test_perplexity_is_that_of_the_model_itself(pair: Path) -> None:
    tasks = Tasks(perplexity_text=pair / "text.txt", window=32)
    found = assess(pair / "aligned", None, None, tasks, device="cpu", quiet=True)
    model = loading.load(pair / "aligned", torch.float32)
    tokens = read_tokens(pair / "text.txt", loading.load_tokenizer(pair / "aligned"))
    assert found["quantized"].perplexity == pytest.approx(perplexity(model, tokens, 32, 4), rel=1e-6)
    assert found["quantized"].divergence is None


def test_one_model_is_in_memory_at_a_time(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[PreTrainedModel]] = []
    alive = []

    def load(directory: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
        alive.append(sum(model() is not None for model in models))
        model = loading.load(directory, dtype)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(assessing, "load", load)
    assess(pair / "base", pair / "aligned", pair / "base", every_task(pair), device="cpu", quiet=True)
    assert alive == [0, 0, 0]


def test_every_problem_is_told_before_a_model_is_loaded(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> PreTrainedModel:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(assessing, "load", load)
    with pytest.raises(InvalidInput) as caught:
        assess(pair / "nothing", pair / "questions.jsonl", pair, every_task(pair))
    assert len(caught.value.problems) >= 3
    with pytest.raises(InvalidInput, match=r"no\.txt"):
        assess(pair / "base", None, None, Tasks(perplexity_text=pair / "no.txt"))


def test_a_hub_name_is_looked_up_in_the_cache_when_offline(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="only the cache was searched") as caught:
        assess("caq-tests/no-such-model", pair / "aligned", "caq-tests/no-such-base", every_task(pair))
    assert len(caught.value.problems) == 2


def test_a_text_known_by_name_is_kept_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "texts" / "wikitext2-test.txt"
    kept.parent.mkdir()
    kept.write_text("the text", encoding="utf-8")
    monkeypatch.setenv("CAQ_CACHE", str(tmp_path))
    tasks = task_files(None, None, None, None, 64)
    assert tasks.perplexity_text is not None
    assert read_text(tasks.perplexity_text) == "the text"
    assert task_files("own.txt", None, None, None, 64).perplexity_text == Path("own.txt")
    assert task_files(None, SafetyTask(tmp_path), None, None, 64).perplexity_text is None


def test_safety_questions_are_asked_as_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [{**asdict(one), "id": index} for index, one in enumerate(safety_items()[::140])]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = str(files("caq.testbed") / "pair" / "aligned")
    given = ["caq", "evaluate", model, "--safety", str(questions), "--device", "cpu", "--quiet"]
    protocols = [word for name in ALL_PROTOCOLS for word in ("--protocol", name)]

    monkeypatch.setattr("sys.argv", [*given, *protocols, "--chat", "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(words in shown for words in ("written %", "chance", "always D", "unparsed", "English, 0-shot, chat"))
    assert f"{questions}: asked in English, by the script of the questions" in shown
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]["quantized"]
    assert list(found["safety"]) == list(found["letters"]) == list(ALL_PROTOCOLS)
    assert found["floors"]["overall"]["items"] == len(rows)

    monkeypatch.setattr("sys.argv", [*given, "--shots", "1"])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "add --dev dev_en.json" in told
    assert "option-text is zero-shot" in told

    monkeypatch.setattr("sys.argv", [*given[:3], "--chat"])
    with pytest.raises(SystemExit):
        main()
    assert "add --safety safetybench-en" in capsys.readouterr().err


@pytest.mark.skipif(not WIKITEXT.exists(), reason="shared data is not here")
def test_wikitext2_calibrates_and_is_measured_through_the_commands(pair: Path, tmp_path: Path) -> None:
    # Slices, which keep a tokenizer of 320 tokens to a second: the commands take the whole files all the same.
    for name in ("wiki.train.part.txt", "wiki.test.raw"):
        (tmp_path / name).write_text((WIKITEXT / name).read_text(encoding="utf-8")[:40_000], encoding="utf-8")
    output, models = tmp_path / "out", [str(pair / "aligned"), "--base", str(pair / "base")]
    run = ["--calibration", str(tmp_path / "wiki.train.part.txt"), "--device", "cpu"]
    run += [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    cache = ["--cache", str(tmp_path / "cache"), "--quiet", "-o", str(output)]
    done = CliRunner().invoke(app, ["quantize", *models, *run, *cache], catch_exceptions=False)
    assert done.exit_code == 0
    assert "wiki.train.part.txt" in (output / "recipe.yaml").read_text(encoding="utf-8")

    measured = ["--perplexity-text", str(tmp_path / "wiki.test.raw"), "--window", "64", "--device", "cpu", "--quiet"]
    models = [str(output), "--reference", str(pair / "aligned"), "--base", str(pair / "base")]
    done = CliRunner().invoke(
        app, ["evaluate", *models, *measured, "-o", str(tmp_path / "report")], catch_exceptions=False
    )
    assert done.exit_code == 0
    data = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    summaries = {name: one["summary"] for name, one in data["results"].items()}
    assert summaries["fine-tuned"]["kl"] < 1e-6 < summaries["quantized"]["kl"] < summaries["pre-trained"]["kl"]
    assert data["results"]["quantized"]["divergence"]["positions"] > 10_000
