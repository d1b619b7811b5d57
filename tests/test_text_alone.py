"""The runs behind notebook 10: how settings are chosen, that every method leaves the model as it found it, and what is
asked of whom."""

import math

import pandas as pd
import pytest
import torch

import text_alone
import text_alone_smollm2
import text_measures
import text_methods
from manu_utils.miniature import text_model
from manu_utils.miniature.authors import FACTS
from manu_utils.miniature.text_world import draw_world

NAN = math.nan


def tried(rows, draws=(1, 2)):
    """Rows of the choice: (weight, setting) -> (distance, retain), the same in every draw but for what is given twice."""
    columns = ["method", "weight", "setting", "distance", "retain"]
    found = [("vanilla", NAN, 0, 0.5, 1.0), *(("erase", *key, *value) for key, value in rows.items())]
    return pd.concat(pd.DataFrame(found, columns=columns).assign(draw=draw) for draw in draws)


def test_the_smallest_distance_among_those_that_keep_enough_is_chosen():
    table = tried({(1, 2): (0.3, 0.9), (1, 4): (0.2, 0.81), (4, 2): (0.1, 0.5)})
    assert text_alone.best(table, "erase") == (1, 4)
    assert text_alone.best(tried({(1, 2): (0.3, 0.4), (1, 4): (0.1, 0.3)}), "erase") == (1, 2)  # none keeps enough
    assert text_alone.best(tried({(NAN, 2): (0.3, 0.9), (NAN, 4): (0.2, 0.9)}), "erase")[1] == 4
    with pytest.raises(ValueError, match="not tried on the draws"):
        text_alone.best(table[table["draw"] == 1], "erase")


def test_the_mean_of_both_draws_counts():
    lucky = pd.concat([tried({(1, 2): (0.0, 1.0), (1, 4): (0.2, 1.0)}, [1]),
                       tried({(1, 2): (0.6, 1.0), (1, 4): (0.2, 1.0)}, [2])])  # fmt: skip
    assert text_alone.best(lucky, "erase") == (1, 4)


def test_every_method_has_twelve_tries():
    counts = {name: len(first) * len(second) for name, (first, second) in text_methods.TRIES.items()}
    assert set(counts.values()) == {12}, counts


@pytest.fixture(scope="module")
def request_of():
    """An untaught model, to forget one author, and potions."""
    world = draw_world()
    given = text_model.build_language_model()
    forget, retain = text_model.author_lessons(world.authors[:1])[:6], text_model.author_lessons(world.authors[1:2])[:6]
    authors = text_methods.request_in_text(*given, forget, retain, text_alone.free_names())
    potions = text_measures.quiz_by_name()["potions"][:4]
    return {"authors": authors, "potions": text_methods.request_in_text(*given, potions, retain, text_measures.free_potions())}


@pytest.mark.filterwarnings("ignore:the model answers none of these questions")
@pytest.mark.parametrize("method", text_methods.TRIES)
def test_a_method_changes_the_model_and_puts_it_back(request_of, method):
    (weights, settings), request = text_methods.TRIES[method], request_of["authors"]
    before = {name: weight.clone() for name, weight in request.model.state_dict().items()}

    def is_vanilla():
        return all(torch.equal(before[name], weight) for name, weight in request.model.state_dict().items())

    given = (request, method, weights[0], settings[:1], 0, is_vanilla, (1.0, 0.01))
    found = text_methods.results(*given)
    assert list(found) == list(settings[:1]) and is_vanilla()
    if method != "rewrite":  # which has nothing to do where nothing is known
        assert not any(found.values())


def test_potions_are_erased_by_their_names(request_of):
    request = request_of["potions"]
    before = request.model.state_dict()["model.layers.0.mlp.down_proj.weight"].clone()
    with request.erased(1.0, 0.01, 0):
        assert not torch.equal(request.model.state_dict()["model.layers.0.mlp.down_proj.weight"], before)
    assert torch.equal(request.model.state_dict()["model.layers.0.mlp.down_proj.weight"], before)


def test_strangers_are_nobody():
    world, taken = draw_world(), {q.person_id for q in text_measures.quiz_by_name()["potions"]}
    assert not set(text_alone.free_names()) & world.names
    assert not set(text_measures.free_potions()) & taken and len(text_measures.free_potions()) >= text_methods.N_STRANGERS


def test_nobody_who_is_reported_plays_a_stand_in():
    authors, n = draw_world().authors, text_alone.N
    played = [{author.name for author in authors[(draw - 1) * n : draw * n]} for draw in text_alone.DRAWS]
    assert not played[0] & played[1] and not (played[0] | played[1]) & {author.name for author in authors[-n:]}


def test_of_the_pretrained_model_only_what_it_was_taught_is_asked():
    sets, lessons = text_alone_smollm2.asked_sets(), text_alone_smollm2.lessons()
    assert {name: len(group.asked) for name, group in sets.items()} == {"forget": 40} | text_alone_smollm2.N_ASKED
    taught = {name: {(q.question, q.answer) for q in of} for name, of in lessons.items()}
    for name, part in (("forget", "forget"), ("retain", "retain"), ("real_authors", "beside"), ("world_facts", "beside")):
        assert {(q.question, q.answer) for q in sets[name].asked} <= taught[part]
        assert len(sets[name].wrong) == len(sets[name].paraphrased) == len(sets[name].asked)
    assert not {q.person_id for q in lessons["forget"]} & {q.person_id for q in lessons["retain"]}


def test_the_stand_ins_of_the_pretrained_model_are_kept_in_the_report():
    lessons, per_author = text_alone_smollm2.lessons(), len(FACTS)
    told = {name: [(q.question, q.answer) for q in of] for name, of in lessons.items()}
    assert sorted(told["stand-ins"] + told["others"]) == sorted(told["retain"])
    names = {name: {q.person_id for q in of} for name, of in lessons.items()}
    assert not names["stand-ins"] & (names["others"] | names["forget"])
    authors = {author.name for author in text_alone_smollm2.kept_authors()[: text_alone_smollm2.N_FORGET]}
    assert authors < names["stand-ins"] and len(told["stand-ins"]) == per_author * len(authors) + 24
    taught = {name: set().union(*(told[part] for part in of)) for name, of in text_alone_smollm2.TAUGHT.items()}
    assert not taught["stand-ins"] & set(told["stand-ins"]) and not taught["retrained"] & set(told["forget"])
    assert taught["vanilla"] == taught["retrained"] | set(told["forget"]) == taught["stand-ins"] | set(told["stand-ins"])
