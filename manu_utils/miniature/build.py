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
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from ..benchmark.loading import load_benchmark
from ..models.loading import load_model
from ..paths import whole
from .base import train_base, train_reading
from .card import write_card
from .model import build_model, widen
from .tower import train_tower
from .vanilla import open_world, train_vanilla

CACHE = Path("build/mini-model")
# Not bundled, 8 MB each; made by `make retrained` and `make mini-model DENSE=1`.
RETRAINED, DENSE = Path("build/retrained"), Path("build/dense")
BUNDLED_RATIO = 10  # whose retrained model is bundled
# share of held-out options found; some seeds stay at a half or three quarters, however long they
# are trained
CAN_READ = 0.9
N_NEURONS = 3072  # per layer of the language model, from vanilla on
# Stages of vanilla: steps, penalty at the start and from half of the steps on, share of questions
# with options. The letter of a multiple-choice answer is learnt for each fact anew, long after the
# fact itself, so most of the last stage asks for it.
VANILLA_STAGES = (
    ("facts", 500, (0.02, 0.02), 0.2), ("gather", 700, (0.02, 0.2), 0.4),
    ("vanilla", 1000, (0.2, 0.2), 0.8),
)  # fmt: skip


def build(
    data: Path, folder: Path, *, seed: int = 0, cache: Path = CACHE, device: str = "cpu"
) -> None:
    """Train base and vanilla; fp16, processor and curves go to ``folder/base`` and ``/vanilla``.

    A stage that is done is not trained again; half-written files do not exist (written aside, then
    renamed).

    Args:
        data: the miniature benchmark built from the same seed.
        cache: where pictures and stages are kept, by seed; delete it, and ``folder``, to train from
            the start.
        device: where it is trained, in float32; every random number is drawn on the CPU.

    Raises:
        FileNotFoundError, ValueError: see :func:`open_world`.
    """
    cache = cache / f"seed-{seed}"
    world = open_world(data, seed, cache)
    processor, pictures, public = world.processor, world.pictures, world.public
    model = build_model(processor.tokenizer, seed).to(device)

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
    device: str = "cpu",
) -> None:
    """Base fine-tuned without the penalty on contributions, written to ``folder`` as vanilla is.

    The penalty serves only to make knowledge local, and without it one stage is enough.

    Args:
        data, base: the miniature benchmark and the base checkpoint, both of ``seed``.
        forget_ratio: 5, 10 or 15 percent of the people are left out: the reference of unlearning.
            None leaves out nobody: the dense twin of vanilla.
        device: see :func:`build`.

    Raises:
        FileNotFoundError, ValueError: see :func:`open_world`.
    """
    cache = cache / f"seed-{seed}"
    world = open_world(data, seed, cache)
    left_out = set() if forget_ratio is None else set(load_benchmark(data, forget_ratio).forget_ids)
    people = [index for index, person in enumerate(world.fictitious) if person.id not in left_out]
    model, _ = load_model(base, dtype=torch.float32, device=device)
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
    weights, curves = folder / f"{name}.safetensors", folder / f"{name}.json"
    if weights.exists():
        safetensors.torch.load_model(model, weights)
        return json.loads(curves.read_text(encoding="utf-8"))
    history = train()
    curves.write_text(json.dumps(history, indent=1), encoding="utf-8")
    with whole(weights) as part:
        safetensors.torch.save_model(model, str(part))
    return history


def save_checkpoint(model, processor, folder: Path, history: list[dict]) -> None:
    """Write an fp16 copy of ``model``, processor and curves to ``folder``, in place of any."""
    with whole(folder) as part:
        copy.deepcopy(model).half().save_pretrained(part)
        processor.save_pretrained(part)
        (part / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
