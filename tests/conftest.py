"""A LLaVA with random weights and the bundled benchmark: what most tests need, made once."""

import copy
import random
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
# For what tests share, and for the scripts that have tests.
sys.path[:0] = [str(TESTS), *(str(TESTS.parent / name) for name in ("experiments", "speed", "notebooks"))]


@pytest.fixture(autouse=True)
def figures(request):
    """Tests of figures draw without a window, and leave none open."""
    if request.path.stem.startswith(("test_plotting", "test_explorer")):
        import matplotlib.pyplot as plt

        plt.switch_backend("Agg")
        yield
        plt.close("all")
    else:
        yield


@pytest.fixture(scope="session")
def benchmark():
    """The miniature benchmark, forget ratio 10 %."""
    from manu_utils.benchmark.loading import load_benchmark

    return load_benchmark("tiny", 10)


@pytest.fixture(scope="session")
def questions(benchmark):
    """set -> modality -> a few questions."""
    people = {"forget": benchmark.forget_ids[:2], "retain": benchmark.retain_ids[:3]}
    return {
        name: {m: random.Random(0).sample(benchmark.training_questions(ids, m), 4) for m in ("multimodal", "text")}
        for name, ids in people.items()
    }


@pytest.fixture(scope="session")
def tiny_model():
    """(model, processor): a small LLaVA with random weights and a tokenizer of its own; no trained weights, no network.

    Shared by all tests: whoever changes it has to undo the change.
    """
    from manu_utils.miniature.model import build_model, build_processor, train_tokenizer
    from manu_utils.miniature.people import draw_people

    fictitious, public = draw_people(seed=0)
    tokenizer = train_tokenizer([*fictitious, *public])
    model = build_model(tokenizer, seed=0, hidden=32, intermediate=64, layers=2).eval()
    with torch.no_grad():  # loud layers, so that the arg-max depends on the whole prompt and not just on its last token
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight *= 20
            layer.mlp.down_proj.weight *= 20
    return model, build_processor(tokenizer)


@pytest.fixture(scope="session")
def double_model(tiny_model):
    """The shared model in float64, where the order of additions is far below the tolerance; and its processor."""
    model, processor = tiny_model
    return copy.deepcopy(model).double(), processor


@pytest.fixture
def tokens_read(monkeypatch):
    """Called with a model: a list whose last number grows by the tokens that it reads from now on."""

    def watch(model):
        read, run = [0], model.model.forward

        def counted(*arguments, **inputs):
            read[-1] += inputs["input_ids"].numel()
            return run(*arguments, **inputs)

        monkeypatch.setattr(model.model, "forward", counted)
        return read

    return watch
