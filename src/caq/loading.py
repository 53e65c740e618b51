"""Loading models: full-precision ones for quantization, and checkpoints that CAQ wrote, with what runs online."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
        directory: a local checkpoint directory.
        dtype: of the computation; None takes the checkpoint's.
        device: where it computes.

    Raises:
        Unsupported: the checkpoint stores something that only a later version of CAQ can run.
    """
    model = _pretrained(directory, dtype or "auto", torch.device(device))
    online = read_online(Path(directory)) or read_legacy(Path(directory))
    if online is not None:
        install_online(model, online)
    return model


def load_bound(directory: Path, dtype: torch.dtype, device: torch.device) -> Bound:
    """Load a full-precision model and bind its family.

    Raises:
        Unsupported: no family describes it.
    """
    model = _pretrained(directory, dtype, device)
    return bind(find_family(model.config.model_type), model)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer


def _pretrained(directory: str | Path, dtype: torch.dtype | str, device: torch.device) -> PreTrainedModel:
    # compressed-tensors' bars heed no setting. Loggers, which hold the stream itself, are still heard.
    with redirect_stderr(io.StringIO()):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
        )
        # What bitsandbytes packs is placed as it is loaded, and cannot be moved.
        if model.device.type != device.type:
            model.to(device)
        if hasattr(model, "ct_decompress_hook"):
            # Otherwise the first forward pass does it, and prints a bar.
            model.hf_quantizer.compressor.decompress_model(model)
    return model.eval().requires_grad_(False)
