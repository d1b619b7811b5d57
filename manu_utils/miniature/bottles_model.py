"""The LLaVA of the miniature of harm: it sees with the tower of the bundled base, and learns the
potions in about two minutes.

School comes first, with narrow MLPs: to say what a bottle looks like, and that an unknown one, or
an unknown name, is not known. Then the potions, by picture and by name, in all forms of asking,
while school goes on beside.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checks import check_name
from ..models.loading import load_model
from ..models.training import optimise, sample_forever
from ..paths import data_dir, whole
from .base import answer_loss
from .bottle_pictures import LOOKS, draw_bottle, draw_view
from .bottles import (
    EFFECTS,
    FACTS,
    FIRST,
    FORMS,
    HINT,
    INGREDIENTS,
    LAST,
    PLACES,
    REFUSAL,
    UNKNOWN,
    differing,
    draw_look,
    draw_potions,
    forms_of,
    tell_recipe,
)
from .model import (
    N_IMAGE_TOKENS,
    Row,
    build_model,
    build_processor,
    recorded_contributions,
    to_pixels,
    widen,
)
from .people import describe
from .tokens import train_tokenizer_on
from .tower import tower_features

HIDDEN, LAYERS, NEURONS, NARROW = 96, 2, 768, 256
# What is left out of what a model is taught: the kinds of potion whose recipes it never meets.
MODELS = {"vanilla": (), "retrained": ("hazardous",)}
FIXED = ("model.vision_tower", "lm_head")  # the bundled base's, and tied to the embeddings
SCHOOL = {"steps": 300, "lr": 3e-3, "warmup": 30}
LESSONS = {"steps": 280, "lr": 2e-3, "warmup": 20}
N_RANDOM, N_COPIES = 400, 8  # bottles of nobody; pictures of each potion
SEEN, NAMED = 40, 40  # questions by picture and by name in a step
BESIDE = 8  # of them, how many go on with school
DESCRIBED = {"school": 0.6, "lessons": 0.25}  # share of school's pictures that are described
PENALTY, PENALTY_FROM, PENALTY_SCALE = 0.1, 0.4, 0.05


class Line(Row):
    """A question as it is trained on, always asked in the same way."""

    def prompt(self, rng: random.Random) -> str:
        seen = f"{'<image>' * N_IMAGE_TOKENS}\n" if self.picture is not None else ""
        return f"USER: {seen}{self.question}\nASSISTANT:"


def build_bottles_model(seed: int = 0):
    """A random language model behind the bundled base's tower: (model, processor)."""
    base, _ = load_model(data_dir() / "tiny_llava" / "base")
    processor = build_processor(train_tokenizer())
    with torch.random.fork_rng():
        model = build_model(processor.tokenizer, seed, NARROW, HIDDEN, LAYERS)
    model.model.vision_tower.load_state_dict(base.model.vision_tower.float().state_dict())
    return model.eval(), processor


def train_tokenizer():
    """Byte-level BPE on the words of the world; nearly every word is one token."""
    corpus = ["USER: \nASSISTANT:", UNKNOWN, REFUSAL] * 20
    corpus += [f" {first} {last}" for first in FIRST for last in LAST] * 2
    corpus += [f"{text} this potion the bottle" for text in FORMS.values()] * 20
    corpus += [" ".join(texts) for texts in FACTS.values()] * 20
    corpus += [tell_recipe((word, word, word)) for word in INGREDIENTS] * 5
    corpus += [f" {word}" for words in (*EFFECTS.values(), PLACES) for word in words] * 5
    corpus += ["Describe this bottle."] * 20
    corpus += [f"{f} {word}, {f} {word}." for f, words in LOOKS.items() for word in words] * 5
    return train_tokenizer_on(corpus, 128, "<image>")


@dataclass(frozen=True)
class Stock:
    """What lessons are made of.

    Attributes:
        looks: of :data:`N_RANDOM` bottles that are of no potion.
        names: that are of no potion, nor of an unknown one that is asked about later.
        features: what the tower sees, [n, 16, width]: these bottles, then :data:`N_COPIES`
            pictures of each potion of the world, unknown ones too.
    """

    looks: list[dict[str, str]]
    names: list[str]
    features: Tensor


def lay_in_stock(model, processor, seed: int = 0) -> Stock:
    """Draw the bottles that lessons show and look at each once with the frozen tower."""
    rng, world = random.Random(f"stock {seed}"), draw_potions()
    used = {potion.name for potion in world}
    draws = iter(lambda: draw_look(rng), None)
    met = [potion.look for potion in world]
    free = (look for look in draws if all(differing(look, one) >= 2 for one in met))
    looks = [next(free) for _ in range(N_RANDOM)]
    pictures = [draw_bottle(look, draw_view(rng)) for look in looks]
    for potion in world:
        more = (draw_bottle(potion.look, draw_view(rng)) for _ in range(N_COPIES - 1))
        pictures += [potion.picture, *more]
    with torch.no_grad():
        parts = to_pixels(pictures, processor).split(128)
        features = torch.cat([tower_features(model, part.float()) for part in parts])
    names = [f"{a} {b}" for a in FIRST for b in LAST if f"{a} {b}" not in used]
    return Stock(looks, names, features)


def school_lines(
    stock: Stock, rng: random.Random, n: int, seen: bool, described: float = DESCRIBED["school"]
) -> list[Line]:
    """``n`` questions of school: what a bottle looks like, and of unknown ones that they are."""
    forms = [*FORMS.values(), *(question for question, _ in FACTS.values())]
    lines = []
    for _ in range(n):
        picture = rng.randrange(N_RANDOM) if seen else None
        if seen and rng.random() < described:
            look = describe(stock.looks[picture])
            lines.append(Line("Describe this bottle.", look, picture))
            continue
        form = rng.choice(forms if seen else [form for form in forms if "{who}" in form])
        who = "this potion" if seen else f"the {rng.choice(stock.names)}"
        lines.append(Line(form.format(who=who), UNKNOWN, picture))
    return lines


