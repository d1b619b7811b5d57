"""A pass that was killed goes on where it stopped, to the same bits, and touches no file but its own."""

import copy

import pytest
import torch

from manu_utils.models.prefix_tree import can_share
from manu_utils.unlearning import partial
from manu_utils.unlearning.activations import collect_activations
from manu_utils.unlearning.attribution import collect_attribution
from manu_utils.unlearning.evidence import Evidence, unlearn

QUIET = {"progress": False}


class Killed(BaseException):
    """As a signal: nothing catches it."""


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(partial, "EVERY", 2)


@pytest.fixture
def forwards(tiny_model, monkeypatch):
    """Counts forward passes, and dies at the one asked for."""
    model, forward, state = tiny_model[0], tiny_model[0].model.language_model.forward, {"calls": 0, "die_at": None}

    def count(*arguments, **inputs):
        state["calls"] += 1
        if state["calls"] == state["die_at"]:
            raise Killed
        return forward(*arguments, **inputs)

    monkeypatch.setattr(model.model.language_model, "forward", count)
    return state


PASSES = {
    "statistics": lambda *given, **more: vars(collect_activations(*given, **more, **QUIET)),
    "statistics, unshared": lambda *given, **more: vars(collect_activations(*given, positions="all", **more, **QUIET)),
    "attribution": lambda *given, **more: {"rows": collect_attribution(*given, **more, **QUIET)},
    "its mean": lambda *given, **more: {"mean": collect_attribution(*given, reduce=True, **more, **QUIET)},
}


def same(found, expected):
    pairs = zip(found.values(), expected.values(), strict=True)
    return all(torch.equal(one, other) if torch.is_tensor(one) else one == other for one, other in pairs)


@pytest.mark.parametrize("modality", ["multimodal", "text"])
@pytest.mark.parametrize("name", PASSES)
def test_a_killed_pass_goes_on_to_the_same_bits(tiny_model, benchmark, forwards, name, modality, tmp_path):
    collect, asked = PASSES[name], benchmark.training_questions("forget", modality)[:14]
    given = (*tiny_model, asked)
    assert can_share(tiny_model[0])
    expected = collect(*given, batch_size=2)
    forwards["calls"] = 0
    assert same(collect(*given, batch_size=2, resume=tmp_path / "whole"), expected)
    whole, folder = forwards["calls"], tmp_path / "killed"
    forwards.update(calls=0, die_at=whole - 1)
    with pytest.raises(Killed):
        collect(*given, batch_size=2, resume=folder)
    assert len(list(folder.iterdir())) == 1  # and nothing half written beside it
    forwards.update(calls=0, die_at=None)
    assert same(collect(*given, batch_size=2, resume=folder), expected)
    assert 0 < forwards["calls"] <= 3 < whole
    forwards.update(calls=0)
    assert same(collect(*given, batch_size=2, resume=folder), expected)  # what is done is read
    assert forwards["calls"] == 0


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_goes_on_in_an_inference_mode_of_the_caller(tiny_model, questions, forwards, name, tmp_path):
    """What is added to is made, and read from a file, where it can be."""
    given, options = (*tiny_model, questions["forget"]["text"]), {"batch_size": 1, "resume": tmp_path}
    expected = PASSES[name](*given, batch_size=1)
    forwards.update(calls=0, die_at=4)
    with torch.inference_mode():
        with pytest.raises(Killed):
            PASSES[name](*given, **options)
        forwards.update(calls=0, die_at=None)
        assert same(PASSES[name](*given, **options), expected)


