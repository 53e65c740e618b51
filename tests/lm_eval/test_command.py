"""lm-eval on a quantized directory, by our command line and by its own: what runs online is not lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from typer.testing import CliRunner

from caq.cli.app import app
from caq.lm_eval.__main__ import Loaded
from caq.lm_eval.tasks import task_directory
from caq.loading import load, load_tokenizer
from caq.report.document import read_report
from caq.runners.base import Choice
from caq.runners.likelihood import scores
from tests.support.harness import DATA, ITEMS, write_tasks
from tests.test_loading import UNLEARNED, quantize

PAIRS = [("The keeper of the lamp", " walks to the harbour"), ("at dusk, and", " the boats"), ("one", " by one")]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A W4A4 checkpoint with an online Hadamard, beside the pair it was made of."""
    return quantize(tmp_path_factory.mktemp("quantized"), UNLEARNED).output


def likelihoods(model: HFLM) -> list[float]:
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in PAIRS]
    return [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]


def test_lm_eval_s_model_of_ours_keeps_what_its_own_drops(quantized: Path) -> None:
    model, tokenizer = load(quantized, torch.float32), load_tokenizer(quantized)
    expected = [value for (value,) in scores(model, tokenizer, [Choice(a, (b,)) for a, b in PAIRS], 1)]
    ours = likelihoods(Loaded(str(quantized), dtype="float32", device="cpu"))
    plain = likelihoods(HFLM(str(quantized), dtype="float32", device="cpu"))
    assert ours == pytest.approx(expected, abs=1e-3)
    assert max(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 0.1


@pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
def test_the_command_measures_abilities_beside_the_aligned_model_and_pairs_them(
    quantized: Path, tmp_path: Path
) -> None:
    (tmp_path / "tasks").mkdir()
    files = write_tasks(tmp_path / "tasks")
    asked = ["--tasks", "mmlu_two,last_word", "--include-path", str(files), "--task-shots", "0", "--limit", "5"]
    models = [str(quantized), "--reference", str(quantized.parent / "aligned"), "--device", "cpu", "--quiet"]
    done = CliRunner().invoke(app, ["evaluate", *models, *asked, "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "mmlu_two acc % ↑" in done.output
    report = read_report(tmp_path / "out" / "results.json")
    aligned, ours = report.arms
    assert set(ours.abilities) == {"mmlu_two", "last_word"}
    assert ours.abilities["last_word"].value != aligned.abilities["last_word"].value
    paired = report.judgements[0].abilities
    assert list(paired) == ["mmlu_two"]
    assert paired["mmlu_two"].items == 10


@pytest.mark.slow  # lm-eval reads its 14,000 task files, twice.
@pytest.mark.skipif(not DATA.exists(), reason="shared data is not here")
def test_lm_eval_s_own_command_line_runs_our_tasks_and_our_model(quantized: Path, tmp_path: Path) -> None:
    questions = (DATA / "safetybench" / "safetybench_en_dev500.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "test_en.json").write_text(f"[{','.join(questions)}]", encoding="utf-8")
    (tmp_path / "dev_en.json").write_bytes((DATA / "safetybench" / "dev_en.json").read_bytes())
    environment = {**os.environ, "CAQ_SAFETYBENCH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    model = ["--model_args", f"pretrained={quantized},dtype=float32", "--device", "cpu"]
    tasks = ["--include_path", str(task_directory()), "--tasks", "safetybench_en_letter", "--limit", str(ITEMS)]
    own = [str(Path(sys.executable).with_name("lm_eval")), "run", "--model", "hf"]
    ours = [sys.executable, "-m", "caq.lm_eval", "run", "--model", "caq"]
    found = []
    for name, command in {"own": own, "ours": ours}.items():
        output = ["--log_samples", "--output_path", str(tmp_path / name)]
        subprocess.run([*command, *model, *tasks, *output], env=environment, check=True)
        (file,) = (tmp_path / name).rglob("results_*.json")
        found.append(json.loads(file.read_text(encoding="utf-8"))["results"]["safetybench_en_letter"])
    assert [one["sample_len"] for one in found] == [7 * ITEMS] * 2
    samples = [next((tmp_path / name).rglob("samples_*offensiveness*.jsonl")) for name in ("own", "ours")]
    assert samples[0].read_text(encoding="utf-8") != samples[1].read_text(encoding="utf-8")
