"""Every supported architecture as a small random model, saved, loaded by load_model and put through the whole flow."""

import copy
import itertools
import random

import PIL.Image
import pytest
import tiny_models
import torch

from manu_utils import processes
from manu_utils.benchmark.records import Question
from manu_utils.evaluation.shots import Prompt, encode_prompts
from manu_utils.models.asking import generate_answers
from manu_utils.models.encoding import encode
from manu_utils.models.image_positions import check_positions, patch_positions
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.models.prompts import prompt
from manu_utils.models.saving import save_model
from manu_utils.unlearning.activations import collect_activations
from manu_utils.unlearning.attribution import collect_attribution
from manu_utils.unlearning.moments import collect_moments
from manu_utils.unlearning.pruning import prune_neurons
from manu_utils.unlearning.rewriting import margin_gradient, rewrite_neurons

SIZES = ((32, 32), (40, 24), (32, 64))  # (width, height) of the images of three questions

# Patches of 8 x 8 pixels that count in each image, worked out from how the family's processor lays it out.
ONE_SQUARE = [16, 16, 16]  # resized or cropped to 32 x 32
TILES = [16 + 16, 16 + 24, 16 + 32]  # the whole, and a canvas of 2 tiles, of which 4 x 4, 4 x 6 and 8 x 4 patches are image
PATCHES = dict.fromkeys(tiny_models.FAMILIES, ONE_SQUARE) | {
    "LLaVA-NeXT": TILES,
    "LLaVA-OneVision": TILES,
    "Idefics2": [16, 8, 8],  # the longer side becomes 32: 32 x 32, 32 x 20 (a patch must be whole), 16 x 32
    "Qwen2-VL": [16, 16, 32],  # sides rounded to multiples of 16
    "Qwen2.5-VL": [16, 16, 32],
    "Qwen3-VL": [16, 16, 32],
    "Mllama": [16, 32, 32],  # 1, 2 and 2 tiles
}
MODALITIES = ("multimodal", "text")


def picture(width, height):
    return PIL.Image.frombytes("RGB", (width, height), random.Random(width).randbytes(3 * width * height))


