"""The neurons of every supported family are found, look-alikes are not, and weights that cannot be pruned are refused."""

import functools

import pytest
import torch
from torch import nn

from manu_utils.models import neurons
from manu_utils.models.neurons import check_alpha, find_neurons

TEXT = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=64
)  # fmt: skip
VISION = dict(
    hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=16
)  # fmt: skip
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def llava(vision):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    kind = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[vision]
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=kind(**VISION), text_config=LlamaConfig(**TEXT)))


def idefics2():
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration, MistralConfig

    resampler = dict(
        hidden_size=16, resampler_n_latents=2, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8,
        num_key_value_heads=1,
    )  # fmt: skip
    text = MistralConfig(**TEXT).to_dict()
    return Idefics2ForConditionalGeneration(Idefics2Config(vision_config=VISION, perceiver_config=resampler, text_config=text))


def qwen2_vl():
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = dict(depth=3, embed_dim=16, hidden_size=16, num_heads=2, mlp_ratio=2, patch_size=16)
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=vision))


def qwen25_vl():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = dict(depth=3, hidden_size=16, out_hidden_size=16, num_heads=2, intermediate_size=20, patch_size=16)
    text = TEXT | {"rope_parameters": ROPE}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def qwen3_vl():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision = dict(
        depth=3, hidden_size=16, out_hidden_size=16, num_heads=2, intermediate_size=20, patch_size=16,
        deepstack_visual_indexes=[0], num_position_embeddings=4,
    )  # fmt: skip
    text = TEXT | {"rope_parameters": ROPE, "head_dim": 8}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))


LANGUAGE = "model.language_model.layers.{}.mlp"
FAMILIES = {  # how to build it, the paths of its vision and language MLPs, its vision MLPs' size
    "llava-clip": (functools.partial(llava, "clip"), "model.vision_tower.encoder.layers.{}.mlp", LANGUAGE, 20),
    "llava-siglip": (functools.partial(llava, "siglip"), "model.vision_tower.encoder.layers.{}.mlp", LANGUAGE, 20),
    "idefics2": (idefics2, "model.vision_model.encoder.layers.{}.mlp", "model.text_model.layers.{}.mlp", 20),
    "qwen2-vl": (qwen2_vl, "model.visual.blocks.{}.mlp", LANGUAGE, 32),
    "qwen2.5-vl": (qwen25_vl, "model.visual.blocks.{}.mlp", LANGUAGE, 20),
    "qwen3-vl": (qwen3_vl, "model.visual.blocks.{}.mlp", LANGUAGE, 20),
}
LOOK_ALIKES = {
    "llava-siglip": "model.vision_tower.head.mlp",
    "idefics2": "model.connector.perceiver_resampler.layers.0.mlp",
    "qwen2-vl": "model.visual.merger.mlp",
    "qwen3-vl": "model.visual.deepstack_merger_list.0",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_layers_of_both_towers_and_nothing_else(family):
    build, vision, language, size = FAMILIES[family]
    model = build()
    found = [(mlp.path, mlp.tower, mlp.layer, mlp.size) for mlp in find_neurons(model)]
    assert found == [(vision.format(i), "vision", i, size) for i in range(3)] + [
        (language.format(i), "language", i, TEXT["intermediate_size"]) for i in range(2)
    ]
    if family in LOOK_ALIKES:
        assert LOOK_ALIKES[family] in dict(model.named_modules())  # it is there, and was left out


def test_a_neuron_is_a_coordinate_of_what_the_last_layer_reads():
    for mlp in find_neurons(llava("clip")):
        assert len(mlp.before) == (2 if mlp.tower == "language" else 1)
        assert {linear.out_features for linear in mlp.before} == {mlp.after.in_features} == {mlp.size}


def test_a_text_model_has_one_tower():
    from transformers import LlamaConfig, LlamaForCausalLM

    assert {mlp.tower for mlp in find_neurons(LlamaForCausalLM(LlamaConfig(**TEXT)))} == {"language"}


# ------------------------------------------------------------------------------------------------ what cannot be pruned


def without_mlps(model, tower):
    for mlp in find_neurons(model):
        if mlp.tower == tower:
            parent, _, name = mlp.path.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Identity())
    return model


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_refuses_a_tower_without_known_mlps(tower):
    model = without_mlps(llava("clip"), tower)
    with pytest.raises(ValueError, match=rf"found no MLP with gate_proj / up_proj / down_proj.* in the {tower} layers"):
        find_neurons(model)


def test_refuses_a_model_of_another_kind():
    block = nn.ModuleDict({"w1": nn.Linear(2, 2), "w2": nn.Linear(2, 2), "act": nn.ReLU()})
    with pytest.raises(ValueError, match=r"language layers of Sequential; looked at \* \(w1 / w2\)\. Add the names"):
        find_neurons(nn.Sequential(block, block))
    with pytest.raises(ValueError, match="looked at no numbered layer with linear layers"):
        find_neurons(nn.ReLU())


def test_refuses_int8_and_float8_weights():
    for dtype in (torch.int8, torch.float8_e4m3fn):
        model = llava("clip")
        down = model.model.language_model.layers[1].mlp.down_proj
        down.weight = nn.Parameter(down.weight.detach().to(dtype), requires_grad=False)
        with pytest.raises(ValueError, match=rf"layers\.1\.mlp\.down_proj is a Linear of {dtype}: quantised weights"):
            find_neurons(model)


