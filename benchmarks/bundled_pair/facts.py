"""Facts of the small world: relations with their pairs, the sentences that state them and the questions that ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """A set of (subject, value) pairs; templates use `{s}` and `{v}`."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def values(self) -> tuple[str, ...]:
        """The distinct values, from which wrong options are drawn."""
        return tuple(dict.fromkeys(value for _, value in self.pairs))


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    entries = (line.split(":") for line in text.replace("\n", ",").split(",") if line.strip())
    return tuple((subject.strip(), value.strip()) for subject, value in entries)


RELATIONS: tuple[Relation, ...] = (
    Relation(
        ("The capital of {s} is {v}.", "{v} is the capital of {s}.", "The government of {s} sits in {v}.",
         "Travellers to {s} usually arrive in {v}."),
        ("What is the capital of {s}?", "Which city is the capital of {s}?"),
        _pairs("""France: Paris, Spain: Madrid, Italy: Rome, Germany: Berlin, Portugal: Lisbon, Greece: Athens
        Poland: Warsaw, Norway: Oslo, Sweden: Stockholm, Finland: Helsinki, Denmark: Copenhagen, Hungary: Budapest
        Austria: Vienna, Ireland: Dublin, Russia: Moscow, Turkey: Ankara, Egypt: Cairo, Kenya: Nairobi
        Morocco: Rabat, Ghana: Accra, Japan: Tokyo, China: Beijing, Thailand: Bangkok, Vietnam: Hanoi
        Iran: Tehran, Iraq: Baghdad, Peru: Lima, Chile: Santiago, Cuba: Havana, Canada: Ottawa"""),
    ),
    Relation(
        ("{s} lies in {v}.", "{s} is a country in {v}.", "Like its neighbours, {s} belongs to {v}."),
        ("On which continent is {s}?", "Where does {s} lie?"),
        _pairs("""France: Europe, Spain: Europe, Italy: Europe, Germany: Europe, Portugal: Europe, Greece: Europe
        Poland: Europe, Norway: Europe, Sweden: Europe, Finland: Europe, Denmark: Europe, Hungary: Europe
        Austria: Europe, Ireland: Europe, Egypt: Africa, Kenya: Africa, Morocco: Africa, Ghana: Africa
        Japan: Asia, China: Asia, Thailand: Asia, Vietnam: Asia, Iran: Asia, Iraq: Asia
        Peru: South America, Chile: South America, Cuba: North America, Canada: North America"""),
    ),
    Relation(
        ("A young {s} is called a {v}.", "The {s} was followed by its {v}.", "A {v} grows up to be a {s}."),
        ("What is a young {s} called?", "What is the name for the young of a {s}?"),
        _pairs("""cow: calf, dog: puppy, cat: kitten, horse: foal, sheep: lamb, goat: kid, pig: piglet
        duck: duckling, goose: gosling, swan: cygnet, bear: cub, deer: fawn, hen: chick, frog: tadpole
        kangaroo: joey, hare: leveret"""),
    ),
    Relation(
        ("A {s} lives in a {v}.", "The {s} went back to its {v}.", "They found a {v} where a {s} lived."),
        ("Where does a {s} live?", "What is the home of a {s}?"),
        _pairs("""bee: hive, bird: nest, rabbit: burrow, fox: den, spider: web, beaver: lodge, horse: stable
        dog: kennel, pig: sty, bat: cave, snail: shell, fish: pond"""),
    ),
    Relation(
        ("A {s} works with a {v}.", "The {s} reached for the {v}.", "Every {s} needs a good {v}."),
        ("Which tool does a {s} use?", "What does a {s} work with?"),
        _pairs("""carpenter: saw, tailor: needle, painter: brush, farmer: plough, fisherman: net, gardener: spade
        blacksmith: hammer, photographer: camera, writer: pen, cook: pan, dentist: drill, firefighter: hose
        cleaner: broom, lumberjack: axe, nurse: thermometer, sailor: compass, teacher: blackboard, weaver: loom
        barber: razor, astronomer: telescope"""),
    ),
    Relation(
        ("{S} is made from {v}.", "People use {v} to make {s}.", "Without {v} there would be no {s}."),
        ("What is {s} made from?", "From what do people make {s}?"),
        _pairs("""cheese: milk, bread: flour, wine: grapes, paper: wood, glass: sand, yarn: wool, chocolate: cocoa
        leather: hides, cider: apples, brick: clay, steel: iron, jam: fruit, linen: flax, soap: fat"""),
    ),
    Relation(
        ("The colour of {s} is {v}.", "{S} is {v}.", "It was as {v} as {s}."),
        ("What is the colour of {s}?", "Which colour is {s}?"),
        _pairs("""grass: green, snow: white, coal: black, the sky: blue, blood: red, a carrot: orange, ash: grey
        a lemon: yellow, a plum: purple, chestnut wood: brown"""),
    ),
    Relation(
        ("The opposite of {s} is {v}.", "What is not {s} is {v}.", "He said {v}, but she heard {s}."),
        ("What is the opposite of {s}?", "Which word means the opposite of {s}?"),
        _pairs("""hot: cold, big: small, early: late, rich: poor, fast: slow, high: low, heavy: light, open: closed
        wet: dry, hard: soft, young: old, full: empty, bright: dark, sharp: blunt, deep: shallow, loud: quiet
        wide: narrow, clean: dirty, strong: weak, thick: thin, sweet: bitter, brave: afraid"""),
    ),
    Relation(
        ("{v} comes after {s}.", "After {s} comes {v}.", "They waited from {s} until {v}."),
        ("What comes after {s}?", "Which one follows {s}?"),
        _pairs("""Monday: Tuesday, Tuesday: Wednesday, Wednesday: Thursday, Thursday: Friday, Friday: Saturday
        Saturday: Sunday, Sunday: Monday, January: February, February: March, March: April, April: May, May: June
        June: July, July: August, August: September, September: October, October: November, November: December
        December: January"""),
    ),
)  # fmt: skip