TEXTS = [("Where does {} live?", "In Porto."), ("What is the job of {}?", "Nurse."), ("Who is {}?", "Anna Berg.")]
QUESTIONS = {
    "multimodal": [Question(f"00{i}", q.format("this person"), a, picture(*size), "training")
                   for i, ((q, a), size) in enumerate(zip(TEXTS, SIZES, strict=True))],
    "text": [Question(f"00{i}", q.format("Anna"), a, None, "training") for i, (q, a) in enumerate(TEXTS)],
}  # fmt: skip


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def family(request, tmp_path_factory):
    """(name, model, processor) after a round trip through the disk."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny_models.without_num2words(monkeypatch)
        folder = tmp_path_factory.mktemp("checkpoint") / "model"
        save_model(*tiny_models.FAMILIES[request.param](), folder)
        yield request.param, *load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """(model, processor, folder) of a small LLaVA-1.5."""
    folder = tmp_path_factory.mktemp("checkpoint") / "llava"
    model, processor = tiny_models.llava()
    save_model(model, processor, folder)
    return model, processor, folder


def logits(model, batch):
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "answer_mask"}).logits


def some_neurons(model, tower=None, share=0.3):
    mlps = find_neurons(model)
    chosen = torch.rand(sum(mlp.size for mlp in mlps), generator=torch.Generator().manual_seed(0)) < share
    in_tower = torch.cat([torch.full((mlp.size,), tower in (None, mlp.tower)) for mlp in mlps])
    return chosen & in_tower


# ------------------------------------------------------------------------------------------------ neurons


def test_the_neurons_are_those_of_the_configuration(family):
    name, model, _ = family
    text, vision = model.config.get_text_config(), model.config.vision_config
    layers = getattr(vision, "depth", None) or vision.num_hidden_layers + getattr(vision, "num_global_layers", 0)
    size = vision.embed_dim * vision.mlp_ratio if name == "Qwen2-VL" else vision.intermediate_size
    found = [(mlp.tower, mlp.size) for mlp in find_neurons(model)]
    assert found == [("vision", size)] * layers + [("language", text.intermediate_size)] * text.num_hidden_layers


# ------------------------------------------------------------------------------------------------ prompts and batches


def test_a_batch_ends_with_the_answer_and_the_end_of_its_turn(family):
    name, _, processor = family
    tokenizer, end = processor.tokenizer, tiny_models.ENDS.get(name, "</s>")
    for questions in QUESTIONS.values():
        batch = encode(questions, processor, with_answer=True)
        for question, ids, mask in zip(questions, batch["input_ids"], batch["answer_mask"], strict=True):
            assert tokenizer.decode(ids[mask]).lstrip() == f"{question.answer}{end}"
            asked = tokenizer.decode(ids[~mask])
            assert question.question in asked and asked.endswith(prompt(question, processor)[-10:])
            if tokenizer.bos_token:
                assert int((ids == tokenizer.bos_token_id).sum()) == 1


def test_the_prompts_of_the_protocols_begin_once_too(family):
    _, _, processor = family
    if begin := processor.tokenizer.bos_token:
        for questions in QUESTIONS.values():
            one = Prompt(questions[0], prompt(questions[0], processor), (questions[0].image,) if questions[0].image else ())
            ids = encode_prompts([one], processor)["input_ids"]
            assert int((ids == processor.tokenizer.convert_tokens_to_ids(begin)).sum()) == 1


def test_the_prompt_is_in_the_words_of_its_family(family):
    name, _, processor = family
    image, text = (prompt(QUESTIONS[modality][0], processor) for modality in MODALITIES)
    assert image.count(processor.image_token) == 1 and text.count(processor.image_token) == 0
    official = name.startswith("LLaVA-1.5") or name == "VipLLaVA"  # the others have a chat template
    assert official == image.endswith("this person live?\nASSISTANT:")
    with pytest.raises(ValueError, match="the question itself contains"):
        prompt(Question("1", f"Who is {processor.image_token}?", "A.", None, "training"), processor)


def test_images_are_not_split_where_that_can_be_switched_off(family):
    images = family[2].image_processor
    assert not getattr(images, "do_image_splitting", False)
    if getattr(images, "max_image_size", None):  # and then not enlarged first, for parts that are not made
        assert images.size["longest_edge"] == images.max_image_size["longest_edge"]
        own, picture = copy.deepcopy(images), PIL.Image.radial_gradient("L").convert("RGB").resize((300, 200))
        own.size = {"longest_edge": 4 * images.size["longest_edge"]}
        one, other = (of([[picture]], return_tensors="pt")["pixel_values"] for of in (images, own))
        assert one.shape == other.shape and (one - other).abs().max() < 5 / 127


# ------------------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize("modality", MODALITIES)
def test_statistics_do_not_depend_on_padding(family, modality):
    name, model, processor = family
    every = QUESTIONS[modality]
    together = collect_activations(model, processor, every, positions="all", progress=False)
    alone = [collect_activations(model, processor, [question], positions="all", progress=False) for question in every]
    total = alone[0] + alone[1] + alone[2]
    assert together.tokens.equal(total.tokens)
    for sums in ("total", "total_abs", "total_squares"):
        found, expected = getattr(together, sums), getattr(total, sums)
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    mlps = find_neurons(model)
    n_vision = sum(mlp.tower == "vision" for mlp in mlps)
    for part, n in zip(alone, PATCHES[name] if modality == "multimodal" else (0, 0, 0), strict=True):
        assert part.tokens[:n_vision].tolist() == [n] * n_vision
    for mlp, part, n in zip(mlps, together.total_abs.split(list(together.sizes)), together.tokens, strict=True):
        skipped = modality == "text" and (mlp.tower == "vision" or (name == "Mllama" and mlp.layer == 1))
        assert (part.any(), n > 0) == (not skipped, not skipped)  # Mllama's cross-attention layers see images alone


def test_an_image_layout_that_is_not_known_is_refused(llava, monkeypatch):
    model, processor, _ = llava
    batch = encode(QUESTIONS["multimodal"], processor, with_answer=True)
    with pytest.raises(ValueError, match=r"it is not known which positions.* pixel_values \[3, 1, 3, 32, 32\]"):
        patch_positions(model, batch | {"pixel_values": batch["pixel_values"][:, None]})
    monkeypatch.setattr(model.config.vision_config, "patch_size", 16)  # says 4 patches, but the tower has 16
    for collect in (collect_activations, collect_attribution):
        with pytest.raises(ValueError, match=r"layers\.\d\.mlp sees 51 positions .* expects 15"):
            collect(model, processor, QUESTIONS["multimodal"], progress=False)


@pytest.mark.parametrize("family", ["LLaVA-NeXT", "LLaVA-OneVision"])
@pytest.mark.parametrize("size", [(48, 32), (32, 48)])
def test_the_patches_of_tiles_are_those_with_pixels_of_the_image(family, size):
    """A white image on a canvas of two tiles, whose border of 8 pixels on either side is one patch wide and black."""
    model, processor = tiny_models.FAMILIES[family]()
    white = Question("001", "Who is this person?", "Anna Berg.", PIL.Image.new("RGB", size, "white"), "training")
    batch = encode([white], processor, with_answer=True)
    brightness = batch["pixel_values"][0].mean(1)  # [tiles, 32, 32]: the whole image, and the two tiles
    seen = brightness.unfold(1, 8, 8).unfold(2, 8, 8).amax((-1, -2)) > brightness.min()
    assert seen.sum((1, 2)).tolist() == [16, 12, 12]
    class_tokens = torch.zeros(3, int(family == "LLaVA-NeXT"), dtype=torch.bool)  # of CLIP
    question, is_patch = patch_positions(model, batch)
    assert is_patch.equal(torch.cat([class_tokens, seen.flatten(1)], dim=1).flatten()) and not question.any()


def test_an_mlp_that_sees_more_or_fewer_positions_is_refused():
    check_positions("vision.0", 16, 16)
    for n in (15, 17):
        with pytest.raises(ValueError, match=f"vision.0 sees {n} positions .* expects 16"):
            check_positions("vision.0", n, 16)


def test_a_processor_that_writes_behind_the_answer_is_refused():
    _, processor = tiny_models.paligemma()
    processor.chat_template = tiny_models.QWEN.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    with pytest.raises(ValueError, match="PaliGemmaProcessor do not end with the answer"):
        encode(QUESTIONS["multimodal"], processor, with_answer=True)


# ------------------------------------------------------------------------------------------------ pruning


def mask(model, selected):
    """Forward pre-hooks that zero the selected neurons."""
    mlps = find_neurons(model)
    return [
        mlp.after.register_forward_pre_hook(lambda _, z, chosen=chosen: (z[0].masked_fill(chosen, 0),))
        for mlp, chosen in zip(mlps, selected.split([mlp.size for mlp in mlps]), strict=True)
    ]


def test_pruning_equals_masking_and_survives_the_disk(family, tmp_path):
    _, model, processor = family
    batches = [encode(questions, processor, with_answer=True) for questions in QUESTIONS.values()]
    before = [logits(model, batch) for batch in batches]
    selected = some_neurons(model)
    hooks = mask(model, selected)
    expected = [logits(model, batch) for batch in batches]
    for hook in hooks:
        hook.remove()
    with prune_neurons(model, selected):
        pruned = [logits(model, batch) for batch in batches]
        save_model(model, processor, tmp_path / "pruned")
    for found, wanted, old in zip(pruned, expected, before, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert (found - old).abs().max() > 1e-3
    assert all(torch.equal(logits(model, batch), old) for batch, old in zip(batches, before, strict=True))
    loaded, loaded_processor = load_model(tmp_path / "pruned", device="cpu")
    again = [encode(questions, loaded_processor, with_answer=True) for questions in QUESTIONS.values()]
    assert all(torch.equal(logits(loaded, batch), found) for batch, found in zip(again, pruned, strict=True))


def test_the_vision_tower_matters_to_images_alone(family):
    _, model, processor = family
    batches = {m: encode(questions, processor, with_answer=False) for m, questions in QUESTIONS.items()}
    before = {m: logits(model, batch) for m, batch in batches.items()}
    with prune_neurons(model, some_neurons(model, "vision", share=0.9)):
        after = {m: logits(model, batch) for m, batch in batches.items()}
    assert after["text"].equal(before["text"])
    assert (after["multimodal"] - before["multimodal"]).abs().max() > 1e-4


# ------------------------------------------------------------------------------------------------ answers


def test_answers_with_and_without_an_image_do_not_depend_on_the_batch(family):
    _, model, processor = family
    every = QUESTIONS["multimodal"] + QUESTIONS["text"]
    options = {"max_new_tokens": 3, "progress": False}
    together = generate_answers(model, processor, every, **options)
    assert together == [generate_answers(model, processor, [question], **options)[0] for question in every]
    assert len(set(together)) > 1


# ------------------------------------------------------------------------------------------------ attribution, rewriting


@pytest.mark.parametrize("modality", MODALITIES)
def test_each_question_has_its_own_attribution(family, modality):
    _, model, processor = family
    every = QUESTIONS[modality]
    rarity = torch.ones(len(processor.tokenizer))
    together = collect_attribution(model, processor, every, rarity=rarity, progress=False)
    n_vision = sum(mlp.size for mlp in find_neurons(model) if mlp.tower == "vision")
    assert (together[:, :n_vision].sum(1) > 0).tolist() == [modality == "multimodal"] * 3
    assert (together[:, n_vision:].sum(1) > 0).all()
    for row, question in zip(together, every, strict=True):
        alone = collect_attribution(model, processor, [question], rarity=rarity, progress=False)[0]
        torch.testing.assert_close(row, alone, rtol=1e-3, atol=1e-4 * float(alone.max()))


@pytest.mark.parametrize("modality", MODALITIES)
def test_two_processes_find_what_one_finds(family, modality, monkeypatch):
    """One after the other here, so that every family is tested; tests/test_parallel.py starts two for one of them."""
    _, model, processor = family
    every = QUESTIONS[modality]
    handed_in: list = []  # by the processes that were there before

    def as_two(collect):
        handed_in.clear()
        for process in (0, 1):
            calls = itertools.count()  # the first process hands in what the second finds beside its own

            def gather(items, process=process, calls=calls):
                call = next(calls)
                if process == 0:
                    handed_in.append(items)
                    return items * 2
                return [*handed_in[call], *items]

            with monkeypatch.context() as patch:
                patch.setattr(processes, "count", lambda: 2)
                patch.setattr(processes, "number", lambda process=process: process)
                patch.setattr(processes, "gathered", gather)
                found = collect(model, processor, every, batch_size=1, progress=False)
        return found

    found = as_two(collect_activations)
    alone = collect_activations(model, processor, every, batch_size=1, progress=False)
    assert found.tokens.equal(alone.tokens) and found.total_abs.equal(alone.total_abs)
    alone = collect_attribution(model, processor, every, batch_size=1, progress=False)
    assert as_two(collect_attribution).equal(alone)


def test_rewriting_moves_the_margin_and_is_undone(family, monkeypatch):
    _, model, processor = family
    moments = collect_moments(model, processor, QUESTIONS, progress=False)
    alive = {m: torch.ones(len(items), dtype=torch.bool) for m, items in QUESTIONS.items()}
    margin, gradients = margin_gradient(model, processor, QUESTIONS, alive)
    assert torch.isfinite(torch.tensor(margin)) and len(gradients) == len(moments) == tiny_models.LAYERS
    for gradient, moment in zip(gradients, moments, strict=True):
        assert torch.isfinite(gradient).all() and gradient.any() and moment.diagonal().gt(0).any()
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", lambda *_, **__: torch.ones(3, dtype=torch.bool))
    before = [mlp.after.weight.clone() for mlp in find_neurons(model)]
    with rewrite_neurons(model, processor, QUESTIONS, moments, strength=0.1, rounds=1, progress=False):
        assert abs(margin_gradient(model, processor, QUESTIONS, alive)[0]) < abs(margin)  # both signs move towards zero
    assert all(torch.equal(mlp.after.weight, weight) for mlp, weight in zip(find_neurons(model), before, strict=True))
