"""Load a vision-language model and its processor: the bundled miniature, a local folder, the Hub, or a LoRA adapter."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import PIL.Image
import torch

from .batches import chat_template, encode
from .benchmark import Question, data_dir
from .checks import shown
from .neurons import towers

BUNDLED = {"tiny": "vanilla", "tiny-base": "base"}  # source -> folder in data/tiny_llava
_SETTINGS = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "adapter_config.json",
)  # fmt: skip
_PREFIX_MODELS = ("paligemma",)
_OLD_PLACES = {  # where transformers 4 had the parts of a model, in the adapters that it wrote -> where they are
    r"^language_model\.lm_head": "lm_head",
    r"^language_model\.model": "model.language_model",
    r"^model\.layers": "model.language_model.layers",
    r"^(vision_tower|vision_model|visual|multi_modal_projector)": r"model.\1",
}
_ADVICE = re.compile(
    r"weights_only|trust_remote_code|allow_pickle|use_safetensors *= *False|safe_globals|verify *= *False", re.I
)
_PROCESSORS = {  # model_type -> a checkpoint whose processor fits, for those that ship none
    "llava": "llava-hf/llava-1.5-7b-hf",
    "llava_next": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava_onevision": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "idefics2": "HuggingFaceM4/idefics2-8b",
    "idefics3": "HuggingFaceM4/Idefics3-8B-Llama3",
    "smolvlm": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
    "gemma3": "google/gemma-3-4b-it",
    "mllama": "meta-llama/Llama-3.2-11B-Vision-Instruct",
}


def pick_device() -> torch.device:
    """CUDA if there is any, else the CPU (Apple's MPS only on request: it lacks some of the operations)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: str | torch.device) -> torch.dtype:
    """float32 on a CPU and on MPS; on a CUDA device bfloat16, or float16 where bfloat16 is only emulated (T4, V100)."""
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


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

    Code that comes with a checkpoint is never run. Images go through the PIL backend, so that a machine with torchvision
    computes the same pixels as one without. Where a processor can split an image into tiles (Idefics, SmolVLM), it is told not
    to, as in the official evaluation. LoRA adapters are merged into the weights, so that neurons are plain linear layers.
    What older processors of LLaVA lack (``patch_size`` and its kin) is taken from the model; a tokenizer without a padding
    token pads with its end of sequence, which is masked.

    Args:
        source: ``"tiny"`` (the miniature that knows the fictitious people), ``"tiny-base"`` (has never met them), a local
            folder, or a Hub id such as ``"llava-hf/llava-1.5-7b-hf"``; a checkpoint or a LoRA adapter of one.
        processor: where the processor comes from, if not from ``source`` (``"MLLMMU/LLaVA_Vanilla"`` ships none).
        base: the model that the adapter in ``source`` belongs to, if not the one that it names.
        dtype, device: default :func:`pick_dtype` and :func:`pick_device`.
        device_map: such as ``"auto"``, to spread a model over several devices (needs accelerate); instead of ``device``.

    Returns:
        (model, processor)

    Raises:
        FileNotFoundError: no such folder or Hub id, or no checkpoint, weights or processor there.
        ConnectionError: the Hub cannot be reached and there is no cached copy.
        ImportError: the processor needs a package that is not installed.
        TypeError: ``dtype`` is no torch.dtype, or a source no path.
        ValueError: quantised, damaged or incomplete weights or adapters, weights in a form that could run code, a model that
            needs its own code, is not causal or whose MLPs are not found, ``base`` without an adapter, both device and
            device_map, or a processor without chat template (but for LLaVA-1.5) or that does not fit the model.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText

    for name, place in (("source", source), ("processor", processor), ("base", base)):
        if not isinstance(place, str | Path) and (place is not None or name == "source"):
            raise TypeError(f"{name}={shown(place)} must be a path, a Hub id or 'tiny', not a {type(place).__name__}.")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={shown(dtype)} must be a torch.dtype, such as torch.float32.")
    if device is not None and device_map is not None:
        raise ValueError("give device or device_map, not both.")
    place, adapter = _place(source), None
    with _plain_errors(source):
        adapter_config = _adapter_config(place)
    if adapter_config is not None:
        adapter, source = place, base or adapter_config.get("base_model_name_or_path")
        if not source:
            raise ValueError(f"the adapter in {adapter} does not name its model; give load_model(..., base=...).")
        place = _place(source)
    elif base is not None:
        raise ValueError(f"base={str(base)!r} goes with a LoRA adapter, and {source} holds none (no adapter_config.json).")
    with _plain_errors(source):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if any(getattr(part, "quantization_config", None) for part in (config, config.get_text_config())):
        raise ValueError(
            f"the weights of {source} are quantised, and neurons of packed weights cannot be zeroed; load the float16 or "
            "bfloat16 checkpoint that it was made from, prune that, and quantise afterwards."
        )
    if config.model_type in _PREFIX_MODELS:
        raise ValueError(
            f"{source} is a {config.model_type}, whose prompt is read in both directions, so that statistics and answers "
            "would depend on where it ends; use a causal model such as LLaVA."
        )
    home = place if processor is None else _place(processor)
    with _plain_errors(processor or source, what="processor", model_type=config.model_type):
        loaded_processor = _load_processor(home, config)
    if not hasattr(loaded_processor, "tokenizer") or not hasattr(loaded_processor, "image_processor"):
        raise FileNotFoundError(_no_processor(processor or source, config.model_type))
    if getattr(loaded_processor.image_processor, "do_image_splitting", False):
        loaded_processor.image_processor.do_image_splitting = False
    tokenizer = loaded_processor.tokenizer
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {processor or source} has neither a padding token nor an end of sequence.")
        tokenizer.pad_token = tokenizer.eos_token
    if positions := getattr(config.get_text_config(), "max_position_embeddings", None):
        tokenizer.model_max_length = positions  # what is longer is left out of batches
    chat_template(loaded_processor)  # raises where it is not known how to ask

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
    if adapter is not None:
        model = _merge(model, adapter)
    if device_map is None:
        model.to(device)
    towers(model)  # raises where no MLP is found
    _fit_processor(loaded_processor, model, processor or source)
    return model.eval(), loaded_processor


def _fit_processor(processor, model, source) -> None:
    """Complete a processor by what its model says, and make one batch of each kind with it.

    Raises:
        ValueError: it lacks something, counts image tokens for another model, or makes no batch.
    """
    advice = "take the processor of the checkpoint that the model comes from: load_model(..., processor=...)."
    vision = getattr(model.config, "vision_config", None)
    expected = {
        "patch_size": getattr(vision, "patch_size", None),
        "vision_feature_select_strategy": getattr(model.config, "vision_feature_select_strategy", None),
    }
    of_llava = hasattr(processor, "num_additional_image_tokens")  # a processor of LLaVA or LLaVA-NeXT
    for name, value in expected.items() if of_llava else ():
        if getattr(processor, name) is None:
            setattr(processor, name, value)
        if getattr(processor, name) is None:
            raise ValueError(f"the processor of {source} has no {name}, and its model does not say it either; {advice}")
        if value is not None and getattr(processor, name) != value:
            raise ValueError(
                f"the processor of {source} has {name}={getattr(processor, name)!r}, its model {value!r}, so that images and "
                f"their tokens would not match; {advice}"
            )
    if of_llava and not processor.num_additional_image_tokens:
        names = (name for name, _ in model.named_parameters())
        processor.num_additional_image_tokens = int(any(name.endswith(("class_embedding", "cls_token")) for name in names))
    for image in (None, PIL.Image.new("RGB", (96, 64))):
        question = Question("nobody", "Who is this?", "Nobody.", image, "training")
        try:
            batch = encode([question], processor, with_answer=True)
        except ImportError:
            raise
        except Exception as error:  # whatever a processor may stumble over
            kind = "with an image" if image else "in text alone"
            said = f"the processor of {source} cannot encode a question {kind} ({_said(error)}); {advice}"
            raise ValueError(said) from _cause(error)
    image_id = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
    if image_id is not None and not (batch["input_ids"] == image_id).any():
        raise ValueError(
            f"the processor of {source} does not write the token {image_id} that its model has for images; {advice}"
        )
    size = getattr(vision, "image_size", None)
    fixed = type(processor).__name__ == "LlavaProcessor" and getattr(vision, "model_type", "").startswith(("clip", "siglip"))
    if fixed and isinstance(size, int) and batch["pixel_values"].shape[-2:] != (size, size):
        made = "×".join(map(str, batch["pixel_values"].shape[-2:]))
        raise ValueError(f"the processor of {source} makes images of {made} pixels, its model takes {size}×{size}; {advice}")


def _adapter_config(place: Path | str) -> dict | None:
    """The configuration of a LoRA adapter, or None if there is none."""
    from transformers.utils.peft_utils import find_adapter_config_file

    file = find_adapter_config_file(str(place))
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def _merge(model, adapter: Path | str):
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
        raise ValueError(_not_plain(adapter)) from None
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        raise ValueError(
            f"the adapter in {adapter} cannot be merged into this {type(model).__name__}; give the model that it was trained "
            f"on as base, or merge it with the version of transformers that wrote it: {_said(error)[:300]}"
        ) from _cause(error)
    vars(merged).pop("peft_config", None)  # an older peft leaves it, and the next save would look for an adapter
    return merged


def _untie(model, adapter: Path | str) -> None:
    """Give input and output embeddings that share their weights a copy each, if an adapter changes either of them.

    What is merged into one would change the other as well, and both adapters would be added to both.

    Raises:
        ValueError: the adapter also changes single tokens of the two, which peft merges into shared weights only.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    configs = [config for config in (model.config, model.config.get_text_config()) if config.tie_word_embeddings]
    if not configs or not any(isinstance(end, BaseTunerLayer | ModulesToSaveWrapper) for end in ends):
        return
    if any(isinstance(end, TrainableTokensWrapper) for end in ends):
        raise ValueError("it changes tied embeddings both as a whole and token by token; merge it where it was trained.")
    one, other = (getattr(end, "original_module", getattr(end, "base_layer", end)) for end in ends)
    if other.weight is one.weight:
        other.weight = torch.nn.Parameter(one.weight.detach().clone(), requires_grad=False)
    for config in configs:
        config.tie_word_embeddings = False


def _load_processor(home: Path | str, config):
    """The processor, without its video part where it has one: that needs torchvision, and there is no PIL backend of it."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(home, backend="pil", trust_remote_code=False)
    except ImportError as missing:
        error = missing
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
        from transformers.video_processing_utils import BaseVideoProcessor

        kind = PROCESSOR_MAPPING.get(type(config), None)
        try:
            if kind is not None and "video_processor" in kind.get_attributes():
                processor = without_video(kind).from_pretrained(home, backend="pil", trust_remote_code=False)
                # Its settings only: saved with the processor, they make it whole again where torchvision is.
                with suppress(OSError):  # there are none
                    processor.video_processor = BaseVideoProcessor.get_video_processor_dict(home)[0]
                return processor
        except ImportError as other:
            error = other
        raise ImportError(
            f"the processor of {home} needs a package that is not installed (num2words for SmolVLM; torchvision for some); "
            f"pip install torchvision num2words, in the version that fits the installed torch: {error}"
        ) from error


def without_video(kind: type) -> type:
    """A processor class of transformers that takes text and images and has no video processor."""

    def get_attributes(cls) -> list[str]:
        return [name for name in kind.get_attributes() if name != "video_processor"]

    def _get_arguments_from_pretrained(cls, *arguments, **options) -> list:
        parts = super(still, cls)._get_arguments_from_pretrained(*arguments, **options)
        found = dict(zip(cls.get_attributes(), parts, strict=True))
        return [found.get(name) for name in kind.get_attributes()]

    still = type(kind.__name__, (kind,), {  # under the same name, which is what the processor's file says
        "get_attributes": classmethod(get_attributes),
        "_get_arguments_from_pretrained": classmethod(_get_arguments_from_pretrained),
    })  # fmt: skip
    return still


def _place(source: str | Path) -> Path | str:
    """The folder of a checkpoint, or the Hub id as it is."""
    if source in BUNDLED:
        folder = data_dir() / "tiny_llava" / BUNDLED[source]
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"the miniature model is not in {folder}; build it with `make mini-model`.")
        return folder
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise FileNotFoundError(f"{folder} holds no checkpoint (no config.json); save one there with save_pretrained.")
        _check_settings(folder)
        return folder
    if isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1 or "\\" in source:
        raise FileNotFoundError(f"there is no folder {source}; give a local folder, a Hub id, or one of {', '.join(BUNDLED)}.")
    return str(source)


