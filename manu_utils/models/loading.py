"""Load a model and its processor: the bundled miniature, a folder, the Hub, or a LoRA adapter."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checks import check_source, shown
from . import precision
from .adapters import merge_adapter, read_adapter_config
from .checkpoints import no_loading_bar, no_processor, place_of, plain_errors
from .neurons import towers
from .processors import fit_processor, load_processor
from .prompts import chat_template

_PREFIX_MODELS = ("paligemma",)


def load_model(
    source: str | Path = "tiny",
    *,
    processor: str | Path | None = None,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict | None = None,
):
    """Load a model in eval mode, and its processor, which is complete: a batch can be made.

    Code that comes with a checkpoint is never run. Images go through the PIL backend, so that a
    machine with torchvision computes the same pixels as one without. Where a processor can split an
    image into tiles (Idefics, SmolVLM), it is told not to, as in the official evaluation. LoRA
    adapters are merged into the weights, so that neurons are plain linear layers. What older
    processors of LLaVA lack (``patch_size`` and its kin) is taken from the model; a tokenizer
    without a padding token pads with its end of sequence, which is masked.

    Args:
        source: ``"tiny"`` (the miniature that knows the fictitious people), ``"tiny-base"`` (has
            never met them), ``"tiny-retrained"`` (has met all but those of forget 10 %), a local
            folder (one of these names is ``"./tiny"``), or a Hub id such as
            ``"llava-hf/llava-1.5-7b-hf"``; a checkpoint or a LoRA adapter of one.
        processor: where the processor comes from, if not from ``source``
            (``"MLLMMU/LLaVA_Vanilla"`` ships none).
        base: the model that the adapter in ``source`` belongs to, if not the one that it names.
        dtype, device: default ``pick_dtype`` and ``pick_device`` of
            :mod:`manu_utils.models.precision`.
        device_map: such as ``"auto"``, to spread a model over several devices (needs accelerate);
            instead of ``device``.

    Returns:
        (model, processor)

    Raises:
        FileNotFoundError: no such folder or Hub id, or no checkpoint, weights or processor there.
        ConnectionError: the Hub cannot be reached and there is no cached copy.
        ImportError: the processor needs a package that is not installed.
        TypeError: ``dtype`` is no torch.dtype, or a source no path.
        ValueError: quantised, damaged or incomplete weights or adapters, weights in a form that
            could run code, a model that needs its own code, is not causal or whose MLPs are not
            found, ``base`` without an adapter, a device that is not there, both device and
            device_map, or a processor without chat template (but for LLaVA-1.5) or that does not
            fit the model.
    """
    for name, place in (("source", source), ("processor", processor), ("base", base)):
        if place is not None or name == "source":
            check_source(name, place)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={shown(dtype)} must be a torch.dtype, such as torch.float32.")
    if device is not None and device_map is not None:
        raise ValueError("give device or device_map, not both.")
    place, adapter = place_of(source), None
    with plain_errors(source):
        adapter_config = read_adapter_config(place)
    if adapter_config is not None:
        adapter, source = place, base or adapter_config.get("base_model_name_or_path")
        if not source:
            raise ValueError(
                f"the adapter in {adapter} does not name its model; give load_model(..., base=...)."
            )
        place = place_of(source)
    elif base is not None:
        raise ValueError(
            f"base={str(base)!r} goes with a LoRA adapter, and {source} holds none (no "
            f"adapter_config.json)."
        )
    config = _config_of(source, place)
    home = place if processor is None else place_of(processor)
    loaded_processor = _processor_of(processor or source, home, config)
    device = precision.pick_device() if device is None else _device_that_is_there(device)
    options = {
        "dtype": dtype or precision.pick_dtype(device),
        "trust_remote_code": False,
        "output_loading_info": True,
    }
    if device_map is not None:
        options["device_map"] = device_map
    model = _with_all_weights(source, place, options)
    if adapter is not None:
        model = merge_adapter(model, adapter)
    if device_map is None:
        model.to(device)
    towers(model)  # raises where no MLP is found
    fit_processor(loaded_processor, model, processor or source)
    return model.eval(), loaded_processor


def _device_that_is_there(name: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        said = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"device={str(name)!r} cannot be used here ({said}); leave it out, or take 'cpu'."
        ) from error


def _config_of(source: str | Path, place: str | Path):
    """The config of a checkpoint whose neurons can be zeroed and that reads from left to right."""
    from transformers import AutoConfig

    with plain_errors(source):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if any(
        getattr(part, "quantization_config", None) for part in (config, config.get_text_config())
    ):
        raise ValueError(
            f"the weights of {source} are quantised, and neurons of packed weights cannot be "
            f"zeroed; load the float16 or bfloat16 checkpoint that it was made from, prune that, "
            "and quantise afterwards."
        )
    if config.model_type in _PREFIX_MODELS:
        raise ValueError(
            f"{source} is a {config.model_type}, whose prompt is read in both directions, so that "
            f"statistics and answers would depend on where it ends; use a causal model such as "
            "LLaVA."
        )
    return config


def _processor_of(source: str | Path, place: str | Path, config):
    """A processor that knows how to ask and to pad, and how long a question may be."""
    with plain_errors(source, what="processor", model_type=config.model_type):
        processor = load_processor(place, config)
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise FileNotFoundError(no_processor(source, config.model_type))
    images = processor.image_processor
    if getattr(images, "do_image_splitting", False):
        images.do_image_splitting = False
        # Else SmolVLM enlarges every picture to 2,048 pixels, and then makes it 512: six times the
        # work, to be split into parts that are not made.
        images.size = getattr(images, "max_image_size", images.size)
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {source} has neither a padding token nor an end of sequence."
            )
        tokenizer.pad_token = tokenizer.eos_token
    if positions := getattr(config.get_text_config(), "max_position_embeddings", None):
        tokenizer.model_max_length = positions  # what is longer is left out of batches
    chat_template(processor)  # raises where it is not known how to ask
    return processor


def _with_all_weights(source: str | Path, place: str | Path, options: dict):
    """The model, of which no weight is missing."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    try:
        with plain_errors(source), no_loading_bar(isinstance(place, Path)):
            model, info = AutoModelForImageTextToText.from_pretrained(place, **options)
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {source} are damaged or half downloaded ({error}); fetch them again."
        ) from error
    if incomplete := sorted(info["missing_keys"]) + sorted(
        str(key) for key in info["mismatched_keys"]
    ):
        raise ValueError(
            f"{source} lacks {len(incomplete)} weights of a {type(model).__name__}, such as "
            f"{incomplete[0]}; they would be random. Fetch the checkpoint again, or check that "
            "config.json belongs to it."
        )
    return model
