"""Selection counts, pruning and undo bit by bit, saving whole or not at all, and unlearn on good and bad input."""

import copy
import dataclasses
import functools
import gc
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from manu_utils.models.encoding import encode
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import MLP, find_neurons
from manu_utils.models.saving import save_model
from manu_utils.unlearning import coverage, evidence
from manu_utils.unlearning.activations import collect_activations
from manu_utils.unlearning.attribution import collect_attribution
from manu_utils.unlearning.coverage import choose_by_coverage, select_by_coverage, take_by_coverage
from manu_utils.unlearning.evidence import Evidence, unlearn
from manu_utils.unlearning.pruning import prune_neurons, pruned_neurons, select_neurons
from manu_utils.unlearning.scores import PRUNINGS, VARIANTS, score

MODALITIES = ("multimodal", "text")


@pytest.fixture(scope="module")
def small_model():
    """A LLaVA of a hundred neurons, for many examples."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=13, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=8, intermediate_size=37, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=32
    )  # fmt: skip
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).eval()
    for name, parameter in model.named_parameters():  # biases start at 0, where zeroing would not be seen
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def choose(model, processor, forget, retain, *, variant, alpha, seed=0, progress=False):
    return Evidence(model, processor, forget, retain, progress=progress).choose(variant, alpha, seed=seed)


def bits(model):
    """Every parameter and buffer, as integers: equal means equal bit by bit, the sign of zero included."""
    view = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: value.detach().clone().view(view[value.element_size()]) if value.is_floating_point() else value.detach().clone()
        for name, value in model.state_dict().items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


def n_neurons(model):
    return sum(mlp.size for mlp in find_neurons(model))


def some_neurons(model, share=0.3, seed=0):
    return torch.rand(n_neurons(model), generator=torch.Generator().manual_seed(seed)) < share


# ------------------------------------------------------------------------------------------------ selection


@st.composite
def scored_models(draw):
    """MLPs of any shape, and scores with many ties."""
    vision = draw(st.lists(st.integers(1, 40), max_size=4))
    language = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    mlps = [
        MLP(f"{tower}.{layer}", tower, layer, (), nn.Linear(size, 1, device="meta"))
        for tower, sizes in (("vision", vision), ("language", language)) for layer, size in enumerate(sizes)
    ]  # fmt: skip
    n = sum(mlp.size for mlp in mlps)
    values = draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    return mlps, torch.tensor(values, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(scored_models(), st.floats(0.01, 99.99), st.sampled_from(["model", "layer", "tower"]))
def test_the_count_is_exact_and_the_highest_go_first(model, alpha, per):
    mlps, scores = model
    selected = select_neurons(scores, mlps, alpha, per, allow_small=True)
    group_of = {"model": lambda mlp: 0, "layer": lambda mlp: mlp.path, "tower": lambda mlp: mlp.tower}[per]
    members, start = {}, 0
    for mlp in mlps:
        members.setdefault(group_of(mlp), []).extend(range(start, start + mlp.size))
        start += mlp.size
    expected = set()
    for group in members.values():
        ranked = sorted(group, key=lambda n: (-scores[n].item(), n))
        expected |= set(ranked[: max(1, round(alpha / 100 * len(group)))])
    assert selected.dtype == torch.bool and set(selected.nonzero()[:, 0].tolist()) == expected


def test_minus_infinity_is_never_selected():
    mlps = [MLP("language.0", "language", 0, (), nn.Linear(10, 1, device="meta"))]
    scores = torch.full((10,), -math.inf)
    scores[3] = -5.0
    assert select_neurons(scores, mlps, 10).nonzero().tolist() == [[3]]
    assert select_neurons(scores, mlps, 50, per="layer").nonzero().tolist() == [[3]]
    with pytest.raises(ValueError, match="only 1 neurons may be selected but alpha=50 asks for 5; lower alpha"):
        select_neurons(scores, mlps, 50)


def test_bad_selections():
    mlps = [MLP("language.0", "language", 0, (), nn.Linear(10, 1, device="meta"))]
    scores = torch.arange(10.0)
    for alpha in (0, 100, -5, math.nan):
        with pytest.raises(ValueError, match="must lie between 0 and 100"):
            select_neurons(scores, mlps, alpha)
    with pytest.raises(ValueError, match="alpha=0.05 looks like a fraction"):
        select_neurons(scores, mlps, 0.05)
    with pytest.raises(ValueError, match="per='head' is unknown; use one of model, layer, tower"):
        select_neurons(scores, mlps, 5, per="head")
    with pytest.raises(ValueError, match=r"\(9,\) scores for a model with 10 neurons"):
        select_neurons(scores[1:], mlps, 5)
    with pytest.raises(ValueError, match="the scores hold NaN"):
        select_neurons(scores / 0 * 0, mlps, 5)


# ------------------------------------------------------------------------------------------------ pruning and undo


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_exactly_the_chosen_neurons_change_and_undo_restores_every_bit(small_model, data):
    n = n_neurons(small_model)
    selected = torch.zeros(n, dtype=torch.bool)
    selected[data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))] = True
    before, expected = bits(small_model), copy.deepcopy(small_model.state_dict())
    expected_before = copy.deepcopy(expected)
    towers = [("model.vision_tower.encoder.layers.{}.mlp.", ("fc1",), "fc2", 13),
              ("model.language_model.layers.{}.mlp.", ("gate_proj", "up_proj"), "down_proj", 37)]  # fmt: skip
    start = 0
    for path, inputs, output, size in towers:
        for layer in range(2):
            for neuron in selected[start : start + size].nonzero()[:, 0]:
                mlp = path.format(layer)
                expected[mlp + output + ".weight"][:, neuron] = 0
                for name in inputs:
                    expected[mlp + name + ".weight"][neuron] = 0
                    if mlp + name + ".bias" in expected:
                        expected[mlp + name + ".bias"][neuron] = 0
            start += size
    pruned = prune_neurons(small_model, selected)
    try:
        assert all(value.equal(expected[name]) for name, value in small_model.state_dict().items())
    finally:
        pruned.undo()
    assert same(bits(small_model), before)
    with torch.no_grad():  # trained on, say
        for parameter in small_model.parameters():
            parameter.add_(1)
    after = bits(small_model)
    pruned.undo()
    assert same(bits(small_model), after)
    with torch.no_grad():
        for name, parameter in small_model.named_parameters():
            parameter.copy_(expected_before[name])


def test_a_pruned_model_is_one_whose_neurons_are_masked(tiny_model, questions):
    model, processor = tiny_model
    selected = some_neurons(model)
    batch = encode(questions["forget"]["multimodal"], processor, with_answer=False)
    mlps = find_neurons(model)
    hooks = [
        mlp.after.register_forward_pre_hook(lambda _, arguments, kept=~chosen: (arguments[0] * kept,))
        for mlp, chosen in zip(mlps, selected.split([mlp.size for mlp in mlps]), strict=True)
    ]
    with torch.no_grad():
        masked = model(**batch).logits
        for hook in hooks:
            hook.remove()
        vanilla = model(**batch).logits
        with prune_neurons(model, selected):
            pruned = model(**batch).logits
    torch.testing.assert_close(pruned, masked, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(pruned, vanilla, atol=1e-3)


def test_undo_on_leaving_also_after_an_error(small_model):
    before = bits(small_model)
    with pytest.raises(KeyboardInterrupt), prune_neurons(small_model, some_neurons(small_model)):
        assert not same(bits(small_model), before)
        raise KeyboardInterrupt
    assert same(bits(small_model), before)


def test_two_prunings_are_undone_in_reverse_order(small_model):
    before = bits(small_model)
    first = prune_neurons(small_model, some_neurons(small_model, seed=1))
    between = bits(small_model)
    second = prune_neurons(small_model, some_neurons(small_model, seed=2))
    second.undo()
    assert same(bits(small_model), between)
    first.undo()
    assert same(bits(small_model), before)


@pytest.mark.parametrize("overlap", [True, False])
def test_undoing_out_of_order_is_refused_and_changes_nothing(small_model, overlap):
    before = bits(small_model)
    one = some_neurons(small_model, seed=1)
    first = prune_neurons(small_model, one)
    second = prune_neurons(small_model, some_neurons(small_model, seed=2) if overlap else ~one)
    both = bits(small_model)
    with pytest.raises(RuntimeError, match="changed again later; undo.. that first, or load the model again"):
        first.undo()
    assert same(bits(small_model), both)
    second.undo()
    first.undo()
    assert same(bits(small_model), before)


def test_a_later_pruning_that_is_no_longer_there_does_not_stand_in_the_way(small_model):
    before, weights = bits(small_model), copy.deepcopy(small_model.state_dict())
    first = prune_neurons(small_model, some_neurons(small_model, seed=1))
    prune_neurons(small_model, some_neurons(small_model, seed=2))
    small_model.load_state_dict(weights)
    first.undo()
    assert same(bits(small_model), before)


def test_a_model_and_what_was_pruned_of_it_are_freed():
    model = nn.Sequential(nn.ModuleDict({"fc1": nn.Linear(4, 6), "fc2": nn.Linear(6, 4)}))
    handle = prune_neurons(model, torch.arange(6) < 3)
    alive = weakref.ref(model), weakref.ref(handle)
    del model, handle
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_in_the_middle_the_model_is_as_it_was(small_model, monkeypatch, error):
    before, fill, calls = bits(small_model), torch.Tensor.index_fill_, []

    def fails_after(tensor, *arguments):
        calls.append(fill(tensor, *arguments))  # the interrupt comes when the tensor is zeroed
        if len(calls) == 5:
            raise error
        return calls[-1]

    monkeypatch.setattr(torch.Tensor, "index_fill_", fails_after)
    with pytest.raises(error):
        prune_neurons(small_model, some_neurons(small_model))
    assert len(calls) == 5 and same(bits(small_model), before)
    assert not pruned_neurons(small_model).any()


def test_a_tensor_that_cannot_be_written_leaves_the_others_as_they_were(small_model, monkeypatch):
    before, locked = bits(small_model), small_model.model.language_model.layers[0].mlp.up_proj.weight
    plain = {name: getattr(torch.Tensor, name) for name in ("index_fill_", "index_copy_")}

    def write(name, tensor, *arguments):
        if tensor is locked:
            raise RuntimeError("read-only memory")
        return plain[name](tensor, *arguments)

    for name in plain:
        monkeypatch.setattr(torch.Tensor, name, functools.partialmethod(lambda t, *a, name=name: write(name, t, *a)))
    with pytest.raises(RuntimeError, match="read-only memory"):
        prune_neurons(small_model, torch.ones(n_neurons(small_model), dtype=torch.bool))
    assert same(bits(small_model), before)


# ------------------------------------------------------------------------------------------------ on top of a pruning


def test_unlearning_twice_is_refused_until_the_first_is_undone(tiny_model, questions):
    """What everybody does first: change α and run the cell again."""
    model, before = tiny_model[0], bits(tiny_model[0])
    n = n_neurons(model)
    pruned = unlearn(*tiny_model, **questions, alpha=1.0, progress=False)
    once = bits(model)
    for variant in PRUNINGS:
        said = rf"pruned already, or rewritten \({round(n / 100)} of its neurons are zero\).* undo\(\)"
        with pytest.raises(ValueError, match=said):
            unlearn(*tiny_model, **questions, alpha=5.0, variant=variant, progress=False)
    assert same(bits(model), once)
    with unlearn(*tiny_model, **questions, alpha=5.0, on_top=True, progress=False):
        assert pruned_neurons(model).sum() == round(n / 100) + round(0.05 * n)  # five more percent, of what is left
    pruned.undo()
    assert same(bits(model), before)
    unlearn(*tiny_model, **questions, alpha=5.0, progress=False).undo()


@pytest.mark.parametrize("variant", ["random", "ratio", "magnitude"])
def test_more_on_top_takes_other_neurons(tiny_model, questions, variant):
    model = tiny_model[0]
    options = {"variant": variant, "alpha": 40.0, "progress": False}
    n = round(0.4 * n_neurons(model))
    with unlearn(*tiny_model, **questions, **options), unlearn(*tiny_model, **questions, **options, on_top=True):
        assert pruned_neurons(model).sum() == 2 * n


def test_a_reloaded_pruned_model_is_told_from_one_with_silent_neurons(tiny_model, questions, tmp_path):
    from manu_utils.models.loading import load_model

    model, processor = tiny_model
    with prune_neurons(model, some_neurons(model)):
        save_model(model, processor, tmp_path / "pruned")
    reloaded = load_model(tmp_path / "pruned")
    assert pruned_neurons(reloaded[0]).equal(some_neurons(model))
    with pytest.raises(ValueError, match="pruned already"):
        unlearn(*reloaded, **questions, variant="random", progress=False)
    silent = copy.deepcopy(model)
    mlp = find_neurons(silent)[-1]
    with torch.no_grad():
        mlp.before[0].weight[0] = 0  # never fires
        mlp.after.weight[:, 1] = 0  # writes nothing
    assert not pruned_neurons(silent).any()
    unlearn(silent, processor, **questions, variant="random", progress=False)


def test_a_copy_without_rows_is_pruned_already(tiny_model, questions):
    """It has no handle, and hardly a neuron that is gone as a whole."""
    model, processor = tiny_model
    with unlearn(*tiny_model, **questions, variant="released_as_run", alpha=2.0, progress=False):
        without_rows = copy.deepcopy(model)
    for variant in ("released_as_run", "random"):
        said = r"pruned already, or rewritten \((rows of its layers|\d+ of its neurons) are zero\)"
        with pytest.raises(ValueError, match=said):
            unlearn(without_rows, processor, **questions, variant=variant, progress=False)
    unlearn(*tiny_model, **questions, variant="random", progress=False).undo()


def test_rows_that_were_zeroed_count_as_pruned(tiny_model, questions):
    before = bits(tiny_model[0])
    pruned = unlearn(*tiny_model, **questions, variant="released_as_run", alpha=5.0, progress=False)
    with pytest.raises(ValueError, match="pruned already"):
        unlearn(*tiny_model, **questions, variant="released_as_run", alpha=5.0, progress=False)
    pruned.undo()
    assert same(bits(tiny_model[0]), before)


def test_half_precision_and_a_change_of_dtype(small_model):
    model = copy.deepcopy(small_model).to(torch.bfloat16)
    before = bits(model)
    pruned = prune_neurons(model, some_neurons(model))
    model.float()
    pruned.undo()
    assert same(bits(model.to(torch.bfloat16)), before)


@pytest.mark.parametrize(
    "selected, message",
    [
        (lambda n: torch.zeros(n, dtype=torch.bool), "no neuron is selected"),
        (lambda n: torch.ones(n - 1, dtype=torch.bool), "selected must be bool"),
        (lambda n: torch.ones(n), "selected must be bool"),
        (lambda n: torch.ones(1, n, dtype=torch.bool), "selected must be bool"),
        (lambda n: [True] * n, "selected must be a tensor"),
    ],
)
def test_bad_masks_leave_the_model_alone(small_model, selected, message):
    before = bits(small_model)
    with pytest.raises((ValueError, TypeError), match=message):
        prune_neurons(small_model, selected(n_neurons(small_model)))
    assert same(bits(small_model), before)


def test_quantised_weights_are_left_alone(small_model):
    model = copy.deepcopy(small_model)
    down = model.model.language_model.layers[1].mlp.down_proj  # the last MLP: nothing before it may have been zeroed
    down.weight = nn.Parameter((down.weight.detach() * 100).to(torch.int8), requires_grad=False)
    before = bits(model)
    with pytest.raises(ValueError, match="quantised weights cannot be pruned"):
        prune_neurons(model, torch.ones(n_neurons(small_model), dtype=torch.bool))
    assert same(bits(model), before)


# ------------------------------------------------------------------------------------------------ saving


def test_a_saved_model_loads_with_plain_transformers(tiny_model, questions, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = tiny_model
    batch = encode(questions["forget"]["multimodal"], processor, with_answer=False)
    folder = tmp_path / "new" / "unlearned"
    with torch.no_grad(), prune_neurons(model, some_neurons(model)):
        save_model(model, processor, folder)
        expected, pruned_bits = model(**batch).logits, bits(model)
    loaded = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        assert loaded(**batch).logits.equal(expected)
    assert same(bits(loaded), pruned_bits)
    again = encode(questions["forget"]["multimodal"], AutoProcessor.from_pretrained(folder, backend="pil"), with_answer=False)
    assert all(value.equal(batch[name]) for name, value in again.items())
    assert [path.name for path in folder.parent.iterdir()] == ["unlearned"]


@pytest.mark.parametrize("part", ["model", "processor"])
def test_a_killed_save_leaves_nothing(tiny_model, tmp_path, monkeypatch, part):
    model, processor = tiny_model

    def killed(folder, *_, **__):
        folder.mkdir(exist_ok=True)
        (folder / "half.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr({"model": model, "processor": processor}[part], "save_pretrained", killed, raising=False)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, processor, tmp_path / "unlearned")
    assert list(tmp_path.iterdir()) == []


def test_a_save_starts_clean_after_a_kill(small_model, tiny_model, tmp_path):
    leftover = tmp_path / ".unlearned.abc.part"  # what SIGKILL left long ago, where no clean-up runs
    leftover.mkdir()
    (leftover / "stale.safetensors").write_bytes(b"half")
    os.utime(leftover, (0, 0))
    (tmp_path / "unlearned").mkdir()  # an empty folder may be there
    save_model(small_model, tiny_model[1], tmp_path / "unlearned")
    assert [path.name for path in tmp_path.iterdir()] == ["unlearned"]
    assert not (tmp_path / "unlearned" / "stale.safetensors").exists()
    assert (tmp_path / "unlearned" / "config.json").exists()


def test_never_overwrites(small_model, tiny_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="exists and is not empty; choose another name"):
            save_model(small_model, tiny_model[1], target)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", [".", "..", "/", "", "~", "a/.."])
def test_a_name_of_no_new_folder(small_model, tiny_model, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="names no new folder; give one, such as 'unlearned'"):
        save_model(small_model, tiny_model[1], name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tiny", "tiny-base", "tiny-retrained"])
def test_a_name_that_would_load_another_model(small_model, tiny_model, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in (name, Path(name)):
        with pytest.raises(ValueError, match=f"'{name}' is what load_model calls a bundled model"):
            save_model(small_model, tiny_model[1], folder)
    assert list(tmp_path.iterdir()) == []
    save_model(small_model, tiny_model[1], tmp_path / name)  # there it is a folder like any other


def test_what_cannot_be_saved_is_refused_before_anything_is_written(small_model, tiny_model, tmp_path):
    for processor in (None, tiny_model[1].tokenizer):
        with pytest.raises(TypeError, match="the processor is .*; pass the second of what load_model returns"):
            save_model(small_model, processor, tmp_path / "a")
    for folder in (None, 5, b"a", ["a"]):
        with pytest.raises(TypeError, match="folder=.* must be a path, not "):
            save_model(small_model, tiny_model[1], folder)
    with pytest.raises(ValueError, match="the model has no weights, only their shapes"):
        save_model(copy.deepcopy(small_model).to("meta"), tiny_model[1], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_may_be_written_as_a_tilde(small_model, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_model(small_model, tiny_model[1], "~/x/unlearned")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x" / "unlearned" / "config.json").exists()


def test_places_that_cannot_be_written_are_refused_before_anything_is(small_model, tiny_model, tmp_path, monkeypatch):
    model = copy.deepcopy(small_model)
    monkeypatch.setattr(model, "save_pretrained", lambda *_, **__: pytest.fail("written in vain"), raising=False)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes").write_text("mine", encoding="utf-8")
    for name in ("link", "dangling"):
        with pytest.raises(FileExistsError, match=f"{name} is a link; give the folder that it points to"):
            save_model(model, tiny_model[1], tmp_path / name)
    with pytest.raises(OSError, match="notes.*choose"):
        save_model(model, tiny_model[1], tmp_path / "notes" / "unlearned")
    monkeypatch.setattr("pathlib.Path.mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(PermissionError, match="cannot save to .*unlearned.*denied.*choose a folder that can be written"):
        save_model(model, tiny_model[1], tmp_path / "unlearned")
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "link", "dangling", "notes"}
    assert not any((tmp_path / "folder").iterdir()) and (tmp_path / "notes").read_text(encoding="utf-8") == "mine"


SAVER = """
import sys, time
from pathlib import Path
from manu_utils.models.loading import load_model
from manu_utils.models.saving import save_model
model, processor = load_model("tiny-base", device="cpu")
folder, number = Path(sys.argv[1]), sys.argv[2]
model.config.saved_by = number
(folder.parent / f"ready {number}").touch()
while len(list(folder.parent.glob("ready *"))) < 2:
    time.sleep(0.01)
