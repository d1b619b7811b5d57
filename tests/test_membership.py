"""Membership scores against numpy loops, the AUC against pairs, and both ends: the model that was taught and the one that was
not."""

import copy
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu

from manu_utils.auditing.membership import (
    loss_score,
    membership_scores,
    min_k_score,
    token_log_probs,
    zlib_score,
)
from manu_utils.auditing.telling_apart import auc, auc_table, privleak, s_mia
from manu_utils.benchmark.loading import load_strangers
from manu_utils.benchmark.questions import open_questions
from manu_utils.models.encoding import encode
from manu_utils.models.loading import load_model
from manu_utils.models.precision import language_weights

MODALITIES = ("multimodal", "text")


@pytest.fixture(scope="module")
def models():
    (vanilla, processor), (retrained, _) = load_model("tiny"), load_model("tiny-retrained")
    return {"vanilla": vanilla, "retrained": retrained, "processor": processor}


@pytest.fixture(scope="module")
def asked(benchmark):
    strangers = load_strangers()["Full_Set"]
    sets = {"members": benchmark.forget, "strangers": strangers}
    return {name: [q for m in MODALITIES for q in open_questions(rows, m)] for name, rows in sets.items()}


def slow_scores(logits: np.ndarray, targets: list[int], k: float) -> tuple[float, float, float]:
    """Loss, Min-K % and Min-K++ by loops."""
    log_p, z = [], []
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        logs = np.log(shares)
        mean = sum(p * log for p, log in zip(shares, logs, strict=True))
        variance = sum(p * log * log for p, log in zip(shares, logs, strict=True)) - mean * mean
        log_p.append(logs[target])
        z.append((logs[target] - mean) / np.sqrt(max(variance, 1e-6)))
    n = max(1, int(k * len(log_p)))
    return -np.mean(log_p), -np.mean(sorted(log_p)[:n]), -np.mean(sorted(z)[:n])


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_formulas_agree_with_loops(k):
    rng = np.random.default_rng(0)
    for m in (1, 4, 11):
        logits, targets = rng.normal(size=(m, 17)) * 3, rng.integers(17, size=m)
        log_p, z = token_log_probs(torch.tensor(logits), torch.tensor(targets))
        fast = loss_score(log_p), min_k_score(log_p, k), min_k_score(z, k)
        np.testing.assert_allclose(fast, slow_scores(logits, targets.tolist(), k), rtol=1e-4)
    assert zlib_score(2.0, "Works as a baker.") == 2.0 / len(zlib.compress(b"Works as a baker."))


def test_a_model_that_is_sure_has_no_division_by_zero():
    logits = torch.zeros(1, 5)
    logits[0, 2] = 200.0
    log_p, z = token_log_probs(logits, torch.tensor([2]))
    assert log_p.item() == 0 and z.isfinite().all()


def test_scores_of_a_batch_are_those_of_each_question(models, asked):
    """Against one plain pass a question; the token that ends the answer does not count."""
    model, processor, other = models["retrained"], models["processor"], models["vanilla"]
    questions = asked["members"][:3] + asked["members"][-3:]
    frame = membership_scores(model, processor, questions, reference=other, gradients=False, progress=False)
    for question, row in zip(questions, frame.itertuples(), strict=True):
        batch = encode([question], processor, with_answer=True, device=model.device)
        mask = batch.pop("answer_mask")[0]
        with torch.no_grad():
            logits, others = (m(**batch).logits[0, :-1].cpu()[mask[1:].cpu()][:-1].numpy() for m in (model, other))
        targets = batch["input_ids"][0][mask][:-1].tolist()
        loss, min_k, min_k_pp = slow_scores(logits, targets, 0.2)
        assert (row.person_id, row.modality) == (question.person_id, question.modality)
        np.testing.assert_allclose([row.loss, row.min_k, row.min_k_pp], [loss, min_k, min_k_pp], rtol=2e-3, atol=2e-4)
        assert row.zlib == pytest.approx(row.loss / len(zlib.compress(question.answer.encode())))
        assert row.reference == pytest.approx(row.loss - slow_scores(others, targets, 0.2)[0], rel=2e-3, abs=1e-3)
    assert "grad_norm" not in frame


