"""The sweep of notebook 07: its units are distinct, a killed run goes on, and precision and recall are what they say."""


import pandas as pd
import pytest
import torch

import ablate


@pytest.fixture(scope="module")
def lab(tiny_model):
    return ablate.Lab(*tiny_model)


def test_no_two_units_share_a_key(lab):
    units = ablate.all_units(lab)
    keys = [(u.ablation, u.setting, u.seed, u.alpha, u.ratio) for u in units]
    assert len(set(keys)) == len(keys)
    assert {u.ablation for u in units} >= {"alpha", "ratio", "functions", "eps", "tau", "positions", "ladder", "switch",
                                           "scope", "towers", "samples", "rounds", "steps", "ours"}  # fmt: skip


def test_ladder_ends_are_the_named_variants(lab):
    by_setting = {u.setting: u for u in ablate.all_units(lab) if u.ablation == "ladder" and u.seed == 0}
    assert by_setting["paper"].choose().equal(lab.by_score("paper"))
    assert by_setting["weights 2, 0, 2, 2 (released_score)"].choose().equal(lab.by_score("released_score"))


def test_a_killed_run_goes_on(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "ROOT", tmp_path)
    monkeypatch.setattr(lab, "measure", lambda chosen, ratio: [("forget", "text", 0.123456, 7)])
    asked = []

    def unit(setting, fails=False):
        def choose():
            if fails:
                raise KeyboardInterrupt
            asked.append(setting)

        return lab, ablate.Unit("alpha", setting, 0, 5.0, 10, choose)

    with pytest.raises(KeyboardInterrupt):
        ablate.run([unit("one"), unit("two", fails=True)], "sparse", "digest")
    table = ablate.run([unit("one"), unit("two")], "sparse", "digest")
    assert asked == ["one", "two"] and list(table["setting"]) == ["one", "two"] and set(table["value"]) == {0.1235}
    assert pd.read_csv(tmp_path / "build" / "ablations" / "sparse-digest.csv").equals(table)
    assert [path.name for path in (tmp_path / "build" / "ablations").iterdir()] == ["sparse-digest.csv"]


def test_precision_and_recall_of_the_planted_twin(tiny_model, benchmark, monkeypatch):
    n = sum(ablate.Lab(*tiny_model).sizes)
    people = benchmark.retain_ids[:6]
    owners = {person: torch.arange(n) % 50 == index for index, person in enumerate(people)}
    lab = ablate.PlantedLab(*tiny_model, owners, draw=0)
    assert len(lab.people["forget"]) == ablate.N_PLANTED_FORGET
    assert sorted(lab.people["forget"] + lab.people["retain"]) == sorted(people)
    monkeypatch.setattr(ablate.Lab, "measure", lambda self, chosen, ratio: [])
    chosen = owners[lab.people["forget"][0]] | owners[lab.people["retain"][0]]
    found = {modality: value for _, modality, value, _ in lab.measure(chosen)}
    assert found["recall"] == pytest.approx(1 / ablate.N_PLANTED_FORGET, abs=0.02)
    assert found["precision"] == pytest.approx(0.5, abs=0.02)
