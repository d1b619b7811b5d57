"""Two tables of the same questions: differences question by question, from memory or from a file."""

import numpy as np
import pandas as pd
import pytest

from manu_utils.evaluation.paired import compare_paired
from manu_utils.evaluation.robust import summarise_with_intervals
from manu_utils.evaluation.tables import evaluate, summarise

KEY = {"set": "forget", "task": "cloze", "modality": "text", "metric": "accuracy"}


def table(values, people=None, **more):
    people = [f"{n // 2:03d}" for n in range(len(values))] if people is None else people
    questions = [f"Q{n % 2}" for n in range(len(values))]
    frame = pd.DataFrame({"person_id": people, "question": questions, "answer": "A", "truth": "B", "value": values})
    return frame.assign(**KEY | more)


def test_the_numbers_are_those_counted_by_hand():
    one, other = table([1, 1, 0, 0, 1, 0]), table([1, 0, 0, 1, 0, 0])
    row = compare_paired(one, other).iloc[0]
    assert (row["one"], row["other"], row["difference"]) == pytest.approx((1 / 2, 1 / 3, 1 / 6))
    assert (row["better"], row["worse"], row["n"], row["people"]) == (2, 1, 6, 3)
    totals = np.array([1, -1, 1])
    draws = np.random.default_rng(1).integers(3, size=(20_000, 3))
    assert (row["low"], row["high"]) == pytest.approx(np.percentile(totals[draws].sum(1) / 6, [2.5, 97.5]), abs=0.04)


def test_pairing_is_narrower_than_two_intervals_where_questions_differ_in_how_hard_they_are():
    draw = np.random.default_rng(0)
    hard = np.repeat(draw.random(40) > 0.5, 2)
    one, other = table(hard * 1.0), table(hard * 1.0)
    other.loc[[3, 9], "value"] = 1 - other.loc[[3, 9], "value"]
    row, alone = compare_paired(one, other).iloc[0], summarise_with_intervals(one).iloc[0]
    assert row["high"] - row["low"] < (alone["high"] - alone["low"]) / 2


def test_rows_are_paired_by_question_whatever_their_order_and_file(tmp_path):
    draw = np.random.default_rng(0)
    one, other = table(draw.random(20)), table(draw.random(20))
    expected = compare_paired(one, other)
    pd.testing.assert_frame_equal(compare_paired(one, other.iloc[::-1]), expected)
    other.to_csv(tmp_path / "other.csv", index=False)
    read = pd.read_csv(tmp_path / "other.csv", dtype={"person_id": str})
    pd.testing.assert_frame_equal(compare_paired(one, read), expected)


def test_a_question_about_several_pictures_is_paired_in_their_order():
    people = ["1"] * 4
    one, other = table([1, 1, 0, 0], people), table([0, 0, 0, 0], people)
    assert compare_paired(one, other)[["better", "worse", "n"]].to_numpy().tolist() == [[2, 0, 4]]


@pytest.mark.filterwarnings("ignore:prompts of up to")
def test_a_real_table_survives_a_parquet_file(tiny_model, benchmark, tmp_path):
    sets = {"test": benchmark.test.select(range(3)), "forget": benchmark.forget.select(range(2))}
    frame = evaluate(*tiny_model, sets, tasks=("classification", "cloze"), progress=False)
    frame.to_parquet(tmp_path / "frame.parquet")
    read = pd.read_parquet(tmp_path / "frame.parquet")
    pd.testing.assert_frame_equal(read, frame)
    flipped = frame.assign(value=1 - frame["value"])
    found = compare_paired(read, flipped)
    assert found["set"].drop_duplicates().tolist() == ["test", "forget"]  # in the order of the tables
    means = summarise(frame).set_index(list(KEY))["value"]
    assert found.set_index(list(KEY))["one"].sort_index().to_numpy() == pytest.approx(means.sort_index().to_numpy())


@pytest.mark.parametrize("change", ["shorter", "another truth", "another metric", "empty"])
def test_tables_of_other_questions_are_refused(change):
    one = other = table([1.0, 0, 1, 0])
    other = {
        "shorter": other[:3], "another truth": other.assign(truth="C"), "another metric": other.assign(metric="rougeL"),
        "empty": other[:0],
    }[change]  # fmt: skip
    with pytest.raises(ValueError, match="empty" if change == "empty" else "same sets and settings"):
        compare_paired(one, other)
    with pytest.raises(ValueError, match="level"):
        compare_paired(one, one, level=95)
