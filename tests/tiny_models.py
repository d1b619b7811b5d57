"""Small random models of the architectures that ``load_model`` takes, each with its own processor and a byte-level tokenizer.

Every builder returns (model, processor); hidden size 32, two layers per tower, images of about 32 pixels. The chat templates
are the real ones, cut down to one turn of each role.
"""

import copy
import sys
from types import SimpleNamespace

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from manu_utils.models.processors import without_video

HIDDEN, LAYERS, LANGUAGE, VISION, IMAGE, PATCH = 32, 2, 48, 40, 32, 8
TEXT = dict(
    hidden_size=HIDDEN, intermediate_size=LANGUAGE, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=2,
    max_position_embeddings=1024, tie_word_embeddings=False, initializer_range=0.2,
)  # fmt: skip
TOWER = dict(
    hidden_size=HIDDEN, intermediate_size=VISION, num_hidden_layers=LAYERS, num_attention_heads=2, image_size=IMAGE,
    patch_size=PATCH, initializer_range=0.2,
)  # fmt: skip
N_PATCHES = (IMAGE // PATCH) ** 2
SQUARE = {"height": IMAGE, "width": IMAGE}
PINPOINTS = [[IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE], [2 * IMAGE, 2 * IMAGE]]

_CONTENT = (
    "{{% for c in m.content %}}{{% if c.type == 'image' %}}{image}{{% else %}}{{{{ c.text }}}}{{% endif %}}{{% endfor %}}"
)


def _template(image: str, begin: str, end: str, generation: str, first: str = "") -> str:
    """A chat template: ``begin`` may use the role, as m.role."""
    turn = begin + _CONTENT.format(image=image) + end
    return f"{first}{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{generation}{{% endif %}}"


def _idefics_template(newline: str = "\n") -> str:
    begin = "{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    return _template("<image>", begin, "<end_of_utterance>" + newline, "Assistant:")


IM_CHAT = ("<|im_start|>{{ m.role }}\n", "<|im_end|>\n", "<|im_start|>assistant\n")
VICUNA = _template(
    "<image>\n", "{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}", "{{ ' ' if m.role == 'user' else '' }}", "ASSISTANT:"
)
QWEN = _template("<|vision_start|><|image_pad|><|vision_end|>", *IM_CHAT)
HEADER = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
MLLAMA = _template(
    "<|image|>", HEADER, "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n", first="{{ bos_token }}"
)
GEMMA = _template(
    "<start_of_image>", "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n", "<end_of_turn>\n",
    "<start_of_turn>model\n", first="{{ bos_token }}",
)  # fmt: skip


def build_tokenizer(*special: str, bos: str | None = None, **named: str):
    """One token a byte, and the special tokens; ``named`` ones are attributes, such as ``image_token``."""
    words = ["<pad>", "</s>", *special, *named.values(), *([bos] if bos else [])]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({token: i for i, token in enumerate([*dict.fromkeys(words), *alphabet])}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, pad_token="<pad>", eos_token="</s>", bos_token=bos, extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.add_tokens(list(special), special_tokens=True)
    if bos:  # as Llama's and Gemma's tokenizers do
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    return tokenizer


def _text(tokenizer, **more) -> dict:
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return TEXT | ids | {"vocab_size": len(tokenizer)} | more


def _finish(model_class, config, processor, end: str | None = None):
    """A model with random weights from a fixed seed, which stops at ``end`` too."""
    torch.manual_seed(1)
    model = model_class(config).eval()
    tokenizer = processor.tokenizer
    ends = [tokenizer.eos_token_id] + ([tokenizer.convert_tokens_to_ids(end)] if end else [])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ends, tokenizer.pad_token_id
    for name, parameter in model.named_parameters():
        if parameter.isnan().any() or not parameter.any() and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)  # gates and positions that start at zero would hide the images
    silent = [i for i in range(len(tokenizer)) if not tokenizer.decode([i], skip_special_tokens=True).strip()]
    with torch.no_grad():
        model.get_output_embeddings().weight[silent] = 0  # so that answers can be seen
    return model, processor


def llama(bos: str | None = None):
    """A language model alone: its processor is a tokenizer and nothing else."""
    processor = SimpleNamespace(tokenizer=build_tokenizer(bos=bos))
    config = transformers.LlamaConfig(**_text(processor.tokenizer))
    return _finish(transformers.LlamaForCausalLM, config, processor)


def unlikely(model):
    """The same weights in float16 and in float32, by which no answer is likely: p is 1e-8 and less."""
    half = copy.deepcopy(model)
    with torch.no_grad():
        half.get_output_embeddings().weight.mul_(14)
    half = half.half()
    return half, copy.deepcopy(half).float()


def llava(vision: str = "clip", language: str = "llama"):
    t = transformers
    tokenizer = build_tokenizer(image_token="<image>")
    kind = {"clip": t.CLIPVisionConfig, "siglip": t.SiglipVisionConfig}[vision]
    text = {"llama": t.LlamaConfig, "qwen2": t.Qwen2Config}[language](**_text(tokenizer))
    strategy = {"clip": "default", "siglip": "full"}[vision]
    config = t.LlavaConfig(
        vision_config=kind(**TOWER), text_config=text, image_token_id=tokenizer.image_token_id, vision_feature_layer=-1,
        vision_feature_select_strategy=strategy, image_seq_length=N_PATCHES,
    )  # fmt: skip
    images = {
        "clip": t.CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size=SQUARE),
        "siglip": t.SiglipImageProcessorPil(size=SQUARE),
    }[vision]
    processor = t.LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(vision == "clip"), chat_template=VICUNA,
    )  # fmt: skip
    return _finish(t.LlavaForConditionalGeneration, config, processor)


