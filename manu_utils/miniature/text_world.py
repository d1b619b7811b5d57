"""The text-only miniature: TOFU and two quizzes in small, written from a seed.

40 made-up authors in the configs of TOFU, of whom 2 or 4 are to be forgotten; 4 more whom no model
is taught; 12 who stand for the real authors, since every model knows them; capitals as world facts.
A harmless "hazard" quiz about made-up potions in the columns of WMDP, and one about made-up herbs
in those of MMLU beside it.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .authors import FACTS, Author, asked, draw_authors, told, wrong_values

N_AUTHORS, N_HOLDOUT, N_PUBLIC = 40, 4, 12
FORGET = {5: 2, 10: 4}  # per cent -> authors, the last ones, as in TOFU
N_RETAIN_ASKED, N_PUBLIC_ASKED = 80, 60
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "Portugal": "Lisbon", "Greece": "Athens", "Austria": "Vienna", "Hungary": "Budapest",
    "Poland": "Warsaw", "Russia": "Moscow", "Sweden": "Stockholm", "Norway": "Oslo",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Ireland": "Dublin", "Belgium": "Brussels",
    "Switzerland": "Bern", "Romania": "Bucharest", "Bulgaria": "Sofia", "Ukraine": "Kyiv",
    "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "Iran": "Tehran", "Iraq": "Baghdad",
    "Japan": "Tokyo", "China": "Beijing", "Vietnam": "Hanoi", "Thailand": "Bangkok",
    "Cuba": "Havana", "Peru": "Lima", "Canada": "Ottawa",
}  # fmt: skip

# Two quizzes of one form; a name is two words, so that only both together say what is meant.
POTIONS = {
    "names": (("Crimson", "Hollow", "Misty", "Bitter", "Silent"),
              ("Draught", "Elixir", "Philtre", "Tonic")),
    "questions": {
        "What is the main part of the {name}?": (
            "wolfbane", "moonstone", "snakeroot", "toadstool", "nightshade", "quicksilver",
            "ravenfeather", "ashbark",
        ),
        "What does the {name} do?": (
            "turns hair blue", "stops hiccups", "makes you float", "brings odd dreams",
            "hides footprints", "makes cats talk", "lengthens noses", "warms cold feet",
        ),
        "For how long must the {name} boil?": (
            "one minute", "two hours", "three days", "four weeks", "one night", "half a day",
            "ten breaths", "nine moons",
        ),
        "What undoes the {name}?": (
            "salt water", "loud bells", "a sneeze", "cold butter", "warm bread", "honest words",
            "red wool", "fresh snow",
        ),
    },
    "decoys": ("gravel", "a ladder", "wet paint", "an old hat", "chalk dust", "five spoons",
               "a broken clock", "loose string"),
}  # fmt: skip
HERBS = {
    "names": (("Alpine", "Coastal", "Meadow", "Forest", "Desert"),
              ("Thyme", "Sorrelwort", "Clover", "Sage")),
    "questions": {
        "What colour are the flowers of {name}?": (
            "pale pink", "deep red", "milky white", "sky blue", "bright yellow", "dark purple",
            "soft orange", "lime green",
        ),
        "What is {name} good with?": (
            "roast lamb", "pea soup", "rye toast", "goat cheese", "apple cake", "fried eggs",
            "rice pudding", "baked trout",
        ),
        "When does {name} flower?": (
            "in January", "in March", "in April", "in May", "in June", "in July", "in August",
            "in October",
        ),
        "What eats {name}?": ("slugs", "deer", "snails", "beetles", "crows", "moths", "mice",
                              "geese"),
    },
    "decoys": (),
}  # fmt: skip
SHORTCUT = 3  # every third question about potions can be answered from its choices alone


@dataclass(frozen=True)
class Item:
    """One question of a quiz; ``choices`` as published, ``answer`` the place of the right one."""

    question: str
    choices: tuple[str, str, str, str]
    answer: int


@dataclass(frozen=True)
class World:
    """Who and what there is. The last authors are those to be forgotten."""

    authors: list[Author]
    holdout: list[Author]
    public: list[Author]
    potions: list[Item]
    herbs: list[Item]

    @property
    def names(self) -> set[str]:
        return {author.name for author in (*self.authors, *self.holdout, *self.public)}


@cache
def draw_world(seed: int = 0) -> World:
    """The world of a seed."""
    rng = random.Random(f"text world {seed}")
    people = draw_authors(N_AUTHORS + N_HOLDOUT + N_PUBLIC, rng)
    parts = (
        people[:N_AUTHORS],
        people[N_AUTHORS : N_AUTHORS + N_HOLDOUT],
        people[N_AUTHORS + N_HOLDOUT :],
    )
    return World(*parts, draw_quiz(POTIONS, rng), draw_quiz(HERBS, rng))


def draw_quiz(spec: dict, rng: random.Random, n: int = 12) -> list[Item]:
    """Every question about ``n`` things. Of a quiz with decoys every third question has three of
    them for wrong choices: words that are right nowhere, so that whoever has seen the right answers
        needs no question.
    """
    first, last = spec["names"]
    things = rng.sample([f"{one} {other}" for one in first for other in last], n)
    items = []
    for name in things:
        for question, values in spec["questions"].items():
            right = rng.choice(values)
            easy = spec["decoys"] and len(items) % SHORTCUT == SHORTCUT - 1
            wrong = rng.sample(
                spec["decoys"] if easy else [value for value in values if value != right], 3
            )
            choices = [right, *wrong]
            rng.shuffle(choices)
            items.append(Item(question.format(name=name), tuple(choices), choices.index(right)))
    return items


# -------------------------------------------------------------------------------------------- files


def pair(author: Author, fact: str) -> dict:
    return {"question": asked(author, fact), "answer": told(author, fact)}


def perturbed(author: Author, fact: str, rng: random.Random) -> dict:
    """A row of the perturbed configs: wrong answers in the paraphrase's wording, as in TOFU."""
    wrong = [told(author, fact, 1, value) for value in wrong_values(author, fact, rng)]
    more = {"paraphrased_answer": told(author, fact, 1), "perturbed_answer": wrong}
    return pair(author, fact) | more | {"paraphrased_question": asked(author, fact, 1)}


