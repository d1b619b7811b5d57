"""Attribution against gains on the neurons, coverage against a greedy loop written out, and their bad input."""

import copy
import dataclasses
import math
import weakref

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from manu_utils.benchmark.records import Question
from manu_utils.models.encoding import encode
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning.attribution import answer_margins, collect_attribution, effective_neurons, token_rarity
from manu_utils.unlearning.coverage import select_by_coverage
from manu_utils.unlearning.rewriting import margin_gradient

MODALITIES = ("multimodal", "text")


@pytest.fixture(scope="module")
def questions(benchmark):
    """modality -> five questions, so that the last batch of two is not full."""
    return {m: benchmark.training_questions(benchmark.forget_ids[:1], m)[:5] for m in MODALITIES}


def collect(model_and_processor, questions, **options):
    return collect_attribution(*model_and_processor, questions, progress=False, **options)


# ------------------------------------------------------------------------------------------------ attribution


def test_rarity_counts_the_answers_that_hold_a_token(tiny_model, questions):
    tokenizer = tiny_model[1].tokenizer
    rarity = token_rarity(questions["text"], tokenizer)
    answers = [tokenizer(f" {q.answer}</s>").input_ids for q in questions["text"]]
    for token in range(len(tokenizer)):
        n = sum(token in ids for ids in answers)
        assert rarity[token].item() == pytest.approx(math.log(len(answers) / max(n, 1)), rel=1e-6)
    assert rarity[tokenizer.eos_token_id] == 0


def test_rarity_counts_answers_not_occurrences(tiny_model, questions):
    tokenizer = tiny_model[1].tokenizer
    first, second = questions["text"][:2]
    said = [dataclasses.replace(first, answer="nurse nurse nurse"), dataclasses.replace(second, answer="lives in")]
    rarity = token_rarity(said, tokenizer)
    repeated = [token for token in tokenizer(" nurse nurse").input_ids if token not in tokenizer(" lives in").input_ids]
    assert repeated and all(rarity[token].item() == pytest.approx(math.log(2)) for token in repeated)


def test_rarity_is_of_the_tokens_after_the_prompt():
    """A tokenizer that puts a space before every text, as Llama's: alone an answer begins otherwise."""
    letters = ["<pad>", "</s>", "\u2581", *"USER:ASITNWhois?ab01\n.", "\u2581\u2581", "\u2581a", "\u2581b"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(letters))}
    pieces = Tokenizer(models.BPE(vocabulary, [("\u2581", "\u2581"), ("\u2581", "a"), ("\u2581", "b")]))
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>")
    asked = [Question(str(i), f"Who is {i}?", answer, None, "training") for i, answer in enumerate(("a b", "a a"))]
    rarity = token_rarity(asked, tokenizer)
    assert rarity[vocabulary["\u2581a"]] == 0 and rarity[vocabulary["\u2581b"]].item() == pytest.approx(math.log(2))


def by_gains(model, processor, question, rarity):
    """Slow and obvious: multiply each neuron by a gain of 1 and differentiate the margin by the gains."""
    towers = [(model.model.vision_tower.encoder.layers, "fc2"), (model.model.language_model.layers, "down_proj")]
    outputs = [getattr(layer.mlp, name) for layers, name in towers for layer in layers]
    gains = [torch.ones(module.in_features, dtype=torch.float64, requires_grad=True) for module in outputs]
    hooks = [
        module.register_forward_pre_hook(lambda _, arguments, gain=gain: (arguments[0] * gain,))
        for module, gain in zip(outputs, gains, strict=True)
    ]
    batch = encode([question], processor, with_answer=True)
    answer = batch.pop("answer_mask")[0].nonzero()[:, 0].tolist()
    logits = model(**batch).logits[0]
    for hook in hooks:
        hook.remove()
    margin = 0.0
    for position in answer:
        right = batch["input_ids"][0, position].item()
        scores = logits[position - 1]
        runner_up = max(value for token, value in enumerate(scores) if token != right)
        margin = margin + rarity[right].item() * (scores[right] - runner_up)
    margin.backward()
    model.zero_grad()
    return torch.cat([gain.grad if gain.grad is not None else torch.zeros_like(gain) for gain in gains]).clamp(min=0)


