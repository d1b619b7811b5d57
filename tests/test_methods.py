"""The runs behind "Fair rivals" and notebook 09: how settings are chosen, how models are made, what
erasing is given.
"""

import json
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import audit
import compare
import methods
import rivals
import sweep as runs
from manu_utils.benchmark.records import MODALITIES
from manu_utils.models import save_model
from manu_utils.models.loading import load_model
from sweep import RESULTS


def tried(values, draws=(1, 2)):
    """Rows of the choice: (weight, strength) -> merit of every task and draw."""
    return pd.DataFrame(
        {"method": "npo + kl", "draw": draw, "weight": w, "strength": s, "task": t, "merit": merit}
        for (w, s), merits in values.items()
        for draw, (t, merit) in zip((d for d in draws for _ in "ab"), merits, strict=True)
    )


def both(first, second):
    return [("open", first), ("letters", second)] * 2


def test_the_best_mean_of_tasks_and_draws_is_chosen():
    table = tried({(1, 12): both(1.0, 0.1), (1, 24): both(0.7, 0.7), (4, 12): both(0.6, 0.7)})
    assert methods.best_settings(table) == {"npo + kl": (1, 24)}
    lucky = tried({(1, 12): [("open", 0.9), ("letters", 0.9), ("open", 0.1), ("letters", 0.1)],
                   (1, 24): both(0.6, 0.6)})  # fmt: skip
    assert methods.best_settings(lucky) == {"npo + kl": (1, 24)}
    once = table[table["draw"] == 1].assign(method="rmu")
    with pytest.raises(ValueError, match="rmu was not tried on the draws"):
        methods.best_settings(pd.concat([table, once]))


def test_a_method_with_one_knob_is_chosen_too():
    table = tried({(1, 12): both(0.1, 0.1), (1, 24): both(0.7, 0.7)}).assign(weight=float("nan"))
    assert methods.best_settings(table)["npo + kl"][1] == 24


def test_every_method_has_as_many_tries():
    counts = {name: len(first) * len(second) for name, (first, second) in methods.TRIES.items()}
    assert set(counts.values()) == {12}, counts


def test_no_stand_in_is_in_two_draws_and_none_is_kept_beside():
    retain = [str(number) for number in range(100)]
    (one, kept), (two, _) = (compare.played_by(retain, 10, draw) for draw in (1, 2))
    assert len(one) == len(two) == 10 and not set(one) & set(two)
    assert set(kept) | set(one) == set(retain) and not set(kept) & set(one)


def test_rows_of_settings_that_are_chosen_anew_are_measured_anew(tmp_path):
    place = tmp_path / "audit.csv"
    row = dict.fromkeys(audit.COLUMNS, 0)
    rows = [("vanilla", "none"), ("erase", "4 0.01"), ("rmu", "32 24")]
    table = pd.DataFrame([row | {"method": m, "settings": s} for m, s in rows])
    methods.write_table(table, place)
    methods.drop_other_settings(place, audit.COLUMNS, {"erase": (4.0, 0.01), "rmu": (32.0, 48)})
    assert list(pd.read_csv(place)["method"]) == ["vanilla", "erase"]
    assert methods.written((float("nan"), 5.0)) == "5" and methods.written(()) == "none"


@pytest.fixture(scope="module")
def lab(tiny_model):
    bench = compare.Bench(*tiny_model, 10, stand_ins=1, people=2)
    return methods.Lab(bench)


def test_a_model_is_changed_for_each_strength_and_put_back(lab, monkeypatch):
    before = {n: p.clone() for n, p in lab.model.state_dict().items()}

    def changed():
        now = lab.model.state_dict()
        return sum(int((now[name] != old).sum()) for name, old in before.items())

    few = {m: asked[:4] for m, asked in lab.bench.training["forget"].items()}
    monkeypatch.setitem(lab.bench.training, "forget", few)
    monkeypatch.setattr(methods, "N_FISHER", 4)
    monkeypatch.setattr(methods, "HELD_BATCH", 2)
    monkeypatch.setattr(compare, "EVERY", 1)
    for method, weight, values in (
        ("paper", float("nan"), (1.0, 2.0)),
        ("ssd", 10.0, (0.1, 1.0)),
        ("kvw", 0.1, (1.0, 2.0)),
        ("task vector", 1.0, (0.5, 1.0)),
        ("npo + kl", 4.0, (1.0, 2.0)),
    ):
        found = lab.results(method, weight, values, 0, changed)
        assert list(found) == list(values) and min(found.values()) > 0, method
        assert all(torch.equal(p, before[n]) for n, p in lab.model.state_dict().items()), method


def test_what_is_joined_begins_with_the_erased_model_and_ends_with_vanilla(lab, monkeypatch):
    before = {n: p.clone() for n, p in lab.model.state_dict().items()}
    path, erased = "model.language_model.layers.0.mlp.down_proj.weight", []

    @contextmanager
    def erase(beta, ridge, seed):
        erased.append((beta, ridge, seed))
        with torch.no_grad():
            lab.model.state_dict()[path].zero_()
        yield

    monkeypatch.setattr(lab, "erased", erase)
    monkeypatch.setattr(methods, "HELD_BATCH", 2)
    monkeypatch.setattr(compare, "EVERY", 1)
    found = lab.results("erase + gd", 4.0, (0, 1), 2, lambda: lab.model.state_dict()[path].clone())
    assert erased == [(*methods.ERASED, 2)] and not found[0].any() and found[1].any()
    assert all(torch.equal(p, before[n]) for n, p in lab.model.state_dict().items())


