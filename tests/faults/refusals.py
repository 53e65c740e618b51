"""Inputs that are refused: broken in every way that a row names, and the message says which and how to go on."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.faults.bench import Bench, share
from tests.faults.forks import Ended
from tests.faults.kills import INPUTS
from tests.faults.stage import FAST, WHOLE
from tests.support.pairs import write_pair

QUANTIZE = f"{FAST} -o new"
PAIR = f"{WHOLE} -o new"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"


@dataclass(frozen=True)
class Case:
    """One way to break the stage, the command that refuses it, and what the message holds."""

    breaks: Callable[[Path], object]
    said: tuple[str, ...]
    command: str = QUANTIZE


def refused(bench: Bench, cases: Mapping[str, Case], *more: str) -> str:
    """Run every case; return the figure.

    Raises:
        AssertionError: of every case that is not refused by its name, or leaves something.
    """
    wrong, slowest, largest = [], 0.0, 0
    for name, case in cases.items():
        with bench.fresh(*INPUTS, *more) as root:
            case.breaks(root)
            before = {path.name for path in root.iterdir()}
            ended = bench.run(root, case.command, after=60)
            left = sorted({path.name for path in root.iterdir()} - before)
        slowest, largest = max(slowest, ended.seconds), max(largest, ended.memory)
        unsaid = [text for text in case.said if text not in ended.err]
        if ended.status != 2 or "Traceback" in ended.err or unsaid or left:
            wrong.append(f"{name}: status {ended.status}, not said: {unsaid}, left: {left}\n{errors(ended)}")
    assert not wrong, "\n".join(wrong)
    return f"{share(len(cases), len(cases))} refused by name; at most {slowest:.1f} s, {largest / 1e9:.2f} GB"


def errors(ended: Ended) -> str:
    """Return what a command said was wrong, or its last words."""
    lines = ended.err.splitlines()
    return "\n".join([line[:300] for line in lines if line.startswith("error")][:5] or lines[-3:])


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _shard(root: Path, tensor: str = UP, model: str = "aligned") -> Path:
    directory = root / "pair" / model
    return directory / str(json.loads((directory / INDEX).read_text())["weight_map"][tensor])


def _pickle(root: Path, name: str) -> None:
    for path in (root / "pair/aligned").glob("model*"):
        path.unlink()
    torch.save({"a": torch.ones(1)}, root / "pair/aligned" / name)


PICKLED = {
    name: Case(lambda root, name=name: _pickle(root, name), (name, "save_pretrained"))  # type: ignore[misc]
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt")
}

_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def _shorter(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


SHARDS = {
    "missing": Case(lambda root: _shard(root).unlink(), ("model-00002-of-00003.safetensors", "is missing")),
    "a byte short": Case(lambda root: _shorter(_shard(root), 1), ("model-00002-of-00003.safetensors", "truncated")),
    "half": Case(lambda root: _shorter(_shard(root), 15_000), ("model-00002-of-00003.safetensors", "truncated")),
    "empty": Case(lambda root: _shard(root).write_bytes(b""), ("model-00002-of-00003.safetensors",)),
    "a pointer": Case(
        lambda root: _shard(root).write_text(_POINTER), ("model-00002-of-00003.safetensors", "LFS pointer")
    ),
    "of the base": Case(lambda root: _shorter(_shard(root, model="base"), 1), ("base/model-0000", "truncated"), PAIR),
}


def _header(root: Path, length: int | None = None, **offsets: list[int]) -> None:
    path = _shard(root)
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    for name, pair in offsets.items():
        header[{"up": UP, "down": "model.layers.1.mlp.down_proj.weight"}[name]]["data_offsets"] = pair
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + content[8 + size :])


_NAMED = ("model-00002-of-00003.safetensors",)
HEADERS = {
    "100 MB": Case(lambda root: _header(root, 10**8 + 1), _NAMED),
    "8 EB": Case(lambda root: _header(root, 2**63), _NAMED),
    "all bits": Case(lambda root: _header(root, 2**64 - 1), _NAMED),
    "a hole": Case(lambda root: _header(root, up=[8, 5384]), _NAMED),
    "an overlap": Case(lambda root: _header(root, up=[0, 5376], down=[0, 5376]), _NAMED),
    "backwards": Case(lambda root: _header(root, up=[5376, 0]), _NAMED),
    "beyond the end": Case(lambda root: _header(root, up=[2**40, 2**40 + 5376]), _NAMED),
    "negative": Case(lambda root: _header(root, up=[-8, 5368]), _NAMED),
}


def _place(root: Path, file: str) -> None:
    index = root / "pair/aligned" / INDEX
    edit(index, weight_map=json.loads(index.read_text())["weight_map"] | {UP: file})


PLACES = {
    file: Case(lambda root, file=file: _place(root, file), (INDEX, repr(file)))  # type: ignore[misc]
    for file in ("../base/model-00001-of-00003.safetensors", "/etc/passwd", "a/../../b", "..", ".", "", "C:\\x", "a\\b")
}


def _value(root: Path, tensor: str, value: float, model: str = "aligned") -> None:
    path = _shard(root, tensor, model)
    tensors = load_file(path)
    tensors[tensor].view(-1)[-1] = value
    save_file(tensors, path, {"format": "pt"})


_PLACED = ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", UP, "lm_head.weight")
NUMBERS = {
    f"{value} in {tensor}": Case(lambda root, tensor=tensor, value=value: _value(root, tensor, value), (tensor,))  # type: ignore[misc]
    for tensor in _PLACED
    for value in (torch.nan, torch.inf, -torch.inf)
} | {"NaN in the base": Case(lambda root: _value(root, UP, torch.nan, "base"), (UP,), PAIR)}


def _other_base(root: Path, **sizes: Any) -> None:
    write_pair(root / "pair/other", **sizes)
    shutil.rmtree(root / "pair/base")
    (root / "pair/other/base").rename(root / "pair/base")


def _tokens_swapped(root: Path) -> None:
    path = root / "pair/base/tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(values))


def _other(*said: str, **sizes: int) -> Case:
    return Case(lambda root: _other_base(root, **sizes), said, PAIR)


DIFFERENCES = {
    "width": _other("intermediate_size", "56", "64", "gate_proj", intermediate_size=64),
    "depth": _other("num_hidden_layers", "model.layers.2.", "only in the base", num_hidden_layers=3),
    "heads": _other("num_key_value_heads", "k_proj", "v_proj", num_key_value_heads=2),
    "rows": _other("vocab_size", "320", "336", "embed_tokens", "lm_head", vocab_size=336),
    "ids": Case(_tokens_swapped, ("'a'", "'b'"), PAIR),
}


def _copied(root: Path, dtype: torch.dtype) -> None:
    shutil.rmtree(root / "pair/base")
    shutil.copytree(root / "pair/aligned", root / "pair/base")
    for path in (root / "pair/base").glob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    edit(root / "pair/base/config.json", dtype=str(dtype).removeprefix("torch."))


SAME = {
    "one directory": Case(lambda root: None, ("pair/aligned",), PAIR.replace("pair/base", "pair/aligned")),
    "a copy": Case(lambda root: _copied(root, torch.bfloat16), ("pair/base",), PAIR),
    "a copy in float32": Case(lambda root: _copied(root, torch.float32), ("pair/base",), PAIR),
    "quantized already": Case(lambda root: None, ("quantized already",), QUANTIZE.replace("pair/aligned", "out")),
}


def _recipe(text: str, *said: str) -> Case:
    command = "quantize pair/aligned --recipe recipe.yaml -o new --cache cache --device cpu --quiet"
    return Case(lambda root: (root / "recipe.yaml").write_text(text), said, command)


_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES = {
    "unknown keys": _recipe("objective: {alfa: 1}\nsead: 1\n", "objective.alfa", "did you mean", "sead", "seed"),
    "wrong types": _recipe("data: {samples: many, length: []}\nseed: x\n", "data.samples", "data.length", "seed"),
    "out of range": _recipe("data: {samples: 0}\nseed: -1\n", "data.samples", "seed"),
    "a seed beyond the generator's": _recipe("seed: 18446744073709551616\n", "seed"),
    "unknown names": _recipe("quantizer: gqtq\ntransforms: [rotation]\n", "gqtq", "gptq", "rotation"),
    "all sections at once": _recipe(
        "scheme: {preset: W5A5}\ndtype: f16\nlearn: [x]\n", "scheme.preset", "dtype", "learn"
    ),
    "no mapping": _recipe("- 1\n", "mapping"),
    "no YAML": _recipe("a: [\n", "recipe.yaml"),
    "empty": _recipe("scheme:\n", "scheme"),
    "a bomb": _recipe(_BOMB, "with its aliases"),
}
