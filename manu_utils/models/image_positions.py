"""Which positions of a vision tower are patches of which image; padding, class, border are not.

What a processor pads so that images share a tensor must count in no statistic. Every family pads in
its own way; a batch says which by the tensors that its processor puts into it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# parameters of CLIP-like towers, whose position 0 is no patch
_CLASS_TOKENS = ("class_embedding", "cls_token")


def patch_positions(model, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The n positions of the vision tower, in the order in which its MLPs see them.

    - LLaVA-1.5, Gemma 3 and others with one square of pixels per image: all but the class token.
    - LLaVA-NeXT and LLaVA-OneVision: the image and its tiles; the border that the model cuts off
      again does not count.
    - Idefics2, Idefics3 and SmolVLM: what ``pixel_attention_mask`` marks as the image.
    - Qwen-VL: all, since its patches are not padded.
    - Mllama: the tiles that the image fills; neither the class tokens nor the padding of the
      others. Where the image does not fill its last tile, the model reads the border as it reads
      the image, and so it counts.

    Args:
        batch: what :func:`encode` returns, one image per question.

    Returns:
        question int64 [n], the row of the batch that each position belongs to; is_patch bool [n].
        Both empty for a batch without images.

    Raises:
        ValueError: images in a form of which the padding is not known.
    """
    device = batch["input_ids"].device
    if "pixel_values" not in batch:
        return torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(
            0, dtype=torch.bool, device=device
        )
    b = len(batch["input_ids"])
    if "image_grid_thw" in batch:
        parts = [torch.ones(n, dtype=torch.bool) for n in batch["image_grid_thw"].prod(1).tolist()]
    elif "aspect_ratio_mask" in batch:
        parts = _mllama(model.config.vision_config, batch)
    elif "pixel_attention_mask" in batch and batch["pixel_values"].dim() == 5:
        parts = _masked(model.config, batch)
    elif "image_sizes" in batch and hasattr(model.config, "image_grid_pinpoints"):
        parts = _tiles(model, batch["image_sizes"])
    elif batch["pixel_values"].dim() == 4 and not {"image_sizes", "pixel_attention_mask"} & set(
        batch
    ):
        parts = [_square(model, *batch["pixel_values"].shape[-2:])] * len(batch["pixel_values"])
    else:
        parts = []
    if len(parts) != b:
        shapes = ", ".join(
            f"{key} {list(value.shape)}" for key, value in batch.items() if key != "answer_mask"
        )
        raise ValueError(
            f"it is not known which positions of the vision tower of {type(model).__name__} are "
            f"padding (the batch holds {shapes}); add its layout to "
            f"manu_utils.models.image_positions, or use text questions alone."
        )
    question = torch.arange(b).repeat_interleave(torch.tensor([len(part) for part in parts]))
    return question.to(device), torch.cat(parts).to(device)


def check_positions(path: str, n: int, expected: int) -> None:
    """Check that an MLP of the vision tower saw as many positions as :func:`patch_positions` says.

    Raises:
        ValueError: it saw others, so that padding could be counted.
    """
    if n != expected:
        raise ValueError(
            f"{path} sees {n} positions of the images where manu_utils.models.image_positions "
            f"expects {expected}; this architecture lays its images out in another way: add it "
            "there, or use text questions alone."
        )


def _square(model, height: int, width: int) -> Tensor:
    """Bool [n]: the positions of one square of pixels."""
    patch = model.config.vision_config.patch_size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    n = (height // rows) * (width // columns)
    class_tokens = int(any(name.endswith(_CLASS_TOKENS) for name, _ in model.named_parameters()))
    return torch.arange(class_tokens + n) >= class_tokens


def _tiles(model, image_sizes: Tensor) -> list[Tensor]:
    """LLaVA-NeXT, OneVision: the image in one tile, then tiles of the enlarged one with border."""
    from transformers.models.llava_next.modeling_llava_next import (
        get_anyres_image_grid_shape,
        unpad_image,
    )

    config = model.config
    size = config.vision_config.image_size
    side = size // config.vision_config.patch_size
    one = _square(model, size, size)
    parts = []
    for height, width in image_sizes.tolist():
        rows, columns = get_anyres_image_grid_shape(
            (height, width), config.image_grid_pinpoints, size
        )
        places = (
            torch.arange(rows * columns * side * side)
            .view(rows, columns, side, side)
            .transpose(1, 2)
        )
        kept = unpad_image(places.reshape(1, rows * side, columns * side), (height, width))
        inside = torch.zeros(rows * columns, side * side, dtype=torch.bool)
        inside.view(-1)[kept.flatten()] = True
        tiles = one.repeat(rows * columns, 1)
        tiles[:, len(one) - side * side :] = inside
        parts.append(torch.cat([one, tiles.flatten()]))
    return parts


def _masked(config, batch: dict[str, Tensor]) -> list[Tensor]:
    """Idefics2 (a patch is whole or masked), Idefics3 and SmolVLM (a part of a patch is enough)."""
    patch = config.vision_config.patch_size
    mask = batch["pixel_attention_mask"].cpu()  # [b, images, h, w]
    covered = mask.unfold(2, patch, patch).unfold(3, patch, patch).sum(dim=(-1, -2))
    inside = covered == patch**2 if config.model_type == "idefics2" else covered > 0
    # the models drop images that are all zeros
    real = (batch["pixel_values"] != 0).flatten(2).any(2).cpu()
    return [parts[kept].flatten() for parts, kept in zip(inside, real, strict=True)]


def _mllama(config, batch: dict[str, Tensor]) -> list[Tensor]:
    """Every tile is a class token, its patches, and padding to a multiple of 8 positions."""
    n = (config.image_size // config.patch_size) ** 2
    position = torch.arange((n + 1 + 7) // 8 * 8)
    is_patch = (position >= 1) & (position <= n)
    return [
        (filled.flatten()[:, None].bool() & is_patch).flatten()
        for filled in batch["aspect_ratio_mask"].cpu()
    ]
