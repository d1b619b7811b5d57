"""What the released code prunes, against its loops written out: every output kept, nothing summed up on the way."""

import copy
import random
from dataclasses import replace

import PIL.Image
import pytest
import torch

from manu_utils.benchmark.pictures import as_rgb
from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning import released
from manu_utils.unlearning.evidence import Evidence, unlearn
from manu_utils.unlearning.pruning import prune_rows
from manu_utils.unlearning.released import choose_rows

MODALITIES = ("multimodal", "text")


@pytest.fixture(scope="module")
def sets(benchmark):
    """set -> modality -> questions: more than one chunk of ten batches of the forget set, more still of the retain set."""
    people = {"forget": benchmark.forget_ids[:5], "retain": benchmark.retain_ids[:9]}
    found = {name: {m: benchmark.training_questions(ids, m) for m in MODALITIES} for name, ids in people.items()}
    found["forget"]["text"] = found["forget"]["text"][:7]  # less than one chunk, and a last batch of three
    return found


def parts_of(model):
    """tower -> (layers, names of the linear layers)"""
    return {
        "vision": ([layer.mlp for layer in model.model.vision_tower.encoder.layers], ("fc1", "fc2")),
        "language": ([layer.mlp for layer in model.model.language_model.layers], ("gate_proj", "up_proj", "down_proj")),
    }


