"""Loading models: full-precision ones for quantization, and checkpoints that CAQ wrote, with what runs online."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from caq.families import Bound, bind, find
from caq.families.bind import shape_of
from caq.numerics.scheme import resolve
from caq.recipe import Recipe
from caq.transforms.online import attention_name, hadamard_sites, install, value_cache_sites

RECIPE_FILE = "recipe.yaml"


def load(
    directory: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Load a checkpoint that CAQ wrote, or any other that Transformers loads, ready to compute.

    Plain Transformers reads the packed weights but drops online transforms and cache quantization in silence; this puts
    them back from the checkpoint's own recipe.

    Args:
        directory: a local checkpoint directory.
        dtype: of the computation; None takes the checkpoint's.
        device: where it computes.
    """
    # compressed-tensors' bars heed no setting. Loggers, which hold the stream itself, are still heard.
    with redirect_stderr(io.StringIO()):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype or "auto",
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
        )
        # What bitsandbytes packs is placed as it is loaded, and cannot be moved.
        if model.device.type != torch.device(device).type:
            model.to(device)
        if hasattr(model, "ct_decompress_hook"):
            # Otherwise done, and told, at the first forward pass.
            model.hf_quantizer.compressor.decompress_model(model)
    model.eval().requires_grad_(False)
    recipe_file = Path(directory) / RECIPE_FILE
    if recipe_file.exists():
        _install_online(model, Recipe.from_yaml(recipe_file))
    return model


def _install_online(model: PreTrainedModel, recipe: Recipe) -> None:
    family, shape = find(model.config.model_type), shape_of(model.config)
    numerics = resolve(recipe.scheme, shape.head_dim)
    sites = (*hadamard_sites(family, shape, recipe.transforms), *value_cache_sites(family, numerics))
    for block in model.get_submodule(family.layers).children():
        install(block, sites)
    attention = attention_name(shape, numerics)
    if attention:
        model.set_attn_implementation(attention)


def load_bound(directory: Path, dtype: torch.dtype, device: torch.device) -> Bound:
    """Load a full-precision model and bind its family.

    Raises:
        Unsupported: no family describes it.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
    )
    model.to(device).eval().requires_grad_(False)
    return bind(find(model.config.model_type), model)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer
