"""Where a checkpoint is; errors of transformers and the Hub turned into what to do about them."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..paths import data_dir

# source -> folder in data/tiny_llava
BUNDLED = {"tiny": "vanilla", "tiny-base": "base", "tiny-retrained": "retrained"}
_ADVICE = re.compile(
    r"weights_only|trust_remote_code|allow_pickle|use_safetensors *= *False|safe_globals"
    r"|verify *= *False",
    re.I,
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


def place_of(source: str | Path) -> Path | str:
    """The folder of a checkpoint, or the Hub id as it is. The name of a bundled model wins over a
    folder of that name, which a warning says.
    """
    if source in BUNDLED:
        if Path(source).is_dir():
            warnings.warn(
                f"{source!r} is the bundled model, not the folder {source} here; that is "
                f"'./{source}'.",
                stacklevel=3,
            )
        folder = data_dir() / "tiny_llava" / BUNDLED[source]
        if not (folder / "config.json").is_file():
            made = "make retrained RATIOS=10" if source == "tiny-retrained" else "make mini-model"
            raise FileNotFoundError(
                f"the miniature model is not in {folder}; build it with `{made}`."
            )
        return folder
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise FileNotFoundError(
                f"{folder} holds no checkpoint (no config.json); save one there with "
                f"save_pretrained."
            )
        _check_settings(folder)
        return folder
    if (
        isinstance(source, Path)
        or str(source).startswith((".", "/", "~"))
        or str(source).count("/") > 1
        or "\\" in source
    ):
        raise FileNotFoundError(
            f"there is no folder {source}; give a local folder, a Hub id, or one of "
            f"{', '.join(BUNDLED)}."
        )
    return str(source)


@contextmanager
def plain_errors(source, what: str = "model", model_type: str = "llava") -> Iterator[None]:
    """Turn the errors of transformers and the Hub into ones that say what to do."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (OSError, ConnectionError) as error:
        causes = (error, error.__cause__, error.__context__)
        if any(
            isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError)
            for cause in causes
        ):
            raise ConnectionError(
                f"cannot reach the Hub for the {what} of {source}; connect, give a local folder, "
                f"or use source='tiny', which needs no network."
            ) from cause_of(error)
        if what == "processor":
            raise FileNotFoundError(no_processor(source, model_type)) from cause_of(error)
        here = source in BUNDLED or Path(source).is_dir()
        advice = (
            "fetch the checkpoint again"
            if here
            else f"check the spelling, or use {' or '.join(BUNDLED)}"
        )
        raise FileNotFoundError(
            f"cannot load the {what} of {source}; {advice}: {message_of(error)}"
        ) from cause_of(error)
    except pickle.UnpicklingError:
        raise ValueError(not_plain(source)) from None
    except RuntimeError as error:
        if "zip archive" not in str(error):
            raise
        raise ValueError(
            f"the weights of {source} are damaged or half downloaded; fetch them again."
        ) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{source} needs code of its own, which is never run here; use a checkpoint of a "
                f"model that transformers has."
            ) from None
        if what == "processor":
            raise FileNotFoundError(no_processor(source, model_type)) from cause_of(error)
        said = (
            f"{source} is not a vision-language model that transformers can load: "
            f"{message_of(error)}"
        )
        raise ValueError(said) from cause_of(error)


def message_of(error: BaseException) -> str:
    """What an error of a library says, without its advice to switch a protection off."""
    return " ".join(
        part for part in re.split(r"(?<=[.!?])\s+|\n+", str(error)) if not _ADVICE.search(part)
    )


def cause_of(error: BaseException) -> BaseException | None:
    """The error to raise from: none where the traceback would show such advice."""
    return None if _ADVICE.search(str(error)) else error


def not_plain(source) -> str:
    return (
        f"the weights of {source} are no plain tensors: damaged, or made to run code when they are "
        f"loaded, which is never done here; fetch them again from a source that you trust, best in "
        "the safetensors format."
    )


def no_processor(source, model_type: str) -> str:
    named = (
        f"processor={_PROCESSORS[model_type]!r}" if model_type in _PROCESSORS else "processor=..."
    )
    return (
        f"{source} has no processor for images and text; name a checkpoint of the same "
        f"architecture and size that has one, such as load_model({str(source)!r}, {named})."
    )


@contextmanager
def no_loading_bar(local: bool) -> Iterator[None]:
    """Switch transformers' loading bar off for a local checkpoint; a download keeps its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if local and shown:
            logging.enable_progress_bar()


_SETTINGS = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "adapter_config.json",
)  # fmt: skip


def _check_settings(folder: Path) -> None:
    """Read a folder's settings before transformers stumbles over them or takes its own.

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
            if isinstance(found, dict) and (
                name != "tokenizer.json" or {"model", "added_tokens"} <= set(found)
            ):
                continue
        raise ValueError(f"{folder / name} is damaged or half downloaded; fetch it again.")
