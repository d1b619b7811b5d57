"""The same question about a changed picture: noise, light, size, crop, blur, occlusion.

Kinds and sizes are those of the image rephrasing of Open-MMUnlearning (seed 42, sizes in pixels of
the picture as it is).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import PIL.Image
from PIL import ImageEnhance, ImageFilter, ImageStat

from ..benchmark.pictures import decoded
from ..benchmark.records import Question
from ..checks import check_name, check_whole


def with_noise(picture: PIL.Image.Image, seed: int) -> PIL.Image.Image:
    """Gaussian noise of standard deviation .02, where white is 1."""
    noise = np.random.default_rng(seed).normal(
        0, 0.02 * 255, size=(picture.height, picture.width, 3)
    )
    return PIL.Image.fromarray((np.asarray(picture) + noise).round().clip(0, 255).astype(np.uint8))


def darker(picture: PIL.Image.Image, seed: int) -> PIL.Image.Image:
    """85 % of the brightness."""
    return ImageEnhance.Brightness(picture).enhance(0.85)


def paler(picture: PIL.Image.Image, seed: int) -> PIL.Image.Image:
    """85 % of the contrast."""
    return ImageEnhance.Contrast(picture).enhance(0.85)


def coarser(picture: PIL.Image.Image, seed: int) -> PIL.Image.Image:
    """Made smaller by 15 % and large again."""
    size = [max(1, round(0.85 * side)) for side in picture.size]
    return picture.resize(size, PIL.Image.Resampling.BICUBIC).resize(
        picture.size, PIL.Image.Resampling.BICUBIC
    )


def cropped(picture: PIL.Image.Image, seed: int) -> PIL.Image.Image:
    """The inner 90 % of width and height, at the old size."""
    width, height = picture.size
    box = (0.05 * width, 0.05 * height, 0.95 * width, 0.95 * height)
    return picture.resize(picture.size, PIL.Image.Resampling.BICUBIC, box=box)


def blurred(picture: PIL.Image.Image, seed: int) -> PIL.Image.Image:
    """Gaussian blur of radius 2."""
    return picture.filter(ImageFilter.GaussianBlur(2))


def occluded(picture: PIL.Image.Image, seed: int) -> PIL.Image.Image:
    """A square of 18 % of the area, somewhere inside, in the mean colour of the picture."""
    sides = [max(1, round(0.18**0.5 * side)) for side in picture.size]
    rng = np.random.default_rng(seed)
    left, top = (
        int(rng.integers(whole - side + 1)) for whole, side in zip(picture.size, sides, strict=True)
    )
    picture = picture.copy()
    colour = tuple(round(value) for value in ImageStat.Stat(picture).mean)
    picture.paste(colour, (left, top, left + sides[0], top + sides[1]))
    return picture


PICTURES: dict[str, Callable[[PIL.Image.Image, int], PIL.Image.Image]] = {
    "noise": with_noise, "brightness": darker, "contrast": paler, "resize": coarser,
    "crop": cropped, "blur": blurred, "occlusion": occluded,
}  # fmt: skip


def changed_pictures(questions: Sequence[Question], kind: str, *, seed: int = 42) -> list[Question]:
    """The questions with a picture, each about a changed copy of it; those in text alone are left
    out.

    Args:
        kind: one of :data:`PICTURES`.
        seed: of the noise and of the place of the occlusion, the same for every picture.

    Returns:
        Questions with RGB pictures of the old size; those about one picture hold one object.

    Raises:
        TypeError, ValueError: an unknown kind, a seed that is no whole number, or a picture that
            cannot be read.
    """
    check_name("kind", kind, tuple(PICTURES))
    check_whole("seed", seed, least=0)
    changed: dict[int, PIL.Image.Image] = {}
    for question in questions:
        if question.image is not None and id(question.image) not in changed:
            changed[id(question.image)] = PICTURES[kind](decoded(question.image), seed)
    return [replace(q, image=changed[id(q.image)]) for q in questions if q.image is not None]
