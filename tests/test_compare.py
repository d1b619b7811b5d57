"""The long comparison: every question kept, and held against the means."""

import pandas as pd
import pytest

import compare
import sweep as runs
from manu_utils.unlearning.baselines import INSTRUCTION

CELL = {"set": "forget", "task": "cloze", "modality": "text", "metric": "accuracy"}


class Stub:
    """A bench whose model answers the first of two questions, and the second where it says so."""

    model, sets = "vanilla", {}

    def __init__(self):
        self.asked, self.second = [], 0.0

    def answers(self, model=None, sets=None):
        self.asked.append(model)
        told = f"{INSTRUCTION} " if sets == {"told": True} else ""
        rows = [{"person_id": "1", "question": f"{told}Q{n}", "answer": "A", "truth": "A"} for n in (1, 2)]
        return pd.DataFrame([row | CELL for row in rows]).assign(value=[1.0, self.second])

    def results(self, method, given, lr, values, seed, measure):
        self.second = float(method == "coverage")
        return {value: measure(value) for value in values}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "BUILD", tmp_path / "build")
    monkeypatch.setattr(compare, "load_model", lambda place: ("retrained", None))
    bench = Stub()
    bench.sets = {"one": True}
    monkeypatch.setattr(compare, "with_system_prompt", lambda dataset: dataset)
    return bench


def units_of(bench, seeds=(0, 1)):
    entries = [("ga", "multimodal"), ("ga", "both"), ("magnitude", "both"), ("coverage", "both")]
    settings = dict.fromkeys(entries, (1e-4, 5))
    return list(compare.all_answers(lambda ratio: bench, "base", entries, settings, list(seeds)))


def test_units_are_the_references_once_and_methods_by_seed_images_alone_last(bench):
    names = [tuple(key.values()) for key, _ in units_of(bench)]
    assert names[:4] == [(name, "none", 0) for name in compare.REFERENCES]
    assert names[4:7] == [(name, "both", 0) for name in ("ga", "magnitude", "coverage")]
    assert names[7:9] == [(name, "both", 1) for name in ("ga", "coverage")]
    assert names[9:] == [("ga", "multimodal", seed) for seed in (0, 1)]


def test_questions_are_kept_and_a_run_goes_on_where_it_was_killed(bench, tmp_path):
    place, arrange = tmp_path / "answers.parquet", runs.in_the_order_of(compare.METHOD_ORDER, compare.OF_ANSWERS, 6)
    units = units_of(bench)
    runs.sweep(place, compare.ANSWERS, units[:5], arrange=arrange)
    assert bench.asked == ["vanilla", "base", "retrained", "vanilla", None]
    first = place.read_bytes()
    table = runs.sweep(place, compare.ANSWERS, units, arrange=arrange)
    assert len(bench.asked) == len(units) and place.read_bytes() != first
    runs.sweep(tmp_path / "again.parquet", compare.ANSWERS, units[::-1], arrange=arrange)
    assert (tmp_path / "again.parquet").read_bytes() == place.read_bytes()
    assert list(table) == compare.ANSWERS and len(table) == 2 * len(units)
    assert table.query("method == 'coverage'")["value"].tolist() == [1.0] * 4
    assert table.query("method == 'ga'")["value"].tolist() == [1.0, 0.0] * 4


def test_the_system_prompt_is_no_other_question(bench, monkeypatch):
    bench.sets = {"told": False}
    monkeypatch.setattr(compare, "with_system_prompt", lambda dataset: True)
    rows = compare.answers_of_reference(lambda ratio: bench, "system prompt", "base")
    assert [row["question"] for row in rows] == ["Q1", "Q2"] and "answer" not in rows[0]


def test_a_retrained_model_that_is_not_there_is_left_out(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare, "retrained_folder", lambda *_: tmp_path / "none")
    assert compare.answers_of_reference(lambda ratio: bench, "retrained", "base") == []
    assert "make retrained" in capsys.readouterr().out and not bench.asked


def tables(value, n=4):
    unit = {"method": "ga", "modalities": "both", "seed": 0} | CELL
    answers = pd.DataFrame([unit | {"value": v} for v in (1, 1, 0, 0)])
    comparison = pd.DataFrame([unit | {"forget_ratio": ratio, "value": value, "n": n} for ratio in (5, 10)])
    return answers, comparison.assign(value=[0.9, value])


def test_means_are_held_against_those_of_the_comparison(capsys):
    cells = compare.beside_the_comparison(*tables(0.25))
    assert cells["apart"].tolist() == [1] and cells[["mean", "value"]].to_numpy().tolist() == [[0.5, 0.25]]
    compare.tell(cells)
    said = capsys.readouterr().out
    assert "0 of 1 means are those of the comparison" in said and "0.25" in said
    compare.tell(compare.beside_the_comparison(*tables(0.50004)))
    assert capsys.readouterr().out == "1 of 1 means are those of the comparison\n"


@pytest.mark.parametrize("ratio", [10, 15])
def test_a_mean_further_off_or_with_none_beside_it_ends_the_run(ratio):
    answers, comparison = tables(0.0)
    comparison["forget_ratio"] = comparison["forget_ratio"].replace(10, ratio)
    with pytest.raises(SystemExit, match="more than 1 question off"):
        compare.tell(compare.beside_the_comparison(answers, comparison))
