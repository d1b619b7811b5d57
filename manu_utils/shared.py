"""The forward pass over shared batches (:func:`manu_utils.batches.shared_batches`), in which each image is seen once."""

from __future__ import annotations

import torch
from torch import Tensor


def can_share(model) -> bool:
    """Whether :func:`manu_utils.batches.shared_batches` is known to give the same answers.

    LLaVA on a Llama, whose attention takes any mask.
    """
    from transformers import LlavaForConditionalGeneration

    if not isinstance(model, LlavaForConditionalGeneration) or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return False
    text = model.config.get_text_config()
    return text.model_type == "llama" and text._attn_implementation in ("sdpa", "eager")


def read_shared(model, batch: dict[str, Tensor], use_cache: bool = False) -> tuple[Tensor, object]:
    """The last hidden states [m, hidden] where a shared batch is to be read, and the cache of keys and values.

    The last MLP is computed nowhere else; in a model of three layers that is a third of a forward pass.
    """
    _, row, position = batch["reads"].T
    names = ("input_ids", "position_ids", "pixel_values")
    inputs = {name: batch[name] for name in names if name in batch}

    def widen(module, _, output: Tensor) -> Tensor:
        whole = output.new_zeros(*batch["input_ids"].shape, output.shape[-1])
        whole[row, position] = output
        return whole

    mlp = model.get_decoder().layers[-1].mlp
    hooks = (
        mlp.register_forward_pre_hook(lambda module, arguments: (arguments[0][row, position],)),
        mlp.register_forward_hook(widen),
    )
    try:
        output = model.model(**inputs, attention_mask=additive_mask(batch["attention_mask"], model.dtype), use_cache=use_cache)
    finally:
        for hook in hooks:
            hook.remove()
    return output.last_hidden_state[row, position], output.past_key_values


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to the attention scores: 0 where allowed, else the lowest number."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