@pytest.mark.parametrize("modality", MODALITIES)
def test_equals_the_derivative_by_a_gain_on_each_neuron(double_model, questions, modality):
    rarity = token_rarity(questions[modality], double_model[1].tokenizer)
    found = collect(double_model, questions[modality], batch_size=2).double()
    for row, question in zip(found, questions[modality], strict=True):
        expected = by_gains(*double_model, question, rarity)
        assert expected.max() > 0
        # Relative to the largest: padding shifts the float32 rotary embeddings in the last bit.
        torch.testing.assert_close(row, expected, rtol=1e-6, atol=1e-6 * expected.max().item())


def test_order_and_batch_size_do_not_matter(double_model, questions):
    text = questions["text"]
    alone, together = collect(double_model, text, batch_size=1), collect(double_model, text[::-1], batch_size=32)
    torch.testing.assert_close(together.flip(0), alone, rtol=1e-5, atol=1e-6 * alone.max().item())


@pytest.mark.parametrize("modality", MODALITIES)
def test_half_the_batch_when_memory_runs_out(double_model, questions, modality, monkeypatch, capsys):
    """Backward passes too: of attribution and of what rewriting moves."""
    model, processor = double_model
    items = questions[modality]
    alive = {modality: torch.ones(len(items), dtype=torch.bool)}
    expected = collect(double_model, items, batch_size=4)
    margin, gradients = margin_gradient(model, processor, {modality: items}, alive, batch_size=4)
    run, real, sizes = torch.autograd.grad, model.model.forward, []

    def forward(**inputs):
        sizes.append(len(inputs["position_ids"]) if "position_ids" in inputs else len(inputs["input_ids"]))
        return real(**inputs)

    def short_of_memory(*given, **options):
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(*given, **options)

    monkeypatch.setattr(model.model, "forward", forward)
    monkeypatch.setattr(torch.autograd, "grad", short_of_memory)
    torch.testing.assert_close(collect(double_model, items, batch_size=4), expected, rtol=1e-3, atol=1e-6)
    assert sizes == [4, 2, 2, 1] and capsys.readouterr().out == "out of memory; going on with batches of 2\n"
    sizes.clear()
    again = margin_gradient(model, processor, {modality: items}, alive, batch_size=4)
    assert again[0] == pytest.approx(margin, rel=1e-5) and capsys.readouterr().out
    torch.testing.assert_close(again[1], gradients, rtol=1e-3, atol=1e-5)
    sizes.clear()
    with pytest.raises(torch.OutOfMemoryError):  # a single question does not fit
        collect(double_model, items, batch_size=1)


def test_the_next_batch_is_read_when_the_tensors_of_this_one_are_gone(tiny_model, questions, monkeypatch):
    model, _ = tiny_model
    kept, alive, run = [], [], torch.autograd.grad

    def watched(output, inputs, **options):
        kept.extend(map(weakref.ref, inputs))
        return run(output, inputs, **options)

    def forward(*given, real=model.model.forward, **inputs):
        alive.append(sum(one() is not None for one in kept))
        return real(*given, **inputs)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    monkeypatch.setattr(model.model, "forward", forward)
    collect(tiny_model, questions["multimodal"], batch_size=2)
    assert len(kept) > 3 and alive == [0, 0, 0]


def test_reduced_is_the_mean_of_normalised_rows(double_model, questions):
    rows = collect(double_model, questions["multimodal"]).double()
    reduced = collect(double_model, questions["multimodal"], reduce=True, batch_size=2).double()
    expected = sum(row / row.sum() for row in rows) / len(rows)
    torch.testing.assert_close(reduced, expected, rtol=1e-4, atol=1e-7)
    assert reduced.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_answers_that_are_all_alike_are_weighted_evenly(double_model, questions, modality):
    """One fact in several wordings: every token is in every answer, so that none is rarer than another."""
    alike = [dataclasses.replace(q, answer="Lives in Springfield.") for q in questions[modality][:3]]
    for asked in (alike, alike[:1]):
        assert not token_rarity(asked, double_model[1])[double_model[1].tokenizer(" Lives in Springfield.").input_ids].any()
        even = torch.ones(len(double_model[1].tokenizer))
        found = collect(double_model, asked)
        assert found.any(1).all() and found.equal(collect(double_model, asked, rarity=even))


