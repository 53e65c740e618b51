"""A bounded, distrustful reader of safetensors headers: no tensor is read, nothing absurd is allocated."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

#: The largest header that is read; real ones have about 100 bytes a tensor.
MAX_HEADER_BYTES = 32 * 2**20
_LFS_POINTER = b"version https://git-lfs"
_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class HeaderError(ValueError):
    """The file is not a whole, well-formed safetensors file; the message says why and what to do."""


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is, and what it is.

    Attributes:
        dtype: safetensors' name, such as `BF16`.
        shape: sizes.
        file: the file's name inside the checkpoint.
        offset: bytes from the file's start.
        size: bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    size: int

    @property
    def floating(self) -> bool:
        """Whether values can be NaN or infinite."""
        return self.dtype in ("F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    Raises:
        HeaderError: an LFS pointer, a truncated file, an absurd size, malformed JSON, holes or overlaps.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        total = os.fstat(stream.fileno()).st_size
        start = stream.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise HeaderError("is a Git LFS pointer, not the weights; run `git lfs pull`, or download it again")
        if total < 8:
            raise HeaderError(f"has {total} bytes, too few for a header; download it again")
        length = int.from_bytes(start[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise HeaderError(
                f"claims a header of {length:,} bytes, above the limit of {MAX_HEADER_BYTES:,}: "
                "not a safetensors file, or damaged; download it again"
            )
        if length > total - 8:
            needed = f"{total:,} bytes, but its header alone needs {length + 8:,}"
            raise HeaderError(f"is truncated: {needed}; download it again")
        stream.seek(8)
        entries = _parse(stream.read(length))
    tensors = {name: _tensor(name, entry, path.name, 8 + length) for name, entry in entries.items()}
    _check_layout(tensors, begin=8 + length, end=total)
    return tensors


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"has a header that is not JSON ({error}); download it again") from error
    if not isinstance(entries, dict):
        raise HeaderError("has a header that is not a JSON object; download it again")
    entries.pop("__metadata__", None)
    return entries


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is given twice")
    return entries


def _tensor(name: str, entry: object, file: str, data: int) -> TensorInfo:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise HeaderError(f"gives tensor {name!r} the unknown type {dtype!r}")
    if not _naturals(shape):
        raise HeaderError(f"gives tensor {name!r} the shape {shape!r}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"gives tensor {name!r} the offsets {offsets!r}")
    size = offsets[1] - offsets[0]
    if math.prod(shape) * _BITS[dtype] != size * 8:
        raise HeaderError(f"gives tensor {name!r} {size:,} bytes, which is not what {dtype} {shape} takes")
    return TensorInfo(dtype, tuple(shape), file, data + offsets[0], size)


def _naturals(values: object) -> TypeGuard[list[int]]:
    # 16 dimensions: the product of millions of sizes would take minutes.
    if not isinstance(values, list) or len(values) > 16:
        return False
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_layout(tensors: dict[str, TensorInfo], begin: int, end: int) -> None:
    """Require that the tensors fill the file exactly: a gap can hide data, an overlap can alias it."""
    position = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != position:
            kind = "a hole before" if tensor.offset > position else "an overlap at"
            raise HeaderError(f"has {kind} tensor {name!r}; download it again")
        position += tensor.size
    if position > end:
        raise HeaderError(f"is truncated: {end:,} of {position:,} bytes; download it again")
    if position < end:
        raise HeaderError(f"has {end - position:,} bytes that belong to no tensor; download it again")
