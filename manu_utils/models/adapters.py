"""LoRA adapters: those of a checkpoint and those of a training, merged into the weights."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .checkpoints import cause_of, message_of, not_plain
from .precision import HALF

# where transformers 4 had the parts of a model, in the adapters that it wrote -> where they are
_OLD_PLACES = {
    r"^language_model\.lm_head": "lm_head",
    r"^language_model\.model": "model.language_model",
    r"^model\.layers": "model.language_model.layers",
    r"^(vision_tower|vision_model|visual|multi_modal_projector)": r"model.\1",
}


def read_adapter_config(place: Path | str) -> dict | None:
    """The configuration of a LoRA adapter, or None if there is none."""
    from transformers.utils.peft_utils import find_adapter_config_file

    file = find_adapter_config_file(str(place))
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def merge_adapter(model, adapter: Path | str):
    """The model with the weights of a LoRA adapter added to its own."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # see _untie
            warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`")
            wrapped = PeftModel.from_pretrained(model, str(adapter), key_mapping=_OLD_PLACES)
            _untie(wrapped.get_base_model(), adapter)
            merged = wrapped.merge_and_unload()
    except pickle.UnpicklingError:
        raise ValueError(not_plain(adapter)) from None
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        raise ValueError(
            f"the adapter in {adapter} cannot be merged into this {type(model).__name__}; give the "
            f"model that it was trained on as base, or merge it with the version of transformers "
            f"that wrote it: {message_of(error)[:300]}"
        ) from cause_of(error)
    # an older peft leaves it, and the next save would look for an adapter
    vars(merged).pop("peft_config", None)
    return merged


def _untie(model, adapter: Path | str) -> None:
    """Give tied input and output embeddings a copy each, if an adapter changes one of them.

    What is merged into one would change the other as well, and both adapters would be added to
    both.

    Raises:
        ValueError: the adapter also changes single tokens of the two, which peft merges into shared
            weights only.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    configs = [
        config
        for config in (model.config, model.config.get_text_config())
        if config.tie_word_embeddings
    ]
    if not configs or not any(
        isinstance(end, BaseTunerLayer | ModulesToSaveWrapper) for end in ends
    ):
        return
    if any(isinstance(end, TrainableTokensWrapper) for end in ends):
        raise ValueError(
            "it changes tied embeddings both as a whole and token by token; merge it where it was "
            "trained."
        )
    one, other = (getattr(end, "original_module", getattr(end, "base_layer", end)) for end in ends)
    if other.weight is one.weight:
        other.weight = torch.nn.Parameter(one.weight.detach().clone(), requires_grad=False)
    for config in configs:
        config.tie_word_embeddings = False


@contextmanager
def new_adapters(model, rank: int | None, seed: int) -> Iterator[list[nn.Parameter]]:
    """The weights of new adapters, if any. On leaving they are merged, after an error dropped."""
    if rank is None:
        yield []
        return
    wrapped = _add_lora(model, rank, seed)
    try:
        yield [parameter for parameter in model.parameters() if parameter.requires_grad]
    except BaseException:
        wrapped.unload()
        raise
    else:
        wrapped.merge_and_unload()
    finally:
        # an older peft leaves it, and the next save would look for an adapter
        vars(model).pop("peft_config", None)


def _add_lora(model, rank: int, seed: int):
    """LoRA in float32 beside every linear layer of the language model; peft freezes all else.

    Rank and scale are equal, as in the official fine-tuning. The layers are named by their whole
    path, since a vision tower may use the same short names.
    """
    from peft import LoraConfig, LoraModel

    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    linear = [
        f"{path}.{name}"
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = LoraModel(
            model,
            LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=linear),
            "default",
        )
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    return wrapped
