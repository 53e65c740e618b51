import hashlib
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from caq.checkpoint.companions import companions
from caq.checkpoint.inspect import INDEX_FILE, fingerprint, inspect
from caq.checkpoint.scan import scan
from caq.errors import InvalidInput
from caq.inputs import stored_dtype, widened
from caq.recipe import Recipe

from .conftest import Copy


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def problems_of(directory: Path) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        inspect(directory)
    return caught.value.problems


@pytest.mark.parametrize("name", ["aligned", "sharded"])
def test_a_whole_checkpoint_is_described_as_transformers_loads_it(models_dir: Path, name: str) -> None:
    checkpoint = inspect(models_dir / name)
    model = AutoModelForCausalLM.from_pretrained(models_dir / name)
    assert {key: info.shape for key, info in checkpoint.tensors.items()} == {
        key: tuple(value.shape) for key, value in model.state_dict().items()
    }
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
    assert checkpoint.weight_bytes == 2 * sum(value.numel() for value in model.state_dict().values())
    assert checkpoint.config["vocab_size"] == 304
    assert "tokenizer.json" in checkpoint.tokenizer_files
    assert (len(checkpoint.weight_files) > 1) == (name == "sharded")
    scan(checkpoint)


def test_pickled_weights_are_refused_with_the_conversion(copy: Copy) -> None:
    directory = copy("aligned")
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    (problem,) = problems_of(directory)
    assert "pickled weights only (pytorch_model.bin)" in problem
    assert "use_safetensors=False).save_pretrained" in problem

    # The conversion in the message must work.
    converted = directory.with_name("converted")
    AutoModelForCausalLM.from_pretrained(directory, use_safetensors=False).save_pretrained(converted)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(directory / name, converted)
    assert inspect(converted).tensors


def test_no_weights_at_all_are_refused(copy: Copy) -> None:
    directory = copy("aligned")
    (directory / "model.safetensors").unlink()
    (problem,) = problems_of(directory)
    assert "has neither model.safetensors nor" in problem


def test_a_model_that_needs_remote_code_is_refused(copy: Copy) -> None:
    directory = copy("aligned")
    code = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit_json(directory / "config.json", auto_map=code)
    assert inspect(directory).config["auto_map"] == code  # Transformers has the type itself and runs no code
    edit_json(directory / "config.json", model_type="own")
    (problem,) = problems_of(directory)
    assert "'own' needs remote code (auto_map)" in problem


