"""A checkpoint's parts fit each other, or every part that does not is named before anything is computed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from caq.checkpoint.fit import check_fit
from caq.checkpoint.inspect import inspect
from caq.checkpoint.pretrained import read_model
from caq.errors import InvalidInput

from .conftest import Copy

V01 = Path(__file__).parents[1] / "checkpoints" / "v01"
Tensors = dict[str, Tensor]


def fit(directory: Path) -> None:
    check_fit(inspect(directory, allow_quantized=True))


def misfits(directory: Path) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        fit(directory)
    return caught.value.problems


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(directory: Path, how: Callable[[Tensors], Tensors]) -> Path:
    save_file(how(load_file(directory / "model.safetensors")), directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize("name", ["aligned", "sharded"])
def test_what_transformers_wrote_fits(models_dir: Path, name: str) -> None:
    fit(models_dir / name)


@pytest.mark.parametrize("name", ["w4a4", "w4a16", "kv-cache"])
def test_what_caq_0_1_wrote_fits(name: str) -> None:
    fit(V01 / name)


def test_what_is_missing_and_what_does_not_belong_is_named_at_once(copy: Copy) -> None:
    def reward_model(tensors: Tensors) -> Tensors:
        left = {name: tensor for name, tensor in tensors.items() if "up_proj" not in name and name != "lm_head.weight"}
        lora = {f"model.layers.{n}.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 16) for n in range(3)}
        return left | lora | {"score.weight": torch.ones(1, 16)}

    directory = change(copy("aligned"), reward_model)
    assert misfits(directory) == (
        *(
            f"{directory}: lacks the tensor {name}, which the model needs; download it again"
            for name in ("lm_head.weight", "model.layers.{0…2}.mlp.up_proj.weight")
        ),
        f"{directory}: has the tensor model.layers.{{0…2}}.self_attn.q_proj.lora_A.default.weight, which belongs to no "
        "part of the model; merge the adapter with peft's merge_and_unload(), and save the model again",
        f"{directory}: has the tensor score.weight, which belongs to no part of the model; give a model that writes "
        "text, not a reward model or a classifier",
    )


def test_another_shape_is_named_with_both(copy: Copy) -> None:
    directory = copy("aligned")
    edit(directory / "config.json", num_key_value_heads=1)
    for name, problem in zip(("k_proj", "v_proj"), misfits(directory), strict=True):
        assert f"the tensor model.layers.{{0…2}}.self_attn.{name}.weight has shape [8, 16], and" in problem
        assert "the model of config.json needs [4, 16]" in problem


def test_names_without_the_model_s_prefix_tied_heads_and_old_buffers_are_no_misfit(copy: Copy) -> None:
    def bare(tensors: Tensors) -> Tensors:
        body = {name.removeprefix("model."): t for name, t in tensors.items() if name != "lm_head.weight"}
        return body | {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}

    directory = change(copy("aligned"), bare)
    edit(directory / "config.json", tie_word_embeddings=True)
    fit(directory)


def test_rows_that_are_not_the_vocabulary_s_size_are_counted(copy: Copy) -> None:
    directory = copy("aligned")
    edit(directory / "config.json", vocab_size=310)
    head, embedding = misfits(directory)
    assert "vocab_size is 310, and lm_head.weight has 304 rows" in head
    assert "vocab_size is 310, and model.embed_tokens.weight has 304 rows" in embedding


def test_ids_beyond_the_rows_are_named_with_both_numbers(copy: Copy) -> None:
    directory = copy("aligned")
    edit(directory / "config.json", pad_token_id=304, eos_token_id=[1, 400])
    edit(directory / "generation_config.json", bos_token_id=999)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    pad = {"id": 304, "content": "<pad>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append(pad | flags)
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {f"filler{n}": n for n in range(size, 304)}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = misfits(directory)
    assert len(found) == 4
    for sentence in (
        "generation_config.json: bos_token_id is 999, and the model has 304 rows",
        "/config.json: pad_token_id is 304, and the model has 304 rows",
        "/config.json: eos_token_id is 400, and the model has 304 rows",
        "1 of the tokenizer's ids are beyond the model's 304 rows (vocab_size): '<pad>' is 304",
    ):
        assert sum(sentence in problem for problem in found) == 1


def test_an_id_that_is_put_around_every_text_is_one_of_the_tokenizer_s(copy: Copy) -> None:
    directory = copy("aligned")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    put = {"id": "<end>", "ids": [9999], "tokens": ["<end>"]}
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<end>", "type_id": 0}}]
    tokenizer["post_processor"] = {
        **{"type": "TemplateProcessing", "special_tokens": {"<end>": put}, "single": single},
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (problem,) = misfits(directory)
    assert "'token 9999' is 9,999" in problem


def test_a_token_that_only_its_class_knows_is_not_a_tokenizer_s(copy: Copy) -> None:
    directory = copy("aligned")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {f"filler{n}": n for n in range(size, 304)}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    # Qwen2's class adds <|endoftext|>, here as 304.
    edit(directory / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    fit(directory)


def test_what_a_training_left_of_a_model_s_outputs_changes_nothing(copy: Copy) -> None:
    directory = copy("aligned")
    edit(directory / "config.json", return_dict=False, output_attentions=True, output_hidden_states=True)
    fit(directory)
    output = read_model(directory, None, torch.device("cpu"))(torch.tensor([[1, 2]]))
    assert output.logits.shape == (1, 2, 304)


def test_llama_s_pad_id_of_minus_one_is_fine(copy: Copy) -> None:
    directory = copy("aligned")
    edit(directory / "config.json", pad_token_id=-1)
    fit(directory)


def test_eight_bit_floats_that_no_configuration_explains_are_refused(copy: Copy) -> None:
    directory = change(
        copy("aligned"),
        lambda tensors: {n: t.to(torch.float8_e4m3fn) if "down_proj" in n else t for n, t in tensors.items()},
    )
    (problem,) = misfits(directory)
    assert "stores model.layers.{0…2}.mlp.down_proj.weight as F8_E4M3" in problem
    assert "no quantization_config" in problem


def test_a_quantized_checkpoint_lacks_nothing_and_has_no_foreign_tensors(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(V01 / "w4a4", tmp_path / "w4a4"))
    weights: Tensors = {}
    for path in directory.glob("model*.safetensors"):
        weights |= load_file(path)
        path.unlink()
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    kept = {name: tensor for name, tensor in weights.items() if "1.mlp.up_proj" not in name}
    save_file(kept | {"score.weight": torch.ones(1, 8)}, directory / "model.safetensors", {"format": "pt"})
    found = misfits(directory)
    assert "lacks the tensor model.layers.1.mlp.up_proj.weight_packed" in found[0]
    assert "has the tensor score.weight, which belongs to no part of the model" in found[-1]


def test_a_packed_weight_of_another_method_stands_for_its_module(copy: Copy) -> None:
    def pack(tensors: Tensors) -> Tensors:
        packed = {f"{name[:-6]}qweight": torch.ones(2, 4, dtype=torch.int32) for name in tensors if "_proj" in name}
        rest = {name: tensor for name, tensor in tensors.items() if "_proj" not in name}
        return rest | {name: tensor for name, tensor in packed.items() if "layers.1.mlp.up" not in name}

    directory = change(copy("aligned"), pack)
    edit(directory / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    (problem,) = misfits(directory)
    assert "lacks the tensor model.layers.1.mlp.up_proj.weight" in problem


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocab_size": 10**9}, "vocab_size is 1,000,000,000, more than"),
        ({"head_dim": 10**12}, "head_dim is 1,000,000,000,000, more than"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1,000,000, more than"),
        ({"num_labels": 10**9}, "num_labels is 1,000,000,000, more than"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, and must be 1 or more"),
        ({"num_key_value_heads": -1}, "num_key_value_heads is -1, and must be 1 or more"),
        ({"hidden_act": "nope"}, "nope"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor"),
        ({"max_position_embeddings": "a"}, "max_position_embeddings"),
        ({"dtype": "float99"}, "float99"),
        ({"hidden_size": [16]}, "hidden_size"),
        ({"pad_token_id": 1.5}, "pad_token_id"),
        ({"text_config": {"text_config": [{}]}}, "text_config"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_named(copy: Copy, changes: dict[str, Any], told: str) -> None:
    directory = copy("aligned")
    edit(directory / "config.json", **changes)
    (problem,) = misfits(directory)
    assert problem.startswith(f"{directory / 'config.json'}: ")
    assert told in problem
