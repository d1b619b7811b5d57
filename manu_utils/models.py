"""Load a vision-language model and its processor: the bundled miniature, a local folder or the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .benchmark import data_dir

BUNDLED = {"tiny": "vanilla", "tiny-base": "base"}  # source -> folder in data/tiny_llava


def pick_device() -> torch.device:
    """CUDA if there is any, else the CPU (Apple's MPS only on request: it lacks some of the operations)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: str | torch.device) -> torch.dtype:
    """float32 on a CPU; on a GPU bfloat16, or float16 where bfloat16 is only emulated (such as Colab's T4)."""
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_model(
    source: str | Path = "tiny",
    *,
    processor: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict | None = None,
):
    """Load a model in eval mode, and its processor.

    Code that comes with a checkpoint is never run. Images go through the PIL backend, so that a machine with torchvision
    computes the same pixels as one without.

    Args:
        source: ``"tiny"`` (the miniature that knows the fictitious people), ``"tiny-base"`` (has never met them), a local
            folder, or a Hub id such as ``"llava-hf/llava-1.5-7b-hf"``.
        processor: where the processor comes from, if not from ``source`` (``"MLLMMU/LLaVA_Vanilla"`` ships none).
        dtype, device: default :func:`pick_dtype` and :func:`pick_device`.
        device_map: such as ``"auto"``, to spread a model over several devices (needs accelerate); instead of ``device``.

    Returns:
        (model, processor)

    Raises:
        FileNotFoundError: no such folder or Hub id, or no checkpoint, weights or processor there.
        ConnectionError: the Hub cannot be reached and there is no cached copy.
        ValueError: quantised, damaged or incomplete weights, a model that needs its own code, or both device and device_map.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    if device is not None and device_map is not None:
        raise ValueError("give device or device_map, not both.")
    place = _place(source)
    with _plain_errors(source):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if any(getattr(part, "quantization_config", None) for part in (config, config.get_text_config())):
        raise ValueError(
            f"the weights of {source} are quantised, and neurons of packed weights cannot be zeroed; load the float16 or "
            "bfloat16 checkpoint that it was made from, prune that, and quantise afterwards."
        )
    home = place if processor is None else _place(processor)
    with _plain_errors(processor or source, what="processor"):
        loaded_processor = AutoProcessor.from_pretrained(home, backend="pil", trust_remote_code=False)
    if not hasattr(loaded_processor, "tokenizer") or not hasattr(loaded_processor, "image_processor"):
        raise FileNotFoundError(_no_processor(processor or source))

    device = torch.device(device) if device is not None else pick_device()
    options = {"dtype": dtype or pick_dtype(device), "trust_remote_code": False, "output_loading_info": True}
    if device_map is not None:
        options["device_map"] = device_map
    try:
        with _plain_errors(source), _no_bar(isinstance(place, Path)):
            model, info = AutoModelForImageTextToText.from_pretrained(place, **options)
    except SafetensorError as error:
        raise ValueError(f"the weights of {source} are damaged or half downloaded ({error}); fetch them again.") from error
    if incomplete := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
        raise ValueError(
            f"{source} lacks {len(incomplete)} weights of a {type(model).__name__}, such as {incomplete[0]}; they would be "
            "random. Fetch the checkpoint again, or check that config.json belongs to it."
        )
    if device_map is None:
        model.to(device)
    return model.eval(), loaded_processor


def _place(source: str | Path) -> Path | str:
    """The folder of a checkpoint, or the Hub id as it is."""
    if source in BUNDLED:
        folder = data_dir() / "tiny_llava" / BUNDLED[source]
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"the miniature model is not in {folder}; build it with `make mini-model`.")
        return folder
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no checkpoint (no config.json); save one there with save_pretrained.")
        return folder
    if isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1 or "\\" in source:
        raise FileNotFoundError(f"there is no folder {source}; give a local folder, a Hub id, or one of {', '.join(BUNDLED)}.")
    return str(source)


@contextmanager
def _plain_errors(source, what: str = "model") -> Iterator[None]:
    """Turn the errors of transformers and the Hub into ones that say what to do."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (OSError, ConnectionError) as error:
        causes = (error, error.__cause__, error.__context__)
        if any(isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError) for cause in causes):
            raise ConnectionError(
                f"cannot reach the Hub for the {what} of {source}; connect, give a local folder, or use source='tiny', which "
                "needs no network."
            ) from error
        if what == "processor":
            raise FileNotFoundError(_no_processor(source)) from error
        here = source in BUNDLED or Path(source).is_dir()
        advice = "fetch the checkpoint again" if here else f"check the spelling, or use {' or '.join(BUNDLED)}"
        raise FileNotFoundError(f"cannot load the {what} of {source}; {advice}: {error}") from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{source} needs code of its own, which is never run here; use a checkpoint of a model that transformers has."
            ) from error
        if what == "processor":
            raise FileNotFoundError(_no_processor(source)) from error
        raise ValueError(f"{source} is not a vision-language model that transformers can load: {error}") from error


def _no_processor(source) -> str:
    return (
        f"{source} has no processor for images and text; name a checkpoint of the same architecture that has one, such as "
        "load_model(..., processor='llava-hf/llava-1.5-7b-hf')."
    )


@contextmanager
def _no_bar(local: bool) -> Iterator[None]:
    """Switch the loading bar of transformers off for a local checkpoint; a download keeps its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if local and shown:
            logging.enable_progress_bar()