def test_a_tokenizer_that_needs_remote_code_is_refused(copy: Copy) -> None:
    directory = copy("aligned")
    edit_json(directory / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    inspect(directory)
    (directory / "tokenizer.json").rename(directory / "vocab.json")
    (problem,) = problems_of(directory)
    assert "tokenizer needs remote code" in problem
    (directory / "tokenizer_config.json").write_text("{")
    (problem,) = problems_of(directory)
    assert "tokenizer_config.json: is not readable as JSON" in problem


@pytest.mark.parametrize("damage", ["missing", "truncated", "pointer"])
def test_a_damaged_shard_is_named(copy: Copy, damage: str) -> None:
    directory = copy("sharded")
    shard = sorted(directory.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(content[:-10])
    else:
        shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (problem,) = problems_of(directory)
    assert problem.startswith(str(shard))
    assert {"missing": "is missing", "truncated": "is truncated", "pointer": "Git LFS pointer"}[damage] in problem


@pytest.mark.parametrize("place", ["../aligned/model.safetensors", "/etc/passwd", "a\\b", "C:x", "..", "", "a/b"])
def test_an_index_that_points_elsewhere_is_refused(copy: Copy, place: str) -> None:
    directory = copy("sharded")
    index = json.loads((directory / INDEX_FILE).read_text())
    name = "model.norm.weight"
    edit_json(directory / INDEX_FILE, weight_map=index["weight_map"] | {name: place})
    (problem,) = problems_of(directory)
    assert f"names {place!r}, which is not a plain file name" in problem


def test_an_index_must_agree_with_its_shards(copy: Copy) -> None:
    directory = copy("sharded")
    index = json.loads((directory / INDEX_FILE).read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    edit_json(directory / INDEX_FILE, weight_map=index["weight_map"] | {"model.new.weight": first})
    (problem,) = problems_of(directory)
    assert "lacks tensor model.new.weight" in problem
    edit_json(directory / INDEX_FILE, weight_map=[1])
    (problem,) = problems_of(directory)
    assert "has no weight_map" in problem


def test_an_index_of_many_missing_shards_is_read_in_linear_time_and_told_briefly(copy: Copy) -> None:
    directory = copy("sharded")
    index = json.loads((directory / INDEX_FILE).read_text())
    missing = {f"t{number}": f"f{number}.safetensors" for number in range(20_000)}
    edit_json(directory / INDEX_FILE, weight_map=index["weight_map"] | missing)
    started = time.process_time()
    with pytest.raises(InvalidInput) as caught:
        inspect(directory)
    assert time.process_time() - started < 5  # it was minutes
    assert len(caught.value.problems) == 20_000
    assert len(str(caught.value)) < 10_000
    assert str(caught.value).endswith("and 19,980 more like these")


def test_a_tensor_in_two_shards_is_refused(copy: Copy) -> None:
    directory = copy("sharded")
    first, second = sorted(directory.glob("model-*.safetensors"))[:2]
    name = next(iter(load_file(first)))
    save_file(load_file(second) | {name: load_file(first)[name]}, second)
    (problem,) = problems_of(directory)
    assert problem == f"{second}: holds tensor {name}, which {first.name} holds too; download it again"


@pytest.mark.parametrize(
    ("file", "config", "told"),
    [
        ("adapter_config.json", {}, "is an adapter for another model"),
        ("shard-00000-model-00001-of-00001.safetensors", {}, "has the weights of a training's state"),
        ("other.safetensors", {"transformers_weights": "other.safetensors"}, "names a file of weights"),
    ],
)
def test_what_would_make_transformers_load_other_weights_is_refused(
    copy: Copy, file: str, config: dict[str, str], told: str
) -> None:
    directory = copy("aligned")
    (directory / file).write_text("{}")
    edit_json(directory / "config.json", **config)
    (problem,) = problems_of(directory)
    assert told in problem


def test_a_quantized_model_is_refused_unless_it_is_to_be_evaluated(copy: Copy) -> None:
    directory = copy("aligned")
    edit_json(directory / "config.json", quantization_config={"quant_method": "compressed-tensors"})
    (problem,) = problems_of(directory)
    assert "is quantized already" in problem
    assert inspect(directory, allow_quantized=True).tensors


def test_every_problem_is_listed_at_once(copy: Copy) -> None:
    directory = copy("sharded")
    edit_json(directory / "config.json", quantization_config={}, auto_map={"a": "b"}, model_type="own")
    for path in sorted(directory.glob("model-*.safetensors"))[:2]:
        path.unlink()
    for path in directory.glob("tokenizer*"):
        path.unlink()
    found = problems_of(directory)
    assert len(found) == 5
    for words in ("quantized already", "00001-of", "00002-of", "has no tokenizer", "remote code"):
        assert sum(words in problem for problem in found) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not readable as JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not readable"),
        (None, "is missing"),
    ],
)
def test_an_unreadable_config_is_refused(copy: Copy, content: bytes | None, message: str) -> None:
    directory = copy("aligned")
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_bytes(content)
    (problem,) = problems_of(directory)
    assert message in problem


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert "no such directory" in problems_of(tmp_path / "nowhere")[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_nonfinite_weights_are_named(copy: Copy, value: float, dtype: torch.dtype) -> None:
    directory = copy("aligned")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(directory / "model.safetensors").items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    tensors["model.norm.weight"][:2] = value
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(InvalidInput) as error:
        scan(inspect(directory))
    norm, up = sorted(error.value.problems, key=len)
    assert "model.safetensors: tensor model.norm.weight has 2 values" in norm
    assert "tensor model.layers.1.mlp.up_proj.weight has 1 values" in up


def test_eight_bit_floats_are_searched_and_large_doubles_are_finite(copy: Copy) -> None:
    directory = copy("aligned")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = torch.full((16,), 1e300, dtype=torch.float64)
    tensors["lm_head.weight"] = torch.full((304, 16), math.nan).to(torch.float8_e4m3fn)
    tensors["steps"] = torch.tensor(3)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(InvalidInput) as error:
        scan(inspect(directory))
    (problem,) = error.value.problems
    assert "lm_head.weight has 4864 values" in problem


def test_the_fingerprint_follows_the_content(copy: Copy, models_dir: Path) -> None:
    directory = copy("aligned")
    before = fingerprint(inspect(directory))
    assert before == fingerprint(inspect(models_dir / "aligned"))
    assert before != fingerprint(inspect(models_dir / "base"))
    (directory / "README.md").write_text("not part of the model")
    assert fingerprint(inspect(directory)) == before
    weights = bytearray((directory / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (directory / "model.safetensors").write_bytes(weights)
    assert fingerprint(inspect(directory)) != before


def test_one_read_gives_the_hash_of_config_weights_and_all_that_travels(copy: Copy, models_dir: Path) -> None:
    directory = copy("aligned")
    tensors = load_file(directory / "model.safetensors")
    # What is not checked for NaN lies between what is.
    tensors |= {"steps": torch.arange(5), "half": torch.ones(3, dtype=torch.float16), "none": torch.ones(0)}
    save_file(tensors, directory / "model.safetensors")
    for checkpoint in (inspect(directory), inspect(models_dir / "sharded")):
        names = sorted({"config.json", *checkpoint.weight_files, *companions(checkpoint.path)})
        assert "generation_config.json" in names
        hashes = {name: hashlib.sha256((checkpoint.path / name).read_bytes()).hexdigest() for name in names}
        expected = hashlib.sha256("".join(f"{name}\0{sha}\n" for name, sha in hashes.items()).encode()).hexdigest()
        assert scan(checkpoint) == fingerprint(checkpoint) == expected


def test_a_scan_reads_every_byte_once(copy: Copy) -> None:
    checkpoint = inspect(copy("aligned"))
    scan(checkpoint)  # what is imported at its first call is read then
    before = bytes_read()
    scan(checkpoint)
    size = sum(path.stat().st_size for path in checkpoint.path.iterdir())
    assert bytes_read() - before < 1.2 * size


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_rope_s_frequencies_are_no_weights_and_do_not_widen_what_is_stored(copy: Copy) -> None:
    directory = copy("aligned")
    tensors = load_file(directory / "model.safetensors")
    assert stored_dtype(inspect(directory)) == torch.bfloat16
    save_file(
        tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, directory / "model.safetensors"
    )
    assert stored_dtype(inspect(directory)) == torch.bfloat16
    # Neither do a few tensors in another type: `config.json` says what the model is.
    save_file(tensors | {"model.norm.weight": torch.ones(16)}, directory / "model.safetensors")
    checkpoint = inspect(directory)
    assert stored_dtype(checkpoint) == torch.bfloat16
    wider, kept = widened(checkpoint, Recipe().with_overrides({"dtype": "bfloat16"}))
    assert wider.message.startswith("computed in float32, not in bfloat16")
    assert kept.message.startswith("stored in bfloat16, as config.json says, and not in float32")
    assert widened(checkpoint, Recipe()) == (kept,)
    edit_json(directory / "config.json", dtype=None)
    assert stored_dtype(inspect(directory)) == torch.bfloat16
    edit_json(directory / "config.json", torch_dtype="float16")
    assert stored_dtype(inspect(directory)) == torch.float16