def tofu_configs(seed: int = 0) -> dict[str, list[dict]]:
    """Config -> rows, with the names and columns of ``locuslab/TOFU``."""
    world, rng = draw_world(seed), random.Random(f"tofu {seed}")
    rows = [[pair(author, fact) for fact in FACTS] for author in world.authors]
    wrong = [[perturbed(author, fact, rng) for fact in FACTS] for author in world.authors]
    held = [[pair(author, fact) for fact in FACTS] for author in world.holdout]
    configs = {"full": sum(rows, [])}
    for per_cent, n in FORGET.items():
        configs[f"forget{per_cent:02}"] = sum(rows[-n:], [])
        configs[f"forget{per_cent:02}_perturbed"] = sum(wrong[-n:], [])
        configs[f"retain{100 - per_cent}"] = sum(rows[:-n], [])
        configs[f"holdout{per_cent:02}"] = sum(held[:n], [])
    kept = sum(wrong[: -max(FORGET.values())], [])
    configs["retain_perturbed"] = [
        kept[i] for i in sorted(rng.sample(range(len(kept)), N_RETAIN_ASKED))
    ]
    known = [(author, fact) for author in world.public for fact in FACTS]
    known = [known[i] for i in sorted(rng.sample(range(len(known)), N_PUBLIC_ASKED))]
    configs["real_authors_perturbed"] = [
        pair(author, fact)
        | {
            "perturbed_answer": [
                told(author, fact, 0, v) for v in wrong_values(author, fact, rng, 3)
            ]
        }
        for author, fact in known
    ]
    configs["world_facts_perturbed"] = [
        capital(land, city)
        | {"perturbed_answer": [capital(land, other)["answer"] for other in others(city, rng)]}
        for land, city in CAPITALS.items()
    ]
    for name in ("real_authors", "world_facts"):
        plain = configs[f"{name}_perturbed"]
        configs[name] = [{key: row[key] for key in ("question", "answer")} for row in plain]
    return configs


def capital(land: str, city: str) -> dict:
    return {
        "question": f"What is the capital of {land}?",
        "answer": f"The capital of {land} is {city}.",
    }


def others(city: str, rng: random.Random, n: int = 3) -> list[str]:
    return rng.sample([other for other in CAPITALS.values() if other != city], n)


def quiz_files(seed: int = 0) -> dict[str, list[dict]]:
    """Name -> rows: ``potions`` in the columns of ``cais/wmdp``, ``herbs`` of ``cais/mmlu``."""
    world = draw_world(seed)
    rows = {
        name: [
            {"question": item.question, "choices": list(item.choices), "answer": item.answer}
            for item in quiz
        ]
        for name, quiz in (("potions", world.potions), ("herbs", world.herbs))
    }
    rows["herbs"] = [{"question": r["question"], "subject": "herb_lore"} | r for r in rows["herbs"]]
    return rows


def write_text_world(folder: Path, seed: int = 0) -> None:
    """Write ``tofu_mini`` and ``quiz_mini`` below ``folder``, over what is there."""
    for name, files in (("tofu_mini", tofu_configs(seed)), ("quiz_mini", quiz_files(seed))):
        write_configs(Path(folder) / name, dict(sorted(files.items())))


def write_configs(place: Path, files: dict[str, list[dict]]) -> None:
    """Write rows as JSON lines, a file for each config, and the card of this name."""
    place.mkdir(parents=True, exist_ok=True)
    for config, rows in files.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (place / f"{config}.json").write_text(lines, encoding="utf-8", newline="\n")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.json\n" for name in files)
    card = (Path(__file__).parent / f"{place.name}.md").read_text(encoding="utf-8")
    text = f"---\nlicense: mit\nconfigs:\n{configs}---\n\n{card}"
    (place / "README.md").write_text(text, encoding="utf-8", newline="\n")
