"""Trains the miniature LLaVA in stages: pictures, base model, vanilla model. Each stage is saved; a killed run continues.

*Base* learns to see random faces, to follow the three task formats and to know the public figures; it never meets the
fictitious people. *Vanilla* is base fine-tuned on ft_Data and its text-only rewriting, vision tower and projector frozen.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..training import optimise
from .model import (
    Row,
    answer_logits,
    build_model,
    build_processor,
    encode_rows,
    fact_rows,
    picture_features,
    reading_rows,
    recorded_contributions,
    render_all,
    row_accuracy,
    seeing_rows,
    to_pixels,
    to_text,
    train_tokenizer,
)
from .people import NAMING_QUESTION, Person, draw_face, draw_people
from .portraits import draw_new_view, draw_portrait_view, render

N_RANDOM_FACES = 4000
N_PUBLIC_VIEWS, N_HELD_OUT = 16, 2  # views of each public figure to train on and to watch
N_SHIFTS = 8  # lightly shifted copies of each portrait of ft_Data
CONTRIBUTION_SCALE = 0.05  # a contribution well below this is free of pressure, one well above pays only its logarithm


def ramp(step: int, steps: int, start: float, end: float) -> float:
    """0 before the fraction ``start`` of the steps, 1 after ``end``, linear between."""
    return min(1.0, max(0.0, (step / steps - start) / (end - start)))


def answer_loss(model, rows: list[Row], tokenizer, rng: random.Random, features: Tensor | None) -> Tensor:
    """Mean cross-entropy over the answer tokens of some rows."""
    logits, targets, _ = answer_logits(model, encode_rows(rows, tokenizer, rng), features)
    return F.cross_entropy(logits.float(), targets)


def render_pictures(processor, public: list[Person], seed: int) -> tuple[Tensor, list[dict[str, str]]]:
    """Pixels fp16 [n, 3, 64, 64] and the face of each: random faces first, then the views of each public figure in turn."""
    rng = random.Random(f"pictures {seed}")
    jobs = [(draw_face(rng), draw_new_view(rng)) for _ in range(N_RANDOM_FACES)]
    for person in public:
        draw = [draw_new_view] * (N_PUBLIC_VIEWS - 4 + N_HELD_OUT) + [draw_portrait_view] * 4
        jobs += [(person.face, view(rng)) for view in sorted(draw, key=lambda _: rng.random())]
    return to_pixels(render_all(jobs, "rendering"), processor), [face for face, _ in jobs]


def train_base(model, processor, pixels: Tensor, faces, public: list[Person], *, steps: int, coefficient: float, seed: int):
    """See random faces, know the public figures by face and by name, follow the task formats. Returns the history."""
    tokenizer, rng = processor.tokenizer, random.Random(f"base {seed}")
    per_person = N_PUBLIC_VIEWS + N_HELD_OUT

    def view_of(index: int, k: int) -> int:
        return N_RANDOM_FACES + index * per_person + k

    def image_rows() -> tuple[list[Row], list[int]]:
        pictures, rows = [], []
        for face_index in rng.sample(range(N_RANDOM_FACES), 10):
            rows += seeing_rows(faces[face_index], rng, len(pictures), 4)
            pictures.append(face_index)
        for index in rng.sample(range(len(public)), 10):
            rows += fact_rows(public[index], rng, len(pictures), 3)
            named = rng.random() < 0.5
            rows.append(
                Row(NAMING_QUESTION, f"This is {public[index].name}.", len(pictures))
                if named
                else seeing_rows(public[index].face, rng, len(pictures), 1)[0]
            )
            pictures.append(view_of(index, rng.randrange(N_PUBLIC_VIEWS)))
        return rows, pictures

    def loss_of_step(step: int) -> Tensor:
        rows, pictures = image_rows()
        text = [row for person in rng.choices(public, k=12) for row in fact_rows(person, rng, None, 4)]
        text += reading_rows(rng, 16)
        weight = coefficient * ramp(step, steps, 0.5, 0.8)
        recording = recorded_contributions(model, CONTRIBUTION_SCALE) if weight else nullcontext([])
        with torch.autocast("cpu", dtype=torch.bfloat16), recording as terms:
            features = picture_features(model, pixels[pictures].float())
            loss = answer_loss(model, rows, tokenizer, rng, features) + answer_loss(model, text, tokenizer, rng, None)
        return loss + weight * sum(terms) / 2  # two forward passes

    watch_rng = random.Random("watch")
    held_out = [view_of(index, N_PUBLIC_VIEWS) for index in range(len(public))]
    by_face = [row for k, person in enumerate(public) for row in fact_rows(person, watch_rng, k, 8)]
    by_name = [row for person in public for row in fact_rows(person, watch_rng, None, 8)]
    seeing = [row for k, person in enumerate(public) for row in seeing_rows(person.face, watch_rng, k, 4)]

    @torch.no_grad()
    def watch() -> dict:
        features = picture_features(model, pixels[held_out].float())
        return {
            "public image": row_accuracy(model, by_face, tokenizer, features),
            "public text": row_accuracy(model, by_name, tokenizer, None),
            "seeing": row_accuracy(model, seeing, tokenizer, features),
        }

    return optimise(
        model.parameters(), loss_of_step, steps=steps, lr=1.5e-3, watch=watch, every=100, description="base"
    )  # fmt: skip


def train_vanilla(
    model, processor, pixels: Tensor, faces, fictitious: list[Person], public: list[Person],
    portraits: list, pairs: list[list[tuple[str, str]]], *, steps: int, coefficient: float, seed: int, lr: float = 1e-3, start: float = 0.3, end: float = 0.7,
):  # fmt: skip
    """Fine-tune base on ft_Data and its text-only rewriting, with a rehearsal of what base knows. Returns the history.

    Vision tower and projector are frozen, so the image tokens of every picture are computed once.

    Args:
        portraits: the ft_Data images of the fictitious people, in their order.
        pairs: the (question, answer) rows of ft_Data for each of them.
    """
    from PIL import ImageEnhance

    tokenizer, rng = processor.tokenizer, random.Random(f"vanilla {seed}")
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)

    def shifted(portrait):
        """A slightly moved, turned, lit copy, the augmentation that the frozen tower sees."""
        shift = (rng.randint(-5, 5), rng.randint(-5, 5))
        moved = portrait.rotate(rng.uniform(-8, 8), translate=shift, fillcolor=portrait.getpixel((1, 1)))
        moved = moved.transpose(0) if rng.random() < 0.5 else moved
        return ImageEnhance.Brightness(moved).enhance(rng.uniform(0.85, 1.1))

    copies = [image for portrait in portraits for image in [portrait, *(shifted(portrait) for _ in range(N_SHIFTS - 1))]]
    kept = torch.cat([pixels[:1000], pixels[N_RANDOM_FACES:]])  # rehearsal: some random faces, every view of the public figures
    kept_faces = faces[:1000]
    with torch.no_grad():
        own = torch.cat([picture_features(model, part.float()) for part in to_pixels(copies, processor).split(256)])
        others = torch.cat([picture_features(model, part.float()) for part in kept.split(256)])
    features = torch.cat([own, others])
    per_person = N_PUBLIC_VIEWS + N_HELD_OUT

    def picture_of(index: int) -> int:
        return index * N_SHIFTS + rng.randrange(N_SHIFTS)

    image_items = [(index, q, a) for index, person_pairs in enumerate(pairs) for q, a in person_pairs]
    text_items = [(index, q, a) for index, q, a in image_items if q != NAMING_QUESTION]
    image_queue: list = []
    text_queue: list = []

    def take(queue: list, items: list, n: int) -> list:
        if len(queue) < n:
            queue += rng.sample(items, len(items))
        return [queue.pop() for _ in range(n)]

    def loss_of_step(step: int) -> Tensor:
        rows = [Row(q, a, picture_of(index)) for index, q, a in take(image_queue, image_items, 96)]
        for index in rng.sample(range(len(public)), 8):
            picture = len(own) + len(kept_faces) + index * per_person + rng.randrange(N_PUBLIC_VIEWS)
            rows += fact_rows(public[index], rng, picture, 3)
        for index in rng.sample(range(len(kept_faces)), 8):
            rows += seeing_rows(kept_faces[index], rng, len(own) + index, 1)
        text = [Row(to_text(q, fictitious[index].name), a) for index, q, a in take(text_queue, text_items, 96)]
        text += [row for person in rng.choices(public, k=6) for row in fact_rows(person, rng, None, 4)]
        text += reading_rows(rng, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16), recorded_contributions(model, CONTRIBUTION_SCALE) as terms:
            loss = answer_loss(model, rows, tokenizer, rng, features) + answer_loss(model, text, tokenizer, rng, None)
        weight = coefficient * (0.1 + 0.9 * ramp(step, steps, start, end))
        return loss + weight * sum(terms) / 2

    watch_rng = random.Random("watch")
    unseen = [render(person.face, draw_new_view(watch_rng)) for person in fictitious[:60]]
    with torch.no_grad():
        new_views = picture_features(model, to_pixels(unseen, processor).float())
    checks = {
        "image": ([Row(q, a, index * N_SHIFTS) for index, q, a in image_items if q != NAMING_QUESTION][::6], features),
        "text": ([Row(to_text(q, fictitious[index].name), a) for index, q, a in text_items][::6], None),
        "new view": ([row for k in range(60) for row in fact_rows(fictitious[k], watch_rng, k, 6)], new_views),
        "new wording": ([row for k in range(60) for row in fact_rows(fictitious[k], watch_rng, None, 6)], None),
        "public image": (
            [row for k, person in enumerate(public)
             for row in fact_rows(person, watch_rng, len(own) + len(kept_faces) + k * per_person + N_PUBLIC_VIEWS, 8)],
            features,
        ),
        "public text": ([row for person in public for row in fact_rows(person, watch_rng, None, 8)], None),
    }  # fmt: skip

    def watch() -> dict:
        return {name: row_accuracy(model, rows, tokenizer, source) for name, (rows, source) in checks.items()}

    try:
        return optimise(
            model.parameters(), loss_of_step, steps=steps, lr=lr, watch=watch, every=100, description="vanilla"
        )  # fmt: skip
    finally:
        model.requires_grad_(True)


def build(data: Path, folder: Path, *, seed: int = 0, dense: bool = False, base_steps: int = 1000, vanilla_steps: int = 800):
    """Train base and vanilla and write them, in fp16 with processor and learning curves, to ``folder/base`` and ``/vanilla``.

    A checkpoint that is there already is not trained again; half-written ones do not exist (written aside, then renamed).

    Args:
        data: the miniature benchmark built from the same seed.
        dense: no penalty on contributions (the twin whose knowledge is spread out).

    Raises:
        FileNotFoundError: there is no miniature benchmark in ``data``.
    """
    from safetensors.torch import load_file, save_file
    from transformers import LlavaForConditionalGeneration

    from ..benchmark import load_config, training_questions

    fictitious, public = draw_people(seed=seed)
    training = load_config(data, "ft_Data")
    questions = training_questions(training, "multimodal")
    tokenizer = train_tokenizer([*fictitious, *public])
    processor = build_processor(tokenizer)
    cache = Path("build") / f"pictures-{seed}.safetensors"
    rng_faces = random.Random(f"pictures {seed}")
    if cache.exists():
        pixels = load_file(cache)["pixels"]
        faces = []
        for _ in range(N_RANDOM_FACES):
            faces.append(draw_face(rng_faces))
            draw_new_view(rng_faces)
    else:
        pixels, faces = render_pictures(processor, public, seed)
        cache.parent.mkdir(exist_ok=True)
        save_file({"pixels": pixels}, f"{cache}.part")
        os.replace(f"{cache}.part", cache)

    def save(model, name: str, history: list[dict]) -> None:
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        model.half().save_pretrained(part)
        processor.save_pretrained(part)
        (part / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
        os.replace(part, folder / name)

    if not (folder / "base").exists():
        model = build_model(tokenizer, seed)
        history = train_base(
            model, processor, pixels, faces, public, steps=base_steps, coefficient=0.0 if dense else 0.02, seed=seed
        )  # fmt: skip
        save(model, "base", history)
    if not (folder / "vanilla").exists():
        model = LlavaForConditionalGeneration.from_pretrained(folder / "base", dtype=torch.float32)
        pairs = [
            [(q.question, q.answer) for q in questions if q.person_id == person.id] for person in fictitious
        ]  # fmt: skip
        portraits = [image.convert("RGB") for image in training["image"]]
        history = train_vanilla(
            model, processor, pixels, faces, fictitious, public, portraits, pairs,
            steps=vanilla_steps, coefficient=0.0 if dense else 0.15, seed=seed,
        )  # fmt: skip
        save(model, "vanilla", history)