def llava_next():
    t = transformers
    tokenizer = build_tokenizer(image_token="<image>")
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**TOWER), text_config=t.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.image_token_id, vision_feature_layer=-1, image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    images = t.LlavaNextImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS)
    processor = t.LlavaNextProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=VICUNA,
    )  # fmt: skip
    return _finish(t.LlavaNextForConditionalGeneration, config, processor)


def llava_onevision():
    t = transformers
    tokenizer = build_tokenizer("<|im_start|>", "<|im_end|>", image_token="<image>", video_token="<video>")
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**TOWER), text_config=t.Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id, vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
    )  # fmt: skip
    images = t.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=PINPOINTS)
    processor = _no_video(
        "LlavaOnevisionProcessor", "LlavaOnevisionVideoProcessor", image_processor=images, tokenizer=tokenizer,
        num_image_tokens=N_PATCHES, vision_feature_select_strategy="full", chat_template=_template("<image>\n", *IM_CHAT),
    )  # fmt: skip
    return _finish(t.LlavaOnevisionForConditionalGeneration, config, processor, "<|im_end|>")


def idefics2():
    t = transformers
    tokenizer = build_tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>")
    images = t.Idefics2ImageProcessorPil(size={"shortest_edge": IMAGE // 2, "longest_edge": IMAGE}, do_image_splitting=True)
    processor = t.Idefics2Processor(
        image_processor=images, tokenizer=tokenizer, image_seq_len=3, chat_template=_idefics_template()
    )
    resampler = dict(
        hidden_size=HIDDEN, resampler_n_latents=3, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=16,
        num_key_value_heads=1,
    )  # fmt: skip
    config = t.Idefics2Config(
        vision_config=TOWER, perceiver_config=resampler, text_config=t.MistralConfig(**_text(tokenizer)).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return _finish(t.Idefics2ForConditionalGeneration, config, processor, "<end_of_utterance>")


def idefics3(kind: str = "Idefics3"):
    """Idefics3, and SmolVLM, which is one with videos."""
    t = transformers
    special = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    tokenizer = build_tokenizer(
        "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>", *special
    )
    images = getattr(t, f"{kind}ImageProcessorPil")(
        size={"longest_edge": 2 * IMAGE}, max_image_size={"longest_edge": IMAGE}, do_image_splitting=True
    )
    parts = dict(image_processor=images, tokenizer=tokenizer, image_seq_len=N_PATCHES // 4, chat_template=_idefics_template())
    if kind == "Idefics3":
        processor = t.Idefics3Processor(**parts)
    else:
        processor = _no_video("SmolVLMProcessor", "SmolVLMVideoProcessor", **parts)
    config = getattr(t, f"{kind}Config")(
        vision_config=TOWER, text_config=t.LlamaConfig(**_text(tokenizer)).to_dict(), scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return _finish(getattr(t, f"{kind}ForConditionalGeneration"), config, processor, "<end_of_utterance>")


def qwen(version: str):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL; their patches are flat and the images of different sizes."""
    t = transformers
    tokenizer = build_tokenizer(
        "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    text = _text(tokenizer, rope_parameters=rope) | ({"head_dim": 16} if version == "Qwen3VL" else {})
    vision = dict(depth=LAYERS, num_heads=2, patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2)
    vision |= {
        "Qwen2VL": dict(embed_dim=HIDDEN, hidden_size=HIDDEN, mlp_ratio=2),
        "Qwen2_5_VL": dict(
            hidden_size=HIDDEN, out_hidden_size=HIDDEN, intermediate_size=VISION, window_size=2 * PATCH,
            fullatt_block_indexes=[1],
        ),
        "Qwen3VL": dict(
            hidden_size=HIDDEN, out_hidden_size=HIDDEN, intermediate_size=VISION, deepstack_visual_indexes=[0],
            num_position_embeddings=16,
        ),
    }[version]  # fmt: skip
    tokens = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()}
    config = getattr(t, f"{version}Config")(text_config=text, vision_config=vision, **ids)
    images = t.Qwen2VLImageProcessorPil(
        size={"shortest_edge": IMAGE**2, "longest_edge": 4 * IMAGE**2}, patch_size=PATCH, merge_size=2, temporal_patch_size=2
    )
    video = "Qwen3VLVideoProcessor" if version == "Qwen3VL" else "Qwen2VLVideoProcessor"
    processor = _no_video(f"{version}Processor", video, image_processor=images, tokenizer=tokenizer, chat_template=QWEN)
    return _finish(getattr(t, f"{version}ForConditionalGeneration"), config, processor, "<|im_end|>")


def gemma3():
    t = transformers
    tokenizer = build_tokenizer(
        "<start_of_turn>", "<end_of_turn>", bos="<bos>", image_token="<image_soft_token>", boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )  # fmt: skip
    processor = t.Gemma3Processor(
        image_processor=t.Gemma3ImageProcessorPil(size=SQUARE), tokenizer=tokenizer, image_seq_length=4, chat_template=GEMMA
    )
    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**TOWER), text_config=t.Gemma3TextConfig(**_text(tokenizer, head_dim=16)),
        mm_tokens_per_image=4, image_token_id=tokenizer.image_token_id, boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )  # fmt: skip
    return _finish(t.Gemma3ForConditionalGeneration, config, processor, "<end_of_turn>")


def mllama():
    t = transformers
    tokenizer = build_tokenizer(
        "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>", bos="<|begin_of_text|>"
    )
    processor = t.MllamaProcessor(
        image_processor=t.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4), tokenizer=tokenizer, chat_template=MLLAMA
    )
    vision = {key: value for key, value in TOWER.items() if key != "num_attention_heads"} | dict(
        num_global_layers=1, attention_heads=2, vision_output_dim=2 * HIDDEN, intermediate_layers_indices=[0], max_num_tiles=4,
        supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = t.MllamaConfig(
        vision_config=vision, text_config=_text(tokenizer, cross_attention_layers=[1], rope_parameters=rope),
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip
    return _finish(t.MllamaForConditionalGeneration, config, processor, "<|eot_id|>")


def vip_llava():
    """One that the package does not know by name: LLaVA that reads several layers of the tower, class token included."""
    t = transformers
    tokenizer = build_tokenizer(image_token="<image>")
    config = t.VipLlavaConfig(
        vision_config=t.CLIPVisionConfig(**TOWER), text_config=t.LlamaConfig(**_text(tokenizer)),
        image_token_id=tokenizer.image_token_id, vision_feature_layers=[-2, -1], image_seq_length=N_PATCHES,
    )  # fmt: skip
    processor = t.LlavaProcessor(
        image_processor=t.CLIPImageProcessorPil(size={"shortest_edge": IMAGE}, crop_size=SQUARE), tokenizer=tokenizer,
        patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return _finish(t.VipLlavaForConditionalGeneration, config, processor)


def paligemma():
    """A prefix language model, which load_model refuses."""
    t = transformers
    tokenizer = build_tokenizer(bos="<bos>", image_token="<image>")
    images = t.SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = N_PATCHES
    processor = t.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**TOWER), text_config=t.GemmaConfig(**_text(tokenizer, head_dim=16)),
        projection_dim=HIDDEN, image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    return _finish(t.PaliGemmaForConditionalGeneration, config, processor)


def _no_video(kind: str, video: str, **parts):
    """A processor without torchvision, as load_model makes it: of the video part it knows the settings alone."""
    processor = without_video(getattr(transformers, kind))(video_processor=None, **parts)
    processor.video_processor = {"video_processor_type": video}
    return processor


def without_num2words(monkeypatch) -> None:
    """SmolVLM's processor refuses to exist without num2words, with which only the prompts of videos are written."""
    import transformers.models.smolvlm.processing_smolvlm as module

    monkeypatch.setattr(sys.modules[module.__name__], "num2words", module.num2words or (lambda number: str(number)))


FAMILIES = {
    "LLaVA-1.5 (CLIP)": llava,
    "LLaVA-1.5 (SigLIP)": lambda: llava("siglip"),
    "LLaVA-NeXT": llava_next,
    "LLaVA-OneVision": llava_onevision,
    "Idefics2": idefics2,
    "Idefics3": idefics3,
    "SmolVLM": lambda: idefics3("SmolVLM"),
    "Qwen2-VL": lambda: qwen("Qwen2VL"),
    "Qwen2.5-VL": lambda: qwen("Qwen2_5_VL"),
    "Qwen3-VL": lambda: qwen("Qwen3VL"),
    "Gemma 3": gemma3,
    "Mllama": mllama,
    "VipLLaVA": vip_llava,
}
ENDS = {  # what ends the assistant's turn, where it is not the end of sequence
    "LLaVA-OneVision": "<|im_end|>",
    "Idefics2": "<end_of_utterance>",
    "Idefics3": "<end_of_utterance>",
    "SmolVLM": "<end_of_utterance>",
    "Qwen2-VL": "<|im_end|>",
    "Qwen2.5-VL": "<|im_end|>",
    "Qwen3-VL": "<|im_end|>",
    "Gemma 3": "<end_of_turn>",
    "Mllama": "<|eot_id|>",
}
