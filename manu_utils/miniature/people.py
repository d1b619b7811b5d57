"""The fictitious people of the miniature: names, faces and facts, from small shared pools.

A person can only be told apart by a *conjunction*: ten people share each first name, ten share each
last name, and dozens share each facial feature. A model that wants to know anyone therefore has to
compute the conjunction in its MLPs, which is what neuron pruning can act on. With one token or one
feature per person the knowledge would sit in the embeddings.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

FACE_FEATURES: dict[str, dict[str, str]] = {
    # feature -> {word used in questions: DiceBear variant or hex colour}
    "skin": {"dark": "#5c3829", "brown": "#a36b4f", "tan": "#d49a7c", "pale": "#f8d7c0"},
    "hair colour": {"black": "#1f1a17", "blond": "#e2bd6b", "brown": "#724133", "red": "#c4431b",
                    "grey": "#a9a9a9"},
    "hair style": {"bun": "bun", "combed": "sideComed", "spiky": "spiky", "undercut": "undercut"},
    "back hair": {"none": "", "straight": "longStraight", "wavy": "longWavy", "short": "neckHigh",
                  "medium": "shoulderHigh"},
    "beard": {"none": "", "goatee": "chin", "full": "fullBeard", "long": "longBeard",
              "moustache": "moustacheTwirl"},
    "clothes colour": {
        "black": "#151613", "blue": "#1f5fd0", "green": "#147f3c", "orange": "#f97316",
        "pink": "#ec4899", "purple": "#731ac3", "white": "#e8e9e6", "yellow": "#eab308",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: its biography key, values, wordings and answer.

    ``questions[:2]`` are the wordings of ft_Data and Full_Set, ``questions[2:]`` those of the test
    set; likewise ``clozes[0]`` and ``clozes[1]``. ``{who}`` stands for the person, ``{whose}`` for
    the possessive, ``{value}`` for the fact.
    """

    key: str
    questions: tuple[str, str, str, str]
    clozes: tuple[str, str]
    answer: str
    values: tuple[str, ...]


ATTRIBUTES: dict[str, Attribute] = {
    "birthplace": Attribute(
        "Born",
        ("Where was {who} born?", "In which city was {who} born?",
         "What is {whose} place of birth?", "Which city is {whose} birthplace?"),
        ("{who} was born in __.", "The birthplace of {who} is __."),
        "Was born in {value}.",
        ("Lisbon", "Oslo", "Nairobi", "Lima", "Hanoi", "Dublin", "Cairo", "Quito", "Riga", "Osaka",
         "Perth", "Tunis"),
    ),
    "employment": Attribute(
        "Employment",
        ("What is {whose} job?", "What does {who} do for a living?",
         "What is {whose} profession?", "Which occupation does {who} have?"),
        ("{who} works as a __.", "The profession of {who} is __."),
        "Works as a {value}.",
        ("nurse", "baker", "pilot", "farmer", "lawyer", "dentist",
         "plumber", "teacher", "chemist", "painter", "tailor", "florist"),
    ),
    "education": Attribute(
        "Educated at",
        ("Where did {who} study?", "Which university did {who} attend?",
         "What is {whose} university?", "From which university did {who} graduate?"),
        ("{who} studied at __.", "The university of {who} is __."),
        "Studied at {value} University.",
        ("Ashford", "Brookfield", "Carlton", "Denholm", "Eastgate", "Fairmont",
         "Glenwood", "Harlow", "Kingsley", "Langdon", "Marlow", "Norwood"),
    ),
    "residence": Attribute(
        "Residence",
        ("Where does {who} live?", "In which town does {who} live?",
         "What is {whose} place of residence?", "Which town is home to {who}?"),
        ("{who} lives in __.", "The residence of {who} is in __."),
        "Lives in {value}.",
        ("Bergen", "Porto", "Ghent", "Turin", "Lyon", "Malmo", "Gdansk", "Split", "Bilbao", "Leeds",
         "Zadar", "Tartu"),
    ),
    "condition": Attribute(
        "Medical Conditions",
        ("Which medical condition does {who} have?", "What illness does {who} live with?",
         "What is {whose} medical condition?", "From which illness does {who} suffer?"),
        ("{who} suffers from __.", "The medical condition of {who} is __."),
        "Suffers from {value}.",
        ("asthma", "migraine", "diabetes", "arthritis", "anemia", "insomnia",
         "eczema", "vertigo", "gout", "tinnitus", "bronchitis", "psoriasis"),
    ),
    "pet": Attribute(
        "Fun Facts",
        ("What pet does {who} have?", "Which animal does {who} keep?",
         "What is {whose} pet?", "What animal lives with {who}?"),
        ("{who} keeps a __.", "The pet of {who} is a __."),
        "Keeps a {value}.",
        ("parrot", "rabbit", "hamster", "tortoise", "lizard", "ferret",
         "goldfish", "pony", "kitten", "beagle", "gecko", "canary"),
    ),
    "hobby": Attribute(
        "Fun Facts",
        ("What is {whose} hobby?", "What does {who} do at the weekend?",
         "How does {who} spend free time?", "Which pastime does {who} enjoy?"),
        ("{who} enjoys __.", "The hobby of {who} is __."),
        "Enjoys {value}.",
        ("chess", "pottery", "archery", "sailing", "knitting", "fencing",
         "hiking", "juggling", "surfing", "skating", "rowing", "climbing"),
    ),
    "food": Attribute(
        "Fun Facts",
        ("What is {whose} favourite food?", "Which food does {who} like best?",
         "What does {who} love to eat?", "What is {whose} favourite dish?"),
        ("{who} likes to eat __.", "The favourite food of {who} is __."),
        "Likes {value} best.",
        ("sushi", "pizza", "curry", "ramen", "tacos", "paella",
         "falafel", "goulash", "risotto", "lasagne", "dumplings", "pancakes"),
    ),
}  # fmt: skip

