"""The sweep of notebooks 07 and 07b: its units are distinct, ways agree where they should, a killed run goes
on, and precision and recall are what they say.
"""

from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import ablate
import lab as ablation_lab
import planted_twin
import ways
from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning.activations import collect_activations

WHERE = {"alpha": 5.0, "ratio": 10, "seed": 0}


@pytest.fixture(scope="module")
def lab(tiny_model):
    return ablation_lab.Lab(*tiny_model)


def test_no_two_units_share_a_key():
    units = ablate.all_units()
    assert len({unit[:5] for unit in units}) == len(units)
    assert {u.ablation for u in units} >= {
        "alpha", "locality", "ratio", "functions", "eps", "tau", "positions", "ladder", "switch",
        "scope", "towers", "samples", "rounds", "steps", "ours",
    }  # fmt: skip


def test_the_units_are_those_of_the_stored_table():
    stored = pd.read_csv(ablate.RESULTS / "ablations.csv").query("model == 'sparse'")
    keys = stored[ablate.KEY[1:]].drop_duplicates().itertuples(index=False, name=None)
    assert set(keys) == {unit[:5] for unit in ablate.all_units()}


def test_ladder_ends_are_the_named_variants(lab):
    ladder = [u for u in ablate.all_units() if u.ablation == "ladder" and u.seed == 0]
    by_setting = {unit.setting: unit.choose(lab) for unit in ladder[:5]}
    ends = {"paper": "paper", "weights 2, 0, 2, 2 (released_score)": "released_score"}
    for setting, variant in ends.items():
        assert by_setting[setting].equal(ways.by_variant(lab, **WHERE, variant=variant))


def test_samples_of_questions(lab, benchmark):
    """n of each forgotten person's, n of the retain sample; a part of a sample is in the whole."""
    forget, retain = (lab.questions(name, 10, seed=1) for name in ("forget", "retain"))
    assert {m: len(of) for m, of in retain.items()} == dict.fromkeys(forget, ablation_lab.N_RETAIN)
    assert lab.questions("retain", 10, seed=1, n=25)["text"] == retain["text"][:25]
    assert lab.questions("retain", 10, seed=0)["text"] != retain["text"]
    few = lab.questions("forget", 10, seed=1, n=2)["multimodal"]
    people = [question.person_id for question in few]
    assert Counter(people) == dict.fromkeys(benchmark.forget_ids, 2)
    assert all(question in forget["multimodal"] for question in few)


def test_what_was_collected_serves_every_sample(lab):
    plain, other = lab.evidence(10, 0), lab.evidence(10, 1)
    assert plain.statistics("forget") is other.statistics("forget")
    assert lab.evidence(10, 1) is other and other.sets["retain"] != plain.sets["retain"]
    few = lab.evidence(10, 1, n_forget=1)
    assert few.statistics("retain") is other.statistics("retain")
    assert [len(of) for of in few.sets["forget"].values()] == [12, 12]
    assert lab.evidence(10, 0, tau=0.5).seen == {"tau": 0.5, "positions": "answer"}


def test_one_round_is_the_variant_and_every_budget_is_spent(lab, monkeypatch):
    questions = lab.questions

    def few(*arguments, **options):
        return {m: of[:24] for m, of in questions(*arguments, **options).items()}

    monkeypatch.setattr(lab, "kept", {})
    monkeypatch.setattr(lab, "questions", few)
    before = {name: tensor.clone() for name, tensor in lab.model.state_dict().items()}
    whole = ways.by_variant(lab, **WHERE, variant="ratio")
    assert ways.in_rounds(lab, **WHERE, variant="ratio", rounds=1).equal(whole)
    three = ways.in_rounds(lab, **WHERE, variant="ratio", rounds=3)
    assert three.sum() == whole.sum() and not three.equal(whole)
    for variant in ("ratio", "coverage"):
        seen = ways.of_one_tower(lab, **WHERE, variant=variant, tower="vision")
        assert seen.any() and not (seen & ~lab.vision).any()
    even = ways.every_token_alike(lab, **WHERE)
    rare = ways.by_variant(lab, **WHERE, variant="coverage")
    assert even.sum() == rare.sum() == whole.sum() and not even.equal(rare)
    for per, n_groups in (("tower", 2), ("layer", len(lab.mlps))):
        n = int(ways.coverage_by_group(lab, **WHERE, per=per).sum())
        assert abs(n - int(whole.sum())) <= n_groups
    assert all(tensor.equal(before[name]) for name, tensor in lab.model.state_dict().items())