def transcribed(model, processor, questions, n_batches, layers, names, seed):
    """name -> the three numbers of each row: outputs of all layers kept, concatenated on the batch axis, batch by batch."""
    rng, kept = random.Random(seed), {}
    hooks = [
        getattr(layer, name).register_forward_hook(
            lambda _, __, output, name=name: kept.setdefault(name, []).append(output.detach())
        )
        for layer in layers for name in names
    ]  # fmt: skip
    chunk_means = {name: {metric: [] for metric in ("abs", "std", "rms")} for name in names}
    n_batches = min(n_batches, (len(questions) + 3) // 4)
    for first in range(0, n_batches, 10):
        order = rng.sample(questions, len(questions))
        loader = [order[i : i + 4] for i in range(0, len(order), 4)]
        scores = {name: {metric: [] for metric in ("abs", "std", "rms")} for name in names}
        for number, batch in enumerate(loader):
            if not first <= number < min(first + 10, n_batches):
                continue
            kept.clear()
            options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
            if batch[0].image is not None:
                texts = [f"USER: <image>\n{q.question}\nASSISTANT: {q.answer}" for q in batch]
                inputs = processor(text=texts, images=[q.image for q in batch], **options)
            else:
                inputs = processor.tokenizer([f"USER:{q.question}\nASSISTANT: {q.answer}" for q in batch], **options)
            inputs.pop("token_type_ids", None)
            with torch.no_grad():
                if batch[0].image is None:
                    model.model.language_model(**inputs)
                else:
                    model(**inputs)
            for name in names:
                x = torch.cat(kept[name], dim=0).clamp(-1e3, 1e3)
                scores[name]["abs"].append(x.abs().mean(dim=0))
                scores[name]["std"].append(x.std(dim=0))
                scores[name]["rms"].append((x**2).mean(dim=0).sqrt())
        for name in names:
            for metric, positions in scores[name].items():
                chunk_means[name][metric].append(torch.cat(positions).mean(dim=0))
    for hook in hooks:
        hook.remove()
    return {name: [torch.stack(means).mean(dim=0) for means in of.values()] for name, of in chunk_means.items()}


def as_released(model, processor, sets, alpha, seed=0):
    """path -> bool: pools, threshold and masks of the last three layers."""
    masks = {}
    for (tower, (layers, names)), modality in zip(parts_of(model).items(), MODALITIES, strict=True):
        n_batches = (len(sets["forget"][modality]) + 3) // 4
        forget, retain = (
            transcribed(model, processor, sets[name][modality], n_batches, layers, names, seed)
            for name in ("forget", "retain")
        )
        scores = {n: sum(2.0 * (f / (r + 1e-5) - 1) for f, r in zip(forget[n], retain[n], strict=True)) for n in names}
        last = list(range(len(layers)))[-3:]
        everything = torch.cat([scores[name] for name in names for _ in last])
        k = int(alpha / 100 * everything.numel())
        threshold = torch.topk(everything, k).values[-1]
        path = {"vision": "model.vision_tower.encoder.layers", "language": "model.language_model.layers"}[tower]
        masks |= {f"{path}.{i}.mlp.{name}": scores[name] >= threshold for i in last for name in names}
    return masks


@pytest.mark.parametrize("alpha", [2.0, 10.0])
@pytest.mark.parametrize("seed", [0, 3])
def test_the_rows_are_those_of_the_loops_written_out(double_model, sets, alpha, seed):
    expected = as_released(*double_model, sets, alpha, seed)
    found = choose_rows(*double_model, sets["forget"], sets["retain"], alpha=alpha, seed=seed, progress=False)
    assert found.keys() == expected.keys()
    assert all(mask.equal(expected[path]) for path, mask in found.items())
    assert any(mask.any() for path, mask in found.items() if path.endswith(("fc2", "down_proj")))
    for tower in ("vision", "language"):
        masks = torch.cat([mask for path, mask in found.items() if tower in path])
        wanted = int(alpha / 100 * len(masks))
        assert wanted <= masks.sum() < wanted + 3  # the copies of a row, in up to three layers, have one score


def test_it_is_not_what_the_score_chooses_on_neurons(tiny_model, sets):
    rows = Evidence(*tiny_model, **sets, progress=False).choose("released_as_run", 10.0)
    neurons = Evidence(*tiny_model, **sets, progress=False).choose("released_score", 10.0)
    gates = torch.cat([mask for path, mask in rows.items() if path.endswith(("fc1", "gate_proj"))])
    ups = torch.cat([mask for path, mask in rows.items() if path.endswith(("fc1", "up_proj"))])
    both = (neurons & (gates | ups)).sum() / (neurons | gates | ups).sum()
    assert both < 0.3


def test_rows_and_biases_are_zeroed_and_come_back(tiny_model, sets):
    model = tiny_model[0]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = choose_rows(*tiny_model, sets["forget"], sets["retain"], alpha=10.0, progress=False)
    with unlearn(*tiny_model, **sets, variant="released_as_run", alpha=10.0, progress=False):
        for name, parameter in model.named_parameters():
            path = name.rpartition(".")[0]
            expected = before[name].clone()
            if path in rows:
                expected[rows[path]] = 0
            assert parameter.equal(expected), name
    assert all(parameter.equal(before[name]) for name, parameter in model.named_parameters())


def test_training_mode_changes_nothing_and_hooks_go(tiny_model, sets):
    model = tiny_model[0]
    options = {"alpha": 10.0, "progress": False}
    expected = choose_rows(*tiny_model, sets["forget"], sets["retain"], **options)
    model.train()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = choose_rows(*tiny_model, sets["forget"], sets["retain"], **options)
        assert model.training and all(mask.equal(expected[path]) for path, mask in found.items())
    finally:
        model.eval()
    assert not any(linear._forward_hooks for mlp in find_neurons(model) for linear in (*mlp.before, mlp.after))


def test_bad_input(tiny_model, sets):
    with pytest.raises(ValueError, match="the language tower is scored by text questions"):
        choose_rows(*tiny_model, {"multimodal": sets["forget"]["multimodal"]}, sets["retain"], alpha=5.0, progress=False)
    with pytest.raises(TypeError, match="alpha='5' must be a number"):
        choose_rows(*tiny_model, sets["forget"], sets["retain"], alpha="5")
    with pytest.raises(TypeError, match="seed=None must be a whole number"):
        choose_rows(*tiny_model, sets["forget"], sets["retain"], alpha=5.0, seed=None)
    model = tiny_model[0]
    path = "model.language_model.layers.0.mlp.up_proj"
    n = model.get_submodule(path).out_features
    for rows in ({path: torch.ones(n - 1, dtype=torch.bool)}, {path: torch.ones(n)}, {"lm_heads": torch.ones(1).bool()}):
        with pytest.raises(ValueError, match="must be bool .out_features. of a linear layer of this model"):
            prune_rows(model, rows)
    with pytest.raises(ValueError, match="no row is selected"):
        prune_rows(model, {path: torch.zeros(n, dtype=torch.bool)})


def test_what_is_not_finite_is_refused(tiny_model, sets, monkeypatch):
    monkeypatch.setattr(released, "EPS", float("nan"))
    with pytest.raises(ValueError, match="the scores of the vision tower are not finite"):
        choose_rows(*tiny_model, sets["forget"], sets["retain"], alpha=5.0, progress=False)


def test_a_last_norm_that_is_not_finite_is_refused(tiny_model, sets):
    """No linear layer of an MLP comes after it."""
    model, processor = copy.deepcopy(tiny_model[0]), tiny_model[1]
    few = {name: {m: of[m][:4] for m in MODALITIES} for name, of in sets.items()}
    with torch.no_grad():
        model.model.language_model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="the last hidden states are not finite"):
        choose_rows(model, processor, few["forget"], few["retain"], alpha=5.0, progress=False)


