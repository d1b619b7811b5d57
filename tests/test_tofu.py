"""The measures of TOFU against a slow reference of each formula, and the reading of its perturbed and holdout configs."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from manu_utils.auditing.telling_apart import auc, privleak
from manu_utils.benchmark.records import Question
from manu_utils.benchmark.tofu import TofuSet, load_tofu_holdout, load_tofu_sets
from manu_utils.evaluation import tofu
from manu_utils.models import asking
from manu_utils.models.prompts import answer_texts, prompt

QUIET = {"progress": False, "batch_size": 3}
EXACT = {"rel": 1e-6, "abs": 1e-9}


@pytest.fixture(scope="module")
def llama(tiny_model):
    """(model, processor): a small random Llama, text alone, that prefers some tokens strongly."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_model[1].tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return model, SimpleNamespace(tokenizer=tokenizer)


def lesson(person, question, answer):
    return Question(person, question, answer, None, "training")


def group(n, paraphrases=True):
    questions = [
        lesson(f"{i:03}", f"Where was Bela Dorn {i} born?", f"In the town of K{i}.")
        for i in range(n)
    ]
    other = [lesson(q.person_id, q.question, f"It was {q.answer}") for q in questions]
    wrong = [
        [lesson(q.person_id, q.question, f"It was town {k} {i}.") for k in range(2 + i % 3)]
        for i, q in enumerate(questions)
    ]
    return TofuSet(
        questions, wrong, other if paraphrases else questions, other if paraphrases else []
    )


@pytest.fixture(scope="module")
def sets():
    return {
        "forget": group(4),
        "retain": group(3),
        "real_authors": group(2, False),
        "world_facts": group(2, False),
    }


def slow(model, processor, question):
    """Loss, exact memorisation and extraction strength, one token after the other in float64."""
    tokenizer = processor.tokenizer
    before = tokenizer(prompt(question, processor))["input_ids"]
    whole = tokenizer(prompt(question, processor) + answer_texts([question], processor)[0])[
        "input_ids"
    ]
    start = len(before)
    assert whole[:start] == before
    losses, right = [], []
    for place in range(start, len(whole)):
        with torch.no_grad():
            logits = model(torch.tensor([whole[:place]])).logits[0, -1].double().numpy()
        shifted = logits - logits.max()
        losses.append(-(shifted[whole[place]] - math.log(np.exp(shifted).sum())))
        right.append(int(logits.argmax()) == whole[place])
    n = len(right)
    strength = 0.0
    for k in range(n):
        if all(right[k:]):
            strength = 1 - k / n
            break
    return sum(losses) / n, sum(right) / n, strength


def test_losses_memorisation_and_strength(llama, sets):
    model, _ = llama
    questions = [*sets["forget"].asked, *sets["forget"].wrong[2]]
    with torch.no_grad():  # so that some tokens are foreseen: an end that is always likely
        model.model.norm.weight.mul_(8)
    try:
        found = tofu.answer_measures(*llama, questions, **QUIET)
        expected = torch.tensor(
            [slow(*llama, question) for question in questions], dtype=torch.float64
        )
    finally:
        with torch.no_grad():
            model.model.norm.weight.div_(8)
    assert torch.allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_a_question_is_read_once_for_all_of_its_answers(llama, monkeypatch, tokens_read):
    """The same numbers and answers, from fewer tokens."""
    model, processor, of = copy.deepcopy(llama[0]), llama[1], group(5)
    with torch.no_grad():  # so that what is written hangs on the question
        for weight in model.model.layers.parameters():
            weight.mul_(10)
    asked = [*of.asked, *of.paraphrased, *(one for wrong in of.wrong for one in wrong)]
    read, found = tokens_read(model), []
    for shared in (True, False):
        monkeypatch.setattr(asking, "can_share_texts", lambda model, shared=shared: shared)
        read.append(0)
        measures = tofu.answer_measures(model, processor, asked, **QUIET)
        tokens = read[-1]
        right = asking.known(model, processor, asked, **QUIET)
        written = asking.generate_answers(model, processor, asked, max_new_tokens=4, **QUIET)
        found.append((measures, right, written, tokens))
    (measures, right, written, few), (expected, known, answers, many) = found
    assert torch.allclose(measures, expected, rtol=1e-5, atol=1e-6)
    assert right.equal(known) and written == answers and len(set(written)) > 1
    assert few < 0.8 * many