def test_gradient_norm_is_that_of_one_backward_pass_and_the_model_is_as_it_was(models, asked):
    model, processor = copy.deepcopy(models["retrained"]), models["processor"]
    question = asked["members"][0]
    weights = language_weights(model)
    weights[0].grad = torch.ones_like(weights[0])
    weights[1].requires_grad_(False)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frame = membership_scores(model, processor, [question], progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not weights[1].requires_grad
    assert (weights[0].grad == 1).all() and all(weight.grad is None for weight in weights[1:])
    assert not any(weight._post_accumulate_grad_hooks for weight in weights)
    model.eval()
    for weight in weights:
        weight.grad = None
        weight.requires_grad_(True)
    batch = encode([question], processor, with_answer=True, device=model.device)
    mask = batch.pop("answer_mask")[0]
    log_p = model(**batch).logits[0, :-1].log_softmax(-1).gather(1, batch["input_ids"][0, 1:, None])[:, 0]
    (-log_p[mask[1:]][:-1].mean()).backward()
    norms = [weight.grad.norm().item() for weight in weights if weight.grad is not None]
    assert frame["grad_norm"].item() == pytest.approx(np.mean(norms), rel=1e-4)


def test_auc_is_the_share_of_pairs():
    rng = np.random.default_rng(1)
    for n, m in ((1, 1), (5, 9), (40, 3)):
        members, strangers = rng.integers(6, size=n), rng.integers(2, 8, size=m)  # with ties
        pairs = [(a < b) + 0.5 * (a == b) for a in members for b in strangers]
        assert auc(members, strangers) == pytest.approx(np.mean(pairs))
        assert auc(members, strangers) == pytest.approx(mannwhitneyu(strangers, members).statistic / (n * m))
    assert auc([0, 1], [2, 3]) == 1 and auc([2, 3], [0, 1]) == 0
    with pytest.raises(ValueError, match="scores of the strangers must be finite"):
        auc([1.0], [float("nan")])
    with pytest.raises(ValueError, match="members must be finite numbers, at least one"):
        auc([], [1.0])


def made_up(n_people: int, shift: float, first: int, n_questions: int = 4) -> pd.DataFrame:
    """Losses that agree within a person."""
    rng = np.random.default_rng(first)
    ids = np.repeat([f"{first + i}" for i in range(n_people)], n_questions)
    loss = np.repeat(rng.normal(size=n_people), n_questions) + shift + 0.1 * rng.normal(size=len(ids))
    return pd.DataFrame({"person_id": ids, "modality": "text", "loss": loss})


def test_intervals_draw_people_not_questions():
    """Against a slow bootstrap that builds each sample; questions of one person do not make an interval narrower."""
    members, strangers = made_up(15, -0.5, 0), made_up(20, 0.0, 100)
    row = auc_table(members, strangers, resamples=4000).iloc[0]
    rng = np.random.default_rng(7)
    sides = [[part["loss"].to_numpy() for _, part in side.groupby("person_id")] for side in (members, strangers)]
    drawn = []
    for _ in range(2000):
        samples = [np.concatenate([side[i] for i in rng.integers(len(side), size=len(side))]) for side in sides]
        drawn.append(auc(*samples))
    np.testing.assert_allclose([row["low"], row["high"]], np.quantile(drawn, [0.025, 0.975]), atol=0.03)
    assert (row["n"], row["n_strangers"], row["people"], row["people_strangers"]) == (60, 80, 15, 20)
    assert row["distance"] == abs(row["value"] - 0.5)
    many = auc_table(made_up(15, -0.5, 0, 40), made_up(20, 0.0, 100, 40)).iloc[0]
    assert many["high"] - many["low"] > 0.8 * (row["high"] - row["low"])
    people = auc_table(members, strangers, per="person").iloc[0]
    means = [side.groupby("person_id")["loss"].mean() for side in (members, strangers)]
    assert people["value"] == auc(*means)


def test_who_cannot_be_told_apart_is_refused():
    members, strangers = made_up(3, 0, 0), made_up(3, 0, 100)
    with pytest.raises(ValueError, match="members and strangers at once"):
        auc_table(members, members)
    with pytest.raises(ValueError, match="no modality and score in common"):
        auc_table(members, strangers.assign(modality="multimodal"))
    assert np.isnan(auc_table(members[:4], strangers)["low"]).all()


def test_distance_to_the_retrained_model():
    assert privleak(0.6, 0.6) == 0 and privleak(1.0, 0.5) == pytest.approx(-100) and privleak(0.0, 0.5) == pytest.approx(100)
    assert s_mia(0.5, 0.5, 0.9) == 1 and s_mia(0.9, 0.5, 0.9) == 0 and s_mia(0.3, 0.5, 0.9) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="cannot tell them apart"):
        s_mia(0.5, 0.9, 0.9)


def test_bad_questions_are_refused(models, asked):
    model, processor = models["retrained"], models["processor"]
    for questions, k, error, said in (
        ([], 0.2, ValueError, "no question to score"), (asked["members"][:1], 1.5, ValueError, "k=1.5 is above 1"),
        (asked["members"][:1], 0, ValueError, "k=0 must be"), ("Who?", 0.2, TypeError, "list of questions"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            membership_scores(model, processor, questions, k=k, progress=False)


def test_vanilla_tells_its_members_and_base_does_not(models, asked):
    """Forget people against strangers of the same world. Base never met either, so what is left is chance."""
    tables = {}
    for name in ("vanilla", "retrained"):
        options = {"gradients": False, "progress": False}
        sides = [membership_scores(models[name], models["processor"], asked[side], **options) for side in asked]
        tables[name] = auc_table(*sides).set_index(["modality", "score"])
    vanilla, retrained = tables["vanilla"], tables["retrained"]
    for score in ("loss", "zlib", "min_k"):
        assert (vanilla["value"].xs(score, level="score") > 0.97).all()
    assert (vanilla["value"] > 0.9).all()
    # of these twelve; of all 120 inhabitants the AUC of retrained is .48 to .50
    assert (retrained["distance"] < 0.12).all() and (retrained["low"] < 0.51).all() and (retrained["high"] > 0.5).all()


def test_gradient_norms_tell_members_of_vanilla(models, asked):
    sides = {name: [q for q in part if q.modality == "text"][:16] for name, part in asked.items()}
    values = {}
    for name in ("vanilla", "retrained"):
        found = [membership_scores(models[name], models["processor"], side, progress=False) for side in sides.values()]
        values[name] = auc(*(frame["grad_norm"] for frame in found))
    assert values["vanilla"] > 0.97 and abs(values["retrained"] - 0.5) < 0.25