def test_refuses_the_layers_of_bitsandbytes():
    class Linear8bitLt(nn.Linear):  # before its first use on a GPU its weights are still float16
        pass

    Linear8bitLt.__module__ = "bitsandbytes.nn.modules"
    model = llava("clip")
    model.model.language_model.layers[0].mlp.up_proj = Linear8bitLt(16, 24)
    with pytest.raises(ValueError, match=r"up_proj is a Linear8bitLt of torch.float32: quantised weights cannot be pruned"):
        find_neurons(model)


def test_refuses_adapters_and_offloaded_weights():
    class Adapter(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

    model = llava("clip")
    mlp = model.model.language_model.layers[0].mlp
    plain = mlp.down_proj
    mlp.down_proj = Adapter(plain)
    with pytest.raises(ValueError, match=r"down_proj is a Adapter, not a plain torch.nn.Linear: merge adapters"):
        find_neurons(model)
    mlp.down_proj = plain.to("meta")
    with pytest.raises(ValueError, match="down_proj is offloaded .* load the model in bfloat16, with device='cpu'"):
        find_neurons(model)


def moe(kind):
    """Vision-language models whose MLPs route each token to some of many experts."""
    import transformers as t

    rope = {"rope_type": "default", "rope_theta": 1e4}
    routed = dict(num_experts_per_tok=1, moe_intermediate_size=12)
    if kind == "llama 4":  # a shared expert beside the fused ones
        text = t.Llama4TextConfig(**TEXT, head_dim=8, intermediate_size_mlp=24, num_local_experts=3, num_experts_per_tok=1)
        vision = t.Llama4VisionConfig(**VISION, vision_output_dim=64, projector_input_dim=64, projector_output_dim=64)
        return t.Llama4ForConditionalGeneration(t.Llama4Config(text_config=text.to_dict(), vision_config=vision.to_dict()))
    if kind == "glm-4.5v":  # the first layer is dense
        text = TEXT | routed | dict(n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1, head_dim=8)
        text |= {"rope_parameters": rope | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}}
        vision = dict(depth=2, hidden_size=16, out_hidden_size=16, num_heads=2, intermediate_size=20, patch_size=16)
        return t.Glm4vMoeForConditionalGeneration(t.Glm4vMoeConfig(text_config=text, vision_config=vision))
    if kind == "qwen3-vl-moe":
        text = TEXT | routed | dict(num_experts=4, head_dim=8, rope_parameters=ROPE)
        vision = dict(depth=2, hidden_size=16, out_hidden_size=16, num_heads=2, intermediate_size=20, patch_size=16,
                      deepstack_visual_indexes=[0], num_position_embeddings=4)  # fmt: skip
        return t.Qwen3VLMoeForConditionalGeneration(t.Qwen3VLMoeConfig(text_config=text, vision_config=vision))
    layer = llava("clip").model.language_model.layers[0]  # before they were fused: a list of MLPs
    model = llava("clip")
    model.model.language_model.layers[0].mlp = nn.ModuleDict({"experts": nn.ModuleList([layer.mlp, layer.mlp])})
    return model


@pytest.mark.parametrize("kind", ["llama 4", "glm-4.5v", "qwen3-vl-moe", "a list"])
def test_refuses_a_mixture_of_experts(kind):
    with pytest.raises(ValueError, match=r"experts of .* is a mixture of experts.*; use a dense model"):
        find_neurons(moe(kind))


def test_refuses_gate_and_up_in_one_matrix(monkeypatch):
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Phi3Config

    text = Phi3Config(**TEXT, pad_token_id=0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=text))
    with pytest.raises(ValueError, match=r"mlp\.gate_up_proj of Llava.* in one matrix.* gate_proj and up_proj apart"):
        find_neurons(model)
    # Whoever adds such a structure by hand would prune half of what makes a neuron, and another neuron with it.
    monkeypatch.setattr(neurons, "STRUCTURES", (*neurons.STRUCTURES, ("gate_up_proj", "down_proj")))
    with pytest.raises(ValueError, match="gate_up_proj makes 48 rows for 24 neurons; row n must make neuron n"):
        find_neurons(model)


def test_refuses_wrapped_models():
    model = llava("clip")
    for wrapped, advice in ((nn.DataParallel(model), "pass model.module"), (torch.compile(model), "that was compiled")):
        with pytest.raises(TypeError, match=advice):
            find_neurons(wrapped)
    with pytest.raises(TypeError, match="what load_model returns first"):
        find_neurons("tiny")


# ------------------------------------------------------------------------------------------------ alpha


@pytest.mark.parametrize("alpha", [0, -1, 100, 150, float("nan"), float("inf")])
def test_alpha_is_between_0_and_100(alpha):
    for allow_small in (False, True):
        with pytest.raises(ValueError, match="must lie between 0 and 100"):
            check_alpha(alpha, allow_small)


def test_a_fraction_is_refused_unless_it_is_meant():
    for alpha in (0.01, 0.05, 0.1, 0.15, 0.3):
        with pytest.raises(ValueError, match=f"looks like a fraction.* pass {100 * alpha:g} for {100 * alpha:g} %"):
            check_alpha(alpha)
        check_alpha(alpha, allow_small=True)
    for alpha in (0.5, 1, 5.0, 99.9):
        check_alpha(alpha)


@pytest.mark.parametrize("alpha", ["5", True, None, [5.0]])
def test_alpha_is_a_number(alpha):
    for allow_small in (False, True):
        with pytest.raises(TypeError, match="^alpha=.* must be a number such as 5.0, not "):
            check_alpha(alpha, allow_small)
