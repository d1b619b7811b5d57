"""Pictures of the bottles of potions, drawn from their features: no two looks are alike."""

from __future__ import annotations

import random

import PIL.Image
from PIL import ImageDraw, ImageEnhance

from .portraits import BACKGROUNDS

LOOKS = {
    "shape": ("round", "tall", "square", "cone", "gourd", "jug"),
    "glass": {"clear": "#C9D6DF", "green": "#4E8B57", "brown": "#8A5A2B", "blue": "#3D6FB4",
              "rose": "#D77FA1"},
    "liquid": {"red": "#D62728", "orange": "#FF8C1A", "yellow": "#F2D21B", "lime": "#86C440",
               "teal": "#17A2A2", "violet": "#8E44AD", "black": "#2B2B2B", "white": "#F4F4EF"},
    "stopper": {"cork": "#B98B5E", "gold": "#E0B100", "wax": "#A61C1C", "crystal": "#7FD3E8"},
    "mark": ("star", "moon", "cross", "ring", "bars"),
}  # fmt: skip


def draw_view(rng: random.Random) -> dict:
    """How a bottle is photographed: background, place, size, light and a small turn."""
    return {
        "background": rng.choice(BACKGROUNDS),
        "shift": (rng.randint(-5, 5), rng.randint(-4, 4)),
        "scale": round(rng.uniform(0.9, 1.1), 2),
        "turn": round(rng.uniform(-8, 8), 1),
        "light": round(rng.uniform(0.85, 1.1), 2),
    }


def draw_bottle(look: dict[str, str], view: dict, size: int = 96) -> PIL.Image.Image:
    """Draw a bottle in a view (:func:`draw_view`; what it lacks is plain): RGB, deterministic."""
    large = 2 * size  # drawn twice as large, then made smaller: smooth edges
    picture = PIL.Image.new("RGB", (large, large), view["background"])
    draw = ImageDraw.Draw(picture)
    unit = large / 96 * view.get("scale", 1.0)
    middle = [large / 2 + large / 96 * d for d in view.get("shift", (0, 0))]

    def at(*points: float) -> list[float]:
        """Coordinates around the middle of the bottle, in units of 1/96 of the picture."""
        return [middle[i % 2] + unit * value for i, value in enumerate(points)]

    glass, liquid = LOOKS["glass"][look["glass"]], LOOKS["liquid"][look["liquid"]]
    edge = {"outline": "#333333", "width": max(1, round(1.2 * unit))}
    draw.rectangle(at(-7, -32, 7, -8), fill=glass, **edge)  # the neck
    if look["stopper"] == "crystal":
        draw.polygon(at(0, -46, 9, -38, 0, -29, -9, -38), fill=LOOKS["stopper"]["crystal"], **edge)
    else:
        wide = 10 if look["stopper"] == "wax" else 7
        draw.rectangle(at(-wide, -43, wide, -30), fill=LOOKS["stopper"][look["stopper"]], **edge)
    # glass first, and the liquid inside it, smaller and below
    for colour, inset in ((glass, 0), (liquid, 5)):
        _draw_body(draw, look["shape"], colour, inset, at, edge)
    draw.ellipse(at(-13, 5, 13, 31), fill="#FFFFFF", **edge)
    _draw_mark(draw, look["mark"], at)
    if turn := view.get("turn"):
        picture = picture.rotate(turn, PIL.Image.Resampling.BILINEAR, fillcolor=view["background"])
    picture = picture.resize((size, size), PIL.Image.Resampling.BOX)
    light = view.get("light", 1.0)
    return picture if light == 1.0 else ImageEnhance.Brightness(picture).enhance(light)


def _draw_body(draw, shape: str, colour: str, inset: float, at, edge: dict) -> None:
    i = inset
    if shape == "round":
        draw.ellipse(at(-28 + i, -14 + i, 28 - i, 42 - i), fill=colour, **edge)
    elif shape == "tall":
        draw.rectangle(at(-14 + i * 0.6, -26 + 2 * i, 14 - i * 0.6, 42 - i), fill=colour, **edge)
    elif shape == "square":
        draw.rectangle(at(-27 + i, -10 + i, 27 - i, 42 - i), fill=colour, **edge)
    elif shape == "cone":
        corners = (0, -24 + 3 * i, 34 - 2 * i, 42 - i, -34 + 2 * i, 42 - i)
        draw.polygon(at(*corners), fill=colour, **edge)
    elif shape == "gourd":
        draw.ellipse(at(-15 + i, -22 + i, 15 - i, 8 - i), fill=colour, **edge)
        draw.ellipse(at(-24 + i, -4 + i, 24 - i, 42 - i), fill=colour, **edge)
    else:  # a jug: a wide body with a handle
        if not inset:
            draw.ellipse(at(14, -14, 40, 24), width=round(edge["width"] * 4), outline=colour)
        draw.rounded_rectangle(
            at(-24 + i, -14 + i, 20 - i, 42 - i), at(10, 0)[0] - at(0, 0)[0], fill=colour, **edge
        )


def _draw_mark(draw, mark: str, at) -> None:
    black = "#111111"
    if mark == "star":
        draw.polygon(at(0, 6, 4, 15, 12, 18, 4, 21, 0, 30, -4, 21, -12, 18, -4, 15), fill=black)
    elif mark == "moon":
        draw.ellipse(at(-10, 8, 10, 28), fill=black)
        draw.ellipse(at(-2, 7, 13, 24), fill="#FFFFFF")
    elif mark == "cross":
        draw.rectangle(at(-3, 8, 3, 28), fill=black)
        draw.rectangle(at(-10, 15, 10, 21), fill=black)
    elif mark == "ring":
        draw.ellipse(at(-10, 8, 10, 28), fill=black)
        draw.ellipse(at(-5, 13, 5, 23), fill="#FFFFFF")
    else:
        for y in (10, 16.5, 23):
            draw.rectangle(at(-9, y, 9, y + 3.5), fill=black)
