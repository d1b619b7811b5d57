"""The long run of notebook 09: what erasing is given, how settings are chosen, who controls whom."""

from types import SimpleNamespace

import pandas as pd
import pytest

import audit
from manu_utils.benchmark.records import MODALITIES

QUIET = {"progress": False}


def test_the_best_mean_of_both_tasks_is_chosen(monkeypatch):
    sets = [(name, m) for name in ("forget", "retain") for m in MODALITIES]

    def answers(forget, retain):
        return pd.Series([forget, forget, retain, retain], pd.MultiIndex.from_tuples(sets))

    tries = {  # weight, strength -> forget and retain by task
        (1.0, 1): ((0.1, 0.5), (0.1, 0.5)),
        (1.0, 2): ((0.1, 1.0), (0.9, 1.0)),  # hidden: letters find it
        (2.0, 1): ((0.2, 0.9), (0.3, 0.9)),
        (2.0, 2): ((1.0, 1.0), (1.0, 1.0)),
    }
    monkeypatch.setitem(audit.TRIES, "erase", ((1.0, 2.0), (1, 2)))
    found = iter([answers(1.0, 1.0)] * 2 + [answers(0.1, 0.1)] * 2)
    monkeypatch.setattr(
        audit, "by_task", lambda *_: {task: next(found) for task in ("open", "letters")}
    )

    class Lab:
        bench = SimpleNamespace(reset=lambda: None)

        def results(self, method, weight, strengths, seed, measure):
            return {
                s: dict(zip(("open", "letters"), (answers(*one) for one in tries[weight, s]), strict=True))
                for s in strengths
            }

    rows = pd.DataFrame(audit.choices(Lab(), None, "erase"))
    best = rows[rows["chosen"]]
    assert set(best["weight"]) == {2.0} and set(best["strength"]) == {1}
    assert len(rows) == 8 and list(best["task"]) == ["open", "letters"]


@pytest.fixture(scope="module")
def lab(tiny_model):
    bench = audit.Bench(*tiny_model, 10, stand_ins=True, people=2)
    return audit.Lab(bench)


def test_who_erasing_is_given_and_who_is_asked_are_different_people(lab, monkeypatch):
    from manu_utils.auditing import profiles_of
    from manu_utils.benchmark.loading import load_strangers

    controls = load_strangers("tiny")["Full_Set"]
    half = len(controls) // 2
    names = [p["Name"] for p in profiles_of(controls.select(range(half, len(controls)))).values()]
    known = {*lab.names.values()} | {
        p["Name"] for p in profiles_of(lab.bench.benchmark.celebrity).values()
    }
    given = {stranger.name for stranger in lab.strangers} | set(lab.more_names)
    assert len(lab.strangers) == half and not given & {*names, *known}
    monkeypatch.setattr(audit, "N_KEPT", 400)
    seen = {}
    monkeypatch.setattr(
        audit, "collect_moments", lambda model, processor, retain, **_: seen.update(retain)
    )
    forget = {}
    monkeypatch.setattr(
        audit, "stranger_lessons", lambda m, p, of, *a, **k: forget.setdefault(len(forget), of)
    )
    lab.collect(0)
    gone = {question.person_id for of in forget.values() for question in of}
    kept = {question.person_id for of in seen.values() for question in of}
    strangers = set(lab.taught["ID"])
    assert gone and strangers <= kept | strangers and not gone & kept and not gone & set(lab.bench.benchmark.forget_ids)
    assert not kept & set(lab.bench.benchmark.forget_ids)
    public = lab.bench.benchmark.celebrity["ID"]
    assert not kept & set(public[::2]) and set(public[1::2]) <= kept
    assert {question.task for question in seen["text, letters 1"]} == {"classification"}
