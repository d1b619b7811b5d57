"""A selection is saved, loaded and pruned; one of another model is refused, and no other file is touched."""

import copy

import pytest
import torch
from tiny_models import llava

from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning.pruning import prune, prune_neurons
from manu_utils.unlearning.selections import about_selection, load_selection, save_selection

ABOUT = {"variant": "coverage", "alpha": 5.0}


@pytest.fixture(scope="module")
def selected(tiny_model):
    n = sum(mlp.size for mlp in find_neurons(tiny_model[0]))
    return torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.1


def test_what_was_saved_prunes_the_same_weights(tiny_model, selected, tmp_path):
    model, path = tiny_model[0], tmp_path / "new folder" / "mask.safetensors"
    save_selection(selected, model, path, **ABOUT)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert about_selection(path) == {"of": "neurons", "model": "LlavaForConditionalGeneration", **ABOUT}
    with prune_neurons(model, selected):
        wanted = {name: value.clone() for name, value in model.state_dict().items()}
        found = load_selection(path, model)  # its shape is that of the model that was not pruned
    assert found.dtype == torch.bool and found.equal(selected)
    with prune(model, found):
        assert all(value.equal(wanted[name]) for name, value in model.state_dict().items())


def test_rows_are_saved_as_rows(tiny_model, tmp_path):
    model = tiny_model[0]
    linear = find_neurons(model)[0].path + ".fc1"
    rows = {linear: torch.zeros(model.get_submodule(linear).out_features, dtype=torch.bool)}
    rows[linear][3] = True
    save_selection(rows, model, tmp_path / "rows.safetensors")
    found = load_selection(tmp_path / "rows.safetensors", model)
    assert list(found) == [linear] and found[linear].equal(rows[linear])
    with prune(model, found):
        assert not model.get_submodule(linear).weight[3].any()
    with pytest.raises(ValueError, match="linear layer of this model"):
        load_selection(tmp_path / "rows.safetensors", torch.nn.Linear(2, 2))


def test_a_model_of_another_shape_is_refused(tiny_model, selected, tmp_path):
    path = tmp_path / "mask.safetensors"
    save_selection(selected, tiny_model[0], path)
    with pytest.raises(ValueError, match="chooses among the .* neurons in 5 MLPs .* load the model"):
        load_selection(path, llava()[0])
    wider = copy.deepcopy(tiny_model[0])  # as many neurons, otherwise spread
    mlps = find_neurons(wider)
    language = [mlp for mlp in mlps if mlp.tower == "language"]
    for mlp, size in zip(language, (language[0].size - 1, language[1].size + 1), strict=True):
        for name in ("gate_proj", "up_proj"):
            setattr(wider.get_submodule(mlp.path), name, torch.nn.Linear(32, size))
        wider.get_submodule(mlp.path).down_proj = torch.nn.Linear(size, 32)
    assert sum(mlp.size for mlp in find_neurons(wider)) == len(selected)
    with pytest.raises(ValueError, match="load the model"):
        load_selection(path, wider)


def test_what_is_no_selection_is_refused_and_no_file_is_overwritten(tiny_model, selected, tmp_path):
    model, path = tiny_model[0], tmp_path / "mask.safetensors"
    for wrong, error in ((selected.float(), ValueError), (selected[1:], ValueError), ([True], TypeError)):
        with pytest.raises(error, match="bool"):
            save_selection(wrong, model, path)
    with pytest.raises(TypeError, match="JSON"):
        save_selection(selected, model, path, model_itself=model)
    with pytest.raises(ValueError, match="of='rows' is said by the file"):  # it would be read as rows
        save_selection(selected, model, path, of="rows")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="spelling"):
        load_selection(path, model)
    for content in (b"", b"something else", b"{}" * 100):
        path.write_bytes(content)
        with pytest.raises(FileExistsError, match="already"):
            save_selection(selected, model, path)
        with pytest.raises(ValueError, match="no selection"):
            load_selection(path, model)
        assert path.read_bytes() == content


def test_a_full_disk_leaves_nothing(tiny_model, selected, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        save_selection(selected, tiny_model[0], tmp_path / "mask.safetensors")
    assert not list(tmp_path.iterdir())
