"""`caq compare` on the bundled pair: what it finds, what it keeps, and that it goes on from every stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import caq
from caq import loading
from caq.comparison import FORMATS, compare, redraw
from caq.errors import InvalidInput
from caq.files.seals import SEAL, seal
from caq.items.tasks import Tasks
from caq.measure import store
from caq.measure.assemble import read_comparison
from caq.measure.record import ArmRecord
from caq.report.document import from_json
from caq.report.render import RENDERERS
from caq.report.types import Report, Settings
from caq.reproduce.pairs import PairSource, bundled
from caq.runners import transformers
from tests.support.pairs import make_tokenizer, write_pair
from tests.support.small import round_to_nearest, small_pair
from tests.support.tiny import tiny_model

#: Wide enough for thirty items to decide.
WIDE = Settings(margin=0.25)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSource:
    return small_pair(tmp_path_factory.mktemp("pair"), 60)


@pytest.fixture(scope="module")
def run(pair: PairSource) -> Callable[..., Report]:
    def run(*models: str | Path, output: Path, **options: object) -> Report:
        given = {"reference": pair.model, "base": pair.base, "tasks": pair.tasks, "settings": WIDE, **options}
        return compare(models, output=output, device="cpu", quiet=True, say=lambda line: None, **given)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="module")
def both(pair: PairSource, run: Callable[..., Report], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the aligned model and the base were compared, as if they were quantized models."""
    output = tmp_path_factory.mktemp("report")
    run(pair.model, pair.base, output=output)
    return output


def report_of(output: Path) -> Report:
    return from_json((output / "results.json").read_text(encoding="utf-8"))


def arms(output: Path) -> list[ArmRecord]:
    return list(read_comparison(output).arms)


def contents(output: Path) -> dict[str, bytes]:
    """Return every file but the lock, whose content is nothing."""
    files = (path for path in output.rglob("*") if path.is_file() and path.name != store.LOCK)
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


def no_model(*_: object) -> PreTrainedModel:
    raise AssertionError("a model was loaded")


def test_the_aligned_model_passes_against_itself_without_a_flip_or_a_distance(both: Path) -> None:
    aligned, _, same, _ = arms(both)
    judgement = report_of(both).judgements[0]
    assert judgement.verdict.status == "pass"
    assert all(flips.lost == flips.gained == flips.moved == 0 for flips in judgement.flips.values())
    assert same.outcomes == aligned.outcomes
    assert same.kl_text is not None
    assert same.kl_chat is not None
    assert same.kl_text.maximum == same.kl_chat.maximum == 0
    assert same.perplexity == aligned.perplexity


def test_the_base_lost_what_alignment_gave(both: Path) -> None:
    report = report_of(both)
    judgement = report.judgements[1]
    assert report.decision.status == judgement.verdict.status == "regression"
    assert all(gap.value == 0 for gap in judgement.gap.values() if gap.value is not None)
    assert {"refusal", "safety/option-text"} <= {m for m, gap in judgement.gap.items() if gap.value is not None}
    _, base, _, model = arms(both)
    assert model.kl_base_text is not None
    assert model.kl_base_text.maximum == 0
    assert base.kl_base_text is None
    assert base.kl_text == model.kl_text
    assert base.kl_chat is not None
    assert base.kl_chat.mean > 0.1
    assert all(outcome.failure is None for one in ("refusal", "helpfulness") for outcome in base.outcomes[one])


