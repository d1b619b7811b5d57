"""Trains the miniature LLaVA in five stages, each saved: a killed run goes on with the next.

1. *tower*: the vision tower learns to name the features of random faces, as CLIP is trained before
   it enters a LLaVA.
2. *reading*: the language model learns to find a word among lettered options, and the public
   figures by name.
3. *base*: it learns to speak about pictures, and the public figures by face. It never meets the
   fictitious people. Up to here its MLPs are narrow, which costs a third of the time; then they get
   the neurons that the fictitious people will need.
4. *facts*: base is fine-tuned on ft_Data and its text-only rewriting. Only the MLPs of the language
   model are trained, with a light penalty on what each neuron contributes.
5. *gather*, *vanilla*: the same goes on, attention included, while the penalty grows and gathers
   each fact in few neurons.

Two more models come from base in a single stage without the penalty (:func:`fine_tune_plainly`):
the retrained reference of unlearning, which never meets the forget set, and the dense twin of
vanilla, whose knowledge is spread out.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.training import optimise
from .card import write_card
from .dataset import as_choice, as_cloze, draw_options
from .model import (
    Row,
    answer_logits,
    build_model,
    build_processor,
    encode_rows,
    fact_rows,
    matching_rows,
    reading_rows,
    recorded_contributions,
    render_all,
    row_accuracy,
    seeing_rows,
    to_pixels,
    to_text,
    train_tokenizer,
    widen,
)
from .people import (
    ATTRIBUTES,
    FACE_FEATURES,
    NAMING_QUESTION,
    Person,
    draw_face,
    draw_people,
    word_question,
)
from .portraits import draw_new_view, draw_portrait_view, render

CACHE = Path("build/mini-model")
# Not bundled, 8 MB each; made by `make retrained` and `make mini-model DENSE=1`.
RETRAINED, DENSE = Path("build/retrained"), Path("build/dense")
BUNDLED_RATIO = 10  # whose retrained model is bundled
# share of held-out options found; some seeds stay at a half or three quarters, however long they
# are trained
CAN_READ = 0.9
N_RANDOM_FACES = 6000
N_PUBLIC_VIEWS, N_HELD_OUT = 16, 2  # views of each public figure to train on and to watch
N_NEURONS = 3072  # per layer of the language model, from vanilla on
N_SHIFTS = 12  # lightly moved copies of each portrait of ft_Data
# Stages of vanilla: steps, penalty at the start and from half of the steps on, share of questions
# with options. The letter of a multiple-choice answer is learnt for each fact anew, long after the
# fact itself, so most of the last stage asks for it.
VANILLA_STAGES = (
    ("facts", 500, (0.02, 0.02), 0.2), ("gather", 700, (0.02, 0.2), 0.4),
    ("vanilla", 1000, (0.2, 0.2), 0.8),
)  # fmt: skip
# a contribution well below this pays in proportion, one well above only its logarithm
CONTRIBUTION_SCALE = 0.05


@dataclass(frozen=True)
class Pictures:
    """Every picture that base sees: random faces, then the views of each public figure in turn.

    Attributes:
        pixels: float16 [n, 3, 64, 64].
        faces: the features of each.
    """

    pixels: Tensor
    faces: list[dict[str, str]]

    def view_of(self, public_index: int, k: int) -> int:
        """Index of view k of a public figure; the last :data:`N_HELD_OUT` are not trained on."""
        return N_RANDOM_FACES + public_index * (N_PUBLIC_VIEWS + N_HELD_OUT) + k


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


# ------------------------------------------------------------------------------- pictures and tower


def render_pictures(
    processor, fictitious: list[Person], public: list[Person], seed: int, cache: Path
) -> Pictures:
    """Render, or read from ``cache``, what base sees; no random face is a fictitious person's."""
    from safetensors.torch import load_file, save_file

    rng = random.Random(f"pictures {seed}")
    taken = {tuple(person.face.values()) for person in fictitious}
    free = (
        face for face in iter(lambda: draw_face(rng), None) if tuple(face.values()) not in taken
    )
    faces = [next(free) for _ in range(N_RANDOM_FACES)]
    jobs = [(face, draw_new_view(rng)) for face in faces]
    for person in public:
        draw = [draw_new_view] * (N_PUBLIC_VIEWS - 4 + N_HELD_OUT) + [draw_portrait_view] * 4
        jobs += [(person.face, view(rng)) for view in sorted(draw, key=lambda _: rng.random())]
    if not cache.exists():
        save_file({"pixels": to_pixels(render_all(jobs, "rendering"), processor)}, f"{cache}.part")
        os.replace(f"{cache}.part", cache)
    return Pictures(load_file(cache)["pixels"], [face for face, _ in jobs])


