"""load_model: what it returns, and that each failure names its cause and the way out."""

import json
import os
import shutil
import traceback
from unittest.mock import Mock

import PIL.Image
import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import Question
from manu_utils.models.asking import generate_answers
from manu_utils.models.checkpoints import place_of
from manu_utils.models.encoding import encode
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.models.precision import pick_device, pick_dtype
from manu_utils.models.prefix_tree import shared_batches
from manu_utils.models.prompts import answer_texts, prompt
from manu_utils.models.saving import save_model
from manu_utils.paths import data_dir
from manu_utils.unlearning.activations import collect_activations
from manu_utils.unlearning.pruning import prune_neurons

PROCESSOR_FILES = ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in tiny_model:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No Hub and an empty cache, whatever the machine has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_the_name_of_a_bundled_model_wins_over_a_folder_and_says_so(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="'tiny' is the bundled model, not the folder tiny here; that is './tiny'"):
        assert place_of("tiny") == data_dir() / "tiny_llava" / "vanilla"
    assert place_of("./tiny") == place_of(tmp_path / "tiny").relative_to(tmp_path)


def test_a_saved_model_loads_with_the_same_weights_and_logits(tiny_model, checkpoint, benchmark):
    model, processor = tiny_model
    loaded, loaded_processor = load_model(checkpoint, device="cpu")
    assert not loaded.training
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    questions = evaluation_questions(benchmark.forget.select([0]), "cloze", "multimodal")
    batches = [encode(questions, part, with_answer=False) for part in (processor, loaded_processor)]
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])
    with torch.no_grad():
        assert torch.equal(model(**batches[0]).logits, loaded(**batches[1]).logits)


@pytest.mark.parametrize("source", ["tiny", "tiny-base", "tiny-retrained"])
def test_the_miniature_loads_in_float32_eval_mode_with_pil_images(source):
    model, processor = load_model(source, device="cpu")
    assert model.dtype == torch.float32
    assert not model.training
    assert type(processor.image_processor).__name__.endswith("Pil")


def test_dtype_is_respected(checkpoint):
    assert load_model(checkpoint, device="cpu", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_defaults_follow_the_machine():
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_dtype("cpu") == torch.float32
    if torch.cuda.is_available():
        assert pick_dtype("cuda") in (torch.bfloat16, torch.float16)


def test_loading_prints_nothing_and_leaves_the_progress_bars_as_they_were(checkpoint, capfd):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    try:
        for enabled in (True, False):
            (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
            load_model(checkpoint, device="cpu")
            assert logging.is_progress_bar_enabled() == enabled
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_missing_miniature_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("MANU_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make mini-model"):
        load_model("tiny")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(source):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {source}"):
        load_model(source)


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_model(tmp_path)


def test_absent_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="fetch the checkpoint again.*no file named model.safetensors"):
        load_model(copy)


DAMAGED = {"tokenizer.json": ("{}", '{"model": {}}', "[]", "{"), "processor_config.json": ("null", ""),
           "tokenizer_config.json": ("[]",), "generation_config.json": ("3", "{"), "config.json": ("null",)}  # fmt: skip


@pytest.mark.parametrize("name, text", [(name, text) for name, texts in DAMAGED.items() for text in texts])
def test_damaged_settings_are_named(copy, name, text):
    (copy / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name} is damaged or half downloaded; fetch it again\.$"):
        load_model(copy)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_half_downloaded_weights(copy, share):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: int(share * len(weights))])
    with pytest.raises(ValueError, match="half downloaded.*fetch them again"):
        load_model(copy)


def test_weights_that_lack_a_layer_are_not_filled_with_random_ones(copy):
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    edit(copy / "config.json", text_config=config["text_config"] | {"num_hidden_layers": 3})
    with pytest.raises(ValueError, match=r"lacks \d+ weights .*layers\.2"):
        load_model(copy)


def test_quantised_weights_are_refused_with_a_way_out(copy):
    edit(copy / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ValueError, match="quantised.*float16 or"):
        load_model(copy)


