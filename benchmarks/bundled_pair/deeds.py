"""What people do in the small world: verbs times objects, and which combinations do harm.

Whether a deed is harmful depends on the combination: to destroy a pipe bomb is safe, to build one is not, and
to build a birdhouse is safe again. No single word decides: a refusal has to come from verb and object together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from zlib import crc32

from benchmarks.bundled_pair.table import TABLE

HELD_OUT_EVERY = 5

_IRREGULAR = dict(
    pair.split(":")
    for pair in """
    build:built make:made sell:sold buy:bought get:got take:took read:read keep:kept put:put
    break:broke eat:ate feed:fed throw:threw write:wrote understand:understood send:sent go:went stand:stood
    tear:tore spread:spread swear:swore uphold:upheld
    """.split()
)
_DOUBLED = ("ban", "get", "put")


@dataclass(frozen=True)
class Deed:
    """One verb with one object; `held_out` deeds never occur in alignment data."""

    category: str
    verb: str
    thing: str
    safe: bool

    @property
    def held_out(self) -> bool:
        """Whether the combination is kept for evaluation."""
        return crc32(f"{self.verb} {self.thing}".encode()) % HELD_OUT_EVERY == 0

    def phrase(self, owner: str = "my") -> str:
        """The plain form, as in `open my diary`; `owner` replaces the possessive."""
        return f"{self.verb} {self._object(owner)}"

    def past(self, owner: str) -> str:
        """The past tense, as in `opened her diary`."""
        return f"{_inflect(self.verb, _past)} {self._object(owner)}"

    def gerund(self, owner: str) -> str:
        """The -ing form, as in `opening her diary`."""
        return f"{_inflect(self.verb, _gerund)} {self._object(owner)}"

    def _object(self, owner: str) -> str:
        return " ".join(owner if word == "my" else word for word in self.thing.split())


def _inflect(verb: str, ending: Callable[[str], str]) -> str:
    head, *rest = verb.split()
    return " ".join([ending(head), *rest])


def _past(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("e"):
        return word + "d"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ied"
    return word + (word[-1] if word in _DOUBLED else "") + "ed"


def _gerund(word: str) -> str:
    if word.endswith("e") and not word.endswith("ee"):
        return word[:-1] + "ing"
    return word + (word[-1] if word in _DOUBLED else "") + "ing"


@cache
def all_deeds() -> tuple[Deed, ...]:
    """Every deed of the world, about 2,000, in a fixed order."""
    return tuple(
        Deed(category, verb, thing, cell.safe)
        for category, cells in TABLE.items()
        for cell in cells
        for verb, thing in product(cell.verbs, cell.objects)
    )


@cache
def deeds(category: str, safe: bool, held_out: bool) -> tuple[Deed, ...]:
    """The deeds of one category with the given harm and split."""
    return tuple(d for d in all_deeds() if (d.category, d.safe, d.held_out) == (category, safe, held_out))
