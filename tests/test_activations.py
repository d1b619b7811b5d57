"""The streaming pass against a slow one that keeps every activation; padding, positions, hooks and bad input."""

import copy
import dataclasses
import math
import weakref
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manu_utils.benchmark.records import Question
from manu_utils.models.encoding import encode
from manu_utils.models.neurons import MLP, find_neurons
from manu_utils.models.passes import exact_device
from manu_utils.models.prefix_tree import shared_batches
from manu_utils.models.prompts import prompt
from manu_utils.unlearning import activations
from manu_utils.unlearning.activations import POSITIONS, Statistics, add_sums, collect_activations
from manu_utils.unlearning.scores import score

SUMS = ("total", "total_abs", "total_squares", "n_active")


@pytest.fixture(scope="module")
def questions(benchmark):
    """modality -> questions of very different lengths, so that batches need padding."""
    chosen = {}
    for modality in ("multimodal", "text"):
        every = benchmark.training_questions("forget", modality)
        chosen[modality] = sorted(every, key=lambda q: len(q.question) + len(q.answer))[:: len(every) // 16][:17]
    return chosen


def collect(model_and_processor, questions, **options):
    return collect_activations(*model_and_processor, questions, progress=False, **options)


def kept_activations(model, processor, questions, positions):
    """Slow and obvious: one question at a time, so no padding; every counted z of each MLP as [positions, neurons]."""
    towers = [(model.model.vision_tower.encoder.layers, "fc2"), (model.model.language_model.layers, "down_proj")]
    places = [(getattr(layer.mlp, name), name) for layers, name in towers for layer in layers]
    kept = [[] for _ in places]
    seen = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, arguments, index=index: seen.update({index: arguments[0][0]}))
        for index, (module, _) in enumerate(places)
    ]
    for question in questions:
        batch = encode([question], processor, with_answer=True)
        batch.pop("answer_mask")
        seen.clear()
        with torch.no_grad():
            model(**batch)
        tokenizer = processor.tokenizer
        n_answer = len(tokenizer(f" {question.answer}</s>").input_ids)
        t = batch["input_ids"].shape[1]
        counted = {"answer": range(t - n_answer - 1, t - 1), "last": [t - n_answer - 1], "all": range(t)}[positions]
        for index, z in seen.items():
            is_vision = places[index][1] == "fc2"
            kept[index].append(z[1:] if is_vision else z[list(counted)])  # position 0 of CLIP is the class token
    for hook in hooks:
        hook.remove()
    return [torch.cat([torch.zeros(0, module.in_features), *parts]) for parts, (module, _) in zip(kept, places, strict=True)]


def reduced(kept, tau):
    """The sums over all activations at once."""
    return {
        "total": torch.cat([z.sum(0) for z in kept]),
        "total_abs": torch.cat([z.abs().sum(0) for z in kept]),
        "total_squares": torch.cat([z.pow(2).sum(0) for z in kept]),
        "n_active": torch.cat([(z.abs() > tau).sum(0) for z in kept]),
    }


def assert_close(one, other, sizes, tolerance=1e-6):
    """Equal sums up to ``tolerance``, relative to the neuron's own plus the mean of its MLP.

    The mean, because rotary embeddings are float32 whatever the model is: a question that is shifted by padding sees them
    differ in the last bit, and a neuron that hardly fires has no digits to spare.
    """
    for name in SUMS:
        a, b = (part[name] if isinstance(part, dict) else getattr(part, name) for part in (one, other))
        whole = other["total_abs"] if isinstance(other, dict) else other.total_abs
        scale = whole if name == "total" else b  # Σz may cancel
        mean = torch.cat([part.mean().expand(len(part)) for part in scale.double().split(list(sizes))])
        assert ((a - b).abs() <= tolerance * (scale + mean)).all(), name


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("modality", ["multimodal", "text"])
def test_equals_a_pass_that_keeps_every_activation(double_model, questions, modality, positions):
    kept = kept_activations(*double_model, questions[modality], positions)
    expected = reduced(kept, tau=0.02)
    found = collect(double_model, questions[modality], tau=0.02, positions=positions, batch_size=7)
    assert found.tokens.tolist() == [len(z) for z in kept]
    assert_close(found, expected, found.sizes)
    assert (found.n_active > 0).any() and (found.n_active < found.counts()).any()
    assert (found.modality, found.tau, found.sizes) == (modality, 0.02, tuple(z.shape[1] for z in kept))


