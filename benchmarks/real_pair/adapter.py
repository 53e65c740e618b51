"""The adapter of ours, which turns the base into the aligned model, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_pair.archive import PACKAGE, SHA256, save
from benchmarks.real_pair.train import settings
from caq.files.whole import sha256_of, write_json

#: What the project has; `--train` makes it anew.
COMMITTED = Path(__file__).parent / "adapter"
WEIGHTS, PROVENANCE = "adapter_model.safetensors", "provenance.json"


def write_aligned(base: Path, adapter: Path, directory: Path) -> None:
    """Write the base with the adapter merged into it, in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    save(merged, AutoTokenizer.from_pretrained(base), directory)


def write_provenance(adapter: Path, data: Path) -> None:
    """Write down what the adapter was trained from, and how."""
    files = ("advbench", "harmbench", "llms_from_scratch", "safetybench", "wikitext2")
    sources = {
        str(path.relative_to(data)): sha256_of(path)
        for folder in files
        for path in sorted((data / folder).iterdir())
        if path.suffix in (".csv", ".json", ".jsonl", ".txt") and path.name != "SOURCE.txt"
    }
    base: Mapping[str, str] = {"package": PACKAGE, "wheel_sha256": SHA256}
    weights = {WEIGHTS: sha256_of(adapter / WEIGHTS)}
    write_json(adapter / PROVENANCE, {"base": base, "training": settings(), "data_sha256": sources, "made": weights})


def read_provenance(adapter: Path) -> Mapping[str, object]:
    """Return what `write_provenance` wrote."""
    found: Mapping[str, object] = json.loads((adapter / PROVENANCE).read_text(encoding="utf-8"))
    return found