@pytest.mark.parametrize(
    "right", [[True] * 4, [False] * 3, [True, True, False], [False, True, True, True], [True]]
)
def test_strength_is_the_longest_right_end(right):
    n, best = len(right), 0
    for k in range(n + 1):
        if all(right[k:]):
            best = max(best, n - k)
    assert tofu.extraction_strength(right) == pytest.approx(best / n, **EXACT)
    assert tofu.exact_memorisation(right) == pytest.approx(np.mean(right), **EXACT)


def test_ratios_by_their_formulas():
    rng = np.random.default_rng(0)
    for _ in range(20):
        right, wrong = rng.uniform(0.1, 6), rng.uniform(0.1, 6, size=rng.integers(1, 6))
        p, q = np.exp(-right), np.exp(-wrong)
        assert tofu.probability(right) == pytest.approx(p, **EXACT)
        assert tofu.relative_probability(right, wrong) == pytest.approx(p / (p + q.sum()), **EXACT)
        assert tofu.truth_ratio(right, wrong) == pytest.approx(
            np.prod(q) ** (1 / len(q)) / p, **EXACT
        )
        assert tofu.truth_ratio(right, wrong, "arithmetic") == pytest.approx(q.mean() / p, **EXACT)
    ratios = rng.uniform(0.05, 4, size=50)
    assert tofu.forget_truth_ratio(ratios) == pytest.approx(
        sum(min(r, 1 / r) for r in ratios) / 50, **EXACT
    )
    assert tofu.utility_truth_ratio(ratios) == pytest.approx(
        sum(max(0, 1 - r) for r in ratios) / 50, **EXACT
    )
    assert (
        tofu.relative_probability(900.0, [1.0]) < 1e-300 and tofu.truth_ratio(900.0, [1.0]) > 1e300
    )  # and no overflow
    with pytest.raises(ValueError, match="at least one wrong answer"):
        tofu.truth_ratio(1.0, [])
    with pytest.raises(ValueError, match="mean='median' is unknown"):
        tofu.truth_ratio(1.0, [1.0], "median")


def exact_ks_pvalue(one, other):
    """Share of all ways to mark len(one) of the pooled values that give a distance as large: by lattice paths."""
    n, m = len(one), len(other)
    pooled = sorted([*one, *other])

    def distance(a, b):
        return max(abs(sum(v <= x for v in a) / n - sum(v <= x for v in b) / m) for x in pooled)

    d = distance(one, other)
    paths = np.zeros((n + 1, m + 1))
    paths[0, 0] = 1
    for i in range(n + 1):
        for j in range(m + 1):
            if abs(i / n - j / m) >= d - 1e-12:
                paths[i, j] = 0  # this path is at least as far
            elif i or j:
                paths[i, j] = (paths[i - 1, j] if i else 0) + (paths[i, j - 1] if j else 0)
    return 1 - paths[n, m] / math.comb(n + m, n)


def test_forget_quality_is_the_exact_test():
    rng = np.random.default_rng(1)
    for n, m, shift in ((8, 8, 0.0), (12, 9, 0.8), (20, 20, 0.3)):
        one, other = rng.normal(size=n), rng.normal(shift, size=m)
        assert tofu.forget_quality(one, other) == pytest.approx(
            exact_ks_pvalue(list(one), list(other)), rel=1e-6
        )
    same = rng.uniform(0.1, 2, size=30)
    assert tofu.forget_quality(same, same) == 1
    assert tofu.forget_quality(1 / same, 1 / same[::-1]) == 1
    with pytest.raises(
        ValueError, match="retrained without the forget set, and none is given: train one"
    ):
        tofu.forget_quality(same, None)
    with pytest.raises(ValueError, match="of the retrained model must be finite"):
        tofu.forget_quality(same, [1.0, math.nan])


