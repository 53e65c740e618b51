"""The same recipe and seed give the tensors that 0.1 gave, where nothing is learned."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caq.reproduce.experiments import BASELINES
from tests.test_pipeline import run

#: sha256, cut to 16 digits, of every tensor's bytes; arms of `caq reproduce`, on the pair that `write_pair` writes.
EXPECTED = json.loads((Path(__file__).parent / "checkpoints" / "v01" / "unlearned.json").read_text())


@pytest.mark.parametrize("arm", EXPECTED["tensors"])
def test_an_unlearned_row_has_the_tensors_of_0_1(arm: str, tmp_path: Path) -> None:
    if arm != "RTN" and torch.backends.cpu.get_cpu_capability() != EXPECTED["cpu"]:
        pytest.skip("sums in another order can round a weight the other way")
    output = run(tmp_path, "llama", "out", **BASELINES[arm]).output
    found = {
        name: hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        for file in output.glob("model-*.safetensors")
        for name, tensor in load_file(file).items()
    }
    expected = EXPECTED["tensors"][arm]
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