def test_a_model_that_is_not_for_images_and_text(copy):
    (copy / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(ValueError, match="not a vision-language model"):
        load_model(copy)


def test_code_of_a_checkpoint_is_never_run(copy):
    trap = copy / "ran"
    (copy / "trap.py").write_text(f"open({str(trap)!r}, 'w')\nclass Config: pass\n", encoding="utf-8")
    edit(copy / "config.json", model_type="trap", auto_map={"AutoConfig": "trap.Config"})
    with pytest.raises(ValueError, match="needs code of its own, which is never run"):
        load_model(copy)
    assert not trap.exists()


def test_a_checkpoint_without_processor_takes_one_from_elsewhere(checkpoint, copy):
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match="no processor .*processor="):
        load_model(copy)
    _, processor = load_model(copy, processor=checkpoint, device="cpu")
    assert processor.tokenizer.eos_token == "</s>"


def test_a_tokenizer_alone_is_no_processor(copy):
    (copy / "processor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no processor for images and text"):
        load_model(copy)


def test_no_network(offline):
    with pytest.raises(ConnectionError, match="source='tiny'"):
        load_model("llava-hf/llava-1.5-7b-hf")


def test_no_network_for_the_processor_alone(offline, checkpoint):
    with pytest.raises(ConnectionError, match="processor of llava-hf"):
        load_model(checkpoint, processor="llava-hf/llava-1.5-7b-hf")


def test_device_and_device_map_exclude_each_other(checkpoint):
    with pytest.raises(ValueError, match="not both"):
        load_model(checkpoint, device="cpu", device_map="auto")


# ------------------------------------------------------------------------------------------------ other architectures


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """family -> folder of a small checkpoint of it, saved on the first request."""
    folder = tmp_path_factory.mktemp("others")

    def save(family):
        if not (folder / family).exists():
            for part in tiny_models.FAMILIES.get(family, tiny_models.paligemma)():
                part.save_pretrained(folder / family)
        return folder / family

    return save


@pytest.mark.parametrize(
    "family, named",
    [("LLaVA-NeXT", "llava-hf/llava-v1.6-vicuna-7b-hf"), ("Idefics2", "HuggingFaceM4/idefics2-8b"),
     ("Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct"), ("LLaVA-1.5 (CLIP)", "llava-hf/llava-1.5-7b-hf")],
)  # fmt: skip
def test_a_missing_processor_is_named_by_architecture(other, tmp_path, family, named):
    folder = shutil.copytree(other(family), tmp_path / "copy", ignore=lambda *_: PROCESSOR_FILES)
    with pytest.raises(FileNotFoundError, match=f"such as load_model.*processor='{named}'"):
        load_model(folder)


def test_a_model_whose_layers_are_not_known_lists_what_was_looked_at(other, monkeypatch):
    monkeypatch.setattr("manu_utils.models.neurons.STRUCTURES", (("gate_proj", "up_proj", "down_proj"),))
    looked = r"model\.vision_tower\.encoder\.layers\.\*\.{} "
    looked = looked.format("self_attn") + r".*; " + looked.format("mlp") + r"\(fc1 / fc2\)\. Add the names"
    with pytest.raises(ValueError, match=rf"in the vision layers of LlavaFor.*looked at {looked}"):
        load_model(other("LLaVA-1.5 (CLIP)"), device="cpu")


def test_a_prefix_model_is_refused(other):
    with pytest.raises(ValueError, match="is a paligemma, whose prompt is read in both directions"):
        load_model(other("PaliGemma"))