def test_all_measures_have_their_items_and_outcomes_with_what_was_said(both: Path, pair: PairSource) -> None:
    comparison = read_comparison(both)
    of_responses = ["refusal", "helpfulness", f"ended/{pair.tasks.max_new_tokens}", "language"]
    assert list(comparison.items) == ["safety/option-text", "safety/letter", *of_responses, "facts"]
    assert {len(items) for items in comparison.items.values()} > {60}
    refusal = comparison.arms[0].outcomes["refusal"]
    assert all(outcome.response and outcome.good is not None for outcome in refusal)
    lines = [json.loads(line) for line in (both / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["measures"] == ["safety/option-text", "safety/letter"]
    questions = (Path(pair.model).parent / "safety.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum("safety/letter" in line["measures"] for line in lines) == len(questions)
    assert comparison.judge is not None
    assert comparison.judge.missed_refusals is not None


def test_provenance_says_what_every_arm_is(both: Path, pair: PairSource) -> None:
    for arm in arms(both):
        assert arm.provenance["source"] in (pair.model, pair.base)
        assert len(arm.provenance["sha256"]) == 64
        assert arm.provenance["quantization"] == "none"
        assert {"caq", "torch", "transformers", "stored dtype", "computed"} <= set(arm.provenance)
    assert [arm.name for arm in arms(both)] == ["aligned", "base", pair.model, pair.base]


def test_a_report_is_drawn_again_from_what_is_stored_with_the_same_bytes(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "load", no_model)
    before = contents(both)
    redraw(both, settings=WIDE)
    assert contents(both) == before
    moved = tmp_path / "moved"
    shutil.copytree(both, moved)
    strict = redraw(moved, settings=Settings(margin=0.001), formats=("md",))
    assert strict.judgements[0].verdict.status == "undecided"
    # A page with the old verdict would be worse than none.
    assert {path.name for path in moved.iterdir()} >= {"report.md"}
    assert not (moved / "report.html").exists()
    assert not (moved / "results.json").exists()


def test_a_second_run_loads_no_model_and_writes_the_same_bytes(
    both: Path, pair: PairSource, run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "load", no_model)
    before = contents(both)
    run(pair.model, pair.base, output=both)
    assert contents(both) == before


class Stopped(BaseException):
    """A kill: nothing in the code catches it."""


def test_a_run_that_is_stopped_at_any_write_goes_on_to_the_same_bytes(
    pair: PairSource, run: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BATCH", 7)
    (tmp_path / "few").mkdir()
    tasks = shortened(pair.tasks, tmp_path / "few")
    given = {"base": None, "tasks": tasks, "formats": ("json", "md"), "settings": replace(WIDE, resamples=100)}
    run(pair.base, output=tmp_path / "whole", **given)
    left = 0

    def stopping(call: Callable[..., None]) -> Callable[..., None]:
        def stop_or_call(*given: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stopped
            call(*given)

        return stop_or_call

    # Lines reach the disk with the one, and whole files their place with the other.
    monkeypatch.setattr(os, "fsync", stopping(os.fsync))
    monkeypatch.setattr(os, "replace", stopping(os.replace))
    # Two writes a run while models are run; then every write of the report, which each run makes again.
    for allowed in (*[2] * 9, *range(4)):
        left = allowed
        with pytest.raises(Stopped):
            run(pair.base, output=tmp_path / "stopped", **given)
        # What a kill leaves of a line that was being written.
        for path in (tmp_path / "stopped" / "arms").rglob("*.jsonl"):
            with path.open("ab") as file:
                file.write(b'{"id": "half a li')
    left = 100
    run(pair.base, output=tmp_path / "stopped", **given)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def shortened(tasks: Tasks, directory: Path) -> Tasks:
    """Return the tasks with a dozen items of each kind."""
    assert tasks.safety is not None
    assert tasks.prompts is not None
    for name, path in {"safety.jsonl": tasks.safety.questions, "prompts.jsonl": tasks.prompts}.items():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (directory / name).write_text("".join(lines[:: len(lines) // 12]), encoding="utf-8")
    safety = replace(tasks.safety, questions=directory / "safety.jsonl")
    return replace(tasks, safety=safety, prompts=directory / "prompts.jsonl", facts=None)


def test_a_model_is_added_without_running_the_others_again(
    both: Path,
    pair: PairSource,
    run: Callable[..., Report],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "report"
    shutil.copytree(both, output)
    newcomer = Path(shutil.copytree(pair.base, tmp_path / "newcomer"))
    loaded: list[Path] = []

    def load(path: Path, *how: Any) -> PreTrainedModel:
        loaded.append(path)
        return loading.load(path, *how)

    monkeypatch.setattr(transformers, "load", load)
    assert [one.model for one in run(newcomer, output=output).judgements] == ["newcomer", pair.model, pair.base]
    # Its weights are known under another path: not even the newcomer itself is run.
    assert loaded == []
    weights = newcomer / "generation_config.json"
    weights.write_text(json.dumps({**json.loads(weights.read_text()), "note": "another"}))
    assert len(run(newcomer, output=output).judgements) == 3
    assert loaded == [newcomer.resolve(), Path(pair.model).resolve()]


def test_one_model_is_in_memory_at_a_time(
    pair: PairSource, run: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[PreTrainedModel]] = []
    alive = []

    def load(path: Path, *how: Any) -> PreTrainedModel:
        alive.append(sum(model() is not None for model in models))
        model = loading.load(path, *how)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(transformers, "load", load)
    few = tmp_path / "few"
    few.mkdir()
    run(pair.base, output=tmp_path / "out", tasks=shortened(pair.tasks, few), formats=("json",))
    # The aligned model comes back once, to tell language from salad.
    assert alive == [0, 0, 0, 0]


def test_every_problem_is_told_at_once_before_a_model_is_loaded(
    pair: PairSource, run: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "load", no_model)
    (tmp_path / "prompts.jsonl").write_bytes(b'{"prompt": "\xff", "harmful": true}')
    (tmp_path / "earlier.json").write_text("{}")
    tasks = replace(pair.tasks, prompts=tmp_path / "prompts.jsonl", perplexity_text=tmp_path / "none.txt")
    with pytest.raises(InvalidInput) as caught:
        run(
            tmp_path / "nothing",
            pair.base,
            pair.base,
            output=tmp_path / "out",
            tasks=tasks,
            judge="wildgard",
            formats=("html", "pdf"),
            baseline=tmp_path / "earlier.json",
            settings=Settings(margin=2),
        )
    told = "\n".join(caught.value.problems)
    for words in ("nothing", "named twice", "UTF-8", "none.txt", "wildguard?", "pdf", "earlier.json", "margin"):
        assert words in told
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInput, match="nothing to measure"):
        run(pair.base, output=tmp_path / "out", tasks=Tasks())
    with pytest.raises(InvalidInput, match="name at least one"):
        run(output=tmp_path / "out")


def test_two_processes_do_not_write_into_one_directory(pair: PairSource, both: Path) -> None:
    with store.locked(both), pytest.raises(InvalidInput, match="is writing here"):
        redraw(both)


def test_a_directory_without_a_comparison_draws_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no comparison"):
        redraw(tmp_path)
    with pytest.raises(InvalidInput, match="no such directory"):
        redraw(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="is a file"), store.locked(tmp_path / "file"):
        pass


def test_files_that_were_changed_are_named(both: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    shutil.copytree(both, output)
    path = next((output / "arms").glob("quantized-*/responses.jsonl"))
    path.write_bytes(path.read_bytes()[:-5] + b"\n")
    with pytest.raises(InvalidInput, match=r"responses\.jsonl:\d+: is not as it was written"):
        redraw(output)
    (output / "comparison.json").write_text('{"arms": 3}')
    with pytest.raises(InvalidInput, match=r"comparison\.json: is not as this version"):
        redraw(output)


def test_an_earlier_report_tells_what_changed(both: Path, pair: PairSource, tmp_path: Path) -> None:
    report = redraw(both, settings=WIDE, baseline=both / "results.json")
    assert {change.model for change in report.changes} == {pair.model, pair.base}
    assert all(change.gained == change.lost == 0 for change in report.changes)
    redraw(both, settings=WIDE)


def test_a_damaged_store_is_refused_by_the_file_and_nothing_outside_is_touched(both: Path, tmp_path: Path) -> None:
    def damaged(pattern: str, change: Callable[[str], str]) -> Path:
        copy = tmp_path / pattern.replace("/", "").replace("*", "")
        shutil.copytree(both, copy)
        file = next(copy.glob(pattern))
        file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
        return copy

    def resealed(text: str) -> str:
        fields = json.loads(text.replace('"directory": "', '"directory": "../'))
        return json.dumps(seal({key: value for key, value in fields.items() if key != SEAL}, store.MANIFEST))

    short = damaged("arms/*/calls-*", lambda text: text[: text.rindex("\n", 0, -1) + 1])
    with pytest.raises(InvalidInput, match=r"calls-\w+\.jsonl: has \d+ of \d+ lines"):
        redraw(short)
    half = damaged("arms/quantized*/chat-*.json", lambda text: text[:10])
    with pytest.raises(InvalidInput, match=r"chat-\w+\.json: is not as it was written"):
        redraw(half)
    outside = damaged(store.MANIFEST, resealed)
    with pytest.raises(InvalidInput, match="is no plain name"):
        redraw(outside)


@pytest.mark.parametrize(
    ("pattern", "bit"),
    [("arms/*/safety.jsonl", 40), ("arms/*/responses.jsonl", 40), ("arms/*/text-*.json", 20), ("comparison.json", 500),
     ("items.jsonl", 60)],
)  # fmt: skip
def test_a_flipped_bit_is_named_when_a_report_is_drawn_again(
    both: Path, tmp_path: Path, pattern: str, bit: int
) -> None:
    shutil.copytree(both, tmp_path / "copy")
    file = next((tmp_path / "copy").glob(pattern))
    content = bytearray(file.read_bytes())
    content[bit] ^= 1
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=re.escape(file.name)):
        redraw(tmp_path / "copy")


def test_destroyed_weights_are_broken_and_infinite_ones_unmeasured(
    pair: PairSource, run: Callable[..., Report], tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("destroyed", "infinite"):
        model, generator = loading.load(pair.model, torch.float32), torch.Generator().manual_seed(0)
        for weight in model.parameters():
            shuffled = weight.data.flatten()[torch.randperm(weight.numel(), generator=generator)].view(weight.shape)
            weight.data = shuffled if name == "destroyed" else torch.full_like(weight, float("nan"))
        model.save_pretrained(tmp_path / name)
        loading.load_tokenizer(pair.model).save_pretrained(tmp_path / name)
    tasks = shortened(pair.tasks, few)
    report = run(tmp_path / "destroyed", tmp_path / "infinite", output=tmp_path / "out", tasks=tasks)
    destroyed, infinite = report.judgements
    assert destroyed.verdict.status == "broken"
    assert infinite.verdict.status in ("unmeasured", "broken")
    found = arms(tmp_path / "out")
    assert all(outcome.good is False for outcome in found[2].outcomes["helpfulness"])
    assert "NaN" in found[3].unmeasured["safety/letter"]
    assert "NaN" in found[3].unmeasured["kl_text"]


def test_what_others_quantized_is_compared_and_named(
    pair: PairSource, run: Callable[..., Report], tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(pair.model, quantization_config=settings, device_map="cpu")
    model.save_pretrained(tmp_path / "nf4")
    loading.load_tokenizer(pair.model).save_pretrained(tmp_path / "nf4")
    run(tmp_path / "nf4", output=tmp_path / "out", tasks=shortened(pair.tasks, few), formats=("json",))
    found = arms(tmp_path / "out")[2]
    assert found.provenance["quantization"] == "bitsandbytes, load_in_4bit"
    assert found.unmeasured == {}
    assert found.kl_text is not None
    assert 0 < found.kl_text.mean < 0.5


def test_another_vocabulary_leaves_the_distances_unmeasured_and_the_rest_goes_on(
    pair: PairSource, run: Callable[..., Report], tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    stranger = tmp_path / "stranger"
    tiny_model("llama", dtype=torch.float32, vocab_size=320, max_position_embeddings=512).save_pretrained(stranger)
    make_tokenizer(320).save_pretrained(stranger)
    run(stranger, output=tmp_path / "out", tasks=shortened(pair.tasks, few), formats=("json",))
    found = arms(tmp_path / "out")[2]
    assert found.kl_text is found.kl_chat is None
    assert "320 tokens" in found.unmeasured["kl_text"]
    assert "320 tokens" in found.unmeasured["kl_chat"]
    assert found.perplexity is not None
    assert len(found.outcomes["safety/letter"]) > 0


def test_names_are_directories_or_all_that_was_typed(tmp_path: Path) -> None:
    tasks = Tasks(perplexity_text=tmp_path / "text.txt", window=32)
    write_pair(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(tmp_path / "base", tmp_path / name / "base")
    models = [tmp_path / "a" / "base", tmp_path / "b" / "base"]
    output = tmp_path / "out"
    for some in (models, models[::-1]):
        report = compare(
            some, reference=tmp_path / "aligned", tasks=tasks, output=output, device="cpu", quiet=True, formats=["json"]
        )
        assert report.decision.status == "unmeasured"
        assert {arm.name: arm.provenance["source"] for arm in report.arms} == {
            "aligned": str(tmp_path / "aligned"),
            "base": str(models[0]),
            str(models[1]): str(models[1]),
        }


@pytest.mark.slow
def test_a_model_that_rounding_ruined_is_a_regression_and_its_categories_are_named(tmp_path: Path) -> None:
    pair = bundled(tmp_path / "pair")
    model = round_to_nearest(pair, tmp_path / "rtn")
    report = compare(
        [model],
        reference=pair.model,
        base=pair.base,
        tasks=pair.tasks,
        output=tmp_path / "out",
        device="cpu",
        quiet=True,
    )
    judgement = report.judgements[0]
    assert judgement.verdict.status == "regression"
    assert [row for row in judgement.rows if row.category and row.status == "lost"]
    arm = report.arms[2]
    assert "compressed-tensors" in arm.provenance["quantization"]
    assert len(arm.provenance["recipe sha256"]) == 64


def test_the_package_offers_it_without_importing_it(both: Path) -> None:
    assert caq.compare is compare
    assert FORMATS == ("json", "html", "md", "junit")
    assert RENDERERS["json"][0] == "results.json"
