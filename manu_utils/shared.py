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

    The last MLP is computed nowhere else; in a model of three layers that is a third of a forward pass. What the rows of few
    shots begin with alike (``beginning``, see :func:`manu_utils.protocols.shared_prompts`) is read once, before them.
    """
    _, row, position = batch["reads"].T
    names = ("input_ids", "position_ids", "pixel_values")
    inputs = {name: batch[name] for name in names if name in batch}
    if "beginning" in batch:
        inputs = {"position_ids": batch["position_ids"], **_begin(model, batch)}

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


def _begin(model, batch: dict[str, Tensor]) -> dict[str, object]:
    """``inputs_embeds`` of the rows, and the ``past_key_values`` that all of them go on from; each image is seen once.

    Raises:
        ValueError: an image has more or fewer features than tokens.
    """
    ids = torch.cat([batch["beginning"], batch["input_ids"].flatten()])
    embedded = model.get_input_embeddings()(ids)
    if "pixel_values" in batch:
        features = torch.stack(tuple(model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output))
        image, number = batch["features"].T
        if (tokens := int(number.max()) + 1) != features.shape[1]:
            raise ValueError(
                f"an image has {tokens} tokens in a prompt but {features.shape[1]} features; check the processor's "
                "patch_size and its image size."
            )
        embedded[ids == model.config.image_token_id] = features[image, number].to(embedded.dtype)
    beginning, rows = embedded.split([len(batch["beginning"]), batch["input_ids"].numel()])
    inputs: dict[str, object] = {"inputs_embeds": rows.view(*batch["input_ids"].shape, -1)}
    if len(beginning):
        inputs["past_key_values"] = model.model(inputs_embeds=beginning[None], use_cache=True).past_key_values
        inputs["past_key_values"].batch_repeat_interleave(len(batch["input_ids"]))
    return inputs


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to the attention scores: 0 where allowed, else the lowest number."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
