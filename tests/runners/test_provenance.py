"""What a checkpoint is, in words and hashes; and what is told of one that cannot be loaded here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from caq.checkpoint.inspect import fingerprint, inspect
from caq.errors import InvalidInput
from caq.export.online import Online, write_online
from caq.runners import find_source
from tests.support.pairs import write_pair

V01 = Path(__file__).parents[1] / "checkpoints" / "v01"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_pair(tmp_path)[0]


def quantized(model: Path, settings: Mapping[str, object]) -> Path:
    """Say of a checkpoint that it is quantized, as far as can be told before it is loaded."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": settings}), encoding="utf-8")
    return model


def test_a_full_precision_model_is_hashed_and_named(model: Path) -> None:
    source = find_source(model)
    assert source.facts["sha256"] == fingerprint(inspect(model))
    assert source.runner == "transformers"
    assert source.facts["source"] == str(model)
    assert source.facts["quantization"] == "none"
    assert source.facts["stored dtype"] == "bfloat16"
    assert source.facts["architecture"] == "LlamaForCausalLM"
    assert source.ledger == ()


def test_the_number_formats_of_compressed_tensors_are_told() -> None:
    assert find_source(V01 / "w4a4").facts["quantization"] == (
        "compressed-tensors, format pack-quantized, weights 4-bit int, input activations 4-bit int"
    )


def test_what_caq_made_brings_its_recipe_and_its_ledger(model: Path) -> None:
    entry = {"stage": "fit", "event": "best-step", "message": "It went back.", "details": {"step": 3}}
    record = {"caq": "0.1.0", "recipe_sha256": "ab" * 32, "ledger": [entry]}
    (model / "caq.json").write_text(json.dumps(record), encoding="utf-8")
    write_online(model, Online("model.layers", ()))
    source = find_source(model)
    assert [one.as_dict() for one in source.ledger] == [entry]
    assert source.facts["made by"] == "caq 0.1.0"
    assert source.facts["recipe sha256"] == "ab" * 32
    (model / "caq.json").write_text('{"ledger": [{"stage": 1, "other": 2}]}', encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"caq\.json: its ledger"):
        find_source(model)


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "gptqmodel"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum"),
    ],
)
def test_a_method_whose_library_is_missing_names_the_package(
    model: Path, settings: dict[str, object], package: str
) -> None:
    if package_is_here(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(InvalidInput, match=f"{settings['quant_method']} cannot be loaded here: .*{package}"):
        find_source(quantized(model, settings))


def package_is_here(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


@pytest.mark.parametrize("settings", [{"quant_method": "none-such"}, {"bits": 4}])
def test_an_unknown_method_is_refused_before_compute(model: Path, settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="cannot be loaded here"):
        find_source(quantized(model, settings))


def test_where_a_response_ends_is_part_of_a_models_hash_and_what_runs_online_of_its_identity(model: Path) -> None:
    before = find_source(model)
    (model / "generation_config.json").write_text('{"eos_token_id": 5}', encoding="utf-8")
    after = find_source(model)
    assert before.sha256 != after.sha256
    assert before.facts["sha256"] != after.facts["sha256"]
    write_online(model, Online("model.layers", ()))
    online = find_source(model)
    assert online.sha256 != after.sha256
    assert online.facts["sha256"] == after.facts["sha256"]