def test_sums_of_anything_else_are_left_alone(tiny_model, questions, tmp_path):
    model, processor = tiny_model
    asked = questions["forget"]["text"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.language_model.layers[0].mlp.down_proj.weight[0, 0] += 1
    runs = [
        (model, asked, {}), (other, asked, {}), (model, asked[1:], {}), (model, asked[::-1], {}),
        (model, asked, {"tau": 0.2}), (model, asked, {"positions": "last"}), (model, asked, {"batch_size": 3}),
        (model, asked, {"model_key": "named"}), (model, questions["forget"]["multimodal"], {}),
    ]  # fmt: skip
    for n, (which, of, options) in enumerate(runs, 1):
        expected = vars(collect_activations(which, processor, of, **options, **QUIET))
        assert same(vars(collect_activations(which, processor, of, **options, **QUIET, resume=tmp_path)), expected)
        assert len(list(tmp_path.iterdir())) == n


@pytest.mark.parametrize("name", ["statistics", "attribution"])
def test_a_folder_that_cannot_be_written_is_found_out_before_the_pass(tiny_model, questions, forwards, name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        PASSES[name](*tiny_model, questions["forget"]["text"], resume=tmp_path / "file" / "new")
    assert forwards["calls"] == 0


@pytest.mark.parametrize("content", [b"", b"mine", "selection"])
def test_another_file_of_that_name_is_refused_and_left(tiny_model, questions, tmp_path, content):
    given = (*tiny_model, questions["forget"]["text"])
    collect_activations(*given, resume=tmp_path, **QUIET)
    (place,) = tmp_path.iterdir()
    if content == "selection":
        partial.write_tensors(place, {"a": torch.ones(1)}, "selection", {})
        content = place.read_bytes()
    place.write_bytes(content)
    with pytest.raises(ValueError, match="left as it is"):
        collect_activations(*given, resume=tmp_path, **QUIET)
    assert place.read_bytes() == content


def test_what_is_not_finite_is_found_after_a_kill_too(tiny_model, benchmark, tmp_path):
    """Hidden states show it, no sum: the flag is kept with the sums."""
    model, processor = copy.deepcopy(tiny_model[0]), tiny_model[1]
    asked = benchmark.training_questions("forget", "text")[:8]
    with torch.no_grad():
        model.model.language_model.norm.weight[0] = torch.inf
    with pytest.raises(ValueError, match="hidden states"):
        collect_activations(model, processor, asked, batch_size=2, resume=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="hidden states"):
        collect_activations(model, processor, asked, batch_size=2, resume=tmp_path, **QUIET)


@pytest.mark.parametrize("variant, files", [("ratio", 4), ("coverage", 4)])
def test_unlearning_goes_on_and_chooses_the_same(tiny_model, questions, forwards, variant, files, tmp_path):
    model, sets = tiny_model[0], (questions["forget"], questions["retain"])
    options = {"alpha": 5.0, "batch_size": 2, **QUIET}
    with unlearn(*tiny_model, *sets, variant=variant, **options):
        expected = {name: value.clone() for name, value in model.state_dict().items()}
    forwards.update(calls=0, die_at=6)
    with pytest.raises(Killed):
        unlearn(*tiny_model, *sets, variant=variant, resume=tmp_path, **options)
    forwards.update(calls=0, die_at=None)
    with unlearn(*tiny_model, *sets, variant=variant, resume=tmp_path, **options):
        assert all(value.equal(expected[name]) for name, value in model.state_dict().items())
    assert len(list(tmp_path.iterdir())) == files


def test_evidence_hashes_the_weights_once_a_set(tiny_model, questions, tmp_path, monkeypatch):
    hashed = []
    for module in ("evidence", "partial"):
        name = f"manu_utils.unlearning.{module}.fingerprint"
        monkeypatch.setattr(name, lambda *given: hashed.append(1) or "name")
    evidence = Evidence(*tiny_model, questions["forget"], questions["retain"], resume=tmp_path, **QUIET)
    evidence.statistics("forget")
    assert len(hashed) == 1
    beside = evidence.beside(retain=questions["retain"])
    assert beside.place == evidence.place
    Evidence(*tiny_model, *questions.values(), resume=tmp_path, model_key="mine", **QUIET).statistics("forget")
    assert len(hashed) == 1