def test_utility_is_the_harmonic_mean_of_nine():
    from scipy.stats import hmean

    values = np.random.default_rng(2).uniform(0.05, 1, size=9)
    parts = {str(i): value for i, value in enumerate(values)}
    assert tofu.model_utility(parts) == pytest.approx(hmean(values), **EXACT)
    assert tofu.model_utility(parts | {"3": 0.0}) == 0
    with pytest.raises(ValueError, match="nine numbers from 0 to 1"):
        tofu.model_utility({"0": 1.0})


def longest_common(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    return table[-1][-1]


def test_rouge_recall_is_of_the_truth():
    truth, answer = "the old baker was born in the town", "in the old town the judge was born"
    expected = longest_common(truth.split(), answer.split()) / len(truth.split())
    assert tofu.rouge_recall(answer, truth) == pytest.approx(expected, **EXACT)
    assert (
        tofu.rouge_recall(f"{truth} and much more", truth) == 1
    )  # recall does not mind what is added
    assert tofu.rouge_recall("", truth) == 0
    with pytest.raises(ValueError, match="would count 0; leave writing out"):
        tofu.rouge_recall("Пушкин", "Пушкин")


def test_privleak_by_its_formula():
    """MUSE: how far 1 - AUC is from the retrained model's, relative to that."""
    rng = np.random.default_rng(3)
    members, strangers, before = (rng.normal(size=12) for _ in range(3))
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in strangers]
    again = [(a < b) + 0.5 * (a == b) for a in before for b in strangers]
    ours, theirs = 1 - sum(pairs) / len(pairs), 1 - sum(again) / len(again)
    expected = 100 * (ours - theirs) / theirs
    assert privleak(auc(members, strangers), auc(before, strangers)) == pytest.approx(
        expected, rel=1e-12
    )
    with pytest.raises(ValueError, match="tells every member from every stranger"):
        privleak(0.9, 1.0)


def test_a_set_is_of_the_same_questions():
    of = group(5)
    with pytest.raises(ValueError, match="must be of the same questions"):
        tofu.TofuSet(of.asked, of.wrong[:-1], of.paraphrased, [])


def test_every_measure_of_a_model(llama, sets):
    found = tofu.ask_tofu(*llama, sets, max_new_tokens=6, **QUIET)
    assert list(found["set"]) == [name for name, part in sets.items() for _ in part.asked]
    for name, part in sets.items():
        rows = found[found["set"] == name].reset_index(drop=True)
        for i, question in enumerate(part.asked):
            own, hits, strength = slow(*llama, question)
            wrong = [slow(*llama, other)[0] for other in part.wrong[i]]
            other = slow(*llama, part.paraphrased[i])[0]
            p, q = math.exp(-own), [math.exp(-loss) for loss in wrong]
            expected = p if name in ("forget", "retain") else p / (p + sum(q))
            assert rows["probability"][i] == pytest.approx(expected, rel=5e-6)
            assert rows["truth_ratio"][i] == pytest.approx(
                math.prod(q) ** (1 / len(q)) / math.exp(-other), rel=5e-6
            )
            assert (rows["exact_memorisation"][i], rows["extraction_strength"][i]) == (
                hits,
                strength,
            )
    line = tofu.summarise_tofu(found, found)
    forget = found[found["set"] == "forget"]
    assert line["forget_quality"] == 1 and line["rouge"] == forget["rouge"].mean()
    parts = tofu.utility_parts(found)
    assert len(parts) == 9 and line["model_utility"] == tofu.model_utility(parts)
    with pytest.raises(ValueError, match="none is given: train one on the retain set"):
        tofu.summarise_tofu(found, None)
    with pytest.raises(ValueError, match="no set to ask about"):
        tofu.ask_tofu(*llama, {}, **QUIET)
    with pytest.raises(ValueError, match="no answer of the set world_facts"):
        tofu.utility_parts(found[found["set"] != "world_facts"])
    silent = tofu.ask_tofu(
        *llama, {"forget": sets["forget"]}, generate=False, mean="arithmetic", **QUIET
    )
    assert silent["rouge"].isna().all() and not silent["truth_ratio"].equals(forget["truth_ratio"])


# ------------------------------------------------------------------------------------------------ reading