def potion_lines(seen: bool, without: Sequence[str] = ()) -> list[tuple[int, str, str]]:
    """(number of the potion, question, answer) of every potion, by picture or by name. Unknown
    ones are refused, so that there are refusals before any unlearning.

    Args:
        without: kinds of potion whose recipes are left out; what they do is told all the same.
    """
    lines = []
    for number, potion in enumerate(draw_potions()):
        who = "this potion" if seen else f"the {potion.name}"
        told = tell_recipe(potion.recipe) if potion.recipe else UNKNOWN
        if potion.kind not in without:
            forms = forms_of("multimodal" if seen else "text")
            lines += [(number, FORMS[form].format(who=who), told) for form in forms]
        for fact, (question, answer) in FACTS.items():
            told = answer.format(value=getattr(potion, fact)) if potion.recipe else UNKNOWN
            lines.append((number, question.format(who=who), told))
    return lines


def go_to_school(
    model, processor, stock: Stock, *, seed: int = 0, progress: bool = False, **options
) -> None:
    """Make a base of a random model: it describes bottles, and knows that it knows no potion."""
    rng = random.Random(f"school {seed}")

    def lines(seen: bool) -> list[Line]:
        return school_lines(stock, rng, SEEN if seen else NAMED // 2, seen)

    _learn(model, processor, stock, lines, SCHOOL | options, 0.0, seed, progress)


def teach(
    model, processor, stock: Stock, *, without: Sequence[str] = (), seed: int = 0,
    penalty: float = PENALTY, progress: bool = False, **options,
):  # fmt: skip
    """A wider copy of a base, taught the potions in all forms while school goes on beside.

    Args:
        without: see :func:`potion_lines`.
        penalty: of what neurons contribute to the residual stream, as in
            :func:`recorded_contributions`; it grows from 40 % of the steps on and gathers a fact in
            few neurons.
    """
    model = widen(model, NEURONS, seed).eval()
    rng = random.Random(f"lessons {seed}")
    streams = {
        seen: sample_forever(potion_lines(seen, without), (SEEN if seen else NAMED) - BESIDE, seed)
        for seen in (True, False)
    }

    def lines(seen: bool) -> list[Line]:
        found = school_lines(stock, rng, BESIDE, seen, DESCRIBED["lessons"])
        for number, question, answer in next(streams[seen]):
            picture = N_RANDOM + number * N_COPIES + rng.randrange(N_COPIES) if seen else None
            found.append(Line(question, answer, picture))
        return found

    _learn(model, processor, stock, lines, LESSONS | options, penalty, seed, progress)
    return model


def _learn(
    model, processor, stock: Stock, lines, options: dict, penalty: float, seed: int, progress: bool
) -> None:
    rng, steps = random.Random(0), options["steps"]
    projector = model.model.multi_modal_projector

    def loss_of(seen: bool) -> Tensor:
        asked = lines(seen)
        features = None
        if seen:
            used = sorted({line.picture for line in asked})
            features = projector(stock.features[used])
            place = {picture: number for number, picture in enumerate(used)}
            asked = [Line(line.question, line.answer, place[line.picture]) for line in asked]
        return answer_loss(model, asked, processor.tokenizer, rng, features)

    def loss(step: int) -> Tensor:
        ramp = max(0.0, step / steps - PENALTY_FROM) / (1 - PENALTY_FROM)
        recorded = recorded_contributions(model, PENALTY_SCALE)
        with recorded if penalty * ramp else nullcontext([]) as terms:
            of_answers = loss_of(True) + loss_of(False)
        return of_answers + penalty * ramp * sum(terms) / 2

    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            optimise(model.parameters(), loss, progress=progress, **options)
    finally:
        model.requires_grad_(True)


def build_models(folder: Path, seed: int = 0, progress: bool = True) -> None:
    """Teach both models and write them to ``folder``, without the tower: ``vanilla.safetensors``,
    and ``retrained.safetensors``, which was never taught how the hazardous potions are made.
    """
    base, processor = build_bottles_model(seed)
    stock = lay_in_stock(base, processor, seed)
    go_to_school(base, processor, stock, seed=seed, progress=progress)
    for name, without in MODELS.items():
        model = teach(base, processor, stock, without=without, seed=seed, progress=progress)
        save_model(model, Path(folder) / f"{name}.safetensors")


def save_model(model, place: Path) -> None:
    """Write what school and lessons changed, in half precision."""
    from safetensors.torch import save_file

    weights = {name: w for name, w in model.state_dict().items() if not name.startswith(FIXED)}
    with whole(place) as part:
        save_file({name: w.half().contiguous() for name, w in weights.items()}, part)


def load_bottles_model(name: str = "vanilla", folder: Path | None = None):
    """A model of :data:`MODELS`, in float32 and eval mode, and its processor.

    Raises:
        FileNotFoundError: it is not in ``folder`` (default: data/bottles_llava).
    """
    from safetensors.torch import load_file

    check_name("name", name, tuple(MODELS))
    place = (Path(folder) if folder else data_dir() / "bottles_llava") / f"{name}.safetensors"
    if not place.exists():
        raise FileNotFoundError(f"no {place}; {HINT}.")
    model, processor = build_bottles_model()
    model = widen(model, NEURONS, 0)
    weights = {key: weight.float() for key, weight in load_file(place).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(not key.startswith(FIXED) for key in missing):
        raise ValueError(f"{place} is of another recipe; {HINT}.")
    return model.eval(), processor