@pytest.mark.parametrize("positions", ["answer", "last"])
@pytest.mark.parametrize("modality", ["multimodal", "text"])
def test_so_does_a_pass_in_which_questions_share_nothing(double_model, questions, monkeypatch, modality, positions):
    """As in every family but LLaVA on a Llama."""
    monkeypatch.setattr(activations, "can_share", lambda model: False)
    kept = kept_activations(*double_model, questions[modality], positions)
    found = collect(double_model, questions[modality], tau=0.02, positions=positions, batch_size=7)
    assert found.tokens.tolist() == [len(z) for z in kept]
    assert_close(found, reduced(kept, tau=0.02), found.sizes)


@pytest.mark.parametrize("modality", ["multimodal", "text"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_never_counts(double_model, questions, modality, positions):
    alone = collect(double_model, questions[modality], positions=positions, batch_size=1)
    together = collect(double_model, questions[modality], positions=positions, batch_size=32)
    assert together.tokens.equal(alone.tokens)
    assert_close(together, alone, alone.sizes)


def test_padding_never_counts_in_float32(tiny_model, questions):
    alone, together = (collect(tiny_model, questions["text"], batch_size=size) for size in (1, 32))
    assert together.tokens.equal(alone.tokens)
    for name in ("total_abs", "total_squares"):
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), rtol=1e-5, atol=1e-6)


def test_statistics_of_images_come_from_patches_alone(double_model, questions):
    model, processor = double_model
    n_patches = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    vision = [mlp.tower == "vision" for mlp in find_neurons(model)]
    image, text = (collect(double_model, questions[modality]) for modality in ("multimodal", "text"))
    assert set(image.tokens[vision].tolist()) == {n_patches * len(questions["multimodal"])}
    assert set(text.tokens[vision].tolist()) == {0}
    n_vision = sum(size for size, is_vision in zip(text.sizes, vision, strict=True) if is_vision)
    assert not text.total_abs[:n_vision].any() and text.counts()[:n_vision].eq(1).all()