def test_one_answer_that_says_nothing_new_is_weighted_evenly_and_the_others_are_not(double_model, questions):
    """The tokens of the first answer are in both; the second one holds more."""
    answers = zip(questions["text"], ("a nurse", "a nurse in Rome"), strict=False)
    first, second = (dataclasses.replace(question, answer=answer) for question, answer in answers)
    rarity = token_rarity([first, second], double_model[1])
    batch = encode([first, second], double_model[1], with_answer=True)
    found = answer_margins(double_model[0], batch, rarity)
    torch.testing.assert_close(found[0], answer_margins(double_model[0], batch, torch.ones_like(rarity))[0])
    assert found[1] != answer_margins(double_model[0], batch, torch.ones_like(rarity))[1]
    rows = collect(double_model, [first, second])
    assert rows.any(1).all()


def test_two_passes_in_training_mode_or_under_autocast_are_one_in_eval_mode(tiny_model, questions):
    model = copy.deepcopy(tiny_model[0])
    for layer in model.model.language_model.layers:
        layer.mlp.act_fn = torch.nn.Sequential(layer.mlp.act_fn, torch.nn.Dropout(0.5))
    expected = collect((model, tiny_model[1]), questions["text"])
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert collect((model, tiny_model[1]), questions["text"]).equal(expected)
    with torch.inference_mode():
        assert collect((model, tiny_model[1]), questions["text"]).equal(expected)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("modality", MODALITIES)
def test_gradients_beyond_the_range_of_float16_are_those_within_it_times_a_number(questions, modality):
    """Weights of 2^17 make the gradient of a logit infinite in float16; of lesser ones first the product with an
    activation is, and then the gradient of another layer.
    """
    model, processor = load_model("tiny")
    model.requires_grad_(False).lm_head.weight *= 16  # a sure model
    half = copy.deepcopy(model).half(), processor
    asked = questions[modality][:2]
    ones = torch.ones(len(processor.tokenizer))
    once = collect(half, asked, rarity=ones)
    for weight in (2.0**power for power in (8, 10, 12, 17)):
        often = collect(half, asked, rarity=ones * weight)
        torch.testing.assert_close(often / weight, once, rtol=0.02, atol=0.02)
    exact = collect((model, processor), asked, rarity=ones)
    assert (once.argmax(1) == exact.argmax(1)).all() and torch.allclose(once, exact, rtol=0.1, atol=0.1)


