"""Every importance function and score against plain sums over kept activations, written from the equations."""

import dataclasses

import pytest
import torch
from torch import nn

from manu_utils.models.neurons import MLP
from manu_utils.unlearning.activations import Statistics, _sums
from manu_utils.unlearning.importance import (
    importance,
    importance_abs,
    importance_freq,
    importance_rms,
    importance_var,
    variance,
)
from manu_utils.unlearning.scores import RELEASED, VARIANTS, pool_layers, score, switched_score

TAU, EPS = 0.1, 1e-6
# Neurons of each layer; four layers in a tower, so that one is not among the last three.
LAYERS = {"vision": [5, 3, 4, 6], "language": [7, 8, 2, 9]}
SIZES = [size for sizes in LAYERS.values() for size in sizes]


@pytest.fixture(scope="module")
def mlps():
    torch.manual_seed(0)
    found = []
    for tower, sizes in LAYERS.items():
        for layer, size in enumerate(sizes):
            inputs = tuple(nn.Linear(4, size) for _ in range(2 if tower == "language" else 1))
            found.append(MLP(f"{tower}.layers.{layer}.mlp", tower, layer, inputs, nn.Linear(size, 4)))
    return found


@pytest.fixture(scope="module")
def kept():
    """set -> modality -> one tensor [positions, neurons] per MLP; a text pass has no vision activations."""
    generator = torch.Generator().manual_seed(1)
    activations = {}
    for name, n in (("forget", 11), ("retain", 29)):
        activations[name] = {}
        for m, modality in enumerate(("multimodal", "text")):
            rows = [0 if modality == "text" and i < len(LAYERS["vision"]) else n + 3 * m + i for i in range(len(SIZES))]
            # About half of the values are below tau, some are 0, each neuron has its own scale and offset.
            activations[name][modality] = [
                (torch.randn(r, size, generator=generator, dtype=torch.float64) * torch.rand(size, generator=generator) * 0.4)
                .clamp(min=-0.1) for r, size in zip(rows, SIZES, strict=True)
            ]  # fmt: skip
    return activations


@pytest.fixture(scope="module")
def statistics(kept):
    return {name: {m: summed(z, m) for m, z in of.items()} for name, of in kept.items()}


def summed(activations, modality):
    parts = torch.cat([_sums(z, TAU) for z in activations], dim=1)
    tokens = torch.tensor([len(z) for z in activations])
    return Statistics(tokens, tuple(z.shape[1] for z in activations), *parts, tau=TAU, modality=modality)


# ---------------------------------------------------------------------------- slow references, one neuron at a time


def mean(values):
    return sum(values) / len(values) if values else 0.0


def spread(values):
    return mean([(value - mean(values)) ** 2 for value in values])


def reference_importance(multi, text, eps=EPS):
    """I_abs, I_freq, I_var and I_rms of one neuron, from the lists of its activations (MANU, section 3)."""
    z_multi, z_text = mean([abs(z) for z in multi]), mean([abs(z) for z in text])
    n_multi, n_text = sum(abs(z) > TAU for z in multi), sum(abs(z) > TAU for z in text)
    q_multi, q_text = sum(z * z for z in multi), sum(z * z for z in text)
    return (
        abs(z_multi - z_text) / (z_multi + z_text + eps),
        abs(n_multi - n_text) / (n_multi + n_text + eps),
        (spread(multi) + spread(text)) ** 0.5,
        (abs(q_multi - q_text) / (q_multi + q_text + eps)) ** 0.5,
    )


def reference_released(forget, retain):
    """Σ_m w_m (F_m / (R_m + 1e-5) − 1) of one neuron; the share active has weight 0."""
    def functions(values):
        return mean([abs(z) for z in values]), spread(values) ** 0.5, mean([z * z for z in values]) ** 0.5

    return sum(2 * (f / (r + 1e-5) - 1) for f, r in zip(functions(forget), functions(retain), strict=True))


def neurons(activations):
    """[(index of the MLP, list of the activations of one neuron), ...]"""
    return [(i, z[:, n].tolist()) for i, z in enumerate(activations) for n in range(z.shape[1])]


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-12)


# ------------------------------------------------------------------------------------------------ the tests


FUNCTIONS = [importance_abs, importance_freq, importance_var, importance_rms]


