from __future__ import annotations

from pathlib import Path

import pytest

from caq.checkpoint.companions import companions
from caq.checkpoint.inspect import fingerprint, inspect
from tests.checkpoint.conftest import Copy

TRAVEL = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "tokenizer.model.v3", "tekken.json", "vocab.bpe"),
    *("qwen.tiktoken", "source.spm", "bpe.codes", "dict.txt", "generation_config.json", "chat_template.json"),
    *("chat_template.jinja", "additional_chat_templates/tool_use.jinja", "preprocessor_config.json"),
    *("processor_config.json", "LICENSE", "LICENSE.txt", "LICENCE.md", "NOTICE", "USE_POLICY.md", "MODEL_LICENSE"),
)
STAY = (
    *("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
    *("quantization_config.json", "quantize_config.json", "hf_quant_config.json", "quant_config.json"),
    *("adapter_config.json", "params.json", "consolidated.safetensors", "trainer_state.json", "all_results.json"),
    *(
        "README.md",
        "modeling_x.py",
        "notes.txt",
        "requirements.txt",
        ".gitattributes",
        ".secret.json",
        "training_args.bin",
    ),
    *("caq.json", "online.json", "recipe.yaml", "sha256sums.json", "original/tokenizer.model", "onnx/config.json"),
    *("additional_chat_templates/x.txt", "chat_template.jinja/x.jinja"),
)


def test_what_a_loader_reads_and_licences_travel_and_nothing_else_does(tmp_path: Path) -> None:
    for name in (*(set(TRAVEL) - {"chat_template.jinja"}), *STAY):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert set(companions(tmp_path)) == set(TRAVEL) - {"chat_template.jinja"}
    assert companions(tmp_path) == tuple(sorted(companions(tmp_path)))


def test_a_directory_of_such_a_name_and_a_broken_link_do_not_travel(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    (tmp_path / "vocab.json").symlink_to("nowhere")
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "merges.txt").symlink_to("blob")
    assert companions(tmp_path) == ("merges.txt",)


@pytest.mark.parametrize("name", ["generation_config.json", "additional_chat_templates/tool_use.jinja", "LICENSE"])
def test_all_that_travels_decides_what_a_model_is(name: str, copy: Copy) -> None:
    directory = copy("aligned")
    before = fingerprint(inspect(directory))
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text('{"eos_token_id": [1, 4]}')
    assert fingerprint(inspect(directory)) != before
    (directory / "README.md").write_text("# A card\n")
    (directory / name).write_text('{"eos_token_id": [1, 5]}')
    changed = fingerprint(inspect(directory))
    (directory / "README.md").write_text("# Another\n")
    assert fingerprint(inspect(directory)) == changed != before
