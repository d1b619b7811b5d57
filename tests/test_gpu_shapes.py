"""The script that measures at the models' true shapes: their sizes, and that all of it runs, on a small model and a CPU."""

import pandas as pd
import pytest
import torch
import transformers

import gpu_shapes
from gpu_shapes import STEPS, config_and_processor, main, measured, questions_of
from manu_utils.benchmark.questions import training_questions
from manu_utils.models.encoding import encode
from manu_utils.models.neurons import towers

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "billions", "neurons", "tokens"),
    [
        ("llava-1.5-7b", 7.06, {"vision": (24, 4096), "language": (32, 11008)}, 576),
        ("idefics2-8b", 8.40, {"vision": (27, 4304), "language": (32, 14336)}, 64),
        ("smolvlm-2b", 2.25, {"vision": (27, 4304), "language": (24, 8192)}, 81),
    ],
)
def test_the_models_are_as_large_as_the_published_ones(name, billions, neurons, tokens):
    config, processor = config_and_processor(name)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    n = sum(parameter.numel() for parameter in model.parameters())
    assert round(n / 1e9, 2) == billions
    found = towers(model)
    assert {tower: (len(of), getattr(of[0][1], of[0][2][-1]).in_features) for tower, of in found.items()} == neurons
    asked = questions_of(["001"], 1, gpu_shapes.SIDE)["multimodal"]
    ids = encode(asked, processor, with_answer=True)["input_ids"]
    assert (ids == config.image_token_id).sum() == tokens


def test_the_questions_are_those_of_the_benchmark(benchmark):
    found = questions_of(["001", "002"], 10**6, 64)
    people = benchmark.training.filter(lambda row: row["ID"] in ("001", "002"))
    of_benchmark = training_questions(people, "text")
    assert [(q.question, q.answer) for q in found["text"]] == [(q.question, q.answer) for q in of_benchmark]
    assert len({id(q.image) for q in found["multimodal"]}) == 2 and found["multimodal"][0].image.size == (64, 64)


def test_every_step_runs_and_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    made = []
    make = gpu_shapes.random_model

    def random_model(*given):
        made.append(make(*given))
        made.append({name: value.clone() for name, value in made[0].state_dict().items()})
        return made[0]

    monkeypatch.setattr(gpu_shapes, "random_model", random_model)
    out = tmp_path / "new" / "gpu.csv"
    sizes = ["--questions", "4", "--few", "2", "--side", "64", "--new-tokens", "2", "--batch", "2", "--train-batch", "1"]
    given = ["--model", "small", "--out", str(out), "--device", "cpu", *sizes]
    assert main(given) == 0
    rows = pd.read_csv(out)
    assert list(rows["step"]) == ["load", *STEPS] and set(rows["outcome"]) == {"done"}, rows["note"]
    assert (rows["seconds"] > 0).all() and set(rows["dtype"]) == {"float32"}
    # training changes it a little, and comes after whatever is undone
    model, before = made
    edited = [name for name, value in model.state_dict().items() if not value.equal(before[name])]
    assert all("language_model" in name for name in edited)
    assert main([*given, "--minutes", "0.0001", "--steps", "erase"]) == 0
    more = pd.read_csv(out)
    assert list(more["step"][len(rows) :]) == ["load", "warm-up", "erase"]
    assert list(more["outcome"][len(rows) :]) == ["done", "left out", "left out"]


def test_a_step_without_memory_is_a_row_and_so_is_one_that_fails():
    def no_room():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")

    row = measured(no_room, CPU)
    assert row["outcome"] == "out of memory" and row["note"] == "CUDA out of memory"
    row = measured(lambda: 1 / 0, CPU)
    assert row["outcome"] == "error" and "ZeroDivisionError" in row["note"]
    assert "per_second" not in row
