"""How the experiments change models: poems on top of one another, and both modalities at once."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch

import bottles
import edits
import poems
from manu_utils.miniature import poems as world
from manu_utils.miniature import text_model
from manu_utils.unlearning import Evidence, pruned_neurons
from manu_utils.unlearning.strangers import about

REQUESTS = poems.OWN.requests[:2]


def weights_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_stranger_to_a_poem_is_a_poem_that_nobody_has_written():
    recitals = world.recitals(REQUESTS[0], ("first line",))
    near, names = poems.strangers_to(recitals, 0)
    written = {poem.title for poem in (*poems.OWN.taught, *poems.OWN.holdout)}
    for poem, question in zip(REQUESTS[0], recitals, strict=True):
        assert names[poem.title] in question.question
        asked = [about(question, names[poem.title], stranger) for stranger in near[poem.title]]
        assert len({other.question for other in asked}) == poems.N_STRANGERS
        for other in asked:
            assert poem.title not in other.question and poem.lines[0] not in other.question
            assert other.answer == question.answer
            assert not any(title in other.question for title in written)
    assert near == poems.strangers_to(recitals, 0)[0] != poems.strangers_to(recitals, 1)[0]


@pytest.fixture(scope="module")
def untaught():
    model, processor = world.build_poem_model()
    return model, processor, weights_of(model)


@pytest.mark.filterwarnings("ignore:the model answers none of these questions")
@pytest.mark.parametrize("method", poems.TRIES)
def test_requests_come_on_top_of_one_another(untaught, method, monkeypatch):
    monkeypatch.setattr(poems, "N_KEPT", 4)
    model, processor, before = untaught
    (weight, *_), (setting, *_) = poems.TRIES[method]
    setting = 1 if method in ("rewrite", "kvw") or method not in edits.EDITS else setting
    if method == "task vector":
        weight = 1.0
    states = []
    with ExitStack() as stack:
        for draw, asked_for in enumerate(REQUESTS):
            request = poems.request_of(model, processor, asked_for, draw, REQUESTS[0][:draw])
            stack.enter_context(poems.unlearned(request, method, weight, setting, draw))
            states.append(weights_of(model))
    if method != "rewrite":  # which has nothing to do where nothing is known
        assert not same(before, states[0]) and not same(states[0], states[1])
    if method in edits.EDITS:
        assert same(before, model.state_dict())
    model.load_state_dict(before)


def test_what_a_request_is_given():
    forget, retain = poems.request_of(None, None, REQUESTS[1], 1, gone=REQUESTS[0]).sets
    titles = {poem.title for poem in REQUESTS[1]}
    assert {question.person_id for question in forget["text"]} == titles
    met = {question.person_id for question in retain["text"]}
    assert not met & titles and {f"about {title}" for title in titles} <= met
    gone = {name for poem in REQUESTS[0] for name in (poem.title, f"about {poem.title}")}
    assert not met & gone
    untold = poems.request_of(None, None, REQUESTS[1], 1, facts_held=False).retain["text"]
    assert not {question.person_id for question in untold} & {f"about {title}" for title in titles}


def test_manu_has_its_contrast_where_there_are_two_modalities():
    given = bottles.fresh("vanilla")
    sets = [{m: q[:4] for m, q in of.items()} for of in bottles.given_to_methods("stand-in", 0)]
    request = edits.Request(*given, *sets, partial(bottles.near_unknown, "stand-in"))
    chosen = Evidence(*given, *sets, progress=False).choose("paper", 10.0)
    with edits.changed(request, "paper", 0.0, 10.0, 0):
        assert torch.equal(pruned_neurons(given[0]), chosen)
    told = text_model.author_lessons(poems.draw_world().authors[:2])
    model, processor = text_model.build_language_model()
    in_text = edits.Request(model, processor, {"text": told[:4]}, {"text": told[-4:]}, None)
    with edits.changed(in_text, "paper", 0.0, 10.0, 0):
        assert torch.equal(pruned_neurons(model), edits.plain(in_text.evidence, "paper", 10.0))
