"""Loading models: full-precision ones for quantization, and checkpoints that CAQ wrote, with what runs online."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from caq.checkpoint.source import resolve
from caq.errors import refuse
from caq.export.legacy import read_legacy
from caq.export.online import install_online, read_online
from caq.families import Bound, bind, find_family


def load(
    directory: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Load a checkpoint that CAQ wrote, or any other that Transformers loads, ready to compute.

    Plain Transformers reads the packed weights but drops online transforms and cache quantization in silence; this puts
    them back from what the checkpoint stores.

    Args:
        directory: a checkpoint: a local directory, or a hub name, which is downloaded.
        dtype: of the computation; None takes the checkpoint's.
        device: where it computes.

    Raises:
        InvalidInput: there is no such checkpoint, it lacks weights, or what runs online is not readable.
        Unsupported: the checkpoint stores something that only a later version of CAQ can run.
    """
    path = resolve(directory)
    model = _pretrained(path, dtype or "auto", torch.device(device))
    online = read_online(path) or read_legacy(path)
    if online is not None:
        install_online(model, online)
    return model


def load_bound(directory: Path, dtype: torch.dtype, device: torch.device) -> Bound:
    """Load a full-precision model and bind its family.

    Raises:
        InvalidInput: the checkpoint lacks weights.
        Unsupported: no family describes it.
    """
    model = _pretrained(directory, dtype, device)
    return bind(find_family(model.config.model_type), model)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer


def _pretrained(directory: Path, dtype: torch.dtype | str, device: torch.device) -> PreTrainedModel:
    # compressed-tensors' bars heed no setting. Loggers, which hold the stream itself, are still heard.
    with redirect_stderr(io.StringIO()):
        model: PreTrainedModel
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        refuse([f"{directory}: {problem}; download it again" for problem in _not_loaded(found)])
        # What bitsandbytes packs is placed as it is loaded, and cannot be moved.
        if model.device.type != device.type:
            model.to(device)
        if hasattr(model, "ct_decompress_hook"):
            # Otherwise the first forward pass does it, and prints a bar.
            model.hf_quantizer.compressor.decompress_model(model)
    return model.eval().requires_grad_(False)


def _not_loaded(found: Mapping[str, Any]) -> Iterator[str]:
    # Transformers fills these with random numbers, and says so in a warning only.
    yield from (f"lacks the tensor {name}, which the model needs" for name in sorted(found["missing_keys"]))
    for name, stored, needed in sorted(found["mismatched_keys"]):
        yield f"the tensor {name} has shape {list(stored)}, and the model needs {list(needed)}"
