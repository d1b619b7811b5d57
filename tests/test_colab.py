"""Notebook 12 at SCALE="colab", on a narrow random SmolVLM in float16 and a stub of the Hub."""

import pytest
import torch
import transformers
from colab_walk import minutes, smolvlm, stub, walk

from manu_utils.models.neurons import towers
from manu_utils.teaching.scales import SCALES


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    home = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANU_BUILD", str(home / "build"))
        with stub(home, width=16, people=2, new_tokens=3, epochs=1) as scale:
            yield scale


def test_notebook_12_runs_and_makes_the_vanilla_model_that_the_others_load(hub):
    assert walk("12", say=lambda line: None) == []


def test_a_system_without_the_signal_is_told(monkeypatch):
    monkeypatch.delattr("signal.SIGALRM")
    with minutes(None):
        pass
    with pytest.raises(SystemExit, match="--minutes needs a signal that Windows lacks; leave it out"), minutes(1):
        pytest.fail("walked without a limit")


def test_the_true_shape_is_that_of_the_scale():
    """As the config of HuggingFaceTB/SmolVLM-256M-Instruct says; on no device, so that it takes no memory."""
    scale, (config, _) = SCALES["colab"], smolvlm((12, 30), None)
    with torch.device("meta"):
        model = transformers.Idefics3ForConditionalGeneration(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(scale.parameters, rel=0.02)
    found = towers(model)
    assert len(found["vision"]) == 12
    last = found["language"][-1][1].down_proj
    assert scale.mlps == (len(found["language"]), last.in_features, last.out_features)
