"""Portraits in DiceBear's *toon-head* style (Johan Melin, CC BY 4.0), rendered by resvg."""

from __future__ import annotations

import io
import json
import random
from functools import cache
from importlib.resources import files

from PIL import Image, ImageEnhance

from .people import FACE_FEATURES

#: What may differ between two pictures of one person.
EXPRESSIONS = {
    "eyesVariant": ["bow", "happy", "humble", "wide"],
    "mouthVariant": ["agape", "laugh", "sad", "smile"],
    "eyebrowsVariant": ["angry", "happy", "neutral", "raised", "sad"],
}
CLOTHES = ["dress", "openJacket", "shirt", "tShirt", "turtleNeck"]
BACKGROUNDS = ["#dfe7ee", "#f3ead8", "#d9efe0", "#efe0ee", "#ffffff", "#c9d3e6"]
PLAIN_VIEW = {
    "rotate": 0,
    "scale": 1.0,
    "translateX": 0,
    "translateY": 0,
    "flip": "none",
    "light": 1.0,
}


@cache
def toon_head():
    """The style, parsed once."""
    from dicebear import Style

    return Style(json.loads(files("dicebear_styles").joinpath("toon-head.json").read_text("utf-8")))


def draw_portrait_view(rng: random.Random) -> dict:
    """The portrait of ft_Data and Full_Set: upright, evenly lit, some expression and clothing."""
    view = {part: rng.choice(options) for part, options in EXPRESSIONS.items()}
    return (
        view
        | PLAIN_VIEW
        | {"clothesVariant": rng.choice(CLOTHES), "backgroundColor": rng.choice(BACKGROUNDS)}
    )


def draw_new_view(rng: random.Random) -> dict:
    """A view for the test set: new pose, crop, light, expression, clothing and background."""
    return draw_portrait_view(rng) | {
        "rotate": rng.randint(-14, 14),
        "scale": round(rng.uniform(0.9, 1.15), 2),
        "translateX": rng.randint(-7, 7),
        "translateY": rng.randint(-5, 5),
        "flip": rng.choice(["none", "horizontal"]),
        "light": round(rng.uniform(0.8, 1.1), 2),
    }


def render(face: dict[str, str], view: dict, size: int = 96) -> Image.Image:
    """Draw one face in one view as an RGB image of ``size`` x ``size`` pixels (deterministic)."""
    import resvg_py
    from dicebear import Avatar

    part = {feature: FACE_FEATURES[feature][word] for feature, word in face.items()}
    view = dict(view)
    light = view.pop("light")
    options = view | {
        "seed": "manu", "size": size,
        "skinColor": [part["skin"]], "hairColor": [part["hair colour"]],
        "clothesColor": [part["clothes colour"]],
        "hairVariant": part["hair style"], "hairProbability": 100,
        # an absent part must be switched off, or DiceBear draws one at random
        "rearHairVariant": part["back hair"] or "neckHigh",
        "rearHairProbability": 100 if part["back hair"] else 0,
        "beardVariant": part["beard"] or "chin", "beardProbability": 100 if part["beard"] else 0,
        "backgroundColor": [view["backgroundColor"]],
    }  # fmt: skip
    svg = Avatar(toon_head(), options).to_string()
    image = Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)))
    )
    image = image.convert("RGB")
    return image if light == 1.0 else ImageEnhance.Brightness(image).enhance(light)