@pytest.mark.parametrize("which", range(4), ids=["abs", "freq", "var", "rms"])
def test_importance_functions_are_those_of_the_paper(kept, statistics, which):
    for name in ("forget", "retain"):
        multi, text = (neurons(kept[name][m]) for m in ("multimodal", "text"))
        expected = [reference_importance(a, b)[which] for (_, a), (_, b) in zip(multi, text, strict=True)]
        found = FUNCTIONS[which](statistics[name]["multimodal"], statistics[name]["text"])
        close(found, expected)
        assert found.unique().numel() > 10


def test_the_sum_of_the_four(kept, statistics):
    multi, text = (neurons(kept["forget"][m]) for m in ("multimodal", "text"))
    expected = [sum(reference_importance(a, b)) for (_, a), (_, b) in zip(multi, text, strict=True)]
    close(importance(statistics["forget"]["multimodal"], statistics["forget"]["text"]), expected)


def test_paper(kept, statistics, mlps):
    columns = [neurons(kept[name][m]) for name in ("forget", "retain") for m in ("multimodal", "text")]
    expected = [
        sum(reference_importance(fm, ft)) / (sum(reference_importance(rm, rt)) + EPS)
        for (_, fm), (_, ft), (_, rm), (_, rt) in zip(*columns, strict=True)
    ]
    close(score("paper", **statistics, mlps=mlps), expected)


def test_released_score(kept, statistics, mlps):
    expected = []
    by_modality = {m: zip(neurons(kept["forget"][m]), neurons(kept["retain"][m]), strict=True) for m in ("multimodal", "text")}
    for ((i, f_image), (_, r_image)), ((_, f_text), (_, r_text)) in zip(*by_modality.values(), strict=True):
        tower, layer = mlps[i].tower, mlps[i].layer
        if layer == 0:  # of four: only the last three are pruned
            expected.append(float("-inf"))
        elif tower == "vision":
            expected.append(reference_released(f_image, r_image))
        else:
            expected.append(reference_released(f_text, r_text))
    found = score("released_score", **statistics, mlps=mlps)
    close(found, expected)
    assert found.isneginf().sum() == LAYERS["vision"][0] + LAYERS["language"][0]


def reference_switched(
    sets, tower, layer, *, contrast=True, one_modality=False, sum_of_ratios=False, weights=(1, 1, 1, 1), last_layers=None,
    eps=EPS,
):  # fmt: skip
    """The score of one neuron from the lists of its activations, modality by modality, with every difference as a switch."""
    if last_layers is not None and layer < 4 - last_layers:
        return float("-inf")
    values = {}
    for name, (multi, text) in sets.items():
        if contrast:
            values[name] = reference_importance(multi, text, eps)
            continue
        lists = [multi if tower == "vision" else text] if one_modality else [multi, text]
        values[name] = (
            sum(mean([abs(z) for z in part]) for part in lists),
            sum(mean([float(abs(z) > TAU) for z in part]) for part in lists),
            sum(spread(part) for part in lists) ** 0.5,
            sum(mean([z * z for z in part]) for part in lists) ** 0.5,
        )
    if sum_of_ratios:
        return sum(w * (f / (r + eps) - 1) for w, f, r in zip(weights, *values.values(), strict=True))
    top, bottom = (sum(w * v for w, v in zip(weights, of, strict=True)) for of in values.values())
    return top / (bottom + eps)


