"""Train the pair from nothing (under an hour on two cores), and check that it shows what it must."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.bundled_pair.build import build
from benchmarks.bundled_pair.check import measure, shortfalls


def main(directory: Path) -> None:
    """Build the pair and its data in `directory`."""
    build(directory)
    problems = shortfalls(measure(directory))
    if problems:
        sys.exit("; ".join(problems))
    print(f"wrote {directory}: the pair shows what it must")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
