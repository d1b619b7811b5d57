"""Hashes of what answers and statistics depend on: a model with its processor, a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import PIL.Image
import torch

from .prompts import DATE


def fingerprint(model, processor) -> str:
    """A hash of all that a model's answers depend on: 64 hex digits.

    Weights and buffers, those too that no checkpoint holds, such as rotary frequencies (names,
    types, values); the classes of all modules and what they print of their settings; config,
    generation settings and attention implementation; processor, image sizes, chat template, and the
    tokenizer with all its rules. Reads every weight once. What hooks do to a model is not seen;
    name such a model by a key of your own.

    Raises:
        ValueError: weights that are off-loaded, so that their values are not at hand.
    """
    digest = hashlib.sha256()
    for name, tensor in (dict(model.named_buffers()) | model.state_dict()).items():
        if tensor.is_meta:
            raise ValueError(
                f"{name} is off-loaded, so the weights cannot be told from others; give model_key, "
                "a name of your own for this model with these weights."
            )
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    attention = [
        getattr(getattr(module, "config", None), "_attn_implementation", None)
        for module in model.modules()
    ]
    digest.update(f"{model} {attention}".encode())
    for name in ("config", "generation_config"):
        settings = getattr(model, name, None)
        digest.update(_without_places({} if settings is None else settings.to_dict()))
    if hasattr(processor, "image_processor"):  # a language model's has a tokenizer alone
        for part in (processor, processor.image_processor):
            digest.update(part.to_json_string().encode())
    tokenizer = processor.tokenizer
    rules = (
        json.loads(tokenizer.backend_tokenizer.to_str())
        if hasattr(tokenizer, "backend_tokenizer")
        else {}
    )
    rules = {
        name: rule for name, rule in rules.items() if name not in ("padding", "truncation")
    }  # of the last call
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    digest.update(
        _without_places(
            [sorted(tokenizer.get_vocab().items()), rules, special, tokenizer.model_max_length]
        )
    )
    templates = [getattr(part, "chat_template", None) for part in (processor, tokenizer)]
    digest.update(_without_places([*templates, DATE]))
    return digest.hexdigest()


def _without_places(settings) -> bytes:
    """Settings as text, without the folder that a model was loaded from."""

    def clean(value):
        if isinstance(value, dict):
            return {
                str(key): clean(part)
                for key, part in value.items()
                if key not in ("_name_or_path", "name_or_path")
            }
        return [clean(part) for part in value] if isinstance(value, list | tuple) else value

    return json.dumps(clean(settings), sort_keys=True, default=str).encode()


def picture_digests(images: Iterable[PIL.Image.Image]) -> dict[int, str]:
    """``id`` of a picture -> a hash of its pixels, 64 hex digits; each picture is read once."""
    digests: dict[int, str] = {}
    for image in images:
        if id(image) not in digests:
            digests[id(image)] = _picture_digest(image)
    return digests


def _picture_digest(image: PIL.Image.Image) -> str:
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
