import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = ["the cat sat on the mat", "a dog ran to the house", "how do I bake a cake with a friend"] * 3
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts a BOS before every text, as LLaMA's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<|reserved_0|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    return fast


def save_model(directory: Path, seed: int, shard_size: str = "5GB") -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=304,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory, max_shard_size=shard_size)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real Transformers directories: `aligned`, `base`, and `sharded`, which has the weights of `aligned`."""
    root = tmp_path_factory.mktemp("models")
    save_model(root / "aligned", seed=1)
    save_model(root / "base", seed=2)
    save_model(root / "sharded", seed=1, shard_size="8KB")
    return root


Copy = Callable[[str], Path]


@pytest.fixture
def copy(models_dir: Path, tmp_path: Path) -> Copy:
    """Return a function that gives a private copy of one of the models, to break."""

    def copy_model(name: str) -> Path:
        return Path(shutil.copytree(models_dir / name, tmp_path / name))

    return copy_model