def test_the_video_part_of_a_processor_is_kept_though_it_is_not_built(other, tmp_path):
    _, processor = load_model(other("Qwen2-VL"), device="cpu")
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    assert saved["processor_class"] == "Qwen2VLProcessor"
    assert saved["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"


def test_the_video_part_is_not_built_where_torchvision_is(other, monkeypatch):
    """It has no PIL backend: with torchvision, transformers would build it and fail."""
    place = other("Qwen2-VL")
    asked = pytest.fail.Exception("the processor was asked for with its video part")
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", Mock(side_effect=asked))
    load_model(place, device="cpu")


def test_a_package_that_a_processor_lacks_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as installed:
        tiny_models.without_num2words(installed)
        for part in tiny_models.FAMILIES["SmolVLM"]():
            part.save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(ImportError, match="pip install torchvision num2words"):
        load_model(tmp_path)


# ------------------------------------------------------------------------------------------------ precision, devices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["LLaVA-1.5 (CLIP)", "Idefics2", "Qwen2.5-VL"])
def test_half_precision_is_scored_and_pruned(other, family, dtype):
    loaded = load_model(other(family), device="cpu", dtype=dtype)
    model, processor = loaded
    question = Question("001", "Who is this?", "Anna.", PIL.Image.new("RGB", (32, 32), (200, 9, 90)), "training")
    half = collect_activations(model, processor, [question], progress=False)
    whole = collect_activations(*load_model(other(family), device="cpu"), [question], progress=False)
    assert half.tokens.equal(whole.tokens)
    torch.testing.assert_close(half.total_squares, whole.total_squares, rtol=0.1, atol=0.05 * float(whole.total_squares.max()))
    down = find_neurons(model)[-1].after.weight
    before = down.clone()
    with prune_neurons(model, torch.arange(len(half.total)) == len(half.total) - 1):
        assert model.dtype == dtype and not down[:, -1].any() and down[:, :-1].equal(before[:, :-1])
    assert down.equal(before)


def test_device_map_auto(other):
    model, _ = load_model(other("LLaVA-1.5 (CLIP)"), device_map="auto", dtype=torch.float32)
    plain, _ = load_model(other("LLaVA-1.5 (CLIP)"), device="cpu")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    with prune_neurons(model, torch.arange(sum(mlp.size for mlp in find_neurons(model))) == 0):
        assert not find_neurons(model)[0].after.weight[:, 0].any()


def test_weights_offloaded_to_disk_can_be_asked_but_not_pruned(other):
    folder = other("LLaVA-1.5 (CLIP)")
    language = {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "layers.0", "norm", "rotary_emb")}
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu", **language}
    model, processor = load_model(folder, device_map=places | {"model.language_model.layers.1": "disk"})
    question = [Question("001", "Who?", "Anna.", None, "training")]
    plain = load_model(folder, device="cpu")
    options = {"max_new_tokens": 3, "progress": False}
    assert generate_answers(model, processor, question, **options) == generate_answers(*plain, question, **options)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.gate_proj is offloaded .*device='cpu', or on more GPUs"):
        collect_activations(model, processor, question, progress=False)


# ------------------------------------------------------------------------------------------------ adapters


@pytest.fixture
def adapter(other, tmp_path):
    """(folder of a LoRA adapter of a small LLaVA, the base's folder, logits with the adapter, batch)."""
    base = other("LLaVA-1.5 (CLIP)")
    model, processor = load_model(base, device="cpu")
    targets = r"model\.language_model.*\.(q_proj|v_proj|up_proj|down_proj)"
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(tmp_path / "adapter")
    image = PIL.Image.new("RGB", (32, 32), (200, 9, 90))
    batch = encode([Question("001", "Who is this?", "Anna.", image, "training")], processor, with_answer=False)
    with torch.no_grad():
        return tmp_path / "adapter", base, wrapped(**batch).logits, batch


def test_an_adapter_is_merged_into_the_model_that_it_names(adapter, tmp_path):
    folder, base, expected, batch = adapter
    for options in ({}, {"base": base}):
        model, _ = load_model(folder, device="cpu", **options)
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-4)
        assert len(find_neurons(model)) == 4 and not any("lora" in name for name, _ in model.named_modules())
    with torch.no_grad():
        assert (load_model(base, device="cpu")[0](**batch).logits - expected).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_an_adapter_written_by_an_older_transformers_is_merged_too(adapter):
    """There the language model was at ``language_model.model``, which is ``model.language_model`` now."""
    folder, _, expected, batch = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    old = {name.replace("model.model.language_model.", "model.language_model.model."): w for name, w in weights.items()}
    assert set(old).isdisjoint(weights)
    save_file(old, folder / "adapter_model.safetensors")
    edit(folder / "adapter_config.json", target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj|down_proj)")
    model, _ = load_model(folder, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_another_model_is_refused(adapter, checkpoint):
    folder = adapter[0]
    with pytest.raises(ValueError, match="cannot be merged into this LlavaForConditionalGeneration; give the model"):
        load_model(folder, base=checkpoint, device="cpu")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name.replace("layers", "blocks"): w for name, w in weights.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="cannot be merged .*Found missing adapter keys"):
        load_model(folder, device="cpu")


def test_an_adapter_without_a_base_and_a_base_without_an_adapter(adapter, checkpoint):
    folder = adapter[0]
    edit(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"does not name its model; give load_model\(..., base=...\)"):
        load_model(folder)
    with pytest.raises(ValueError, match="base='tiny' goes with a LoRA adapter"):
        load_model(checkpoint, base="tiny")


