"""The ledger: what a run did differently from what was asked, so that nothing degrades in silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Entry:
    """One departure from the plan.

    Attributes:
        stage: the pipeline's stage, such as `fit` or `quantize`.
        event: a stable kebab-case name, such as `damping-escalated`.
        message: one sentence for a person.
        details: the numbers and names of the sentence, JSON-serialisable.
    """

    stage: str
    event: str
    message: str
    details: Mapping[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return the entry as plain JSON-ready data."""
        return asdict(self)