def test_a_model_in_float64_and_that_default(double_model, questions):
    expected = collect(double_model, questions["text"])
    torch.set_default_dtype(torch.float64)
    try:
        found = collect(double_model, questions["text"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and found.equal(expected)


def test_text_passes_by_the_vision_tower(tiny_model, questions):
    n_vision = sum(mlp.size for mlp in find_neurons(tiny_model[0]) if mlp.tower == "vision")
    assert not collect(tiny_model, questions["text"])[:, :n_vision].any()
    assert collect(tiny_model, questions["multimodal"])[:, :n_vision].any()


def test_a_layer_after_the_feature_layer_contributes_nothing(tiny_model, questions):
    model = copy.deepcopy(tiny_model[0])
    model.config.vision_feature_layer = -2
    sizes = [mlp.size for mlp in find_neurons(model)]
    n_vision = model.config.vision_config.num_hidden_layers
    parts = collect((model, tiny_model[1]), questions["multimodal"][:2]).split(sizes, dim=1)
    assert [bool(part.any()) for part in parts[:n_vision]] == [True] * (n_vision - 1) + [False]


def test_leaves_the_model_as_it_was(tiny_model, questions):
    model = copy.deepcopy(tiny_model[0])
    model.lm_head.weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    n_hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    collect((model, tiny_model[1]), questions["text"][:2])
    model.model.language_model.layers[0].mlp.up_proj.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="margin of an answer is not finite"):
        collect((model, tiny_model[1]), questions["text"][:2])
    model.load_state_dict(before)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == n_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_questions(tiny_model, questions):
    with pytest.raises(ValueError, match="at least one question"):
        collect(tiny_model, [])
    with pytest.raises(ValueError, match="one call takes one modality"):
        collect(tiny_model, questions["text"][:1] + questions["multimodal"][:1])
    with pytest.raises(ValueError, match="batch_size=0 is not positive"):
        collect(tiny_model, questions["text"], batch_size=0)
    for answer in ("", "  ", None):
        with pytest.raises(ValueError, match=r"person \d+: the answer to '.*' is .*; leave questions without an answer out"):
            collect(tiny_model, [questions["text"][0], dataclasses.replace(questions["text"][1], answer=answer)])
    for weight in (-1.0, math.nan):
        with pytest.raises(ValueError, match="rarity holds weights that are negative or not finite"):
            collect(tiny_model, questions["text"], rarity=torch.full((len(tiny_model[1].tokenizer),), weight))
    with pytest.raises(ValueError, match="token_rarity needs at least one question"):
        token_rarity([], tiny_model[1].tokenizer)


def test_effective_neurons():
    attribution = torch.tensor([[0.0, 5.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 0.0, 0.0], [0.0] * 4])
    assert effective_neurons(attribution).tolist() == [1, 4, 2, 0]


# ------------------------------------------------------------------------------------------------ coverage


def greedy(forget, retain, alpha, share, floor, balance):
    """The rule of select_by_coverage with lists, one neuron at a time (as it is for budgets below 200)."""
    facts, modality = [], []
    for m, rows in forget.items():
        facts += [[a / sum(row) / len(rows) for a in row] for row in rows.tolist()]
        modality += [m] * len(rows)
    n = len(facts[0])
    cost = [0.0] * n
    for rows in retain.values():
        normalised = [[a / sum(row) for a in row] for row in rows.tolist()]
        cost = [c + sum(row[i] for row in normalised) / len(rows) / len(retain) for i, c in enumerate(cost)]
    average = sum(cost) / n
    needed = [share * sum(fact) for fact in facts]
    chosen, raised = [], False
    while len(chosen) < max(1, round(alpha / 100 * n)):
        left = [i for i in range(n) if i not in chosen]
        uncut = {m: 0.0 for m in forget}
        for m, fact in zip(modality, facts, strict=True):
            uncut[m] += sum(fact[i] for i in left)
        weight = {m: (uncut[m] / max(uncut.values())) ** balance for m in forget}
        gain = {
            i: sum(weight[m] * min(fact[i], need) for m, fact, need in zip(modality, facts, needed, strict=True))
            / (cost[i] / average + floor)
            for i in left
        }
        if max(gain.values()) <= 1e-12 and not raised:
            needed = [sum(fact) - sum(fact[i] for i in chosen) for fact in facts]
            raised = True
            continue
        best = max(left, key=lambda i: gain[i])
        chosen.append(best)
        needed = [max(0.0, need - fact[best]) for fact, need in zip(facts, needed, strict=True)]
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "alpha, share, floor, balance", [(10, 0.8, 0.5, 4.0), (50, 0.3, 2.0, 0.0), (70, 1.0, 0.5, 2.0)]
)
def test_coverage_is_the_greedy_rule(seed, alpha, share, floor, balance):
    generator = torch.Generator().manual_seed(seed)
    n_facts = {"multimodal": 5, "text": 3}
    forget = {m: torch.rand(n_facts[m], 60, generator=generator, dtype=torch.float64) ** 6 for m in MODALITIES}
    retain = {m: torch.rand(9, 60, generator=generator, dtype=torch.float64) ** 3 for m in MODALITIES}
    selected = select_by_coverage(forget, retain, alpha=alpha, share=share, floor=floor, balance=balance)
    assert selected.nonzero()[:, 0].tolist() == greedy(forget, retain, alpha, share, floor, balance)


def test_excluded_neurons_are_not_chosen():
    forget = {m: torch.rand(3, 40) for m in MODALITIES}
    retain = {m: torch.rand(40) for m in MODALITIES}
    first = select_by_coverage(forget, retain, alpha=40)
    second = select_by_coverage(forget, retain, alpha=40, exclude=first)
    assert not (first & second).any() and second.sum() == first.sum() == 16
    with pytest.raises(ValueError, match="only 8 may be chosen"):
        select_by_coverage(forget, retain, alpha=40, exclude=first | second)