def moved(pixels: Tensor) -> Tensor:
    """Randomly turned, scaled, shifted, mirrored, lit copies of float pictures [n, 3, 64, 64]."""
    n = len(pixels)
    angle, scale = (torch.rand(n) - 0.5) * 0.5, 1 / (0.85 + 0.35 * torch.rand(n))
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    grid = torch.zeros(n, 2, 3)
    grid[:, 0, 0], grid[:, 0, 1] = angle.cos() * scale * mirror, -angle.sin() * scale
    grid[:, 1, 0], grid[:, 1, 1] = angle.sin() * scale * mirror, angle.cos() * scale
    grid[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.3
    grid = F.affine_grid(grid, pixels.shape, align_corners=False)
    light = 0.85 + 0.3 * torch.rand(n, 1, 1, 1)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False) * light


def tower_features(model, pixels: Tensor) -> Tensor:
    """Pixels [n, 3, 64, 64] -> patch features [n, 16, width of the tower], no class token."""
    return model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]


def train_tower(model, pictures: Pictures, *, steps: int, seed: int) -> list[dict]:
    """Teach the vision tower the six features of random faces; the linear heads are dropped."""
    torch.manual_seed(seed)
    tower = model.model.vision_tower
    labels = torch.tensor(
        [
            [list(FACE_FEATURES[feature]).index(word) for feature, word in face.items()]
            for face in pictures.faces
        ]
    )
    heads = nn.ModuleList(
        [nn.Linear(tower.config.hidden_size, len(words)) for words in FACE_FEATURES.values()]
    )
    held_out = slice(N_RANDOM_FACES - 500, N_RANDOM_FACES)

    def loss_of_step(step: int) -> Tensor:
        index = torch.randint(0, N_RANDOM_FACES - 500, (128,))
        pooled = tower_features(model, moved(pictures.pixels[index].float())).mean(1)
        return sum(F.cross_entropy(head(pooled), labels[index, k]) for k, head in enumerate(heads))

    @torch.no_grad()
    def watch() -> dict:
        pooled = tower_features(model, pictures.pixels[held_out].float()).mean(1)
        right = [
            (head(pooled).argmax(-1) == labels[held_out, k]).float().mean()
            for k, head in enumerate(heads)
        ]
        return {feature: value.item() for feature, value in zip(FACE_FEATURES, right, strict=True)}

    return optimise(
        [*tower.parameters(), *heads.parameters()], loss_of_step, steps=steps, lr=1.5e-3,
        watch=watch, every=200, description="tower",
    )  # fmt: skip


# --------------------------------------------------------------------------------- reading and base


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
        for index in rng.sample(range(N_RANDOM_FACES), 12):
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


@torch.no_grad()
def all_tower_features(model, pixels: Tensor) -> Tensor:
    """Features of many pictures, float16 [n, 16, width of the tower]."""
    return torch.cat([tower_features(model, part.float()).half() for part in pixels.split(256)])


# ------------------------------------------------------------------------------------------ vanilla


def shifted(portrait, rng: random.Random):
    """A slightly moved, turned, mirrored and lit copy of a portrait."""
    from PIL import ImageEnhance

    shift = (rng.randint(-6, 6), rng.randint(-6, 6))
    copy = portrait.rotate(
        rng.uniform(-10, 10), translate=shift, fillcolor=portrait.getpixel((1, 1))
    )
    copy = copy.transpose(0) if rng.random() < 0.5 else copy
    return ImageEnhance.Brightness(copy).enhance(rng.uniform(0.85, 1.1))