def test_linear_outputs_give_what_the_neurons_are_made_of(lab):
    """fc1 has one layer before the non-linearity; without pads all positions count alike."""
    asked = lab.questions("forget", 10)["multimodal"][:1]
    linear = ways.collect_linear(lab, asked, 0)
    plain = collect_activations(lab.model, lab.processor, asked, positions="all", progress=False)
    assert linear.sizes == plain.sizes and linear.modality == "multimodal"
    language = [index for index, mlp in enumerate(lab.mlps) if mlp.tower == "language"]
    assert linear.tokens[language].equal(plain.tokens[language])
    assert not lab.mlps[0].before[0]._forward_hooks
    first = find_neurons(lab.model)[0]
    outputs = []
    hook = first.before[0].register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    collect_activations(lab.model, lab.processor, asked, positions="all", progress=False)
    hook.remove()
    expected = outputs[0].double().flatten(0, -2).sum(0)
    assert_close(linear.total[: first.size], expected, rtol=1e-4, atol=1e-4)


def test_equal_settings_are_asked_once(lab, monkeypatch):
    monkeypatch.setattr(lab, "kept", {})
    asked = []

    def answers(model, processor, panels):
        asked.append(bool((lab.mlps[-1].after.weight == 0).all(0).any()))
        return pd.DataFrame([("forget", "text", 0.5, 7)], columns=["set", "modality", "value", "n"])

    monkeypatch.setattr(ablation_lab, "exact_answers", answers)
    monkeypatch.setattr(lab, "panels", lambda ratio: {})
    last = torch.arange(len(lab.vision)) >= len(lab.vision) - 3
    rows = [lab.measure(chosen) for chosen in (None, last, last.clone(), None)]
    assert asked == [False, True]
    assert rows[1] == [{"set": "forget", "modality": "text", "value": 0.5, "n": 7}]


def test_a_killed_run_goes_on(lab, tmp_path, monkeypatch):
    row = {"set": "forget", "modality": "text", "value": 0.123456, "n": 7}
    monkeypatch.setattr(lab, "measure", lambda chosen, ratio: [row])
    asked = []

    def unit(setting, fails=False):
        def choose(lab):
            if fails:
                raise KeyboardInterrupt
            asked.append(setting)

        return lab, ablation_lab.Unit("alpha", setting, 0, 5.0, 10, choose)

    place = tmp_path / "sparse.csv"
    with pytest.raises(KeyboardInterrupt):
        ablate.run([unit("one"), unit("two", fails=True)], "sparse", place)
    table = ablate.run([unit("one"), unit("two")], "sparse", place)
    assert asked == ["one", "two"] and list(table["setting"]) == ["one", "two"]
    assert set(table["value"]) == {0.1235} and list(table.columns) == ablate.COLUMNS
    assert [path.name for path in tmp_path.iterdir()] == ["sparse.csv"]


def test_precision_and_recall_of_the_planted_twin(tiny_model, benchmark, monkeypatch):
    n = sum(mlp.size for mlp in find_neurons(tiny_model[0]))
    people = benchmark.retain_ids[:6]
    owners = {person: torch.arange(n) % 50 == index for index, person in enumerate(people)}
    lab = planted_twin.PlantedLab(*tiny_model, owners, draw=0)
    assert len(lab.people["forget"]) == planted_twin.N_FORGET
    assert sorted(lab.people["forget"] + lab.people["retain"]) == sorted(people)
    monkeypatch.setattr(ablation_lab.Lab, "measure", lambda self, chosen, ratio: [])
    chosen = owners[lab.people["forget"][0]] | owners[lab.people["retain"][0]]
    found = {row["modality"]: row["value"] for row in lab.measure(chosen)}
    assert found["recall"] == pytest.approx(1 / planted_twin.N_FORGET, abs=0.02)
    assert found["precision"] == pytest.approx(0.5, abs=0.02)


def test_the_units_of_the_planted_twin_are_those_of_the_stored_table():
    stored = pd.read_csv(ablate.RESULTS / "ablations.csv").query("model == 'planted'")
    keys = stored[ablate.KEY[1:]].drop_duplicates().itertuples(index=False, name=None)
    draw = SimpleNamespace(planted=torch.arange(10**6) < 34722)  # of the stored twin 3.4722 %
    units = planted_twin.planted_units(dict.fromkeys((0, 1, 2), draw))
    assert list(keys) == [unit[:5] for _, unit in units]


def test_a_part_leaves_the_other_stored_rows_of_its_model():
    def rows(model, ablation, *values):
        key = {"setting": "s", "seed": 0, "alpha": "5", "forget_ratio": 10}
        return [{"model": model, "ablation": ablation} | key | {"value": v} for v in values]

    stored = pd.DataFrame([*rows("dense", "alpha", 0.1), *rows("sparse", "alpha", 0.2, 0.3), *rows("sparse", "eps", 0.4)])
    again = pd.DataFrame(rows("sparse", "alpha", 0.5))
    assert list(ablate.with_stored(again, stored, part=True)["value"]) == [0.1, 0.4, 0.5]
    assert list(ablate.with_stored(again, stored, part=False)["value"]) == [0.1, 0.5]