# ------------------------------------------------------------------------------------------------ adapters on tied embeddings


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """Folder of a small LLaVA whose input and output embeddings are one matrix."""
    import transformers as t

    _, processor = tiny_models.llava()
    sizes = tiny_models.TEXT | {"vocab_size": len(processor.tokenizer), "tie_word_embeddings": True}
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**tiny_models.TOWER), text_config=t.LlamaConfig(**sizes), vision_feature_layer=-1,
        image_token_id=processor.tokenizer.image_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("tied")
    for part in (t.LlavaForConditionalGeneration(config), processor):
        part.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [70, 71, 72]},
        {"target_modules": ["q_proj"]},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_an_adapter_on_either_end_of_tied_embeddings_is_merged_right(tied, tmp_path, settings):
    model, processor = load_model(tied, device="cpu")
    question = Question("001", "Who is this?", "Anna.", PIL.Image.new("RGB", (32, 32), (200, 9, 90)), "training")
    batch = encode([question], processor, with_answer=False)
    wrapped = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **settings))
    wrapped.peft_config["default"].base_model_name_or_path = str(tied)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "lora" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = wrapped(**batch).logits
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = load_model(tmp_path / "adapter", device="cpu")
    save_model(*merged, tmp_path / "saved")
    for loaded in (merged, load_model(tmp_path / "saved", device="cpu")):
        with torch.no_grad():
            torch.testing.assert_close(loaded[0](**batch).logits, expected, rtol=1e-4, atol=1e-3)
    one_matrix = merged[0].get_input_embeddings().weight is merged[0].get_output_embeddings().weight
    changed = {"embed_tokens", "lm_head"} & {*settings["target_modules"], *settings.get("modules_to_save", ())}
    assert one_matrix is not bool(changed)


# ------------------------------------------------------------------------------------------------ processors


def questions():
    return [Question("001", "Who is this?", "Anna.", image, "training") for image in (None, PIL.Image.new("RGB", (32, 32)))]


def sequences(processor):
    return [encode([question], processor, with_answer=True)["input_ids"] for question in questions()]


@pytest.fixture
def family(other, tmp_path):
    """Copies the checkpoint of a family: (folder, its template)."""

    def copy(name):
        folder = shutil.copytree(other(name), tmp_path / name)
        return folder, (folder / "chat_template.jinja").read_text(encoding="utf-8")

    return copy


def drop(path, *names):
    kept = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key not in names}
    path.write_text(json.dumps(kept), encoding="utf-8")


@pytest.mark.parametrize("name", ["Qwen2-VL", "Idefics2", "Gemma 3", "LLaVA-NeXT"])
@pytest.mark.parametrize("form", ["text", "list", "default of two", "file of two"])
def test_a_chat_template_is_found_wherever_it_is(family, name, form):
    folder, template = family(name)
    expected = sequences(load_model(folder, device="cpu")[1])
    if form == "file of two":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tools.jinja").write_text("tools", encoding="utf-8")
    else:
        (folder / "chat_template.jinja").unlink()
        several = [{"name": "tools", "template": "tools"}, {"name": "default", "template": template}]
        kept = {"text": template, "list": several[1:], "default of two": several}[form]
        edit(folder / "tokenizer_config.json", chat_template=kept)
    for found, wanted in zip(sequences(load_model(folder, device="cpu")[1]), expected, strict=True):
        assert found.equal(wanted)