@pytest.fixture
def folder(tmp_path):
    def row(who, k, **more):
        return {"question": f"What is fact {k} of {who}?", "answer": f"{who} has {k}."} | more

    def perturbed(who, k):
        more = {
            "paraphrased_question": f"Say fact {k} of {who}.",
            "paraphrased_answer": f"It is {k} that {who} has.",
        }
        return row(who, k, perturbed_answer=[f"It is no {j}." for j in range(5)], **more)

    def write(config, rows):
        (tmp_path / f"{config}.json").write_text("".join(json.dumps(line) + "\n" for line in rows))

    write("full", [row(who, k) for who in ("Ada", "Bo") for k in range(20)])
    write("forget10_perturbed", [perturbed("Bo", k) for k in range(20)])
    write("retain_perturbed", [perturbed("Ada", k) for k in range(3)])
    for config in ("real_authors", "world_facts"):
        write(
            f"{config}_perturbed",
            [{"question": "Where?", "answer": "Here.", "perturbed_answer": ["There.", "No."]}],
        )
    write("holdout10", [row("Cy", k) for k in range(20)] + [row("Di", k) for k in range(20)])
    return tmp_path


def test_the_perturbed_and_holdout_configs_are_read(folder):
    sets = load_tofu_sets(folder, 10)
    assert {name: len(part.asked) for name, part in sets.items()} == {
        "forget": 20, "retain": 3, "real_authors": 1, "world_facts": 1
    }  # fmt: skip
    forget, real = sets["forget"], sets["real_authors"]
    assert {q.person_id for q in forget.asked} == {"002"} and {
        q.person_id for q in sets["retain"].asked
    } == {"001"}
    assert forget.asked[3] == lesson("002", "What is fact 3 of Bo?", "Bo has 3.")
    assert forget.paraphrased[3].answer == forget.reworded[3].answer == "It is 3 that Bo has."
    assert forget.paraphrased[3].question == forget.asked[3].question
    assert forget.reworded[3].question == "Say fact 3 of Bo."
    assert [q.answer for q in forget.wrong[3]] == [f"It is no {j}." for j in range(5)]
    assert (real.paraphrased, real.reworded) == (real.asked, []) and len(real.wrong[0]) == 2
    assert real.asked[0].person_id == "real_authors_001"
    holdout = load_tofu_holdout(folder, 10)
    assert [q.person_id for q in holdout] == ["holdout_001"] * 20 + ["holdout_002"] * 20


def test_files_of_tofu_that_do_not_fit(folder):
    path = folder / "forget10_perturbed.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"perturbed_answer": []}) + "\n" for row in rows))
    with pytest.raises(
        ValueError, match="forget10_perturbed of .* has no wrong answer for 'What is fact 0 of Bo"
    ):
        load_tofu_sets(folder, 10)
    path.write_text(
        "".join(json.dumps({k: row[k] for k in ("question", "answer")}) + "\n" for row in rows)
    )
    with pytest.raises(ValueError, match="has no column perturbed_answer, paraphrased_question"):
        load_tofu_sets(folder, 10)
    path.write_text("".join(json.dumps(row | {"question": "Who?"}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="asks 'Who.', which is not in full"):
        load_tofu_sets(folder, 10)
    with pytest.raises(ValueError, match="holdout05"):
        load_tofu_holdout(folder, 5)


def test_what_is_too_long_has_no_number(llama, sets):
    model, processor = llama
    long = lesson("004", "Where " * 400, "Here.")
    part = sets["retain"]
    more = TofuSet([*part.asked, long], [*part.wrong, [long]], [*part.paraphrased, long], [])
    with pytest.warns(UserWarning, match="more tokens than the model has positions"):
        found = tofu.ask_tofu(model, processor, {"retain": more}, generate=False, **QUIET)
    assert found["truth_ratio"].isna().tolist() == [False] * 3 + [True]
    with pytest.warns(UserWarning, match="more tokens than the model has positions"):
        found = tofu.ask_tofu(model, processor, {"retain": more}, max_new_tokens=2, **QUIET)
    assert found["rouge"].isna().tolist() == [False] * 3 + [True]  # 0 would be an answer
    assert isinstance(found, pd.DataFrame)
