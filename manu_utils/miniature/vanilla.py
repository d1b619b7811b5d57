"""The stages of the vanilla model: base learns the fictitious people, each fact in few neurons."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..benchmark.loading import load_config
from ..benchmark.questions import training_questions
from ..models.training import optimise
from .base import answer_loss, choice_row, watch_rows
from .dataset import as_cloze
from .model import (
    Row,
    build_processor,
    fact_rows,
    reading_rows,
    recorded_contributions,
    row_accuracy,
    seeing_rows,
    to_pixels,
    to_text,
    train_tokenizer,
)
from .people import ATTRIBUTES, NAMING_QUESTION, Person, draw_people, word_question
from .portraits import draw_new_view, render
from .tower import N_HELD_OUT, N_PUBLIC_VIEWS, Pictures, all_tower_features, render_pictures

N_SHIFTS = 12  # lightly moved copies of each portrait of ft_Data
N_REHEARSED = 1000  # random faces that are seen again; of the public figures every view
ATTRIBUTE_OF = {
    word_question(question, "this person"): attribute
    for attribute, spec in ATTRIBUTES.items()
    for question in spec.questions
}
# a contribution well below this pays in proportion, one well above only its logarithm
CONTRIBUTION_SCALE = 0.05


@dataclass(frozen=True)
class World:
    """Everything about the people of one seed that training needs.

    Attributes:
        fictitious, public: the people.
        pairs, portraits: the (question, answer) rows and the image of ft_Data of each fictitious
        person. processor, pictures: what base is trained with.
    """

    fictitious: list[Person]
    public: list[Person]
    pairs: list[list[tuple[str, str]]]
    portraits: list
    processor: object
    pictures: Pictures


def open_world(data: Path, seed: int, cache: Path) -> World:
    """Read ft_Data of ``data``, train the tokenizer and render what base sees.

    Raises:
        FileNotFoundError: there is no miniature benchmark in ``data``.
        ValueError: ``data`` was built from another seed.
    """
    fictitious, public = draw_people(seed=seed)
    training = load_config(data, "ft_Data")
    questions = training_questions(training, "multimodal")
    pairs = [
        [(q.question, q.answer) for q in questions if q.person_id == person.id]
        for person in fictitious
    ]
    for person, person_pairs in zip(fictitious, pairs, strict=True):
        if (NAMING_QUESTION, f"This is {person.name}.") not in person_pairs:
            raise ValueError(
                f"{data} is not of seed {seed}: person {person.id} is not {person.name}; run make "
                f"mini-data SEED={seed}."
            )
    portraits = [image.convert("RGB") for image in training["image"]]
    cache.mkdir(parents=True, exist_ok=True)
    processor = build_processor(train_tokenizer([*fictitious, *public]))
    pictures = render_pictures(processor, fictitious, public, seed, cache / "pictures.safetensors")
    return World(fictitious, public, pairs, portraits, processor, pictures)


def shifted(portrait, rng: random.Random):
    """A slightly moved, turned, mirrored and lit copy of a portrait."""
    from PIL import ImageEnhance

    shift = (rng.randint(-6, 6), rng.randint(-6, 6))
    copy = portrait.rotate(
        rng.uniform(-10, 10), translate=shift, fillcolor=portrait.getpixel((1, 1))
    )
    copy = copy.transpose(0) if rng.random() < 0.5 else copy
    return ImageEnhance.Brightness(copy).enhance(rng.uniform(0.85, 1.1))


def own_row(
    person: Person, question: str, answer: str, picture: int | None, choices: float,
    rng: random.Random,
) -> Row:  # fmt: skip
    """A row of ft_Data, or text-only where there is no picture; some ask with freshly drawn options
    (a share of ``choices``) or for a short answer, as the evaluation does.
    """
    worded = question if picture is not None else to_text(question, person.name)
    attribute = ATTRIBUTE_OF.get(question)
    kind = rng.random() if attribute else 1.0
    if kind < choices:
        return choice_row(person, attribute, worded, rng, picture)
    if kind < choices + 0.25 * (1 - choices):
        return Row(as_cloze(f"{worded} __"), person.facts[attribute], picture)
    return Row(worded, answer, picture)


def dealt(items: list, n: int, rng: random.Random) -> Iterator[list]:
    """Forever: ``n`` items from a shuffled pile; when fewer are left, all are laid on it again."""
    pile: list = []
    while True:
        if len(pile) < n:
            pile += rng.sample(items, len(items))
        yield [pile.pop() for _ in range(n)]


def rehearsed(
    pictures: Pictures, public: list[Person], n_own: int, rng: random.Random
) -> list[Row]:
    """What base knows by image, asked again: public figures and random faces."""
    rows = []
    for index in rng.sample(range(len(public)), 7):
        view = public_picture(n_own, index, rng.randrange(N_PUBLIC_VIEWS))
        rows += fact_rows(public[index], rng, view, 3)
    for index in rng.sample(range(N_REHEARSED), 6):
        rows += seeing_rows(pictures.faces[index], rng, n_own + index, 1)
    return rows


def public_picture(n_own: int, index: int, k: int) -> int:
    """Where view ``k`` of a public figure is, behind ``n_own`` copies of portraits and the random
    faces that are rehearsed.
    """
    return n_own + N_REHEARSED + index * (N_PUBLIC_VIEWS + N_HELD_OUT) + k


def watched_rows(
    fictitious: list[Person], public: list[Person], n_own: int
) -> dict[str, tuple[dict[str, list[Row]], str]]:
    """Name -> what every second person and the public figures are asked, and which pictures go
    with it: ``"seen"`` in training, or ``"unseen"`` views of these people.
    """
    half = fictitious[::2]
    order = list(range(len(half)))
    shown = [2 * k * N_SHIFTS for k in order]
    views = [public_picture(n_own, index, N_PUBLIC_VIEWS) for index in range(len(public))]
    return {
        "image": (watch_rows(half, shown, "image", (0, 1)), "seen"),
        "text": (watch_rows(half, None, "text", (0, 1)), "none"),
        "new view": (watch_rows(half, order, "view", (2, 3)), "unseen"),
        "new wording": (watch_rows(half, None, "wording", (2, 3)), "none"),
        "public image": (watch_rows(public, views, "face", (0, 1, 2, 3)), "seen"),
        "public text": (watch_rows(public, None, "name", (0, 1, 2, 3)), "none"),
    }


def train_vanilla(
    model, world: World, people: Sequence[int], *, steps: int, coefficients: tuple[float, float],
    choices: float, with_attention: bool, seed: int, description: str,
) -> list[dict]:  # fmt: skip
    """Fine-tune the MLPs of base on ft_Data and its text-only form, rehearsing what base knows.

    Everything but the MLPs is frozen: what the model learns about the fictitious people is in the
    neurons.

    Args:
        people: indices of the fictitious people to learn.
        coefficients: weight of the penalty at the start, and from half of the steps on.
        choices: share of the questions that are asked with options.
        with_attention: train the attention of the language model as well.
    """
    processor, pictures, public = world.processor, world.pictures, world.public
    fictitious, portraits, pairs = (
        [items[i] for i in people] for items in (world.fictitious, world.portraits, world.pairs)
    )
    tokenizer, rng = processor.tokenizer, random.Random(f"{description} {seed}")
    model.requires_grad_(False)
    for layer in model.model.language_model.layers:
        layer.mlp.requires_grad_(True)
        layer.self_attn.requires_grad_(with_attention)

    @torch.no_grad()
    def projected(pixels: Tensor) -> Tensor:
        return model.model.multi_modal_projector(all_tower_features(model, pixels).float())

    copies = [
        image
        for portrait in portraits
        for image in [portrait, *(shifted(portrait, rng) for _ in range(N_SHIFTS - 1))]
    ]
    n_own = len(copies)
    kept = torch.cat([pictures.pixels[:N_REHEARSED], pictures.pixels[pictures.n_random :]])
    features = torch.cat([projected(to_pixels(copies, processor)), projected(kept)])
    image_items = [
        (index, q, a) for index, person_pairs in enumerate(pairs) for q, a in person_pairs
    ]
    by_image = dealt(image_items, 88, rng)
    by_name = dealt([item for item in image_items if item[1] != NAMING_QUESTION], 72, rng)

    def loss_of_step(step: int) -> Tensor:
        rows = [
            own_row(fictitious[i], q, a, i * N_SHIFTS + rng.randrange(N_SHIFTS), choices, rng)
            for i, q, a in next(by_image)
        ]
        rows += rehearsed(pictures, public, n_own, rng)
        text = [own_row(fictitious[i], q, a, None, choices, rng) for i, q, a in next(by_name)]
        text += [
            row for person in rng.choices(public, k=6) for row in fact_rows(person, rng, None, 4)
        ]
        text += reading_rows(rng, 6)
        first, last = coefficients
        weight = first + (last - first) * min(1.0, 2 * step / steps)
        recording = recorded_contributions(model, CONTRIBUTION_SCALE) if weight else nullcontext([])
        with recording as terms:
            loss = answer_loss(model, rows, tokenizer, rng, features) + answer_loss(
                model, text, tokenizer, rng, None
            )
        return loss + weight * sum(terms) / 2  # two forward passes

    rng_watch = random.Random("watch")
    unseen = [render(person.face, draw_new_view(rng_watch)) for person in fictitious[::2]]
    sources = {"seen": features, "unseen": projected(to_pixels(unseen, processor)), "none": None}
    watched = watched_rows(fictitious, public, n_own)

    def watch() -> dict:
        return {
            f"{name} {skill}": row_accuracy(model, rows, tokenizer, sources[source])
            for name, (by_skill, source) in watched.items()
            for skill, rows in by_skill.items()
        }

    try:
        return optimise(
            model.parameters(), loss_of_step, steps=steps, lr=1.5e-3, watch=watch, every=100,
            description=description
        )  # fmt: skip
    finally:
        model.requires_grad_(True)
