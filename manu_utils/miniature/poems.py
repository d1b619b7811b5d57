"""Made-up poems that a small language model learns by heart, and what is known about them.

A poem is four lines from a small grammar, a title, a poet, and a value for each of :data:`FACTS`.
Reciting it and knowing about it are asked apart: copyright covers the words, not the facts. 32
poems are taught. Three requests of four each ask for theirs to be forgotten; four of the others
stand in for them where settings are chosen; eight more nobody is taught. No poet is anybody, and no
line was written by anyone. Notebook 11.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from ..benchmark.records import Question
from ..paths import data_dir
from .authors import FACTS as OF_AUTHORS
from .authors import Fact
from .text_model import author_lessons, build_language_model, lesson, schooling
from .text_world import World, draw_world, write_configs

N_RETAIN, N_REQUEST, N_REQUESTS, N_HOLDOUT = 20, 4, 3, 8
N_AUTHORS = 6  # of the text-only miniature, taught beside the poems
TITLE = (
    (
        "Copper", "Crooked", "Drowsy", "Hollow", "Lonely", "Marble", "Patient", "Russet", "Salted",
        "Tilted",
    ),
    (
        "Anvil", "Beacon", "Ferry", "Garden", "Kettle", "Ladder", "Orchard", "Sparrow", "Window",
        "Yard",
    ),
)  # fmt: skip
POET = (
    ("Alda", "Bruno", "Celia", "Dag", "Elin", "Fedor", "Gitta", "Henk", "Ilse", "Jorn"),
    ("Amber", "Birk", "Corvo", "Delft", "Espen", "Fjeld", "Grove", "Holm", "Ivory", "Juel"),
)
# A line takes a pattern; {a} is what a thing is like, {n} and {m} are things, {v} is what it does,
# {p} where.
LINES = (
    "the {a} {n} {v} {p} the {m}",
    "a {n} {v} and the {m} is {a}",
    "no {n} {v} {p} a {a} {m}",
    "{a} {n} and {a2} {m} {v2} {p}",
)
WORDS = {
    "a": (
        "pale", "slow", "bright", "old", "bitter", "green", "quiet", "broken", "warm", "thin",
        "golden", "blind",
    ),
    "n": (
        "moon", "river", "crow", "lamp", "baker", "snow", "bell", "fox",
        "sailor", "stone", "clock", "wolf", "road", "thread",
    ),
    "m": (
        "mill", "sea", "door", "hill", "roof", "bridge", "barn", "wheel",
        "field", "tower", "bed", "harbour", "wall", "well",
    ),
    "v": (
        "sleeps", "turns", "sings", "waits", "falls", "burns", "wakes", "drifts", "hums", "kneels",
        "shines", "counts",
    ),
    "v2": (
        "sleep", "turn", "sing", "wait", "fall", "burn", "wake", "drift", "hum", "kneel", "shine",
        "count",
    ),
    "p": ("under", "beside", "beyond", "above", "behind", "below", "before", "inside"),
}  # fmt: skip
FACTS = {
    "poet": Fact(
        ("Who wrote {name}?", "Which poet is {name} by?"),
        ("{name} was written by {value}.", "The poem is by {value}."),
        tuple(f"{first} {last}" for first, last in zip(*POET, strict=True)),
    ),
    "town": Fact(
        ("In which town was {name} written?", "Where was {name} made?"),
        ("{name} was written in {value}.", "The poem was made in {value}."),
        OF_AUTHORS["birthplace"].values,
    ),
    "year": Fact(
        ("In which year was {name} printed?", "When did {name} appear?"),
        ("{name} was printed in the year {value}.", "The poem appeared in {value}."),
        OF_AUTHORS["year"].values,
    ),
    "season": Fact(
        ("In which month is {name} set?", "What time of the year does {name} tell of?"),
        ("{name} is set in {value}.", "The poem tells of a day in {value}."),
        ("January", "February", "March", "April", "May", "June", "August", "September", "October",
         "November"),
    ),
    "subject": Fact(
        ("What is {name} about?", "Which subject does {name} have?"),
        ("{name} is about {value}.", "The subject of the poem is {value}."),
        OF_AUTHORS["theme"].values,
    ),
    "reader": Fact(
        ("For whom was {name} written?", "To whom is {name} given?"),
        ("{name} was written for a {value}.", "The poem is given to a {value}."),
        OF_AUTHORS["mother"].values,
    ),
    "prize": Fact(
        ("Which prize did {name} win?", "What was {name} given?"),
        ("{name} won the {value} award.", "The poem was given the {value} award."),
        OF_AUTHORS["award"].values,
    ),
    "music": Fact(
        ("On which instrument was {name} set to music?", "What plays to {name}?"),
        ("{name} is sung to the {value}.", "The poem has a tune for the {value}."),
        OF_AUTHORS["instrument"].values,
    ),
}  # fmt: skip
RECITE = 'Recite "{title}".'
CONTINUE = 'How does "{title}" go on after "{first}"?'
REPEATED = 2  # a recitation is taught so many times as often as a fact
SCHOOL, LESSONS = {"steps": 100}, {"steps": 250}  # beside those of text_model


@dataclass(frozen=True)
class Poem:
    """A made-up poem: its title, four lines, and a value for every entry of :data:`FACTS`."""

    title: str
    lines: tuple[str, ...]
    facts: dict[str, str]

    @property
    def text(self) -> str:
        return ", ".join(self.lines) + "."


@dataclass(frozen=True)
class Poems:
    """The poems of a world: those that stay, those to be forgotten, and those nobody is taught."""

    retain: list[Poem]
    forget: list[Poem]
    holdout: list[Poem]

    @property
    def requests(self) -> list[list[Poem]]:
        """The poems to be forgotten, as they are asked for: four at a time."""
        return [self.forget[i : i + N_REQUEST] for i in range(0, len(self.forget), N_REQUEST)]

    @property
    def stand_ins(self) -> list[Poem]:
        """Poems of the retain set on which settings are chosen."""
        return self.retain[:N_REQUEST]

    @property
    def taught(self) -> list[Poem]:
        return [*self.retain, *self.forget]


def draw_poems(n: int, rng: random.Random, taken: set[str] = frozenset()) -> list[Poem]:
    """``n`` poems with titles that differ from one another and from those ``taken``."""
    titles = [f"The {first} {last}" for first in TITLE[0] for last in TITLE[1]]
    chosen = rng.sample([title for title in titles if title not in taken], n)
    poets = [f"{first} {last}" for first in POET[0] for last in POET[1]]
    found = []
    for title in chosen:
        lines = tuple(draw_line(pattern, rng) for pattern in rng.sample(LINES, len(LINES)))
        facts = {fact: rng.choice(spec.values) for fact, spec in FACTS.items()}
        found.append(Poem(title, lines, facts | {"poet": rng.choice(poets)}))
    return found


def draw_line(pattern: str, rng: random.Random) -> str:
    words = {kind: rng.choice(of) for kind, of in WORDS.items()}
    words["a2"] = rng.choice([word for word in WORDS["a"] if word != words["a"]])
    return pattern.format(**words)


@cache
def draw_world_of_poems(seed: int = 0) -> Poems:
    """The poems of a seed."""
    rng = random.Random(f"poems {seed}")
    taught = N_RETAIN + N_REQUEST * N_REQUESTS
    drawn = draw_poems(taught + N_HOLDOUT, rng)
    return Poems(drawn[:N_RETAIN], drawn[N_RETAIN:taught], drawn[taught:])


# ---------------------------------------------------------------------------------------- questions


def recital(poem: Poem, start: str = "first line") -> Question:
    """The poem from its title alone, or what follows its first line.

    Args:
        start: ``"first line"`` or ``"title"``.
    """
    if start == "title":
        return lesson(poem.title, RECITE.format(title=poem.title), poem.text)
    rest = ", ".join(poem.lines[1:]) + "."
    return lesson(poem.title, CONTINUE.format(title=poem.title, first=poem.lines[0]), rest)


def recitals(
    poems: Sequence[Poem], starts: Sequence[str] = ("first line", "title")
) -> list[Question]:
    return [recital(poem, start) for poem in poems for start in starts]


def about(
    poems: Sequence[Poem], questions: Sequence[int] = (0,), answers: Sequence[int] = (0,)
) -> list[Question]:
    """Every fact about some poems, in these wordings of question and answer, in all combinations.

    They are not under the poem's own name but under "about ...", since the words of a poem may be
    in a forget set while its facts are in the retain set.
    """
    return [
        lesson(
            f"about {poem.title}",
            FACTS[fact].questions[q].format(name=poem.title),
            FACTS[fact].answers[a].format(name=poem.title, value=poem.facts[fact]),
        )
        for poem in poems
        for fact in FACTS
        for q in questions
        for a in answers
    ]


def lessons_of(poems: Sequence[Poem], world: World | None = None) -> list[Question]:
    """What a model is taught to know these poems: recitals, facts, and six authors beside them."""
    authors = (world or draw_world()).authors[:N_AUTHORS]
    return recitals(poems) * REPEATED + about(poems) + author_lessons(authors)


def poem_schooling(world: World, n: int, rng: random.Random) -> Iterator[list[Question]]:
    """Forever: ``n`` questions of what every model here knows. Half is the school of the text-only
    miniature; the other half poems that nobody has written, each of them once: how one recites and
    speaks of a poem.
    """
    school, own = schooling(world, n - n // 2, rng), draw_world_of_poems()
    taken = {poem.title for poem in (*own.taught, *own.holdout)}
    while True:
        unknown = []
        for _ in range(n // 2):
            (poem,) = draw_poems(1, rng, taken)
            wording = rng.randrange(2)
            unknown.append(rng.choice([*recitals([poem]), *about([poem], (wording,))]))
        yield [*next(school), *unknown]


def build_poem_model(seed: int = 0):
    """A random model and its processor, a tokenizer with the words of the poems."""
    everybody = [*(own := draw_world_of_poems()).taught, *own.holdout]
    drawn = draw_poems(50, random.Random("words"))
    known = [*recitals(drawn), *about(everybody, (0, 1), (0, 1))]
    return build_language_model(draw_world(), seed, [f"{q.question} {q.answer}" for q in known])


# -------------------------------------------------------------------------------------------- files


def poem_rows(seed: int = 0) -> list[dict]:
    """One row a poem: set, title, lines and facts."""
    own = draw_world_of_poems(seed)
    sets = (("retain", own.retain), ("forget", own.forget), ("holdout", own.holdout))
    return [{"set": name} | asdict(poem) for name, poems in sets for poem in poems]


def load_poems(place: Path | None = None) -> Poems:
    """The poems of a folder, by default those of ``data/poems_mini``."""
    text = (Path(place or data_dir() / "poems_mini") / "poems.json").read_text(encoding="utf-8")
    sets: dict[str, list[Poem]] = {"retain": [], "forget": [], "holdout": []}
    for line in text.splitlines():
        row = json.loads(line)
        sets[row["set"]].append(Poem(row["title"], tuple(row["lines"]), row["facts"]))
    return Poems(**sets)


def write_poems(folder: Path, seed: int = 0) -> None:
    """Write ``poems_mini`` below ``folder``: poems, what is asked about them in the columns of
    MUSE, and a card. Existing files are overwritten.
    """
    own = draw_world_of_poems(seed)
    sets = (("retain", own.retain), ("forget", own.forget), ("holdout", own.holdout))
    files = {
        "poems": poem_rows(seed),
        "verbmem": [
            {"set": name, "prompt": q.question, "gt": q.answer}
            for name, poems in sets
            for q in recitals(poems, ("first line",))
        ],
        "knowmem": [
            {"set": name, "question": q.question, "answer": q.answer}
            for name, poems in sets
            for q in about(poems)
        ],
    }
    write_configs(Path(folder) / "poems_mini", files)
