"""α is chosen on people who are not to be forgotten."""

import pytest
import torch

from manu_utils.benchmark import load_benchmark
from manu_utils.evaluation import choosing
from manu_utils.evaluation.choosing import choose_alpha
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning import prune

FEW = {"draws": 1, "n_retain": 30, "n_asked": 3, "progress": False}


@pytest.fixture(scope="module")
def vanilla():
    return load_model("tiny")


@pytest.fixture(scope="module")
def people():
    return load_benchmark("tiny", forget_ratio=5)


def test_the_best_of_draws_and_tasks_is_chosen_and_the_model_is_as_it_was(vanilla, people):
    model, processor = vanilla
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    given = (model, processor, people)
    table = choose_alpha(*given, variant="random", alphas=(60.0, 5.0), **FEW)
    assert list(table["alpha"]) == [5.0, 5.0, 60.0, 60.0]
    assert list(table["task"]) == ["open", "letters"] * 2 and set(table["draw"]) == {0}
    means = table.groupby("alpha")["merit"].mean()
    assert set(table.loc[table["chosen"], "alpha"]) == {means.idxmax()}
    assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())


def test_nobody_of_the_forget_set_is_read_or_asked(vanilla, people, monkeypatch):
    met = set()

    def panel_of(model, processor, panels, **options):
        met.update(q.person_id for of in panels.values() for q in of)
        return original(model, processor, panels, **options)

    class Seen(choosing.Evidence):
        def __init__(self, model, processor, forget, retain, **options):
            of = {name: {q.person_id for part in s.values() for q in part}
                  for name, s in {"forget": forget, "retain": retain}.items()}  # fmt: skip
            assert not of["forget"] & of["retain"]
            met.update(*of.values())
            draws.append(of["forget"])
            super().__init__(model, processor, forget, retain, **options)

    draws, original = [], choosing.exact_answers
    monkeypatch.setattr(choosing, "exact_answers", panel_of)
    monkeypatch.setattr(choosing, "Evidence", Seen)
    options = FEW | {"draws": 2, "n_asked": 2}
    choose_alpha(*vanilla, people, variant="random", alphas=(1.0, 2.0), **options)
    assert met and not met & set(people.forget_ids)
    one, two = draws
    assert len(one) == len(two) == len(people.forget_ids) and not one & two


def test_a_model_that_never_met_them_is_the_aim_if_given(vanilla, people):
    options = {"variant": "random", "alphas": (1.0, 2.0), **FEW}
    base, _ = load_model("tiny-base")
    at_chance = choose_alpha(*vanilla, people, **options)
    measured = choose_alpha(*vanilla, people, never_met=base, **options)
    assert list(at_chance["utility"]) == list(measured["utility"])
    assert list(at_chance["forget_quality"]) != list(measured["forget_quality"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"variant": "best"}, "variant"),
        ({"alphas": (5.0,)}, "at least two"),
        ({"alphas": (5.0, 5.0)}, "different"),
        ({"alphas": (5.0, 150.0)}, "150"),
        ({"draws": 40}, "fewer draws"),
        ({"draws": 0}, "draws"),
    ],
)
def test_what_cannot_be_tried_is_refused(vanilla, people, wrong, said):
    with pytest.raises((TypeError, ValueError), match=said):
        choose_alpha(*vanilla, people, **wrong)


def test_a_pruned_model_is_refused(vanilla, people):
    model, processor = vanilla
    chosen = torch.zeros(sum(mlp.size for mlp in find_neurons(model)), dtype=torch.bool)
    chosen[:5] = True
    with prune(model, chosen), pytest.raises(ValueError, match="pruned|changed"):
        choose_alpha(model, processor, people, **FEW)
