"""The files beside a model's weights that belong to it: they travel into its quantized copy and are part of its hash.

One rule for both, so that whatever goes into an output also decides whether an output is the same. What a loader may
read travels (tokenizers, chat templates, generation and preprocessing settings), and licences, which bind copies. What
describes other weights, a training or another quantization does not, nor code, weights, cards, or what CAQ writes anew.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

#: Transformers' folder of named templates, the only one that is looked into.
FOLDER = "additional_chat_templates"
#: In lower case, as names are compared.
TRAVEL = (
    *("*.json", "*.jinja", "*.model", "*.model.v[0-9]*", "*.tiktoken", "*.spm", "*.bpe", "*.codes"),
    *("merges.txt", "*vocab*.txt", "dict.txt"),
    *("licen[cs]e*", "*_licen[cs]e*", "notice*", "copying*", "use_policy*"),
    f"{FOLDER}/*.jinja",
)
_STAY = (
    # Written anew for a checkpoint, or by CAQ alone.
    *("config.json", "caq.json", "online.json", "sha256sums.json"),
    # Of other weights, or of another quantization.
    *("*.index*.json", "*quant*config*.json", "adapter_*.json", "params.json", "consolidated*"),
    # Of a training.
    *("trainer_state.json", "training_*.json", "*_results.json", "*_history.json", "optimizer*", "scheduler*"),
    *(".*", "*.py", "*.safetensors", "*.bin", "*.pt"),
)


def companions(directory: Path) -> tuple[str, ...]:
    """Return their relative paths, sorted. Links, of which the hub's cache is made, count as what they lead to."""
    found = [path for path in (*directory.glob("*"), *directory.glob(f"{FOLDER}/*")) if path.is_file()]
    return tuple(sorted(name for name in (path.relative_to(directory).as_posix() for path in found) if _travels(name)))


def _travels(name: str) -> bool:
    lower, depth = name.lower(), name.count("/")
    fits = any(fnmatchcase(lower, pattern) and pattern.count("/") == depth for pattern in TRAVEL)
    return fits and not any(fnmatchcase(lower, pattern) for pattern in _STAY)
