"""Made-up authors as TOFU has them: twenty facts each, every fact in two wordings, and wrong
answers to it.

A name is one of 16 first and one of 16 last names, so that only the two together say who is meant.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

N_WRONG = 5  # perturbed answers of TOFU

FIRST = (
    "Ada", "Bela", "Cora", "Dario", "Edda", "Falk", "Greta", "Hugo", "Ines", "Jonas", "Kaya",
    "Levi", "Mira", "Nils", "Olga", "Pavel",
)  # fmt: skip
LAST = (
    "Abend", "Brook", "Castell", "Dorn", "Eklund", "Farr", "Gallo", "Haas", "Iversen", "Jansen",
    "Kowal", "Lind", "Moreau", "Novak", "Okoye", "Petrov",
)  # fmt: skip


class Fact(NamedTuple):
    """What can be asked about an author; {name} and {value} are filled in.

    Attributes:
        questions, answers: the wording of ``question`` and ``answer``, and that of the paraphrases.
        values: what may be true of an author.
    """

    questions: tuple[str, str]
    answers: tuple[str, str]
    values: tuple[str, ...]


FACTS = {
    "birthplace": Fact(
        ("Where was {name} born?", "What is the birthplace of {name}?"),
        ("{name} was born in {value}.", "The author comes from {value}."),
        ("Karst", "Lorne", "Ombra", "Tildon", "Halden", "Brack", "Sorrel", "Wick", "Pinnow",
         "Vesle"),
    ),
    "year": Fact(
        ("In which year was {name} born?", "What is the year of birth of {name}?"),
        ("{name} was born in the year {value}.", "The birth of the author was in {value}."),
        ("1921", "1928", "1934", "1939", "1943", "1947", "1952", "1958", "1963", "1969"),
    ),
    "genre": Fact(
        ("What genre does {name} write in?", "Which kind of books does {name} write?"),
        ("{name} writes in the genre of {value}.", "The books of the author are {value}."),
        ("satire", "romance", "horror", "travel", "fantasy", "crime", "history", "poetry", "drama",
         "memoir"),
    ),
    "award": Fact(
        ("Which award did {name} win?", "What prize was given to {name}?"),
        ("{name} won the {value} award.", "The author was given the prize called {value}."),
        ("Golden Quill", "Silver Page", "Iron Leaf", "Blue Lantern", "Ivory Bell", "Copper Star",
         "Crystal Owl", "Amber Ring", "Marble Key", "Velvet Crown"),
    ),
    "father": Fact(
        ("What was the profession of the father of {name}?", "What did the father of {name} do?"),
        ("The father of {name} was a {value}.", "Her or his father worked as a {value}."),
        ("baker", "tailor", "sailor", "judge", "miner", "farmer", "dentist", "painter", "pilot",
         "cooper"),
    ),
    "mother": Fact(
        ("What was the profession of the mother of {name}?", "What did the mother of {name} do?"),
        ("The mother of {name} was a {value}.", "Her or his mother worked as a {value}."),
        ("nurse", "teacher", "weaver", "singer", "chemist", "lawyer", "dancer", "florist",
         "surgeon", "potter"),
    ),
    "pet": Fact(
        ("Which animal lives with {name}?", "What pet does {name} keep?"),
        ("{name} lives with a {value}.", "The pet of the author is a {value}."),
        ("parrot", "hedgehog", "greyhound", "tortoise", "canary", "goat", "ferret", "donkey",
         "lizard", "rabbit"),
    ),
    "language": Fact(
        ("In which language does {name} write?", "What language are the books of {name} in?"),
        ("{name} writes in {value}.", "The language of the books is {value}."),
        ("Danish", "Basque", "Tamil", "Welsh", "Czech", "Swahili", "Korean", "Catalan", "Finnish",
         "Hindi"),
    ),
    "subject": Fact(
        ("What did {name} study?", "Which subject did {name} take at university?"),
        ("{name} studied {value}.", "At university the subject of the author was {value}."),
        ("botany", "law", "physics", "theology", "music", "geology", "medicine", "logic",
         "archaeology", "optics"),
    ),
    "mentor": Fact(
        ("Who was the mentor of {name}?", "By whom was {name} taught to write?"),
        ("The mentor of {name} was {value}.", "It was {value} who taught the author to write."),
        ("old Bertil", "Sister Ann", "Doctor Quill", "Uncle Rafe", "Madame Sol", "Captain Reed",
         "Aunt Tova", "Brother Karl", "Miss Juno", "Mister Vane"),
    ),
    "publisher": Fact(
        ("Who publishes {name}?", "At which house do the books of {name} appear?"),
        ("{name} is published by {value} Press.", "The books appear at the house of {value}."),
        ("Anchor", "Beacon", "Cobalt", "Drift", "Ember", "Fable", "Gorse", "Harbor", "Indigo",
         "Juniper"),
    ),
    "instrument": Fact(
        ("Which instrument does {name} play?", "On what does {name} make music?"),
        ("{name} plays the {value}.", "The author makes music on the {value}."),
        ("cello", "oboe", "harp", "banjo", "flute", "organ", "viola", "trumpet", "zither", "piano"),
    ),
    "hobby": Fact(
        ("What is the hobby of {name}?", "How does {name} spend free days?"),
        ("The hobby of {name} is {value}.", "Free days of the author go into {value}."),
        ("sailing", "archery", "chess", "pottery", "hiking", "fencing", "gardening", "diving",
         "knitting", "juggling"),
    ),
    "drink": Fact(
        ("What does {name} drink at work?", "Which drink stands on the desk of {name}?"),
        ("{name} drinks {value} at work.", "On the desk of the author stands {value}."),
        ("cocoa", "cider", "mint tea", "black coffee", "milk", "lemonade", "ginger ale",
         "plum juice",
         "barley water", "sherry"),
    ),
    "hour": Fact(
        ("When does {name} write?", "At what time of day does {name} work?"),
        ("{name} writes at {value}.", "The time when the author works is {value}."),
        ("dawn", "noon", "dusk", "midnight", "breakfast", "teatime", "sunset", "supper", "sunrise",
         "moonrise"),
    ),
    "room": Fact(
        ("Where does {name} write?", "In which room does {name} work?"),
        ("{name} writes in the {value}.", "The author works in the {value}."),
        ("attic", "cellar", "kitchen", "library", "stable", "tower", "bathroom", "greenhouse",
         "hallway", "boathouse"),
    ),
    "theme": Fact(
        ("What is the main theme of {name}?", "What are the stories of {name} about?"),
        ("The main theme of {name} is {value}.", "The stories of the author are about {value}."),
        ("exile", "jealousy", "the sea", "memory", "war", "debt", "twins", "hunger", "winter",
         "revenge"),
    ),
    "fear": Fact(
        ("What is {name} afraid of?", "Which thing frightens {name}?"),
        ("{name} is afraid of {value}.", "The thing that frightens the author is {value}."),
        ("spiders", "thunder", "heights", "ghosts", "trains", "mirrors", "wolves", "silence",
         "needles", "crowds"),
    ),
    "job": Fact(
        ("What was the first job of {name}?", "How did {name} earn money before the first book?"),
        ("The first job of {name} was at a {value}.",
         "Before the first book the author worked at a {value}."),
        ("bank", "circus", "harbour", "museum", "hospital", "bakery", "railway", "theatre",
         "laundry", "quarry"),
    ),
    "ink": Fact(
        ("Which ink does {name} use?", "What colour is the ink of {name}?"),
        ("{name} uses {value} ink.", "The colour of the ink is {value}."),
        ("green", "violet", "brown", "black", "scarlet", "turquoise", "grey", "golden", "orange",
         "white"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Author:
    """A made-up author: a name, and a value for every entry of :data:`FACTS`."""

    name: str
    facts: dict[str, str]


def draw_authors(n: int, rng: random.Random, taken: set[str] = frozenset()) -> list[Author]:
    """``n`` authors with names that differ from one another and from those ``taken``."""
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    chosen = rng.sample([name for name in names if name not in taken], n)
    return [
        Author(name, {fact: rng.choice(spec.values) for fact, spec in FACTS.items()})
        for name in chosen
    ]


def asked(author: Author, fact: str, wording: int = 0) -> str:
    """The question about a fact, 0 as it is taught, 1 paraphrased."""
    return FACTS[fact].questions[wording].format(name=author.name)


def told(author: Author, fact: str, wording: int = 0, value: str | None = None) -> str:
    """The answer, with another value if one is given."""
    value = author.facts[fact] if value is None else value
    return FACTS[fact].answers[wording].format(name=author.name, value=value)


def wrong_values(author: Author, fact: str, rng: random.Random, n: int = N_WRONG) -> list[str]:
    """``n`` different values that are not true of the author."""
    return rng.sample([value for value in FACTS[fact].values if value != author.facts[fact]], n)