def test_erasing_is_joined_at_its_own_choice():
    tried = pd.read_csv(RESULTS / "rivals_choice.csv")
    assert methods.best_settings(tried[tried["method"] == "erase"])["erase"] == methods.ERASED


def test_merit_is_of_both_tasks(monkeypatch):
    sets = [(name, m) for name in ("forget", "retain") for m in MODALITIES]

    def frame(forget, retain):
        values = [forget, forget, retain, retain]
        return pd.DataFrame(
            [{"set": s, "modality": m, "value": v} for (s, m), v in zip(sets, values, strict=True)]
        )

    answers = {"vanilla": 1.0, "base": 0.1}
    monkeypatch.setattr(methods, "by_task", lambda bench, model=None: {
        "open": frame(answers.get(model or bench.now, 0.1), 1.0),
        "letters": frame(answers.get(model or bench.now, 0.9), 1.0),
    })  # fmt: skip

    class Stub:
        bench = SimpleNamespace(reset=lambda: None, now="vanilla")

        def results(self, method, weight, values, seed, measure):
            self.bench.now = "hidden"  # open answers gone, letters still there
            return {value: measure() for value in values}

    rows = pd.DataFrame(methods.choices(Stub(), "base", "erase", 0))
    merits = rows.groupby("task")["merit"].first()
    assert len(rows) == 2 * 12 and merits["open"] == 1 and merits["letters"] < 0.5


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
    monkeypatch.setattr(methods, "N_KEPT", 400)
    seen, forget = {}, {}
    monkeypatch.setattr(
        methods, "collect_moments", lambda model, processor, retain, **_: seen.update(retain)
    )
    monkeypatch.setattr(
        methods, "stranger_lessons", lambda m, p, of, *a, **k: forget.setdefault(len(forget), of)
    )
    methods.Lab.erasing(lab, 0)  # not what is kept
    gone = {question.person_id for of in forget.values() for question in of}
    kept = {question.person_id for of in seen.values() for question in of}
    reported = set(lab.bench.benchmark.forget_ids)
    assert gone and not gone & kept and not (gone | kept) & reported
    public = lab.bench.benchmark.celebrity["ID"]
    assert not kept & set(public[::2]) and set(public[1::2]) <= kept
    assert {question.task for question in seen["text, letters 1"]} == {"classification"}


def test_another_model_is_reported_at_settings_that_were_chosen_elsewhere(
    tiny_model, tmp_path, monkeypatch
):
    """Nothing is tried; the model that is asked and named is the one in the folder."""
    folder, out, chosen = tmp_path / "model", tmp_path / "out", tmp_path / "choice.csv"
    save_model(*tiny_model, folder)
    merits = {(5.0, 1.0): 0.2, (2.0, 3.0): 0.8}
    tried({at: both(m, m) for at, m in merits.items()}).assign(method="ssd").to_csv(chosen)
    monkeypatch.setattr(runs, "BUILD", tmp_path / "build")
    monkeypatch.setattr(methods, "N_FISHER", 4)
    monkeypatch.setattr(rivals, "Bench", partial(compare.Bench, people=1))
    monkeypatch.setattr(rivals, "choices", lambda *_, **__: pytest.fail("something was tried"))
    asked = ["--methods", "ssd", "--vanilla", "--seeds", "1", "2", "--out", str(out)]
    asked += ["--settings", str(chosen), "--model", str(folder)]
    rivals.main(asked)
    assert {file.name for file in out.iterdir()} == {"rivals.csv", "rivals.json"}
    table = pd.read_csv(out / "rivals.csv")
    models = table[["method", "seed", "settings"]].drop_duplicates()
    assert list(models.itertuples(index=False, name=None)) == [
        ("vanilla", 1, "none"), ("ssd", 1, "2 3"), ("ssd", 2, "2 3"),
    ]  # fmt: skip
    bench = compare.Bench(*load_model(folder), 10, people=1)
    expected = [frame["value"] for frame in methods.by_task(bench).values()]
    found = table[table["method"] == "vanilla"]["value"]
    assert found.tolist() == pd.concat(expected).round(4).tolist()
    state = json.loads((out / "rivals.json").read_text(encoding="utf-8"))["state"]
    assert state == rivals.state_of(folder) != rivals.state_of()
    monkeypatch.setattr(rivals, "Bench", lambda *_, **__: pytest.fail("measured again"))
    rivals.main(asked)


@pytest.mark.parametrize("option", [["--settings", "rivals_choice.csv"], ["--model", "folder"]])
def test_what_is_of_another_model_never_takes_the_place_of_the_bundled_results(option, capsys):
    with pytest.raises(SystemExit):
        rivals.main(option)
    assert "give --out another folder" in capsys.readouterr().err
