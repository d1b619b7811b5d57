"""The processor of a model: loaded without video, completed by what the model says, and tried."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import PIL.Image

from ..benchmark.records import Question
from .checkpoints import cause_of, message_of
from .encoding import encode


def load_processor(home: Path | str, config):
    """The processor without its video part, which needs torchvision and has no PIL backend.

    A processor with videos is of the class that belongs to the config, whatever the files beside it
    name; any other is of the class that they name.

    Raises:
        ImportError: it needs a package that is not installed.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.video_processing_utils import BaseVideoProcessor

    kind = PROCESSOR_MAPPING.get(type(config), None)
    with_video = kind is not None and "video_processor" in kind.get_attributes()
    maker = without_video(kind) if with_video else AutoProcessor
    try:
        processor = maker.from_pretrained(home, backend="pil", trust_remote_code=False)
    except ImportError as error:
        raise ImportError(
            f"the processor of {home} needs a package that is not installed (num2words for "
            f"SmolVLM; torchvision for some); pip install torchvision num2words, in the version "
            f"that fits the installed torch: {error}"
        ) from error
    if with_video:
        # Its settings only: saved with the processor, they make it whole again where it is built.
        with suppress(OSError):  # there are none
            processor.video_processor = BaseVideoProcessor.get_video_processor_dict(home)[0]
    return processor


def without_video(kind: type) -> type:
    """A processor class of transformers that takes text and images and has no video processor."""

    def get_attributes(cls) -> list[str]:
        return [name for name in kind.get_attributes() if name != "video_processor"]

    def _get_arguments_from_pretrained(cls, *arguments, **options) -> list:
        parts = super(still, cls)._get_arguments_from_pretrained(*arguments, **options)
        found = dict(zip(cls.get_attributes(), parts, strict=True))
        return [found.get(name) for name in kind.get_attributes()]

    # under the same name, which is what the processor's file says
    still = type(kind.__name__, (kind,), {
        "get_attributes": classmethod(get_attributes),
        "_get_arguments_from_pretrained": classmethod(_get_arguments_from_pretrained),
    })  # fmt: skip
    return still


def fit_processor(processor, model, source) -> None:
    """Complete a processor by what its model says, and make one batch of each kind with it.

    Raises:
        ValueError: it lacks something, counts image tokens for another model, or makes no batch.
    """
    if hasattr(processor, "num_additional_image_tokens"):  # of LLaVA or LLaVA-NeXT
        _complete_by(model, processor, source)
    for image in (None, PIL.Image.new("RGB", (96, 64))):
        question = Question("nobody", "Who is this?", "Nobody.", image, "training")
        try:
            batch = encode([question], processor, with_answer=True)
        except ImportError:
            raise
        except Exception as error:  # whatever a processor may stumble over
            kind = "with an image" if image else "in text alone"
            said = f"cannot encode a question {kind} ({message_of(error)})"
            raise ValueError(_misfit(source, said)) from cause_of(error)
    config = model.config
    image_id = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if image_id is not None and not (batch["input_ids"] == image_id).any():
        said = f"does not write the token {image_id} that its model has for images"
        raise ValueError(_misfit(source, said))
    vision = getattr(config, "vision_config", None)
    size = getattr(vision, "image_size", None)
    fixed = type(processor).__name__ == "LlavaProcessor" and getattr(
        vision, "model_type", ""
    ).startswith(("clip", "siglip"))
    if fixed and isinstance(size, int) and batch["pixel_values"].shape[-2:] != (size, size):
        made = "×".join(map(str, batch["pixel_values"].shape[-2:]))
        said = f"makes images of {made} pixels, its model takes {size}×{size}"
        raise ValueError(_misfit(source, said))


def _misfit(source, said: str) -> str:
    return (
        f"the processor of {source} {said}; take the processor of the checkpoint that the model "
        "comes from: load_model(..., processor=...)."
    )


def _complete_by(model, processor, source) -> None:
    """Give a processor of LLaVA what it needs to count image tokens, and lacks; see
    :func:`fit_processor`.
    """
    config = model.config
    expected = {
        "patch_size": getattr(getattr(config, "vision_config", None), "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
    }
    for name, value in expected.items():
        if getattr(processor, name) is None:
            setattr(processor, name, value)
        if (own := getattr(processor, name)) is None:
            said = f"has no {name}, and its model does not say it either"
            raise ValueError(_misfit(source, said))
        if value is not None and own != value:
            said = f"has {name}={own!r}, its model {value!r}, so that images and their tokens would"
            raise ValueError(_misfit(source, f"{said} not match"))
    if not processor.num_additional_image_tokens:
        names = (name for name, _ in model.named_parameters())
        processor.num_additional_image_tokens = int(
            any(name.endswith(("class_embedding", "cls_token")) for name in names)
        )
