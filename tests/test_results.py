"""The stored results belong to the bundled weights and hold what the notebooks read."""

import json
import shutil

import pandas as pd
import pytest

import bridge
import compare
from manu_utils.benchmark.records import FORGET_RATIOS, TASKS
from manu_utils.paths import data_dir
from manu_utils.unlearning.baselines import METHODS

RESULTS = data_dir() / "results"


def test_the_comparison_is_of_the_bundled_weights_and_data():
    stored = json.loads((RESULTS / "comparison.json").read_text(encoding="utf-8"))["state"]
    assert stored == compare.state_of(None), "the weights, data or grids changed: run `make sweeps`"


def test_a_rerun_finds_everything_done(tmp_path, monkeypatch):
    """Nothing is measured again, and the stored tables are the same to the byte: files, of the seed
    that sets the references, and of every method.
    """
    for file in (*RESULTS.glob("comparison*"), *RESULTS.glob("bridge*")):
        shutil.copy(file, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(compare, "Bench", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(compare, "in_a_process", lambda *_: pytest.fail("measured again"))
    for name in ("pretrained", "taught", "locality"):
        monkeypatch.setattr(bridge, name, lambda *_: pytest.fail("measured again"))
    compare.main(["--out", str(tmp_path)])
    bridge.main(["--out", str(tmp_path)])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["comparison", "ablations"])
def test_shares_are_shares_and_no_row_comes_twice(name):
    frame = pd.read_csv(RESULTS / f"{name}.csv")
    shares = frame[frame["n"] > 0]
    if name == "ablations":
        neurons = shares["ablation"] == "locality"  # numbers of neurons
        assert neurons.sum() == 4 and (shares[neurons]["value"] > 1).all()
        shares = shares[~neurons]
    assert shares["value"].between(0, 1).all() and len(shares) > 1000
    assert not frame.drop(columns=["value", "n"]).duplicated().any()


def test_every_method_has_one_chosen_strength_and_a_cost():
    choice = pd.read_csv(RESULTS / "comparison_choice.csv").query("chosen")
    cost = pd.read_csv(RESULTS / "comparison_cost.csv")
    for frame in (choice, cost):
        assert sorted(zip(frame["method"], frame["modalities"], strict=True)) == sorted(compare.ENTRIES)


def test_the_comparison_is_complete():
    """All sets and tasks at every forget ratio; every method, and the trained ones with three seeds."""
    table = pd.read_csv(RESULTS / "comparison.csv")
    final = table[table["task"] != "open questions"]
    references = {("vanilla", "none"), ("never met", "none"), ("retrained", "none"), ("system prompt", "none")}
    for ratio in FORGET_RATIOS:
        rows = final[final["forget_ratio"] == ratio]
        assert set(rows["set"]) == {"forget", "test", "retain", "celebrity"} and set(rows["task"]) == set(TASKS)
        found = set(zip(rows["method"], rows["modalities"].fillna("none"), strict=True))
        assert found == set(compare.ENTRIES) | references
        trained = rows[rows["method"].isin(METHODS)]
        assert (trained.groupby(["method", "modalities"])["seed"].nunique() == 3).all()


def test_every_ablation_has_three_seeds_of_each_setting():
    table = pd.read_csv(RESULTS / "ablations.csv").query("model == 'sparse' and ablation != 'locality'")
    table = table[~table["setting"].isin(["vanilla", "magnitude"])]  # neither looks at a sample
    seeds = table.groupby(["ablation", "setting", "alpha", "forget_ratio"])["seed"].nunique()
    assert (seeds == 3).all(), seeds[seeds != 3]


def test_the_bridge_is_of_the_bundled_data_and_complete():
    about = json.loads((RESULTS / "bridge.json").read_text(encoding="utf-8"))
    assert about["state"] == bridge.state_of(), "the questions, recipe or grids changed: run `python experiments/bridge.py`"
    table = pd.read_csv(RESULTS / "bridge.csv")
    assert (RESULTS / "bridge.csv").stat().st_size < 60_000 and list(table.columns) == bridge.COLUMNS
    assert not table.drop(columns=["value", "n"]).duplicated().any()
    right = table[table["measure"] == "accuracy"]
    assert right["value"].between(0, 1).all() and set(right["set"]) == {"forget", "test", "retain", "capitals"}
    for method, seed in bridge.UNITS:
        grid = [None] if method in bridge.REFERENCES else bridge.ROUNDS if method == "rewrite" else bridge.ALPHAS
        found = right[(right["method"] == method) & (right["seed"] == seed) & (right["set"] == "forget")]["strength"]
        assert len(found) == len(grid) and (method in bridge.REFERENCES or list(found) == list(grid)), (method, seed)


def test_the_taught_models_know_what_they_were_taught():
    right = pd.read_csv(RESULTS / "bridge.csv").query("measure == 'accuracy'").set_index(["method", "set"])["value"]
    assert right["vanilla", "forget"].item() >= bridge.ENOUGH - 0.03 <= right["vanilla", "retain"].item()
    assert right["retrained", "forget"].item() < 0.5 < right["retrained", "retain"].item()
