"""load_model: what it returns, and that each failure names its cause and the way out."""

import json
import shutil

import pytest
import torch

from manu_utils.batches import encode
from manu_utils.benchmark import evaluation_questions
from manu_utils.models import load_model, pick_device, pick_dtype


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


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


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


@pytest.mark.parametrize("source", ["tiny", "tiny-base"])
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


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_half_downloaded_weights(copy, share):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: int(share * len(weights))])
    with pytest.raises(ValueError, match="half downloaded.*fetch them again"):
        load_model(copy)


def test_weights_that_lack_a_layer_are_not_filled_with_random_ones(copy):
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    edit_config(copy, text_config=config["text_config"] | {"num_hidden_layers": 3})
    with pytest.raises(ValueError, match=r"lacks \d+ weights .*layers\.2"):
        load_model(copy)


def test_quantised_weights_are_refused_with_a_way_out(copy):
    edit_config(copy, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ValueError, match="quantised.*float16 or"):
        load_model(copy)


def test_a_model_that_is_not_for_images_and_text(copy):
    (copy / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(ValueError, match="not a vision-language model"):
        load_model(copy)


def test_code_of_a_checkpoint_is_never_run(copy):
    trap = copy / "ran"
    (copy / "trap.py").write_text(f"open({str(trap)!r}, 'w')\nclass Config: pass\n", encoding="utf-8")
    edit_config(copy, model_type="trap", auto_map={"AutoConfig": "trap.Config"})
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
