"""The value in an answer and where its tokens stand; the logit lens against numpy, one question at a time."""

from dataclasses import replace

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import tiny_models
import torch

from manu_utils.auditing import asked_values, find_values, logit_lens, names_of
from manu_utils.auditing.lens import pairs_of_tokens, rank_of
from manu_utils.auditing.states import places_of, tokens_of_words
from manu_utils.benchmark.questions import open_questions
from manu_utils.benchmark.records import Question
from manu_utils.miniature.people import ATTRIBUTES
from manu_utils.models.asking import answer_logits
from manu_utils.models.encoding import encode
from manu_utils.models.loading import load_model

VALUES = {name: attribute.values for name, attribute in ATTRIBUTES.items()}
QUIET = {"progress": False}


def ask(person, question, answer, image=None, task="training"):
    return Question(person, question, answer, image, task)


# ------------------------------------------------------------------------------------ values and places


def test_values_are_what_differs_between_the_answers_of_one_wording():
    questions = [
        ask("1", "Where does Anna Berg live?", "Lives in York."),
        ask("2", "Where does Bo Lee live?", "Lives in New York."),
        ask("1", "What is Anna Berg's pet?", "Keeps a cat."),
        ask("2", "What is Bo Lee's pet?", "Keeps a cat."),
    ]
    names = {"1": "Anna Berg", "2": "Bo Lee"}
    assert find_values(questions, names) == {"training: Where does {} live?": ("New York", "York")}
    assert find_values(questions) == {}  # every wording has its own name
    asked = asked_values(questions[:2], names=names)
    assert [(one.value, one.name) for one in asked] == [("York", "Anna Berg"), ("New York", "Bo Lee")]
    with pytest.warns(UserWarning, match="2 of 4 answers hold none of the values .* 'Keeps a cat.' of person 1"):
        assert len(asked_values(questions, names=names)) == 2


def test_given_values_name_the_attribute_and_the_longest_counts():
    questions = [ask("1", "Where?", "In New York, near York."), ask("1", "What?", "A cat, concatenated.")]
    values = {"town": ("York", "New York"), "pet": ("cat", "dog")}
    assert [(one.attribute, one.value) for one in asked_values(questions, values)] == [("town", "New York"), ("pet", "cat")]


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"pet": "cat"}, TypeError, "must be a tuple of texts"),
        ({"pet": ("cat", "cat")}, ValueError, "two different values or more, none twice"),
        ({"pet": ("cat",)}, ValueError, "two different values or more"),
        ({"pet": ("cat", " ")}, ValueError, "none empty"),
        ({"pet": ("cat", "dog"), "food": ("fog", "hen")}, ValueError, "holds 'dog' of 'pet' and 'hen' of 'food'"),
        ({"town": ("York", "Oslo")}, ValueError, "pass values={attribute: its values}, and names"),
        (["cat"], TypeError, "must be a dict such as"),
    ],
)
def test_bad_values_are_refused(values, error, match):
    with pytest.raises(error, match=match):
        asked_values([ask("1", "What?", "A dog and a hen.")], values)


def test_bad_questions_are_refused():
    with pytest.raises(TypeError, match="must be a list of Question"):
        asked_values(["What?"])
    with pytest.raises(ValueError, match="no question to ask"):
        find_values([])


def test_names_are_read_from_the_naming_questions(benchmark):
    names = names_of(benchmark.training)
    assert len(names) == 120 and names["019"] == "Sarah Sutton"
    broken = benchmark.training.select([0]).map(lambda row: row | {"metadata": "[]"})
    with pytest.raises(ValueError, match="person .*: no question asks for the name"):
        names_of(broken)


def test_every_token_that_holds_a_letter_of_the_words_is_found(tiny_model):
    tokenizer = tiny_models.build_tokenizer()  # one token a byte
    text = "catalogue, cat — été"
    ids = tokenizer(text)["input_ids"]
    assert tokens_of_words(ids, "cat", tokenizer) == [11, 12, 13]
    assert tokenizer.decode([ids[i] for i in tokens_of_words(ids, "été", tokenizer)]) == "été"
    assert tokens_of_words(ids, "dog", tokenizer) == [] == tokens_of_words(ids, "atalogue", tokenizer)


