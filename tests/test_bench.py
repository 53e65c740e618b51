"""The comparison on the bundled pair: arms are recipes, a stopped run goes on, stale results are not reused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from caq.bench import ARMS, PRE_TRAINED, Bench, run_bench
from caq.errors import Unsupported
from caq.report import FINE_TUNED
from caq.testbed.export import export

QUICK: Mapping[str, object] = {
    "data.samples": 8,
    "data.length": 64,
    "training.steps": 3,
    "training.evaluate_every": 1,
    "training.batch_size": 2,
    "training.micro_batch_size": 2,
    "training.validation_samples": 2,
    "quantizer.clip_steps": 5,
}
KEPT = {name: ARMS[name] for name in ("RTN", "GPTQ", "Hadamard")}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A comparison of three arms on a pair with few items, run once for two seeds."""
    directory = tmp_path_factory.mktemp("bench")
    export(directory / "pair")
    for name in ("safety", "facts", "prompts"):
        path = directory / "pair" / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:: len(lines) // 24]), encoding="utf-8")
    text = directory / "pair" / "heldout.txt"
    text.write_text(text.read_text(encoding="utf-8")[:8000], encoding="utf-8")
    bench = Bench(directory, (0, 1), QUICK, KEPT)
    run_bench(bench, quiet=True)
    return bench


def test_rows_are_both_models_once_and_every_arm_once_a_seed(bench: Bench) -> None:
    found = run_bench(bench, quiet=True)
    assert {name: len(runs) for name, runs in found.items()} == {
        PRE_TRAINED: 1,
        FINE_TUNED: 1,
        "RTN": 2,
        "GPTQ": 2,
        "Hadamard": 2,
    }
    assert found[FINE_TUNED][0].summary()["kl"] == pytest.approx(0, abs=1e-6)


def test_the_report_names_seeds_and_recipes(bench: Bench) -> None:
    data = json.loads((bench.directory / "results.json").read_text(encoding="utf-8"))
    assert data["seeds"] == [0, 1]
    assert data["recipes"]["GPTQ"] == [bench.recipe("GPTQ", seed).fingerprint() for seed in (0, 1)]
    assert data["against_fine_tuned"]["RTN"]["safety/option-text"]["items"] >= 24
    assert "| Hadamard |" in (bench.directory / "report.md").read_text(encoding="utf-8")


def test_a_second_run_computes_nothing_and_writes_the_same_bytes(bench: Bench) -> None:
    before = {path: path.stat().st_mtime_ns for path in (bench.directory / "checkpoints").rglob("*")}
    results = (bench.directory / "results.json").read_bytes()
    run_bench(bench, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in (bench.directory / "checkpoints").rglob("*")} == before
    assert (bench.directory / "results.json").read_bytes() == results


def test_results_of_another_recipe_are_not_reused(bench: Bench) -> None:
    arm = {"RTN": ARMS["RTN"]}
    other = replace(bench, seeds=(0,), arms=arm, settings={**QUICK, "scheme.preset": "W8A8"})
    found = run_bench(other, quiet=True)
    again = run_bench(replace(bench, seeds=(0,), arms=arm), quiet=True)
    assert found["RTN"][0].summary()["kl"] < 0.1 * again["RTN"][0].summary()["kl"]


def test_a_failing_arm_says_which_it_was(bench: Bench) -> None:
    failing = replace(bench, seeds=(7,), arms={"Wrong": {**ARMS["RTN"], "scheme.preset": "NVFP4"}})
    with pytest.raises(Unsupported) as caught:
        run_bench(failing, quiet=True)
    assert caught.value.__notes__ == ["in arm Wrong, seed 7"]