def _check_settings(folder: Path) -> None:
    """Read the settings in a folder before transformers, which stumbles over damaged ones somewhere or takes its own instead.

    Raises:
        ValueError: a file is no JSON object, or a tokenizer.json without its parts.
    """
    for name in _SETTINGS:
        try:
            text = (folder / name).read_text(encoding="utf-8")
        except OSError:  # not there
            continue
        except UnicodeDecodeError:
            text = ""
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
            if isinstance(found, dict) and (name != "tokenizer.json" or {"model", "added_tokens"} <= set(found)):
                continue
        raise ValueError(f"{folder / name} is damaged or half downloaded; fetch it again.")


@contextmanager
def _plain_errors(source, what: str = "model", model_type: str = "llava") -> Iterator[None]:
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
            ) from _cause(error)
        if what == "processor":
            raise FileNotFoundError(_no_processor(source, model_type)) from _cause(error)
        here = source in BUNDLED or Path(source).is_dir()
        advice = "fetch the checkpoint again" if here else f"check the spelling, or use {' or '.join(BUNDLED)}"
        raise FileNotFoundError(f"cannot load the {what} of {source}; {advice}: {_said(error)}") from _cause(error)
    except pickle.UnpicklingError:
        raise ValueError(_not_plain(source)) from None
    except RuntimeError as error:
        if "zip archive" not in str(error):
            raise
        raise ValueError(f"the weights of {source} are damaged or half downloaded; fetch them again.") from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{source} needs code of its own, which is never run here; use a checkpoint of a model that transformers has."
            ) from None
        if what == "processor":
            raise FileNotFoundError(_no_processor(source, model_type)) from _cause(error)
        said = f"{source} is not a vision-language model that transformers can load: {_said(error)}"
        raise ValueError(said) from _cause(error)


def _said(error: BaseException) -> str:
    """What an error of a library says, without its advice to switch a protection off."""
    return " ".join(part for part in re.split(r"(?<=[.!?])\s+|\n+", str(error)) if not _ADVICE.search(part))


def _cause(error: BaseException) -> BaseException | None:
    """The error to raise from: none where the traceback would show such advice."""
    return None if _ADVICE.search(str(error)) else error


def _not_plain(source) -> str:
    return (
        f"the weights of {source} are no plain tensors: damaged, or made to run code when they are loaded, which is never "
        "done here; fetch them again from a source that you trust, best in the safetensors format."
    )


def _no_processor(source, model_type: str) -> str:
    named = f"processor={_PROCESSORS[model_type]!r}" if model_type in _PROCESSORS else "processor=..."
    return (
        f"{source} has no processor for images and text; name a checkpoint of the same architecture and size that has one, "
        f"such as load_model({str(source)!r}, {named})."
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