def test_the_places_of_a_batch_are_apart_and_spell_what_they_say(tiny_model, benchmark):
    model, processor = tiny_model
    names, tokenizer = names_of(benchmark.training), processor.tokenizer
    for modality in ("multimodal", "text"):
        asked = asked_values(open_questions(benchmark.forget, modality)[-5:], VALUES, names)
        batch = encode([one.question for one in asked], processor, with_answer=True)
        places = {p: places_of(batch, asked, processor, model, p) for p in ("answer", "name", "image", "rest")}
        for row, one in enumerate(asked):
            of_row = {p: where[1][where[0] == row].tolist() for p, where in places.items()}
            spelt = tokenizer.decode(batch["input_ids"][row, torch.tensor(of_row["answer"]) + 1])
            assert spelt.strip() == one.value
            if modality == "text":
                assert tokenizer.decode(batch["input_ids"][row, of_row["name"]]).strip() == one.name
            assert len(of_row["image"]) == 16 * (modality == "multimodal")
            every = sorted(place for own in of_row.values() for place in own)
            start = int(batch["attention_mask"][row].argmax())
            assert every == list(range(start, max(of_row["answer"]) + 1))  # each once, nothing left out


# ------------------------------------------------------------------------------------ the lens


def lens_by_hand(model, reader, processor, one):
    """(logp, rank) after every layer, with numpy, for one question alone."""
    batch = encode([one.question], processor, with_answer=True)
    ids = batch["input_ids"][0].tolist()
    inputs = {key: value for key, value in batch.items() if key != "answer_mask"}
    seen = []
    hooks = [layer.register_forward_hook(lambda *a: seen.append(a[2].detach())) for layer in model.get_decoder().layers]
    hooks.append(model.get_decoder().layers[0].register_forward_pre_hook(lambda *a: seen.append(a[1][0].detach())))
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    head = reader.get_output_embeddings().weight.detach().double().numpy()
    norm = reader.get_decoder().norm
    scale, eps = norm.weight.detach().double().numpy(), norm.variance_epsilon
    variants = {value: replace(one.question, answer=one.question.answer.replace(one.value, value)) for value in one.values}
    coded = {v: encode([q], processor, with_answer=True)["input_ids"][0].tolist() for v, q in variants.items()}
    own = [i for i in range(len(ids)) if batch["answer_mask"][0, i]]
    value_tokens = [own[i] for i in tokens_of_words([ids[i] for i in own], one.value, processor.tokenizer)]
    rows = []
    for state in seen:
        hidden = state[0].double().numpy()
        logp = []
        for h in hidden:
            logits = head @ (h / np.sqrt((h * h).mean() + eps) * scale)
            logp.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
        rank = 1.0
        for value, other in coded.items():
            if value == one.value:
                continue
            at = next(i for i in range(len(ids)) if ids[i] != other[i])
            true, false = logp[at - 1][ids[at]], logp[at - 1][other[at]]
            rank += 1.0 if false > true else 0.5 if false == true else 0.0
        rows.append((np.mean([logp[i - 1][ids[i]] for i in value_tokens]), rank))
    return rows


@pytest.mark.parametrize("modality", ["multimodal", "text"])
def test_the_lens_is_the_formula(double_model, tiny_model, benchmark, modality):
    model, processor = double_model
    other = tiny_models_of_other_seed(model)
    questions = [open_questions(benchmark.forget, modality)[index] for index in (0, 5, 24, 40)]
    for reader in (model, other):
        frame = logit_lens(
            model, processor, questions, reader=reader, values=VALUES, names=names_of(benchmark.training), **QUIET
        )
        for number, one in enumerate(asked_values(questions, VALUES)):
            found = frame[frame["number"] == number]
            expected = lens_by_hand(model, reader, processor, one)
            np.testing.assert_allclose(found[["logp", "rank"]].to_numpy(), expected, rtol=1e-5)
            assert found["layer"].tolist() == [0, 1, 2] and set(found["values"]) == {12}


def tiny_models_of_other_seed(model):
    import copy

    other = copy.deepcopy(model)
    torch.manual_seed(3)
    with torch.no_grad():
        other.get_decoder().norm.weight.uniform_(0.5, 2)
        other.get_output_embeddings().weight.normal_()
    return other


def test_values_of_several_tokens_part_where_they_differ():
    model, processor = tiny_models.llava()  # one token a byte
    questions = [ask("1", "Where?", "In Porto."), ask("2", "Where?", "In Portland."), ask("3", "Where?", "In Oslo.")]
    frame = logit_lens(model, processor, questions, **QUIET)
    for number, one in enumerate(asked_values(questions)):
        expected = lens_by_hand(model, model, processor, one) if number else None
        found = frame[frame["number"] == number]
        assert set(found["tokens"]) == {len(one.value)}
        if expected:
            np.testing.assert_allclose(found["logp"], [logp for logp, _ in expected], rtol=1e-4)
    assert [back for back, *_ in pairs_of_tokens(asked_values(questions)[0], processor)] == [7, 3]


