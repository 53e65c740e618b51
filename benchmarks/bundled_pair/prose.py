"""Prose of the small world: stories, descriptions, lessons and judgements, drawn from a grammar.

The grammar is a table of symbols; `#symbol#` in a rule is replaced by one of that symbol's rules. A story binds its
hero, pronouns and places once, so that later sentences agree with earlier ones and a model has something to carry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random

from benchmarks.bundled_pair.deeds import Deed, all_deeds
from benchmarks.bundled_pair.facts import RELATIONS
from benchmarks.bundled_pair.grammar import APPROVAL, BLAME, DEED_LINES, RULES

Bindings = Mapping[str, str]

WOMEN = tuple(
    """
    Anna Maria Clara Julia Sofia Emma Laura Nina Helen Martha Rosa Alice Irene Vera
    Lucy Grace Edith Olga Paula Ruth
    """.split()
)
MEN = tuple(
    """
    Peter Thomas Paul Daniel Martin Victor Simon Oscar Felix Henry Walter Arthur Hugo Leon
    Adam Samuel Frank Robert Karl George
    """.split()
)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _articles(text: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def expand(symbol: str, rng: Random, bound: Bindings) -> str:
    """Expand one symbol; a capitalised symbol gives a capitalised text; `bound` overrides the grammar."""

    def fill(match: re.Match[str]) -> str:
        return expand(match[1], rng, bound)

    if symbol in bound:
        return bound[symbol]
    if symbol[0].isupper():
        return _capital(expand(symbol[0].lower() + symbol[1:], rng, bound))
    return re.sub(r"#(\w+)#", fill, rng.choice(RULES[symbol]))


def hero(rng: Random) -> dict[str, str]:
    """Bind a hero with pronouns and a friend."""
    woman = rng.random() < 0.5
    name = rng.choice(WOMEN if woman else MEN)
    he, him, his = ("she", "her", "her") if woman else ("he", "him", "his")
    friend = rng.choice([other for other in WOMEN + MEN if other != name])
    return {"hero": name, "friend": friend, "he": he, "him": him, "his": his}


def story(rng: Random) -> str:
    """A paragraph about one hero, four to ten sentences."""
    bound = hero(rng)
    kinds = ["Opening", *rng.choices(("scene", "action", "talk"), (2, 4, 2), k=rng.randint(3, 8)), "end"]
    return _articles(" ".join(expand(kind, rng, bound) for kind in kinds))


def description(rng: Random) -> str:
    """A paragraph about a town."""
    town = rng.choice(RULES["town"])
    bound = {**hero(rng), "Town": town, "place2": rng.choice(RULES["place"])}
    first, *lines = RULES["town_line"]
    chosen = [first, *rng.sample(lines, rng.randint(3, 6))]
    rules = (re.sub(r"#(\w+)#", lambda m: expand(m[1], rng, bound), line) for line in chosen)
    return _articles(" ".join(rules))


def statement(rng: Random) -> str:
    """One sentence that states a fact."""
    relation = rng.choice(RELATIONS)
    subject, value = rng.choice(relation.pairs)
    line = rng.choice(relation.statements)
    return _articles(_capital(line.format(s=subject, S=_capital(subject), v=value)))


def lesson(rng: Random) -> str:
    """A paragraph of facts, three to six."""
    return " ".join(statement(rng) for _ in range(rng.randint(3, 6)))


def judgement(rng: Random, deed: Deed) -> str:
    """One or two sentences in which someone does a deed and the world judges it."""
    who = hero(rng)
    verdict = rng.choice(APPROVAL if deed.safe else BLAME)
    forms = {
        "past": deed.past(who["his"]),
        "plain": deed.phrase(who["his"]),
        "gerund": deed.gerund(who["his"]),
    }
    words = {symbol: rng.choice(RULES[symbol]) for symbol in ("time", "job", "town", "place")}
    fields = {**who, **forms, **words, "His": _capital(who["his"])}
    fields |= {"Time": _capital(words["time"]), "Gerund": _capital(forms["gerund"])}
    return rng.choice(DEED_LINES).format(**fields, verdict=verdict.format(**fields))


def chronicle(rng: Random) -> str:
    """A paragraph of three to five deeds and what the world thought of them."""
    deeds = rng.choices(all_deeds(), k=rng.randint(3, 5))
    return _articles(" ".join(judgement(rng, deed) for deed in deeds))


KINDS: tuple[tuple[Callable[[Random], str], int], ...] = (
    (story, 4),
    (description, 2),
    (lesson, 3),
    (chronicle, 4),
)


def paragraph(rng: Random) -> str:
    """A paragraph of any kind."""
    makers, weights = zip(*KINDS, strict=True)
    maker: Callable[[Random], str] = rng.choices(makers, weights)[0]
    return maker(rng)
