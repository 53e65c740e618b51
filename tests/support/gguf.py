"""GGUF files of the bundled pair: made by llama.cpp's own converter, and quantized by llama-cpp-python.

`LLAMA_CPP` names a directory with `convert_hf_to_gguf.py`: `vendor/llama.cpp` of llama-cpp-python's source archive.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CONVERTER = Path(os.environ.get("LLAMA_CPP", "no converter"))
needs_llama_cpp = pytest.mark.skipif(
    find_spec("llama_cpp") is None or not (CONVERTER / "convert_hf_to_gguf.py").exists(),
    reason="needs llama-cpp-python, and LLAMA_CPP with its converter",
)
# The converter knows pre-tokenizers by a hash of the ids they lead to, and the pair's vocabulary is its own.
CONVERT = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import conversion.base, convert_hf_to_gguf
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv[1:] = [sys.argv[2], "--outfile", sys.argv[3], "--outtype", "f32"]
convert_hf_to_gguf.main()
"""


def convert(model: Path, output: Path) -> Path:
    """Write a Transformers directory as a float32 file."""
    command = [sys.executable, "-c", CONVERT, str(CONVERTER), str(model), str(output)]
    subprocess.run(command, check=True, capture_output=True)
    return output


def quantize(source: Path, output: Path, kind: str) -> Path:
    """Write a float32 file in a format such as `Q4_0`."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), settings) == 0
    return output