def test_a_tower_without_class_token_keeps_every_position(tiny_model, questions):
    from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration, LlavaProcessor, SiglipVisionConfig

    clip, processor = tiny_model
    config = copy.deepcopy(clip.config)
    vision = config.vision_config
    config.vision_config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=vision.image_size, patch_size=vision.patch_size,
    )  # fmt: skip
    config.vision_feature_select_strategy = "full"
    torch.manual_seed(0)
    siglip = LlavaForConditionalGeneration(config).eval()
    size = vision.image_size
    full = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
        tokenizer=processor.tokenizer, patch_size=vision.patch_size, vision_feature_select_strategy="full",
        num_additional_image_tokens=0, image_token="<image>",
    )  # fmt: skip
    found = collect((siglip, full), questions["multimodal"])
    n_patches = (size // vision.patch_size) ** 2
    assert found.tokens[:2].tolist() == [n_patches * len(questions["multimodal"])] * 2


def test_tau_is_strict_and_counts_both_signs():
    z = torch.tensor([[0.5, -0.5], [0.6, -0.6], [0.0, 0.2]])
    total, total_abs, total_squares, n_active = activations._sums(z, tau=0.5)
    assert n_active.tolist() == [1, 1]
    torch.testing.assert_close(total, torch.tensor([1.1, -0.9]))
    torch.testing.assert_close(total_abs, torch.tensor([1.1, 1.3]))
    torch.testing.assert_close(total_squares, torch.tensor([0.61, 0.65]))


def test_half_precision_is_summed_in_float32():
    z = torch.full((4, 1), 300.0, dtype=torch.float16)  # 300² is beyond float16
    assert activations._sums(z, tau=0.1)[2].item() == 4 * 300.0**2


class NoDouble(TorchDispatchMode):
    """Fails where float64 comes to a device that has none."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "mps":
                assert tensor.dtype != torch.float64, function
        return result


@pytest.mark.parametrize("times", [None, (2, 1, 3)])
def test_sums_of_a_device_without_float64_are_kept_on_the_cpu(times):
    """On tensors without memory, which know their device: mixing devices and float64 on this one both fail."""
    with FakeTensorMode(allow_non_fake_inputs=True), NoDouble():
        sums = torch.zeros(4, 5, dtype=torch.float64, device=exact_device("mps"))
        z = torch.ones(*((7, 5) if times is None else (3, 7, 5)), dtype=torch.float16, device="mps")
        add_sums(sums, z, 0.1, None if times is None else torch.tensor(times))
        assert (sums.device.type, sums.dtype) == ("cpu", torch.float64)
        with pytest.raises(AssertionError):
            z.double()


def test_statistics_and_scores_are_taken_on_a_device_without_float64(tiny_model, questions, monkeypatch):
    """The whole pass: wherever float64 appears, it is on the device that was asked for."""
    asked = []
    monkeypatch.setattr(activations, "exact_device", lambda device: asked.append(device) or torch.device("cpu"))
    collect(tiny_model, questions["text"][:2])
    assert len(asked) == len(find_neurons(tiny_model[0]))
    with FakeTensorMode(), NoDouble():
        gate, up, down = (SimpleNamespace(weight=torch.empty(*size, device="mps")) for size in ((5, 3), (5, 3), (3, 5)))
        mlp = MLP("layers.0.mlp", "language", 0, (gate, up), down)
        found = score("magnitude", {}, {}, mlps=[mlp])
        assert (found.device.type, found.dtype, found.shape) == ("cpu", torch.float64, (5,))


@pytest.mark.parametrize("share", [True, False])
def test_training_mode_autocast_and_a_default_of_float64_change_nothing(tiny_model, questions, monkeypatch, share):
    if not share:
        monkeypatch.setattr(activations, "can_share", lambda model: False)
    model = copy.deepcopy(tiny_model[0])
    for layer in model.model.language_model.layers:
        layer.mlp.act_fn = torch.nn.Sequential(layer.mlp.act_fn, torch.nn.Dropout(0.5))
    expected = collect((model, tiny_model[1]), questions["multimodal"])
    model.train()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = collect((model, tiny_model[1]), questions["multimodal"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(getattr(found, name).equal(getattr(expected, name)) for name in SUMS)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("share", [True, False])
def test_hidden_states_that_are_not_finite_are_refused(tiny_model, questions, monkeypatch, share):
    """The last norm shows in no neuron, but in every answer."""
    if not share:
        monkeypatch.setattr(activations, "can_share", lambda model: False)
    model = copy.deepcopy(tiny_model[0])
    model.model.language_model.norm.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="the last hidden states are not finite"):
        collect((model, tiny_model[1]), questions["text"])


# ------------------------------------------------------------------------------------------------ adding


def test_two_passes_add_up(double_model, questions):
    half = len(questions["text"]) // 2
    parts = [collect(double_model, part) for part in (questions["text"][:half], questions["text"][half:])]
    whole = collect(double_model, questions["text"])
    both = parts[0] + parts[1]
    assert both.tokens.equal(whole.tokens)
    assert_close(both, whole, whole.sizes)
    assert (both.modality, both.tau, both.sizes) == (whole.modality, whole.tau, whole.sizes)


@pytest.mark.parametrize("change", [{"tau": 0.2}, {"modality": "text"}, {"sizes": (2,)}])
def test_only_like_adds_to_like(change):
    one = Statistics(torch.tensor([3]), (1,), *(torch.ones(1),) * 4, tau=0.1, modality="multimodal")
    with pytest.raises(ValueError, match="one model, one modality and one tau"):
        one + dataclasses.replace(one, **change)


# ------------------------------------------------------------------------------------------------ hooks and errors


def n_hooks(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_leaves_no_hook_and_no_trace(tiny_model, questions):
    model, _ = tiny_model
    before = copy.deepcopy(model.state_dict())
    collect(tiny_model, questions["text"][:2])
    assert n_hooks(model) == 0
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_leaves_no_hook_when_the_pass_fails(tiny_model, questions, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tiny_model[0].model.language_model.layers[-1].mlp.act_fn, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        collect(tiny_model, questions["text"][:2])
    assert n_hooks(tiny_model[0]) == 0


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_poisoned_weights_are_named(tiny_model, questions, tower):
    model = copy.deepcopy(tiny_model[0])
    mlp = next(mlp for mlp in find_neurons(model) if mlp.tower == tower)
    mlp.before[0].weight.data[3] = math.nan
    with pytest.raises(ValueError, match=rf"activations of {mlp.path} are not finite"):
        collect((model, tiny_model[1]), questions["multimodal"][:2])
    assert n_hooks(model) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"questions": []}, "at least one question"),
        ({"positions": "first"}, "positions='first' is unknown; use one of answer, last, all"),
        ({"tau": -0.1}, "tau=-0.1 is negative"),
        ({"batch_size": 0}, "batch_size=0 is not positive"),
    ],
)
def test_bad_values(tiny_model, questions, change, message):
    with pytest.raises(ValueError, match=message):
        collect(tiny_model, **({"questions": questions["text"][:1]} | change))
    assert n_hooks(tiny_model[0]) == 0


@pytest.mark.parametrize("change", [{"tau": "0.1"}, {"tau": None}, {"batch_size": "8"}, {"batch_size": True}])
def test_arguments_of_other_types(tiny_model, questions, change):
    with pytest.raises(TypeError, match=f"^{next(iter(change))}=.* must be a "):
        collect(tiny_model, questions["text"][:1], **change)


def test_one_modality_at_a_time(tiny_model, questions):
    with pytest.raises(ValueError, match="statistics are of one modality"):
        collect(tiny_model, questions["text"][:1] + questions["multimodal"][:1])


def test_images_padded_in_an_unknown_way_are_refused(tiny_model, questions, monkeypatch):
    def padded(*arguments, **options):
        for indices, batch in shared_batches(*arguments, **options):
            yield indices, batch | {"pixel_attention_mask": torch.tensor([[True, False]])}

    monkeypatch.setattr(activations, "shared_batches", padded)
    with pytest.raises(ValueError, match="it is not known which positions of the vision tower of Llava.* are padding"):
        collect(tiny_model, questions["multimodal"][:2])


def test_a_question_without_answer_counts_its_end_of_sequence(double_model):
    question = Question("001", "Who?", "", PIL.Image.new("RGB", (64, 64)), "training")
    model, processor = double_model
    whole = processor.tokenizer(f"{prompt(question, processor)} </s>").input_ids
    n_answer = len(whole) - len(processor.tokenizer(prompt(question, processor)).input_ids)
    assert collect(double_model, [question]).tokens[-1].item() == n_answer


def test_no_activation_outlives_its_batch(tiny_model, questions, monkeypatch):
    """Memory cannot grow with the questions: of all activations handed to the sums, at most one pass's worth is ever alive."""
    summed, handed, most = activations._sums, [], 0

    def watched(z, tau):
        nonlocal most
        handed.append(weakref.ref(z))
        most = max(most, sum(z() is not None for z in handed))
        return summed(z, tau)

    monkeypatch.setattr(activations, "_sums", watched)
    collect(tiny_model, questions["text"], batch_size=2)
    n_layers = tiny_model[0].config.text_config.num_hidden_layers
    assert len(handed) == n_layers * math.ceil(len(questions["text"]) / 2)
    assert most <= n_layers
