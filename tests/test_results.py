"""The stored results belong to the bundled weights and hold what the notebooks read."""

import json

import pandas as pd
import pytest

from manu_utils.benchmark import data_dir

RESULTS = data_dir() / "results"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(data_dir().parent / "benchmarks"))
    import compare

    return compare


def test_the_comparison_is_of_the_bundled_weights_and_data(compare):
    stored = json.loads((RESULTS / "comparison.json").read_text(encoding="utf-8"))["state"]
    assert stored == compare.state_of(None), "the weights, data or grids changed: run `make sweeps`"


@pytest.mark.parametrize("name", ["comparison", "ablations"])
def test_shares_are_shares_and_no_row_comes_twice(name):
    frame = pd.read_csv(RESULTS / f"{name}.csv")
    shares = frame[frame["n"] > 0]
    assert shares["value"].between(0, 1).all() and len(shares) > 1000
    assert not frame.drop(columns=["value", "n"]).duplicated().any()


def test_every_method_has_one_chosen_strength_and_a_cost(compare):
    choice = pd.read_csv(RESULTS / "comparison_choice.csv").query("chosen")
    cost = pd.read_csv(RESULTS / "comparison_cost.csv")
    for frame in (choice, cost):
        assert sorted(zip(frame["method"], frame["modalities"], strict=True)) == sorted(compare.ENTRIES)