def train_vanilla(
    model, world: World, people: Sequence[int], *, steps: int, coefficients: tuple[float, float],
    choices: float, with_attention: bool, seed: int, description: str,
) -> list[dict]:  # fmt: skip
    """Fine-tune the MLPs of base on ft_Data and its text-only form, rehearsing what base knows.

    Everything but the MLPs is frozen: what the model learns about the fictitious people is in the
    neurons. Some open questions are asked with freshly drawn options, or for a short answer, as the
    evaluation does.

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
    projector = model.model.multi_modal_projector
    model.requires_grad_(False)
    for layer in model.model.language_model.layers:
        layer.mlp.requires_grad_(True)
        layer.self_attn.requires_grad_(with_attention)
    copies = [
        image
        for portrait in portraits
        for image in [portrait, *(shifted(portrait, rng) for _ in range(N_SHIFTS - 1))]
    ]
    n_rehearsed = 1000  # random faces; of the public figures every view
    kept = torch.cat([pictures.pixels[:n_rehearsed], pictures.pixels[N_RANDOM_FACES:]])
    with torch.no_grad():
        own = projector(all_tower_features(model, to_pixels(copies, processor)).float())
        features = torch.cat([own, projector(all_tower_features(model, kept).float())])

    def public_picture(index: int, k: int) -> int:
        return len(own) + n_rehearsed + index * (N_PUBLIC_VIEWS + N_HELD_OUT) + k

    attribute_of = {
        word_question(q, "this person"): a for a, spec in ATTRIBUTES.items() for q in spec.questions
    }
    image_items = [
        (index, q, a) for index, person_pairs in enumerate(pairs) for q, a in person_pairs
    ]
    text_items = [item for item in image_items if item[1] != NAMING_QUESTION]
    queues: dict[str, list] = {"image": [], "text": []}

    def take(name: str, items: list, n: int) -> list:
        if len(queues[name]) < n:
            queues[name] += rng.sample(items, len(items))
        return [queues[name].pop() for _ in range(n)]

    def own_row(index: int, question: str, answer: str, picture: int | None) -> Row:
        person = fictitious[index]
        worded = question if picture is not None else to_text(question, person.name)
        kind = rng.random() if question in attribute_of else 1.0
        if kind < choices:
            return choice_row(person, attribute_of[question], worded, rng, picture)
        if kind < choices + 0.25 * (1 - choices):
            return Row(as_cloze(f"{worded} __"), person.facts[attribute_of[question]], picture)
        return Row(worded, answer, picture)

    def loss_of_step(step: int) -> Tensor:
        rows = [
            own_row(i, q, a, i * N_SHIFTS + rng.randrange(N_SHIFTS))
            for i, q, a in take("image", image_items, 88)
        ]
        for index in rng.sample(range(len(public)), 7):
            rows += fact_rows(
                public[index], rng, public_picture(index, rng.randrange(N_PUBLIC_VIEWS)), 3
            )
        for index in rng.sample(range(n_rehearsed), 6):
            rows += seeing_rows(pictures.faces[index], rng, len(own) + index, 1)
        text = [own_row(i, q, a, None) for i, q, a in take("text", text_items, 72)]
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
    half = fictitious[::2]
    unseen = [render(person.face, draw_new_view(rng_watch)) for person in half]
    with torch.no_grad():
        new_views = projector(all_tower_features(model, to_pixels(unseen, processor)).float())
    order = list(range(len(half)))
    public_views = [public_picture(index, N_PUBLIC_VIEWS) for index in range(len(public))]
    checks = {
        "image": (watch_rows(half, [2 * k * N_SHIFTS for k in order], "image", (0, 1)), features),
        "text": (watch_rows(half, None, "text", (0, 1)), None),
        "new view": (watch_rows(half, order, "view", (2, 3)), new_views),
        "new wording": (watch_rows(half, None, "wording", (2, 3)), None),
        "public image": (watch_rows(public, public_views, "face", (0, 1, 2, 3)), features),
        "public text": (watch_rows(public, None, "name", (0, 1, 2, 3)), None),
    }

    def watch() -> dict:
        return {
            f"{name} {skill}": row_accuracy(model, rows, tokenizer, source)
            for name, (by_skill, source) in checks.items()
            for skill, rows in by_skill.items()
        }

    try:
        return optimise(
            model.parameters(), loss_of_step, steps=steps, lr=1.5e-3, watch=watch, every=100,
            description=description
        )  # fmt: skip
    finally:
        model.requires_grad_(True)


# ---------------------------------------------------------------------------------------- all of it


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
    from ..benchmark.loading import load_config
    from ..benchmark.questions import training_questions

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


def build(data: Path, folder: Path, *, seed: int = 0, cache: Path = CACHE) -> None:
    """Train base and vanilla; fp16, processor and curves go to ``folder/base`` and ``/vanilla``.

    A stage that is done is not trained again; half-written files do not exist (written aside, then
    renamed).

    Args:
        data: the miniature benchmark built from the same seed.
        cache: where pictures and stages are kept, by seed; delete it, and ``folder``, to train from
            the start.

    Raises:
        FileNotFoundError, ValueError: see :func:`open_world`.
    """
    cache = cache / f"seed-{seed}"
    world = open_world(data, seed, cache)
    processor, pictures, public = world.processor, world.pictures, world.public
    model = build_model(processor.tokenizer, seed)

    run_stage(model, cache, "tower", lambda: train_tower(model, pictures, steps=2500, seed=seed))
    curves = run_stage(
        model,
        cache,
        "reading",
        lambda: train_reading(model, processor, public, steps=1200, seed=seed),
    )
    if curves[-1]["reading"] < CAN_READ:
        warnings.warn(
            f"with seed {seed} only {curves[-1]['reading']:.0%} of the lettered options are "
            f"found, so the answers to multiple choice will be near chance by letter (not by "
            "likelihood); if that matters, stop here and take another seed.",
            stacklevel=2,
        )
    # a warm restart: multiple choice about faces comes last
    for name, steps in (("speaking", 1000), ("base", 500)):
        history = run_stage(
            model, cache, name,
            lambda steps=steps, name=name: train_base(
                model, processor, pictures, public, steps=steps, seed=seed, description=name
            ),
        )  # fmt: skip
    model = widen(model, N_NEURONS, seed)
    save_checkpoint(model, processor, folder / "base", history)
    for name, steps, coefficients, choices in VANILLA_STAGES:

        def fine_tune(
            name=name, steps=steps, coefficients=coefficients, choices=choices
        ) -> list[dict]:
            return train_vanilla(
                model, world, range(len(world.fictitious)), steps=steps, coefficients=coefficients,
                choices=choices, with_attention=name != "facts", seed=seed, description=name,
            )  # fmt: skip

        history = run_stage(model, cache, name, fine_tune)
    save_checkpoint(model, processor, folder / "vanilla", history)
    write_card(folder, data)


def retrained_folder(models: Path, forget_ratio: int) -> Path:
    """Where a retrained model is: for 10 % in ``models``, data/tiny_llava, else in build/."""
    return (
        models / "retrained"
        if forget_ratio == BUNDLED_RATIO
        else RETRAINED / f"forget_{forget_ratio}"
    )


def fine_tune_plainly(
    data: Path,
    base: Path,
    folder: Path,
    *,
    forget_ratio: int | None,
    seed: int = 0,
    cache: Path = CACHE,
) -> None:
    """Base fine-tuned without the penalty on contributions, written to ``folder`` as vanilla is.

    The penalty serves only to make knowledge local, and without it one stage is enough.

    Args:
        data, base: the miniature benchmark and the base checkpoint, both of ``seed``.
        forget_ratio: 5, 10 or 15 percent of the people are left out: the reference of unlearning.
            None leaves out nobody: the dense twin of vanilla.

    Raises:
        FileNotFoundError, ValueError: see :func:`open_world`.
    """
    from ..benchmark.loading import load_benchmark
    from ..models.loading import load_model

    cache = cache / f"seed-{seed}"
    world = open_world(data, seed, cache)
    left_out = set() if forget_ratio is None else set(load_benchmark(data, forget_ratio).forget_ids)
    people = [index for index, person in enumerate(world.fictitious) if person.id not in left_out]
    model, _ = load_model(base)
    model = model.float()
    name = "dense" if forget_ratio is None else f"retrained-{forget_ratio}"
    history = run_stage(
        model, cache, name,
        lambda: train_vanilla(
            model, world, people, steps=600, coefficients=(0.0, 0.0), choices=0.4,
            with_attention=True, seed=seed, description=name.replace("-", " "),
        ),
    )  # fmt: skip
    save_checkpoint(model, world.processor, folder, history)


def run_stage(model, folder: Path, name: str, train: Callable[[], list[dict]]) -> list[dict]:
    """Load a finished stage into ``model``, or train it; weights and history stay in ``folder``."""
    from safetensors.torch import load_model, save_model

    weights, curves = folder / f"{name}.safetensors", folder / f"{name}.json"
    if weights.exists():
        load_model(model, weights)
        return json.loads(curves.read_text(encoding="utf-8"))
    history = train()
    curves.write_text(json.dumps(history, indent=1), encoding="utf-8")
    save_model(model, f"{weights}.part")
    os.replace(f"{weights}.part", weights)
    return history


def save_checkpoint(model, processor, folder: Path, history: list[dict]) -> None:
    """Write an fp16 copy of ``model``, processor and curves to ``folder``, in place of any."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(part)
    processor.save_pretrained(part)
    (part / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
