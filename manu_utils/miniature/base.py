"""The stages of the base model: it learns to read options, to see, and the public figures."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.training import optimise
from .dataset import as_choice, draw_options
from .model import (
    Row,
    answer_logits,
    encode_rows,
    fact_rows,
    matching_rows,
    reading_rows,
    row_accuracy,
    seeing_rows,
)
from .people import ATTRIBUTES, NAMING_QUESTION, Person, word_question
from .tower import N_PUBLIC_VIEWS, Pictures, all_tower_features


def answer_loss(
    model, rows: list[Row], tokenizer, rng: random.Random, features: Tensor | None
) -> Tensor:
    """Mean cross-entropy over the answer tokens of some rows."""
    logits, targets, _ = answer_logits(model, encode_rows(rows, tokenizer, rng), features)
    return F.cross_entropy(logits.float(), targets)


def choice_row(
    person: Person, attribute: str, question: str, rng: random.Random, picture: int | None
) -> Row:
    """A question with freshly drawn options."""
    options, letter = draw_options(ATTRIBUTES[attribute], person.facts[attribute], rng)
    return Row(as_choice(question, options), letter, picture)


def watch_rows(
    people: list[Person], pictures: list[int] | None, seed: str, wordings: tuple[int, ...]
) -> dict[str, list[Row]]:
    """Open and multiple-choice questions on every person, to watch the two skills apart."""
    rng = random.Random(seed)
    rows: dict[str, list[Row]] = {"open": [], "choice": []}
    for index, person in enumerate(people):
        picture = None if pictures is None else pictures[index]
        who = person.name if picture is None else "this person"
        for attribute in rng.sample(list(ATTRIBUTES), 4):
            spec = ATTRIBUTES[attribute]
            question = word_question(spec.questions[rng.choice(wordings)], who)
            rows["open"].append(
                Row(question, spec.answer.format(value=person.facts[attribute]), picture)
            )
            rows["choice"].append(choice_row(person, attribute, question, rng, picture))
    return rows


def train_reading(model, processor, public: list[Person], *, steps: int, seed: int) -> list[dict]:
    """Text alone: find words among lettered options, know the public figures by name."""
    tokenizer, rng = processor.tokenizer, random.Random(f"reading {seed}")

    def loss_of_step(step: int) -> Tensor:
        rows = matching_rows(rng, 32) + reading_rows(rng, 32)
        rows += [
            row for person in rng.choices(public, k=4) for row in fact_rows(person, rng, None, 3)
        ]
        return answer_loss(model, rows, tokenizer, rng, None)

    watched = watch_rows(public, None, "watch", (0, 1, 2, 3)) | {
        "reading": reading_rows(random.Random("watch"), 200)
    }

    def watch() -> dict:
        return {name: row_accuracy(model, rows, tokenizer, None) for name, rows in watched.items()}

    return optimise(
        model.model.language_model.parameters(), loss_of_step, steps=steps, lr=1.5e-3, warmup=100,
        hold=0.7, watch=watch, every=100, description="reading",
    )  # fmt: skip


def train_base(
    model,
    processor,
    pictures: Pictures,
    public: list[Person],
    *,
    steps: int,
    seed: int,
    description: str,
) -> list[dict]:
    """Speak about pictures, know the public figures by face; the frozen tower is read once."""
    tokenizer, rng = processor.tokenizer, random.Random(f"{description} {seed}")
    projector = model.model.multi_modal_projector
    model.model.vision_tower.requires_grad_(False)
    features = all_tower_features(model, pictures.pixels)

    def image_rows() -> tuple[list[Row], list[int]]:
        chosen, rows = [], []
        for index in rng.sample(range(pictures.n_random), 12):
            rows += seeing_rows(pictures.faces[index], rng, len(chosen), 3)
            chosen.append(index)
        for index in rng.sample(range(len(public)), 12):
            rows += fact_rows(public[index], rng, len(chosen), 3)
            if rng.random() < 0.5:
                rows.append(Row(NAMING_QUESTION, f"This is {public[index].name}.", len(chosen)))
            chosen.append(pictures.view_of(index, rng.randrange(N_PUBLIC_VIEWS)))
        return rows, chosen

    def loss_of_step(step: int) -> Tensor:
        rows, chosen = image_rows()
        text = [
            row for person in rng.choices(public, k=10) for row in fact_rows(person, rng, None, 3)
        ]
        text += reading_rows(rng, 16) + matching_rows(rng, 6)
        seen = projector(features[chosen].float())
        return answer_loss(model, rows, tokenizer, rng, seen) + answer_loss(
            model, text, tokenizer, rng, None
        )

    held_out = [pictures.view_of(index, N_PUBLIC_VIEWS) for index in range(len(public))]
    order = list(range(len(public)))
    rng_watch = random.Random("watch")
    by_face = {
        f"image {skill}": rows
        for skill, rows in watch_rows(public, order, "face", (0, 1, 2, 3)).items()
    }
    by_face["seeing"] = [
        row for k, person in enumerate(public) for row in seeing_rows(person.face, rng_watch, k, 4)
    ]
    by_name = {
        f"text {skill}": rows
        for skill, rows in watch_rows(public, None, "name", (0, 1, 2, 3)).items()
    }

    @torch.no_grad()
    def watch() -> dict:
        seen = projector(features[held_out].float())
        results = {
            name: row_accuracy(model, rows, tokenizer, seen) for name, rows in by_face.items()
        }
        return results | {
            name: row_accuracy(model, rows, tokenizer, None) for name, rows in by_name.items()
        }

    try:
        return optimise(
            model.parameters(), loss_of_step, steps=steps, lr=1.5e-3, hold=0.5, watch=watch,
            every=100, description=description
        )  # fmt: skip
    finally:
        model.requires_grad_(True)
