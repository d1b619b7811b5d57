"""The first stage of the miniature: pictures, and a vision tower that names features of faces."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.training import optimise
from ..paths import whole
from .model import render_all, to_pixels
from .people import FACE_FEATURES, Person, draw_face
from .portraits import draw_new_view, draw_portrait_view

N_RANDOM_FACES = 6000
N_PUBLIC_VIEWS, N_HELD_OUT = 16, 2  # views of each public figure to train on and to watch


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

    @property
    def n_random(self) -> int:
        """Random faces, which come before the public figures."""
        return self.view_of(0, 0)


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
        with whole(cache) as part:
            save_file({"pixels": to_pixels(render_all(jobs, "rendering"), processor)}, part)
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


@torch.no_grad()
def all_tower_features(model, pixels: Tensor) -> Tensor:
    """Features of many pictures, float16 [n, 16, width of the tower]."""
    parts = (part.to(model.device).float() for part in pixels.split(256))
    return torch.cat([tower_features(model, part).half() for part in parts])


def train_tower(model, pictures: Pictures, *, steps: int, seed: int) -> list[dict]:
    """Teach the vision tower the six features of random faces; the linear heads are dropped."""
    torch.manual_seed(seed)
    tower, device = model.model.vision_tower, model.device
    labels = torch.tensor(
        [
            [list(FACE_FEATURES[feature]).index(word) for feature, word in face.items()]
            for face in pictures.faces
        ],
        device=device,
    )
    heads = nn.ModuleList(
        [nn.Linear(tower.config.hidden_size, len(words)) for words in FACE_FEATURES.values()]
    ).to(device)
    held_out = slice(N_RANDOM_FACES - 500, N_RANDOM_FACES)

    def loss_of_step(step: int) -> Tensor:
        index = torch.randint(0, N_RANDOM_FACES - 500, (128,))
        pixels = moved(pictures.pixels[index].float()).to(device)  # drawn on the CPU, as all else
        pooled = tower_features(model, pixels).mean(1)
        return sum(F.cross_entropy(head(pooled), labels[index, k]) for k, head in enumerate(heads))

    @torch.no_grad()
    def watch() -> dict:
        pooled = tower_features(model, pictures.pixels[held_out].to(device).float()).mean(1)
        right = [
            (head(pooled).argmax(-1) == labels[held_out, k]).float().mean()
            for k, head in enumerate(heads)
        ]
        return {feature: value.item() for feature, value in zip(FACE_FEATURES, right, strict=True)}

    return optimise(
        [*tower.parameters(), *heads.parameters()], loss_of_step, steps=steps, lr=1.5e-3,
        watch=watch, every=200, description="tower",
    )  # fmt: skip