@pytest.mark.parametrize("balance", [0.0, 4.0])
def test_balance_serves_the_modality_that_lags(balance):
    """Text facts sit in two neurons, image facts in ten: without balance text is served first and alone."""
    n = 40
    image, text = torch.zeros(4, n), torch.zeros(4, n)
    for fact in range(4):
        text[fact, 2 * fact : 2 * fact + 2] = 0.5
        image[fact, 8 + 8 * fact : 16 + 8 * fact] = 0.125
    cost = {m: torch.ones(n) for m in MODALITIES}
    selected = select_by_coverage({"multimodal": image, "text": text}, cost, alpha=30, share=1.0, balance=balance)
    lost = {"text": text[:, selected].sum() / 4, "multimodal": image[:, selected].sum() / 4}
    assert (lost["text"] == 1.0) == (balance == 0.0)
    assert balance == 0.0 or lost["multimodal"] > 0.2

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 250), st.integers(1, 5), st.floats(0.01, 99.99), st.integers(0, 1000))
def test_coverage_selects_exactly_alpha_percent(n, n_facts, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    sparse = {m: (torch.rand(n_facts, n, generator=generator) - 0.7).clamp(min=0) for m in MODALITIES}
    assume(any(rows.any() for rows in sparse.values()))  # with no attribution at all there is nothing to choose by
    selected = select_by_coverage(sparse, {m: torch.rand(n) for m in MODALITIES}, alpha=alpha, allow_small=True)
    assert selected.shape == (n,) and int(selected.sum()) == max(1, round(alpha / 100 * n))


def test_every_fact_of_either_modality_loses_its_share():
    """Ten loud image facts and two text facts, each on ten neurons of its own: none may be left out."""
    n = 400
    forget = {"multimodal": torch.zeros(10, n), "text": torch.zeros(2, n)}
    for m, first in (("multimodal", 0), ("text", 100)):
        for fact in range(len(forget[m])):
            forget[m][fact, first + 10 * fact : first + 10 * (fact + 1)] = torch.rand(10) + 0.5
    forget["multimodal"] *= 1000  # facts count alike, however large their margins are
    selected = select_by_coverage(forget, {m: torch.ones(n) for m in MODALITIES}, alpha=30, share=0.6)
    for rows in forget.values():
        assert ((rows * selected).sum(1) / rows.sum(1) >= 0.6).all()


def test_what_the_retain_set_needs_is_spared():
    forget = {m: torch.ones(2, 10) for m in MODALITIES}
    retain = {m: torch.cat([torch.ones(5), torch.zeros(5)]) for m in MODALITIES}
    assert select_by_coverage(forget, retain, alpha=50).nonzero()[:, 0].tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"alpha": 0}, "must lie between 0 and 100"),
        ({"alpha": 0.1}, "looks like a fraction"),
        ({"share": 0.0}, "share=0.0 must be a finite number above 0 and at most 1"),
        ({"share": 1.1}, "share=1.1 must be"),
        ({"floor": 0.0}, "floor=0.0 must be a finite number above 0"),
        ({"balance": -1.0}, "balance=-1.0 must be a finite number at least 0"),
        ({"retain": {"text": torch.ones(4)}}, "forget has modalities .'multimodal', 'text'. but retain has .'text'."),
        ({"retain": {"text": torch.ones(4), "multimodal": torch.ones(5)}}, "attribution of .4, 5. neurons"),
        ({"retain": {"text": torch.ones(4), "multimodal": torch.full((4,), math.nan)}}, "holds NaN or infinity"),
        ({"floor": math.nan}, "floor=nan must be"),
        ({"balance": math.inf}, "balance=inf must be"),
        ({"forget": {m: torch.zeros(2, 4) for m in MODALITIES}}, "no neuron that may be chosen contributes to any"),
        ({"exclude": torch.arange(4) < 2, "forget": {m: torch.tensor([[1.0, 1, 0, 0]]) for m in MODALITIES}},
         "no neuron that may be chosen contributes to any"),
        ({"retain": {"text": torch.ones(4), "multimodal": torch.zeros(4)}}, "to the multimodal answers of the retain set"),
        ({"forget": {m: torch.ones(0, 4) for m in MODALITIES}}, "at least one fact in each modality"),
        ({"forget": {m: -torch.ones(1, 4) for m in MODALITIES}}, "holds negative values"),
    ],
)
def test_bad_values_of_coverage(change, message):
    good = {"forget": {m: torch.ones(1, 4) for m in MODALITIES}, "retain": {m: torch.ones(4) for m in MODALITIES}, "alpha": 50}
    with pytest.raises(ValueError, match=message):
        select_by_coverage(**(good | change))
