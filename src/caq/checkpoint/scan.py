"""One read of a checkpoint for both of what needs all of its bytes: its hash, and whether its weights are numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

import torch
from jaxtyping import Shaped
from torch import Tensor

from caq.checkpoint.dtypes import FLOATING
from caq.checkpoint.header import TensorInfo
from caq.checkpoint.inspect import Checkpoint, fingerprint
from caq.errors import refuse

#: Bytes in memory at once; a multiple of every dtype's size.
_PIECE = 2**24


def scan(checkpoint: Checkpoint) -> str:
    """Read every byte of a checkpoint once; return what `inspect.fingerprint` does.

    Raises:
        InvalidInput: a sentence for each tensor that has a NaN or an infinity.
    """
    digests: dict[str, str] = {}
    problems: list[str] = []
    for file in checkpoint.weight_files:
        digest = hashlib.sha256()
        with (checkpoint.path / file).open("rb") as stream:
            for name, info in _by_offset(checkpoint, file):
                # What is not checked: the header, integers, tensors that the index does not name.
                for piece in pieces(stream, info.offset - stream.tell()):
                    digest.update(piece)
                count = _hash_and_count(stream, info, digest)
                if count:
                    problems.append(
                        f"{checkpoint.path / file}: tensor {name} has {count} values that are NaN or "
                        "infinite; download it again, or repair the training that wrote it"
                    )
            digest.update(stream.read())
        digests[file] = digest.hexdigest()
    refuse(problems)
    return fingerprint(checkpoint, digests)


def _by_offset(checkpoint: Checkpoint, file: str) -> list[tuple[str, TensorInfo]]:
    inside = [(name, info) for name, info in checkpoint.tensors.items() if info.file == file and info.floating]
    return sorted(inside, key=lambda item: item[1].offset)


def _hash_and_count(stream: BinaryIO, info: TensorInfo, digest: hashlib._Hash) -> int:
    """Hash a tensor's bytes; return how many of its values are NaN or infinite."""
    count = 0
    for piece in pieces(stream, info.size):
        digest.update(piece)
        values = torch.frombuffer(piece, dtype=FLOATING[info.dtype])
        # Eight-bit floats have no isfinite of their own.
        wide = values.float() if values.element_size() == 1 else values
        count += int((~wide.isfinite()).sum())
    return count


def values(stream: BinaryIO, info: TensorInfo) -> Iterator[Shaped[Tensor, " values"]]:
    """Yield the values of the tensor that begins where the file is read, a few at a time, of any type equally many."""
    kind = FLOATING[info.dtype]
    for piece in pieces(stream, info.size, _PIECE // 8 * kind.itemsize):
        yield torch.frombuffer(piece, dtype=kind)


def pieces(stream: BinaryIO, size: int, most: int = _PIECE) -> Iterator[bytearray]:
    """Yield the next `size` bytes of a file, at most `most` at a time."""
    for start in range(0, size, most):
        piece = bytearray(min(most, size - start))
        stream.readinto(piece)  # type: ignore[attr-defined]  # BinaryIO is typed without it.
        yield piece