save, write = model.save_pretrained, processor.save_pretrained
model.save_pretrained = lambda place: (save(place), time.sleep(1))
save_model(model, processor, folder)
"""


def test_of_two_processes_that_save_to_one_folder_one_wins_whole(tmp_path):
    folder = tmp_path / "unlearned"
    start = [sys.executable, "-c", SAVER, str(folder)]
    savers = [subprocess.Popen([*start, str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    errors = [saver.communicate()[1] for saver in savers]
    codes = [saver.returncode for saver in savers]
    assert sorted(codes) == [0, 1], errors
    loser = errors[codes.index(1)].strip().splitlines()[-1]
    assert loser.startswith("FileExistsError") and "exists and is not empty" in loser
    loaded, _ = load_model(folder, device="cpu")
    assert loaded.config.saved_by == str(codes.index(0))
    assert {path.name for path in tmp_path.iterdir()} == {"unlearned", "ready 0", "ready 1"}


def test_a_folder_that_appears_while_the_model_is_written_is_left_alone(small_model, tiny_model, tmp_path, monkeypatch):
    model, folder = copy.deepcopy(small_model), tmp_path / "unlearned"
    save = model.save_pretrained

    def slow(part):
        save(part)
        folder.mkdir()
        (folder / "notes.txt").write_text("mine", encoding="utf-8")

    monkeypatch.setattr(model, "save_pretrained", slow, raising=False)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        save_model(model, tiny_model[1], folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"] and [p.name for p in tmp_path.iterdir()] == ["unlearned"]


# ------------------------------------------------------------------------------------------------ our choice


@pytest.fixture(scope="module")
def retain_cost(tiny_model, questions):
    return {m: collect_attribution(*tiny_model, q, reduce=True, progress=False) for m, q in questions["retain"].items()}


def test_one_round_is_plain_coverage(tiny_model, questions, retain_cost):
    forget = questions["forget"]
    facts = {m: collect_attribution(*tiny_model, q, progress=False) for m, q in forget.items()}
    plain = select_by_coverage(facts, retain_cost, alpha=7.0)
    for at_hand in (None, facts):
        chosen = choose_by_coverage(*tiny_model, forget, retain_cost, alpha=7.0, facts=at_hand, rounds=1, progress=False)
        assert torch.equal(chosen, plain)


@pytest.mark.parametrize("alpha, rounds", [(7.0, 2), (7.0, 3), (0.3, 5)])
def test_rounds_share_the_budget_and_leave_the_model_alone(tiny_model, questions, retain_cost, alpha, rounds):
    model = tiny_model[0]
    before = bits(model)
    chosen = choose_by_coverage(
        *tiny_model, questions["forget"], retain_cost, alpha=alpha, rounds=rounds, allow_small=True, progress=False
    )
    assert chosen.sum() == max(1, round(alpha / 100 * n_neurons(model)))
    assert same(bits(model), before)


def test_a_later_round_looks_at_what_is_still_known(tiny_model, questions, retain_cost, monkeypatch):
    """The rows of facts that are gone are zeroed, unless all are gone."""
    seen = []

    def spy(facts, *arguments, **options):
        seen.append({m: rows.sum(1) > 0 for m, rows in facts.items()})
        return take_by_coverage(facts, *arguments, **options)

    alive = {"multimodal": torch.arange(len(questions["forget"]["multimodal"])) % 2 == 0}
    alive["text"] = torch.zeros(len(questions["forget"]["text"]), dtype=torch.bool)
    monkeypatch.setattr(coverage, "take_by_coverage", spy)
    monkeypatch.setattr(coverage, "known", lambda model, processor, asked, **_: alive[asked[0].modality])
    choose_by_coverage(*tiny_model, questions["forget"], retain_cost, alpha=7.0, progress=False)
    first, second = seen
    assert all(rows.all() for rows in first.values())
    assert torch.equal(second["multimodal"], alive["multimodal"]) and not second["text"].any()


def test_a_tower_can_be_left_alone(tiny_model, questions, retain_cost):
    vision = torch.cat([torch.full((mlp.size,), mlp.tower == "vision") for mlp in find_neurons(tiny_model[0])])
    for closed in (vision, ~vision):
        chosen = choose_by_coverage(
            *tiny_model, questions["forget"], retain_cost, alpha=7.0, exclude=closed, progress=False
        )
        assert not (chosen & closed).any() and chosen.sum() == round(0.07 * len(vision))


def test_switches_of_coverage_reach_it(tiny_model, questions, retain_cost):
    """One round with other settings is plain coverage with these settings, and not that with the defaults."""
    forget = questions["forget"]
    even = torch.ones(len(tiny_model[1].tokenizer))
    facts = {m: collect_attribution(*tiny_model, forget[m], rarity=even, progress=False) for m in MODALITIES}
    options = {"floor": 2.0, "share": 0.4, "balance": 0.0}
    one_round = {"alpha": 7.0, "rounds": 1, "progress": False}
    chosen = choose_by_coverage(*tiny_model, forget, retain_cost, rarity=even, **options, **one_round)
    assert chosen.equal(select_by_coverage(facts, retain_cost, alpha=7.0, **options))
    assert not chosen.equal(choose_by_coverage(*tiny_model, forget, retain_cost, **one_round))


def test_the_cost_is_what_the_retain_set_loses(tiny_model, questions):
    """unlearn is coverage of the forget facts, at the price that the retain set pays."""
    facts, price = (
        {m: collect_attribution(*tiny_model, q, reduce=reduce, progress=False) for m, q in questions[name].items()}
        for name, reduce in (("forget", False), ("retain", True))
    )
    own = {m: collect_attribution(*tiny_model, q, reduce=True, progress=False) for m, q in questions["forget"].items()}
    expected = choose_by_coverage(*tiny_model, questions["forget"], price, facts=facts, alpha=5.0, progress=False)
    chosen = choose(*tiny_model, **questions, variant="coverage", alpha=5.0, progress=False)
    assert chosen.equal(expected)
    assert not chosen.equal(choose_by_coverage(*tiny_model, questions["forget"], own, alpha=5.0, progress=False))


def test_the_second_round_attributes_in_the_pruned_model(tiny_model, questions, retain_cost, monkeypatch):
    seen, model = [], tiny_model[0]

    def spy(model, *arguments, **options):
        seen.append(int(pruned_neurons(model).sum()))
        return collect_attribution(model, *arguments, **options)

    monkeypatch.setattr(coverage, "collect_attribution", spy)
    forget = questions["forget"]
    chosen = choose_by_coverage(*tiny_model, forget, retain_cost, alpha=7.0, progress=False)
    budget = round(0.07 * n_neurons(model))
    assert seen == [0, 0, budget // 2, budget // 2]
    facts = {m: collect_attribution(*tiny_model, forget[m], progress=False) for m in MODALITIES}
    first = select_by_coverage(facts, retain_cost, alpha=100 * (budget // 2) / n_neurons(model))
    more = {"alpha": 100 * (budget - budget // 2) / n_neurons(model), "exclude": first}
    monkeypatch.undo()
    with prune_neurons(model, first):
        later = {m: collect_attribution(*tiny_model, forget[m], progress=False) for m in MODALITIES}
    assert chosen.equal(first | select_by_coverage(later, retain_cost, **more))
    assert not chosen.equal(first | select_by_coverage(facts, retain_cost, **more))


def test_interrupted_while_it_looks_again_it_leaves_the_model_as_it_was(tiny_model, questions, retain_cost, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    before = bits(tiny_model[0])
    monkeypatch.setattr(coverage, "known", killed)
    with pytest.raises(KeyboardInterrupt):
        choose_by_coverage(*tiny_model, questions["forget"], retain_cost, alpha=7.0, progress=False)
    assert same(bits(tiny_model[0]), before)


def test_forget_facts_without_attribution_are_named(tiny_model, questions, retain_cost):
    facts = {m: collect_attribution(*tiny_model, q, progress=False) for m, q in questions["forget"].items()}
    facts["text"] *= 0
    with pytest.raises(ValueError, match="no neuron contributes to the text forget answers"):
        choose_by_coverage(*tiny_model, questions["forget"], retain_cost, facts=facts, alpha=7.0, progress=False)


@pytest.mark.parametrize("n", [1, 3])
def test_one_fact_is_enough(tiny_model, questions, n):
    """One question, or one fact in three wordings: no token tells its answer from the others."""
    alike = {m: [dataclasses.replace(q, answer="Works as a nurse.") for q in of[:n]] for m, of in questions["forget"].items()}
    chosen = choose(*tiny_model, alike, questions["retain"], variant="coverage", alpha=5.0, progress=False)
    facts = {m: collect_attribution(*tiny_model, q, progress=False) for m, q in alike.items()}
    lost = {m: (rows[:, chosen].sum() / rows.sum()).item() for m, rows in facts.items()}
    assert min(lost.values()) > 2 * 0.05  # twice the share of as many neurons at random


def test_a_cost_of_another_model_is_refused(tiny_model, questions, retain_cost):
    other = {m: torch.ones(7) for m in retain_cost}
    with pytest.raises(ValueError, match="forget and retain are of different models"):
        choose_by_coverage(*tiny_model, questions["forget"], other, alpha=7.0, progress=False)


def test_bad_rounds(tiny_model, questions, retain_cost):
    with pytest.raises(ValueError, match="rounds=0 is not positive"):
        choose_by_coverage(*tiny_model, questions["forget"], retain_cost, alpha=7.0, rounds=0, progress=False)


# ------------------------------------------------------------------------------------------------ unlearn


@pytest.mark.parametrize("variant", VARIANTS)
def test_unlearn_prunes_alpha_percent_and_can_be_undone(tiny_model, questions, variant):
    model, processor = tiny_model
    before, saved = bits(model), {mlp.path: mlp.after.weight.detach().clone() for mlp in find_neurons(model)}
    with unlearn(model, processor, **questions, variant=variant, alpha=5.0, progress=False):
        changed = sum(int((mlp.after.weight != saved[mlp.path]).any(0).sum()) for mlp in find_neurons(model))
        assert changed == round(0.05 * n_neurons(model))
    assert same(bits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_unlearn_is_the_steps_one_by_one(tiny_model, questions):
    model, processor = tiny_model
    mlps = find_neurons(model)
    sums = {
        name: {m: collect_activations(model, processor, of[m], progress=False) for m in MODALITIES}
        for name, of in questions.items()
    }
    selected = select_neurons(score("paper", **sums, mlps=mlps), mlps, 8.0)
    with prune_neurons(model, selected):
        expected = bits(model)
    with unlearn(model, processor, **questions, variant="paper", alpha=8.0, progress=False):
        assert same(bits(model), expected)


def test_the_released_score_takes_alpha_percent_of_each_tower(tiny_model, questions):
    mlps = find_neurons(tiny_model[0])
    chosen = choose(*tiny_model, **questions, variant="released_score", alpha=10.0, progress=False)
    for tower in ("vision", "language"):
        own = torch.cat([torch.full((mlp.size,), mlp.tower == tower) for mlp in mlps])
        assert (chosen & own).sum() == round(0.1 * int(own.sum()))


def test_random_neurons_are_those_of_the_seed(tiny_model, questions):
    mlps = find_neurons(tiny_model[0])
    for seed in (0, 1):
        chosen = choose(*tiny_model, **questions, variant="random", alpha=5.0, seed=seed, progress=False)
        assert chosen.equal(select_neurons(score("random", {}, {}, mlps=mlps, seed=seed), mlps, 5.0))
    assert not chosen.equal(select_neurons(score("random", {}, {}, mlps=mlps, seed=0), mlps, 5.0))


@pytest.mark.parametrize("variant", ["coverage", "paper"])
def test_training_mode_autocast_and_a_default_of_float64_change_nothing(tiny_model, questions, variant):
    model = copy.deepcopy(tiny_model[0])
    for layer in model.model.language_model.layers:
        layer.mlp.act_fn = nn.Sequential(layer.mlp.act_fn, nn.Dropout(0.5))
    options = {"variant": variant, "alpha": 5.0, "progress": False}
    expected = choose(model, tiny_model[1], **questions, **options)
    model.train()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = choose(model, tiny_model[1], **questions, **options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.equal(expected) and model.training


def test_controls_look_at_no_data(tiny_model, questions, monkeypatch):
    monkeypatch.setattr(evidence, "collect_activations", lambda *_, **__: pytest.fail("a pass for a control"))
    for variant in ("random", "magnitude"):
        unlearn(*tiny_model, **questions, variant=variant, progress=False).undo()


def missing(questions, name, modality):
    return {n: {m: q for m, q in of.items() if (n, m) != (name, modality)} for n, of in questions.items()}


BAD_INPUT = {
    "alpha 0": (lambda q: q | {"alpha": 0}, "must lie between 0 and 100"),
    "alpha 100": (lambda q: q | {"alpha": 100}, "must lie between 0 and 100"),
    "a fraction": (lambda q: q | {"alpha": 0.05}, "looks like a fraction; alpha is a percentage: pass 5 for 5 %"),
    "unknown variant": (lambda q: q | {"variant": "manu"}, "variant='manu' is unknown; use one of paper"),
    "no text": (lambda q: missing(q, "forget", "text"), "forget has no text questions"),
    "no images": (lambda q: missing(q, "retain", "multimodal"), "retain has no multimodal questions"),
    "an empty set": (lambda q: q | {"retain": {m: [] for m in MODALITIES}}, "retain has no multimodal questions"),
    "the other modality": (
        lambda q: q | {"forget": {m: q["forget"]["text"] for m in MODALITIES}},
        "forget.'multimodal'. holds questions that are not multimodal",
    ),
    "alpha is text": (lambda q: q | {"alpha": "5"}, "alpha='5' must be a number"),
    "alpha is true": (lambda q: q | {"alpha": True}, "alpha=True must be a number"),
    "modalities is text": (lambda q: q | {"modalities": "text"}, "modalities='text' must be a tuple of names"),
    "no modalities": (lambda q: q | {"modalities": ()}, "must name at least one of"),
    "seed is nothing": (lambda q: q | {"seed": None, "variant": "random"}, "seed=None must be a whole number"),
    "batch_size is text": (lambda q: q | {"batch_size": "8"}, "batch_size='8' must be a whole number"),
    "forget is a list": (lambda q: q | {"forget": q["forget"]["text"]}, "forget is a list; it must be a dict such as"),
    "questions are words": (lambda q: q | {"retain": {"text": ["Who?"]}}, "must be a list of questions"),
    "an empty answer": (
        lambda q: q | {"forget": {m: [dataclasses.replace(of[0], answer="")] for m, of in q["forget"].items()}},
        "leave questions without an answer out",
    ),
    "one person in both": (
        lambda q: q | {"retain": {m: q["retain"][m] + q["forget"][m][:1] for m in MODALITIES}},
        "forget and retain share people, such as ",
    ),
}  # fmt: skip


def test_a_processor_is_no_tokenizer_and_a_model_has_weights(tiny_model, questions):
    model, processor = tiny_model
    for other in (None, processor.tokenizer):
        with pytest.raises(TypeError, match="the processor is .*; pass the second of what load_model returns"):
            unlearn(model, other, **questions, progress=False)
    with pytest.raises(ValueError, match="weights that are not in memory cannot be pruned"):
        unlearn(copy.deepcopy(model).to("meta"), processor, **questions, progress=False)


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_leaves_the_model_alone(tiny_model, questions, case):
    change, message = BAD_INPUT[case]
    before = bits(tiny_model[0])
    with pytest.raises((ValueError, TypeError), match=message):
        unlearn(*tiny_model, **change(questions), progress=False)
    assert same(bits(tiny_model[0]), before)


@pytest.mark.parametrize("variant", ["coverage", "paper"])
def test_a_poisoned_model_is_refused_and_left_alone(tiny_model, questions, variant):
    model = copy.deepcopy(tiny_model[0])
    model.model.language_model.layers[0].mlp.up_proj.weight.data[0, 0] = math.nan
    before = bits(model)
    with pytest.raises(ValueError, match="not finite; load the model in float32"):
        unlearn(model, tiny_model[1], **questions, variant=variant, progress=False)
    assert same(bits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_cannot_be_pruned_is_refused_before_any_pass(tiny_model, questions, monkeypatch):
    monkeypatch.setattr(evidence, "collect_attribution", lambda *_, **__: pytest.fail("scored in vain"))
    model = copy.deepcopy(tiny_model[0])
    up = model.model.language_model.layers[0].mlp.up_proj
    up.weight.data = up.weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="quantised weights cannot be pruned"):
        unlearn(model, tiny_model[1], **questions, progress=False)
    for layer in model.model.language_model.layers:
        layer.mlp = nn.Identity()
    with pytest.raises(ValueError, match="found no MLP .* in the language layers"):
        unlearn(model, tiny_model[1], **questions, progress=False)