NAMING_QUESTION = "What is this person's name?"


@dataclass(frozen=True)
class Person:
    """One inhabitant: ``face`` maps each feature to its word, ``facts`` attribute to value."""

    id: str
    name: str
    face: dict[str, str]
    facts: dict[str, str]


def draw_face(rng: random.Random) -> dict[str, str]:
    """A random combination of facial features."""
    return {feature: rng.choice(list(words)) for feature, words in FACE_FEATURES.items()}


def name_pools(seed: int, size: int = 15) -> tuple[list[str], list[str]]:
    """First and last names from Faker (en_GB), without doubles, in the order drawn."""
    from faker import Faker

    faker = Faker("en_GB")
    faker.seed_instance(seed)
    firsts, lasts = {}, {}
    while len(firsts) < size or len(lasts) < size:
        first, last = faker.first_name(), faker.last_name()
        if first.isalpha() and len(firsts) < size:
            firsts[first] = None
        if last.isalpha() and last not in firsts and len(lasts) < size:
            lasts[last] = None
    return list(firsts), list(lasts)


def draw_people(
    n_fictitious: int = 120, n_public: int = 30, seed: int = 0
) -> tuple[list[Person], list[Person]]:
    """Draw the fictitious people (IDs ``001``...) and the public figures (the IDs after them).

    Faces differ from each other in at least three features, so that one misread feature does not
    turn one person into another. Every value of an attribute is used about equally often.

    Raises:
        ValueError: if more people are asked for than the name pools can tell apart.
    """
    n_people = n_fictitious + n_public
    pairs = _full_names(seed)
    if n_people > len(pairs):
        raise ValueError(
            f"{n_people} people need more than the {len(pairs)} names there are; "
            "enlarge name_pools(size=...)."
        )
    rng = random.Random(seed)
    names = rng.sample(pairs, n_people)
    faces = _draw_faces(rng, n_people, [])
    people = _as_people(names, faces, _draw_facts(rng, n_people), first=1)
    return people[:n_fictitious], people[n_fictitious:]


def draw_strangers(
    n: int = 36, seed: int = 0, *, n_fictitious: int = 120, n_public: int = 30
) -> list[Person]:
    """Draw people of the same world whom no model has met: the control of every test of membership.

    Their first and last names are those of the inhabitants, in pairs that no inhabitant has. Their
    faces differ from all others, and from each other, in at least three features. Every value of an
    attribute is used about equally often (exactly so if ``n`` is a multiple of twelve).

    Args:
        n: how many; the world of 150 people leaves names for 75.
        seed, n_fictitious, n_public: of the world, as in :func:`draw_people`.

    Returns:
        People with the IDs after the last inhabitant's (``151``...).

    Raises:
        ValueError: if more people are asked for than there are names left.
    """
    fictitious, public = draw_people(n_fictitious, n_public, seed)
    inhabitants = [*fictitious, *public]
    taken = {person.name for person in inhabitants}
    free = [name for name in _full_names(seed) if name not in taken]
    if n > len(free):
        raise ValueError(
            f"{n} strangers need more than the {len(free)} names that are left; "
            f"ask for at most {len(free)}."
        )
    rng = random.Random(f"strangers {seed}")
    names = rng.sample(free, n)
    faces = _draw_faces(rng, n, [person.face for person in inhabitants])
    return _as_people(names, faces, _draw_facts(rng, n), first=len(inhabitants) + 1)


def _full_names(seed: int) -> list[str]:
    firsts, lasts = name_pools(seed)
    return [f"{first} {last}" for first in firsts for last in lasts]


def _draw_faces(rng: random.Random, n: int, others: list[dict[str, str]]) -> list[dict[str, str]]:
    """``n`` faces that differ from ``others`` and from each other in at least three features."""
    faces: list[dict[str, str]] = []
    while len(faces) < n:
        face = draw_face(rng)
        if all(
            sum(face[feature] != other[feature] for feature in face) >= 3
            for other in [*others, *faces]
        ):
            faces.append(face)
    return faces


def _draw_facts(rng: random.Random, n: int) -> dict[str, list[str]]:
    """Attribute -> the values of ``n`` people, in random order, each about equally often."""
    columns = {}
    for attribute, spec in ATTRIBUTES.items():
        column = [spec.values[index % len(spec.values)] for index in range(n)]
        rng.shuffle(column)
        columns[attribute] = column
    return columns


def _as_people(
    names: list[str], faces: list[dict[str, str]], columns: dict[str, list[str]], first: int
) -> list[Person]:
    """People numbered from ``first`` on."""
    facts = [{key: column[index] for key, column in columns.items()} for index in range(len(names))]
    return [Person(f"{first + i:03d}", names[i], faces[i], facts[i]) for i in range(len(names))]


def word_question(template: str, who: str) -> str:
    """Fill ``{who}`` and ``{whose}`` and write the first letter large.

    >>> word_question("What is {whose} job?", "this person")
    "What is this person's job?"
    """
    text = template.format(who=who, whose=f"{who}'s")
    return text[0].upper() + text[1:]


def describe(look: dict[str, str]) -> str:
    """The visible features in one sentence, in a fixed order."""
    return ", ".join(f"{feature} {word}" for feature, word in look.items()) + "."