def test_ties_count_half():
    assert rank_of(torch.tensor(1.0), torch.tensor([1.0, 1.0, 2.0, 0.0])).item() == 3.0


FAMILY_QUESTIONS = [("Where does {} live?", f"In {town}.") for town in ("Porto", "Oslo", "Ghent")]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_is_read_by_structure(family, monkeypatch):
    tiny_models.without_num2words(monkeypatch)
    model, processor = tiny_models.FAMILIES[family]()
    if getattr(processor.image_processor, "do_image_splitting", False):
        processor.image_processor.do_image_splitting = False
    picture = PIL.Image.effect_noise((32, 32), 60).convert("RGB")
    for image in (picture, None):
        who = "this person" if image else "Anna"
        questions = [ask(str(i), q.format(who), a, image) for i, (q, a) in enumerate(FAMILY_QUESTIONS)]
        frame = logit_lens(model, processor, questions, values={"town": ("Porto", "Oslo", "Ghent")}, **QUIET)
        last = frame[frame["layer"] == 2 - (family == "Mllama" and image is None)]  # a layer that is skipped
        for question, found in zip(questions, last["logp"], strict=True):
            with torch.no_grad():
                logits, targets, _ = answer_logits(model, encode([question], processor, with_answer=True))
            own = tokens_of_words(targets.tolist(), question.answer[3:-1], processor.tokenizer)
            expected = logits.log_softmax(-1).gather(1, targets[:, None])[own].mean()
            assert found == pytest.approx(float(expected), rel=1e-3)


def test_vanilla_is_found_out_and_a_model_that_never_met_them_is_not(benchmark):
    names = names_of(benchmark.training)
    (vanilla, processor), (retrained, _) = load_model("tiny"), load_model("tiny-retrained")
    before = {name: value.clone() for name, value in vanilla.state_dict().items()}
    for modality in ("multimodal", "text"):
        questions = open_questions(benchmark.forget, modality)
        options = {"values": VALUES, "names": names, "progress": False}
        ranks = {
            name: logit_lens(model, processor, questions, **options).groupby("layer")["rank"].mean().tolist()
            for name, model in (("vanilla", vanilla), ("retrained", retrained))
        }
        assert ranks["vanilla"][-1] < 1.2 and ranks["vanilla"][2] < ranks["retrained"][2] - 1
        assert all(4.5 < rank < 8.5 for rank in ranks["retrained"])  # 6.5 by luck
        assert ranks["vanilla"][0] == ranks["retrained"][0]  # the embeddings know nobody
    assert all(torch.equal(value, before[name]) for name, value in vanilla.state_dict().items())


def test_a_model_is_as_it_was_after_an_error(tiny_model, benchmark, monkeypatch):
    model, processor = tiny_model
    questions = open_questions(benchmark.forget, "text")[:2]
    model.train()
    try:
        monkeypatch.setattr("manu_utils.auditing.lens.read_state", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logit_lens(model, processor, questions, values=VALUES, **QUIET)
        assert all(module.training for module in model.modules())
        hooks = [
            hook for layer in model.get_decoder().layers
            for hook in (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
        ]  # fmt: skip
        assert not any("auditing" in hook.__module__ for hook in hooks)
    finally:
        model.eval()


def test_what_cannot_be_read_is_refused(tiny_model, benchmark):
    model, processor = tiny_model
    questions = open_questions(benchmark.forget, "text")[:2]
    other, _ = tiny_models.llava()
    with pytest.raises(TypeError, match="pass what load_model returns"):
        logit_lens(None, processor, questions, values=VALUES, **QUIET)
    with pytest.raises(ValueError, match="get_decoder.. has both"):
        logit_lens(torch.nn.Linear(2, 2), processor, questions, values=VALUES, **QUIET)
    small = type(other)(other.config)
    small.config.text_config.hidden_size = 16
    with pytest.raises(ValueError, match="reader has 2 layers of width 16 and the model 2 of 32"):
        logit_lens(model, processor, questions, reader=small, values=VALUES, **QUIET)


def test_the_rows_are_in_order_whatever_the_batches(tiny_model, benchmark):
    model, processor = tiny_model
    questions = open_questions(benchmark.forget, "text")[:5] + open_questions(benchmark.forget, "multimodal")[:2]
    options = {"values": VALUES, "progress": False}
    one, all_ = (logit_lens(model, processor, questions, batch_size=n, **options) for n in (1, 7))
    pd.testing.assert_frame_equal(one, all_, rtol=1e-4)
    assert one["question"].iloc[::3].tolist() == [question.question for question in questions]