SWITCHES = {
    "paper": {},
    "no contrast": {"contrast": False},
    "one modality": {"contrast": False, "one_modality": True},
    "sum of ratios": {"sum_of_ratios": True},
    "weights": {"weights": (2, 0, 2, 2)},
    "last layers": {"last_layers": 2},
    "abs alone": {"weights": (1, 0, 0, 0)},
    "without var": {"weights": (1, 1, 0, 1)},
    "released": RELEASED,
    "released with a contrast": RELEASED | {"contrast": True, "one_modality": False, "eps": EPS},
    "released with both modalities": RELEASED | {"one_modality": False},
    "released as a ratio of sums": RELEASED | {"sum_of_ratios": False},
    "released with equal weights": RELEASED | {"weights": (1, 1, 1, 1)},
    "released on every layer": RELEASED | {"last_layers": None},
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch(kept, statistics, mlps, name):
    columns = [neurons(kept[people][m]) for people in ("forget", "retain") for m in ("multimodal", "text")]
    expected = [
        reference_switched({"forget": (fm, ft), "retain": (rm, rt)}, mlps[i].tower, mlps[i].layer, **SWITCHES[name])
        for (i, fm), (_, ft), (_, rm), (_, rt) in zip(*columns, strict=True)
    ]
    close(switched_score(**statistics, mlps=mlps, **SWITCHES[name]), expected)


def test_every_switch_changes_the_score(statistics, mlps):
    found = {name: switched_score(**statistics, mlps=mlps, **switches) for name, switches in SWITCHES.items()}
    names = list(found)
    assert not [(a, b) for i, a in enumerate(names) for b in names[:i] if found[a].equal(found[b])]


def test_the_two_ends_are_the_named_variants(statistics, mlps):
    assert switched_score(**statistics, mlps=mlps).equal(score("paper", **statistics, mlps=mlps))
    assert switched_score(**statistics, mlps=mlps, **RELEASED).equal(score("released_score", **statistics, mlps=mlps))
    by_hand = importance(**statistics["forget"]) / (importance(**statistics["retain"]) + EPS)
    assert score("paper", **statistics, mlps=mlps).equal(by_hand)


def test_without_a_contrast_one_modality_will_do(statistics, mlps):
    alone = {name: {"text": of["text"]} for name, of in statistics.items()}
    found = switched_score(**alone, mlps=mlps, contrast=False)
    plain = [
        (s.total_abs + s.n_active) / s.counts() + variance(s).sqrt() + (s.total_squares / s.counts()).sqrt()
        for s in (alone["forget"]["text"], alone["retain"]["text"])
    ]
    assert torch.allclose(found, plain[0] / (plain[1] + EPS), rtol=1e-9)
    with pytest.raises(ValueError, match="forget has no multimodal statistics"):
        switched_score(**alone, mlps=mlps)
    with pytest.raises(ValueError, match="forget has no multimodal statistics"):
        switched_score(**alone, mlps=mlps, contrast=False, one_modality=True)


def test_pooled_layers_share_their_activations():
    generator = torch.Generator().manual_seed(2)
    towers = {"vision": 5, "language": 7}
    layers = [MLP(f"{t}.layers.{i}.mlp", t, i, (), nn.Linear(size, 2)) for t, size in towers.items() for i in range(3)]
    activations = [torch.randn(4 + i, mlp.size, generator=generator, dtype=torch.float64) for i, mlp in enumerate(layers)]
    pooled = pool_layers(summed(activations, "multimodal"), layers)
    together = [torch.cat(activations[:3])] * 3 + [torch.cat(activations[3:])] * 3
    expected = summed(together, "multimodal")
    assert pooled.tokens.equal(expected.tokens) and pooled.sizes == expected.sizes and pooled.tau == TAU
    for name in ("total", "total_abs", "total_squares", "n_active"):
        torch.testing.assert_close(getattr(pooled, name), getattr(expected, name), rtol=1e-6, atol=1e-12)


def test_ratio(kept, statistics, mlps):
    expected = []
    for i in range(len(SIZES)):
        of_layer = {}
        for m in ("multimodal", "text"):
            f, r = (
                [mean([v * v for v in kept[name][m][i][:, n].tolist()]) for n in range(SIZES[i])]
                for name in ("forget", "retain")
            )
            of_layer[m] = [a / (b + 2.0 * mean(r) + EPS) for a, b in zip(f, r, strict=True)]
        expected += [max(pair) for pair in zip(*of_layer.values(), strict=True)]
    close(score("ratio", **statistics, mlps=mlps), expected)


@pytest.mark.parametrize("eps", [1e-9, 0.5])
def test_eps_is_in_every_ratio_of_the_paper(kept, statistics, mlps, eps):
    columns = [neurons(kept[name][m]) for name in ("forget", "retain") for m in ("multimodal", "text")]
    expected = [
        reference_switched({"forget": (fm, ft), "retain": (rm, rt)}, mlps[i].tower, mlps[i].layer, eps=eps)
        for (i, fm), (_, ft), (_, rm), (_, rt) in zip(*columns, strict=True)
    ]
    close(score("paper", **statistics, mlps=mlps, eps=eps), expected)
    assert not score("paper", **statistics, mlps=mlps, eps=eps).equal(score("paper", **statistics, mlps=mlps))


def test_random_is_seeded_and_uniform(mlps):
    one, again, other = (score("random", {}, {}, mlps=mlps, seed=seed) for seed in (0, 0, 1))
    assert one.equal(again) and not one.equal(other)
    assert one.shape == (sum(SIZES),) and (one >= 0).all() and (one < 1).all() and one.unique().numel() == len(one)


def test_magnitude(mlps):
    expected = []
    for mlp in mlps:
        for n in range(mlp.size):
            value = sum(w * w for w in mlp.after.weight[:, n].tolist()) ** 0.5
            for linear in mlp.before:
                value *= sum(w * w for w in linear.weight[n].tolist()) ** 0.5
            expected.append(value)
    close(score("magnitude", {}, {}, mlps=mlps), expected)


def test_variance_is_never_negative():
    z = torch.full((1000, 3), 0.3)  # the mean of squares minus the squared mean rounds to a negative number
    assert (variance(summed([z], "text")) >= 0).all()


def test_nothing_divides_by_zero(mlps):
    silent = {m: summed([torch.zeros(4, size) for size in SIZES], m) for m in ("multimodal", "text")}
    for variant in ("paper", "ratio", "released_score"):
        assert not score(variant, silent, silent, mlps=mlps).isnan().any()


# ------------------------------------------------------------------------------------------------ bad input


def test_unknown_variant(statistics, mlps):
    with pytest.raises(ValueError, match=f"variant='best' is unknown; use one of {', '.join(VARIANTS)}"):
        score("best", **statistics, mlps=mlps)
    with pytest.raises(ValueError, match="coverage needs attribution"):
        score("coverage", **statistics, mlps=mlps)
    with pytest.raises(ValueError, match="released_as_run scores rows of linear layers.*use choose_rows"):
        score("released_as_run", **statistics, mlps=mlps)
    for seed, error in ((None, TypeError), (True, TypeError), (-1, ValueError)):
        with pytest.raises(error, match="seed="):
            score("random", {}, {}, mlps=mlps, seed=seed)


def test_bad_switches(statistics, mlps):
    with pytest.raises(ValueError, match="one modality has nothing to be contrasted with"):
        switched_score(**statistics, mlps=mlps, one_modality=True)
    for weights in ((1, 1, 1), (0, 0, 0, 0), (1, 1, -1, 1)):
        with pytest.raises(ValueError, match="must be four numbers, none negative and at least one positive"):
            switched_score(**statistics, mlps=mlps, weights=weights)
    with pytest.raises(ValueError, match="retain has no text statistics"):
        switched_score(statistics["forget"], {"multimodal": statistics["retain"]["multimodal"]}, mlps=mlps)
    with pytest.raises(ValueError, match="the layers of the vision tower differ in size"):
        pool_layers(statistics["forget"]["multimodal"], mlps)


@pytest.mark.parametrize("variant", ["paper", "released_score", "ratio"])
def test_both_modalities_of_both_sets(statistics, mlps, variant):
    for name in ("forget", "retain"):
        for modality in ("multimodal", "text"):
            cut = {n: {m: s for m, s in of.items() if (n, m) != (name, modality)} for n, of in statistics.items()}
            with pytest.raises(ValueError, match=f"{name} has no {modality} statistics"):
                score(variant, **cut, mlps=mlps)


def test_statistics_of_another_model_modality_or_tau(statistics, mlps):
    forget, retain = statistics["forget"], statistics["retain"]
    with pytest.raises(ValueError, match="the forget statistics are of another model"):
        score("paper", forget, retain, mlps=mlps[1:])
    swapped = {"multimodal": forget["text"], "text": forget["multimodal"]}
    with pytest.raises(ValueError, match="forget.'multimodal'. holds statistics of another modality"):
        score("paper", swapped, retain, mlps=mlps)
    other_tau = {m: dataclasses.replace(s, tau=0.2) for m, s in retain.items()}
    with pytest.raises(ValueError, match="different tau"):
        score("paper", forget, other_tau, mlps=mlps)