def test_what_is_too_long_is_left_out(tiny_model, sets):
    few = {name: {m: of[m][:4] for m in MODALITIES} for name, of in sets.items()}
    expected = choose_rows(*tiny_model, few["forget"], few["retain"], alpha=5.0, progress=False)
    long = replace(few["forget"]["text"][0], answer="word " * 300)
    few["forget"]["text"] = [*few["forget"]["text"], long]
    with pytest.warns(UserWarning, match="1 of 5 questions have more tokens than the model has positions"):
        found = choose_rows(*tiny_model, few["forget"], few["retain"], alpha=5.0, progress=False)
    assert found.keys() == expected.keys() and all(mask.equal(expected[path]) for path, mask in found.items())


def test_pictures_are_read_as_everywhere(tiny_model, sets):
    few = {name: {m: of[m][:4] for m in MODALITIES} for name, of in sets.items()}
    floats = [PIL.Image.fromarray(torch.rand(64, 64, generator=torch.Generator().manual_seed(i)).numpy()) for i in range(4)]
    found = []
    for images in (floats, [as_rgb(image) for image in floats]):
        asked = [replace(q, image=image) for q, image in zip(few["forget"]["multimodal"], images, strict=True)]
        forget = few["forget"] | {"multimodal": asked}
        found.append(choose_rows(*tiny_model, forget, few["retain"], alpha=5.0, progress=False))
    assert all(mask.equal(found[1][path]) for path, mask in found[0].items())


def test_the_last_three_layers_are_pruned_and_what_is_loud_is_cut(tiny_model, sets, monkeypatch):
    """Four language layers, of which the first writes far more than the 1,000 at which the released code cuts."""
    from manu_utils.miniature.model import build_model

    processor = tiny_model[1]
    model = build_model(processor.tokenizer, seed=1, hidden=32, intermediate=64, layers=4).eval().double()
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight *= 1e5
    few = {name: {m: of[m][:6] for m in MODALITIES} for name, of in sets.items()}
    expected = as_released(model, processor, few, 10.0)
    found = choose_rows(model, processor, few["forget"], few["retain"], alpha=10.0, progress=False)
    assert found.keys() == expected.keys() and all(mask.equal(expected[path]) for path, mask in found.items())
    assert {path.split(".")[3] for path in found if "language_model" in path} == {"1", "2", "3"}
    monkeypatch.setattr(released, "LIMIT", 1e30)
    uncut = choose_rows(model, processor, few["forget"], few["retain"], alpha=10.0, progress=False)
    assert not all(mask.equal(uncut[path]) for path, mask in found.items())