@pytest.mark.parametrize("name", ["Qwen2-VL", "Idefics2", "Gemma 3", "LLaVA-NeXT", "Mllama"])
def test_a_model_is_not_asked_in_the_form_of_another(family, name):
    folder, template = family(name)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template, so how its model wants to be asked is not known"):
        load_model(folder, device="cpu")
    edit(folder / "tokenizer_config.json", chat_template=[{"name": n, "template": template} for n in ("one", "two")])
    with pytest.raises(ValueError, match=r"several chat templates \(one, two\) and none is named default"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("mark", ["<|im_start|>", "<|start_header_id|>"])
def test_a_llava_with_the_marks_of_another_chat_needs_its_template(family, mark):
    folder, _ = family("LLaVA-1.5 (CLIP)")
    (folder / "chat_template.jinja").unlink()
    processor = load_model(folder, device="cpu")[1]  # of LLaVA-1.5 itself none is needed
    assert prompt(questions()[0], processor) == "USER: Who is this?\nASSISTANT:"
    processor.tokenizer.add_tokens([mark], special_tokens=True)
    with pytest.raises(ValueError, match="has no chat template, so how its model wants to be asked is not known"):
        prompt(questions()[0], processor)


def test_a_llava_that_was_tuned_to_another_chat_is_asked_in_that(family):
    """On Llama 3, on Qwen: the same processor as LLaVA-1.5, whose own template gives way to the official prompt."""
    folder, template = family("LLaVA-1.5 (CLIP)")
    own = load_model(folder, device="cpu")
    assert prompt(questions()[0], own[1]) == "USER: Who is this?\nASSISTANT:"
    (folder / "chat_template.jinja").write_text(
        tiny_models.QWEN.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    )
    model, processor = load_model(folder, device="cpu")
    assert prompt(questions()[1], processor) == "<|im_start|>user\n<image>Who is this?<|im_end|>\n<|im_start|>assistant\n"
    assert answer_texts(questions(), processor) == ["Anna.<|im_end|>"] * 2
    for question in questions():  # the shared rows hold what the plain ones do
        (_, shared), alone = next(shared_batches([question], processor, 4, True)), encode([question], processor, True)
        assert shared["input_ids"][0].equal(alone["input_ids"][0])
    assert len(generate_answers(model, processor, questions(), max_new_tokens=2, progress=False)) == 2


def test_what_older_processors_of_llava_lack_comes_from_the_model(family):
    for name in ("LLaVA-1.5 (CLIP)", "LLaVA-NeXT"):
        folder, _ = family(name)
        whole = load_model(folder, device="cpu")
        expected = sequences(whole[1])
        drop(folder / "processor_config.json", "patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
        model, processor = load_model(folder, device="cpu")
        assert all(a.equal(b) for a, b in zip(sequences(processor), expected, strict=True))
        assert generate_answers(model, processor, questions(), max_new_tokens=2, progress=False) == generate_answers(
            *whole, questions(), max_new_tokens=2, progress=False
        )
    for name in ("LLaVA-1.5 (SigLIP)", "Idefics2"):  # no class token; no such settings
        assert getattr(load_model(family(name)[0], device="cpu")[1], "num_additional_image_tokens", 0) == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patch_size": 16}, "has patch_size=16, its model 8, so that images and their tokens would not match"),
        ({"vision_feature_select_strategy": "full"}, "strategy='full', its model 'default'"),
        ({"num_additional_image_tokens": "x"}, "cannot encode a question with an image"),
        ({"image_token": "<picture>"}, "does not write the token 2 that its model has for images"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused_on_loading(family, changes, message):
    folder, _ = family("LLaVA-1.5 (CLIP)")
    edit(folder / "processor_config.json", **changes)
    if "image_token" in changes:
        edit(folder / "tokenizer_config.json", image_token="<picture>", extra_special_tokens={})
    with pytest.raises(ValueError, match=message):
        load_model(folder, device="cpu")


def test_images_of_another_size_are_refused_on_loading(family):
    folder, _ = family("LLaVA-1.5 (CLIP)")
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    images = processor["image_processor"] | {"crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 64}}
    edit(folder / "processor_config.json", image_processor=images)
    with pytest.raises(ValueError, match="makes images of 64×64 pixels, its model takes 32×32"):
        load_model(folder, device="cpu")


def test_a_missing_padding_token_is_the_end_of_sequence(copy):
    drop(copy / "tokenizer_config.json", "pad_token")
    edit(copy / "tokenizer.json", padding=None)  # a tokenizer that has padded saves how
    model, processor = load_model(copy, device="cpu")
    assert processor.tokenizer.pad_token == processor.tokenizer.eos_token
    asked = [Question("001", "Who?", "Anna.", None, "training"), Question("002", "Who is this?", "Ben.", None, "training")]
    both = generate_answers(model, processor, asked, max_new_tokens=3, progress=False)
    assert both == [generate_answers(model, processor, [q], max_new_tokens=3, progress=False)[0] for q in asked]
    drop(copy / "tokenizer_config.json", "eos_token")
    with pytest.raises(ValueError, match="neither a padding token nor an end of sequence"):
        load_model(copy, device="cpu")


TEMPLATES_WITH_A_DATE = {
    "Llama 3.2": "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = "
    "strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '01 Jan 2020' %}{%- endif %}{%- endif %}\n"
    "Today Date: {{ date_string }}\n",
    "Mistral": "{%- set today = strftime_now('%Y-%m-%d') %}The current date is {{ today }}. ",
    "SmolLM 3": "{{- 'Today: ' + strftime_now('%-d %B %Y, %A %H:%M') + '\n' -}}",
}


@pytest.mark.parametrize("name, says", [("Llama 3.2", "Date: 26 Jul 2024"), ("Mistral", "date is 2024-07-26."),
                                        ("SmolLM 3", "Today: 26 July 2024, Friday 00:00")])  # fmt: skip
def test_a_template_that_writes_the_date_writes_the_same_every_day(family, name, says):
    folder, template = family("Qwen2-VL")
    (folder / "chat_template.jinja").write_text(TEMPLATES_WITH_A_DATE[name] + template, encoding="utf-8")
    processor = load_model(folder, device="cpu")[1]
    text = prompt(questions()[0], processor)
    assert says in text and text.endswith("<|im_start|>assistant\n")
    assert answer_texts(questions(), processor) == ["Anna.<|im_end|>"] * 2
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert text.endswith(prompt(questions()[0], load_model(folder, device="cpu")[1]))  # and nothing else is changed


# ------------------------------------------------------------------------------------------------ unsafe files, bad arguments


class Trap:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("part", ["model", "adapter"])
def test_weights_that_would_run_code_are_refused_without_bad_advice(adapter, other, tmp_path, part):
    folder = shutil.copytree(other("LLaVA-1.5 (CLIP)") if part == "model" else adapter[0], tmp_path / "copy")
    old, new = ("model.safetensors", "pytorch_model.bin") if part == "model" else (
        "adapter_model.safetensors", "adapter_model.bin")  # fmt: skip
    weights = load_file(folder / old)
    (folder / old).unlink()
    torch.save(weights, folder / new)
    load_model(folder, device="cpu")  # plain tensors are fine in this form, too
    torch.save(weights | {"x": Trap(tmp_path / "ran")}, folder / new)
    with pytest.raises(ValueError, match="no plain tensors.*from a source that you trust.*safetensors") as caught:
        load_model(folder, device="cpu")
    assert "weights_only" not in "".join(traceback.format_exception(caught.value))
    assert not (tmp_path / "ran").exists()
    if part == "model":
        torch.save(weights, folder / new)
        whole = (folder / new).read_bytes()
        (folder / new).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="half downloaded; fetch them again"):
            load_model(folder, device="cpu")


def test_no_error_advises_to_trust_code(copy):
    edit(copy / "processor_config.json", auto_map={"AutoProcessor": "x.P"}, processor_class="Strange")
    with pytest.raises(ValueError, match="needs code of its own, which is never run") as caught:
        load_model(copy, device="cpu")
    assert "trust_remote_code" not in "".join(traceback.format_exception(caught.value)).replace("trust_remote_code=False", "")


def test_advice_of_libraries_is_left_out(monkeypatch, checkpoint):
    import transformers

    for error, kind in ((OSError, FileNotFoundError), (ValueError, ValueError)):

        def fail(*_, error=error, **__):
            raise error("It is broken. Pass weights_only=False to go on.\nOr set `trust_remote_code=True`, it helps.")

        monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", fail)
        with pytest.raises(kind) as caught:
            load_model(checkpoint, device="cpu")
        assert "weights_only" not in "".join(traceback.format_exception(caught.value)).split("def fail")[0]
        assert "It is broken." in str(caught.value) or "never run" in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [({"source": 5}, "source=5 must be a path"), ({"source": None}, "source=None must be a path"),
     ({"processor": 5}, "processor=5 must be a path"), ({"dtype": "float16"}, "dtype='float16' must be a torch.dtype"),
     ({"dtype": True}, "dtype=True must be a torch.dtype")],
)  # fmt: skip
def test_arguments_of_another_type_are_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        load_model(**{"device": "cpu"} | arguments)


@pytest.mark.parametrize("name", ["gpu", "xpu:9", "meta:x"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"device='{name}' cannot be used here .*; leave it out, or take 'cpu'"):
        load_model("tiny", device=name)
