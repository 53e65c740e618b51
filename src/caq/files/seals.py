"""Sealed data: JSON objects that carry a hash of what they hold and of what they belong to, checked when they are read.

So a changed bit, a file that another run left and a file that was emptied are found, and never taken for data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caq.files.cache import digest
from caq.files.codec import encode, parse
from caq.files.whole import write_text
from caq.progress import remark

#: The key of the hash.
SEAL = "seal"


def seal(fields: Mapping[str, object], identity: str) -> dict[str, Any]:
    """Return an object's plain data with its seal: a hash of them and of `identity`, which says what they belong to."""
    plain: dict[str, Any] = encode(fields)
    return {**plain, SEAL: _hash(plain, identity)}


def unseal(value: object, identity: str) -> dict[str, Any] | None:
    """Return an object without its seal; None where it was changed, belongs elsewhere or is no object."""
    if not isinstance(value, dict):
        return None
    fields = {key: item for key, item in value.items() if key != SEAL}
    return fields if value.get(SEAL) == _hash(fields, identity) else None


@dataclass(frozen=True)
class SealedObject:
    """A JSON file of one sealed object.

    Attributes:
        path: where it is.
        identity: what it belongs to: a hash, or a name, of all that decides its content.
    """

    path: Path
    identity: str

    def write(self, fields: Mapping[str, object]) -> None:
        """Write the file whole."""
        write_text(self.path, json.dumps(seal(fields, self.identity)) + "\n")

    def read(self) -> dict[str, Any] | None:
        """Return what was written; None if it is missing, or, with a remark, if it was changed or belongs elsewhere."""
        fields = self.peek()
        if fields is None and self.path.exists():
            remark(f"{self.path}: is damaged, or of another run; it is made again")
        return fields

    def peek(self) -> dict[str, Any] | None:
        """Return what `read` returns, in silence."""
        try:
            return unseal(parse(self.path.read_bytes().decode()), self.identity)
        except (OSError, ValueError):
            return None


def _hash(fields: Mapping[str, Any], identity: str) -> str:
    return digest(identity, json.dumps(fields, sort_keys=True))
