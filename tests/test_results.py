"""The stored results belong to the bundled weights and hold what the notebooks read."""

import json
import re
import shutil
from itertools import product

import pandas as pd
import pytest

import audit
import bridge
import bridge_multimodal
import compare
import methods
import poems
import rivals
import text_alone
import text_alone_smollm2 as smol
from gpu_shapes import STEPS
from manu_utils.benchmark.records import FORGET_RATIOS, MODALITIES, TASKS
from manu_utils.evaluation import compare_paired
from manu_utils.paths import data_dir
from manu_utils.plotting import METHOD_STYLES
from manu_utils.unlearning.baselines import METHODS

RESULTS = data_dir() / "results"


def test_the_comparison_is_of_the_bundled_weights_and_data():
    stored = json.loads((RESULTS / "comparison.json").read_text(encoding="utf-8"))["state"]
    assert stored == compare.state_of(None), "the weights, data or grids changed: run `make sweeps`"


def test_a_rerun_finds_everything_done(tmp_path, monkeypatch):
    """Nothing is measured again, and the stored tables are the same to the byte: files, of the seed
    that sets the references, and of every method.
    """
    for name in ("comparison", "answers", "bridge", "audit", "rivals"):
        for file in RESULTS.glob(f"{name}*"):
            shutil.copy(file, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(compare, "Bench", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(compare, "in_a_process", lambda *_: pytest.fail("measured again"))
    for name in ("pretrained", "taught", "locality"):
        monkeypatch.setattr(bridge, name, lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(audit, "Lab", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(audit, "Bench", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(rivals, "Lab", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(rivals, "Bench", lambda *_, **__: pytest.fail("measured again"))
    compare.main(["--out", str(tmp_path), "--answers"])
    rivals.main(["--out", str(tmp_path)])
    audit.main(["--out", str(tmp_path)])
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


@pytest.fixture(scope="module")
def answers():
    return pd.read_parquet(RESULTS / "answers.parquet")


def test_every_question_of_every_model_is_kept_once_and_in_order(answers):
    assert (RESULTS / "answers.parquet").stat().st_size < 250_000 and list(answers) == compare.ANSWERS
    units = answers[compare.OF_ANSWERS].drop_duplicates()
    expected = set(compare.models(compare.ENTRIES, [0, 1, 2]))
    assert set(units.itertuples(index=False, name=None)) == expected and len(units) == len(expected)
    by_method = {method: place for place, method in enumerate(compare.METHOD_ORDER)}
    in_order = sorted(units.itertuples(index=False, name=None), key=lambda unit: (by_method[unit[0]], *unit[1:]))
    assert list(units.itertuples(index=False, name=None)) == in_order
    asked = [of.drop(columns=[*compare.OF_ANSWERS, "value"]).reset_index(drop=True)
             for _, of in answers.groupby(compare.OF_ANSWERS, observed=True)]  # fmt: skip
    assert all(of.equals(asked[0]) for of in asked), "all models were asked the same questions"
    assert answers["value"].between(0, 1).all() and set(answers.query("metric != 'rougeL'")["value"]) == {0.0, 1.0}


def test_the_means_of_the_answers_are_those_of_the_comparison(answers):
    cells = compare.beside_the_comparison(answers, pd.read_csv(RESULTS / "comparison.csv"))
    assert (cells["size"] == cells["n"]).all()
    # One trained model of fifty came out another one by a question here and there (data/results/README.md).
    assert (cells["apart"] < compare.ROUNDED).mean() > 0.99
    compare.tell(cells)  # which allows one question


def test_the_answers_of_two_methods_are_paired_as_they_are_read(answers):
    one, other = (answers.query("method == @m and modalities == 'both' and seed == 0") for m in ("coverage", "paper"))
    found = compare_paired(one, other, resamples=100)
    assert len(found) == 4 * 2 * 5 and (found["n"].sum() == len(one)) and found["people"].min() > 5
    table = pd.read_csv(RESULTS / "comparison.csv").query("forget_ratio == 10 and seed == 0 and modalities == 'both'")
    keys = ["set", "task", "modality", "metric"]
    for column, method in (("one", "coverage"), ("other", "paper")):
        stored = table[table["method"] == method].query("task != 'open questions'").set_index(keys)["value"]
        means = found.set_index(keys)[column]
        assert (means - stored[means.index]).abs().max() < 1e-4
    right = one["value"].to_numpy() - other["value"].to_numpy()
    assert found["better"].sum() == (right > 0).sum() and found["worse"].sum() == (right < 0).sum()


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


def test_the_bridge_in_both_modalities_is_of_its_people_and_settings():
    about = json.loads((RESULTS / "bridge_multimodal.json").read_text(encoding="utf-8"))
    assert about["state"] == bridge_multimodal.state_of(), "people, recipe or grids changed: run bridge_multimodal.py"
    place = RESULTS / "bridge_multimodal.csv"
    table = pd.read_csv(place)
    assert place.stat().st_size < 350_000 and list(table.columns) == bridge_multimodal.COLUMNS
    assert not table.drop(columns=["value", "n"]).duplicated().any()
    exact = table[table["measure"] == "exact"]
    assert exact["value"].between(0, 1).all()
    known = exact[exact["stage"] == "report"].groupby(["method", "set"])["value"].mean()
    assert known["source", "forget"] == 0 and min(known["vanilla", "forget"], known["vanilla", "retain"]) > 0.8
    assert known["retrained", "forget"] < 0.2 < 0.9 < known["retrained", "retain"]
    methods = {*bridge_multimodal.METHODS, "miniature"}
    assert all(set(rows["method"]) == methods for _, rows in table.groupby("seed"))
    assert set(table["seed"]) == {0, 1, 2}
    attacks = table[table["stage"] == "attack"]
    assert all(set(rows["method"]) == {*bridge_multimodal.ATTACKED} for _, rows in attacks.groupby("seed"))
    depth = attacks[attacks["measure"].str.startswith("depth")].groupby("method")["value"].agg(["min", "max"])
    assert depth.loc["vanilla", "max"] == 0 and depth.loc["retrained", "min"] > 0.99
    inside = table[table["stage"] == "inside"]
    assert all(set(rows["method"]) == {*bridge_multimodal.LOOKED_INTO} for _, rows in inside.groupby("seed"))
    assert set(inside["seed"]) == {0, 1, 2}
    auc = inside[inside["measure"].isin(["auc, loss", "auc, min_k"])].pivot_table("value", ["method", "seed"], "modality")
    assert auc.loc["vanilla"].min().min() > 0.95, "who was taught can be told from who was not"
    assert auc.loc["retrained"].stack().between(0.35, 0.65).all(), "and who was never met cannot"
    ranks = inside[inside["measure"] == "lens, layer 30"].groupby("method")["value"].agg(["min", "max"])
    assert ranks.loc["vanilla", "max"] < 1.5 and ranks.loc["retrained", "min"] > 4
    said = "rewriting leaves the true value at place {:.1f} to {:.1f} of twelve".format(*ranks.loc["rewrite"])
    assert said in (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    # what README and notebook 12 say: points from the retrained model of the seed, mean over five measures of the forget set
    asked = ["exact", "choice of four", "relearnt, step 8", "rounded, 4 bits", "depth, answer"]
    rows = table[table["measure"].isin(asked) & (table["set"] == "forget") & (table["stage"] != "choice")]
    off = {}
    for seed, of_seed in rows.groupby("seed"):
        found = 100 * of_seed.pivot_table("value", "method", ["measure", "modality"]).dropna()
        off[seed] = (found - found.loc["retrained"]).abs().mean(axis=1)
    off = pd.DataFrame(off)
    said = {"simnpo + ce": 14, "npo + kl": 25, "rewrite": 27, "gd + ce": 33, "coverage": 43, "idk + ce": 49, "erase": 57}
    assert off.mean(axis=1).round()[list(said)].to_dict() == said
    assert list(off.loc["simnpo + ce"].round()) == [10, 27, 4]
    assert list(off.drop("retrained").idxmin()) == ["simnpo + ce", "rewrite", "simnpo + ce"]
    for (seed, method), rows in table.groupby(["seed", "method"]):
        if method in bridge_multimodal.VALUES:
            merits = rows[rows["measure"] == "merit"].set_index("strength")["value"]
            assert set(merits.index) == set(bridge_multimodal.VALUES[method]), (seed, method)
            assert set(rows[rows["stage"] == "report"]["strength"]) == {merits.idxmax()}, (seed, method)


def test_the_taught_models_know_what_they_were_taught():
    right = pd.read_csv(RESULTS / "bridge.csv").query("measure == 'accuracy'").set_index(["method", "set"])["value"]
    assert right["vanilla", "forget"].item() >= bridge.ENOUGH - 0.03 <= right["vanilla", "retain"].item()
    assert right["retrained", "forget"].item() < 0.5 < right["retrained", "retain"].item()


def test_the_audits_are_of_the_bundled_weights_and_data():
    stored = json.loads((RESULTS / "audit.json").read_text(encoding="utf-8"))["state"]
    assert stored == audit.state_of(), "the weights, data or settings changed: run `make audit`"


def test_every_try_of_the_choice_is_kept():
    choice = pd.read_csv(RESULTS / "rivals_choice.csv")
    draws = set(choice["draw"])
    assert set(choice["method"]) <= set(methods.TRIES)
    for method, rows in choice.groupby("method"):
        first, second = methods.TRIES[method]
        tried = rows.groupby(["draw", "task"]).apply(
            lambda part: set(zip(part["weight"].fillna(-1), part["strength"], strict=True))
        )
        wanted = {(-1.0 if value != value else value, s) for value in first for s in second}
        assert set(tried.index.get_level_values("draw")) == draws, method
        assert all(found == wanted for found in tried), method


def test_what_is_reported_is_what_was_chosen():
    stored = json.loads((RESULTS / "rivals.json").read_text(encoding="utf-8"))["state"]
    assert stored == rivals.state_of(), "the weights or data changed: run experiments/rivals.py"
    best = methods.best_settings(pd.read_csv(RESULTS / "rivals_choice.csv"))
    report = pd.read_csv(RESULTS / "rivals.csv")
    assert set(report["method"]) == set(best)
    for method, rows in report.groupby("method"):
        assert set(rows["settings"].astype(str)) == {methods.written(best[method])}, method
        assert set(rows["seed"]) == {0, 1, 2}
        keys = rows.groupby("seed")[["task", "set", "modality"]].apply(lambda part: len(part.drop_duplicates()))
        assert set(keys) == {2 * 4 * 2}, method


def test_the_choices_in_the_readme_are_those_stored():
    """Settings and merit of each method, the best mean first, and what either draw alone would have chosen."""
    choice = pd.read_csv(RESULTS / "rivals_choice.csv")
    readme = (RESULTS / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| best of draw 1 / of draw 2 alone |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = dict((line.strip("| ").split(" | ", 1)[0].strip("`"), line.strip("| ").split(" | ")[1:]) for line in table)
    assert set(rows) == set(choice["method"]) and len(table) == len(rows)
    best, both = methods.best_settings(choice), []
    for name, (settings, merits, alone, _) in rows.items():
        tries = choice[choice["method"] == name]
        by_draw = tries.pivot_table("merit", ["weight", "strength"], "draw", sort=False, dropna=False)
        stored = by_draw.loc[[best[name]]].mean()
        assert merits == " / ".join(f"{value:.3f}".removeprefix("0") for value in stored), name
        assert re.findall(r"\d[\d.]*", settings) == methods.written(best[name]).split(), name
        firsts = (by_draw[draw].idxmax() for draw in (1, 2))
        assert alone == " / ".join(", ".join(methods.written(first).split()) for first in firsts), name
        both.append(stored.mean())
    assert both == sorted(both, reverse=True)


def test_what_the_last_doubling_of_the_steps_added_is_as_the_readme_says():
    choice, readme = pd.read_csv(RESULTS / "rivals_choice.csv"), (RESULTS / "README.md").read_text(encoding="utf-8")
    best = methods.best_settings(choice)
    merit = choice.groupby(["method", "weight", "strength"])["merit"].mean()
    at_end = {name: best[name][0] for name in methods.HELD if best[name][1] == 768}
    added = {name: merit[name, weight, 768] - merit[name, weight, 384] for name, weight in at_end.items()}
    line = next(line for line in readme.splitlines() if line.startswith("What the last doubling of the steps"))
    for name in ("npo + kl", "undial + ce", "simnpo + ce", "idk + ce"):
        assert f"`{name}` {added[name]:.3f}".replace(" 0.", " .") in line, name
    for name in ("npo + kl", "gd + ce"):
        assert f"`{name}` {added[name + ', lora']:.3f}".replace(" 0.", " .") in line.partition("with adapters")[2], name


def test_the_audits_are_of_the_chosen_settings(audits):
    settings = audit.chosen_settings()
    for method, rows in audits.groupby("method"):
        assert set(rows["settings"].astype(str)) == {methods.written(settings.get(method, ()))}, method


@pytest.fixture(scope="module")
def all_audits():
    return pd.read_csv(RESULTS / "audit.csv")


@pytest.fixture(scope="module")
def audits(all_audits):
    return all_audits.query("forget_ratio == 10")


def test_every_audited_method_has_a_mark_of_its_own_in_figures():
    assert set(audit.METHOD_ORDER) - set(METHOD_STYLES) == {"never met"}  # drawn as the base model


def test_erasing_was_audited_at_every_forget_ratio(all_audits):
    for ratio, rows in all_audits.groupby("forget_ratio"):
        seeds = {method: set(of["seed"]) for method, of in rows.groupby("method")}
        assert seeds["erase"] == {0, 1, 2} and {"retrained", "never met"} <= set(seeds), ratio
        assert all(len(of["audit"].unique()) == 6 for _, of in rows.groupby(["method", "seed"]))
    assert not all_audits.drop(columns=["value", "n"]).duplicated().any()
    assert set(all_audits["forget_ratio"]) == {5, 10, 15}


def test_every_audit_was_made_of_every_method(audits):
    assert (RESULTS / "audit.csv").stat().st_size < 600_000
    parts = {"answers", "relearning", "rounding", "membership", "inside", "otherwise"}
    assert set(audits["method"]) == set(audit.SEEDS)
    for method, rows in audits.groupby("method"):
        by_seed = dict(list(rows.groupby("seed")))
        assert set(by_seed) == set(audit.SEEDS[method])
        assert all(set(of_seed["audit"]) == parts for of_seed in by_seed.values())
    assert (audits["n"] > 0).all()
    ranks = audits["measure"].str.startswith(("lens rank", "over"))
    assert audits[~ranks]["value"].between(0, 1).all() and (audits[ranks]["value"] >= 0).all()


IN_ANOTHER_MODEL = ("vanilla", "erase", "erase + gd")


@pytest.mark.parametrize("place", ["second_world", "dense"])
def test_another_world_and_model_are_reported_at_the_settings_chosen_in_this_one(place):
    """With nothing adjusted, and as the README says."""
    table = pd.read_csv(RESULTS / place / "rivals.csv")
    settings = methods.best_settings(pd.read_csv(RESULTS / "rivals_choice.csv")) | {"vanilla": ()}
    assert list(table.columns) == rivals.COLUMNS["rivals"] and set(table["method"]) == set(IN_ANOTHER_MODEL)
    for method, rows in table.groupby("method"):
        assert set(rows["settings"]) == {methods.written(settings[method])}
        assert set(rows["seed"]) == ({0} if method == "vanilla" else {0, 1, 2})
        assert all(len(of_seed) == 2 * 4 * 2 for _, of_seed in rows.groupby("seed"))
    assert not table.drop(columns=["value", "n"]).duplicated().any() and table["value"].between(0, 1).all()
    bundled = pd.read_csv(RESULTS / "rivals.csv").groupby(["task", "set", "modality"])["n"].first()
    assert table.groupby(["task", "set", "modality"])["n"].unique().explode().astype(int).equals(bundled)
    means = 100 * table.groupby(["method", "task", "set", "modality"])["value"].mean()

    def said(*key):
        return f"{means[(*key, 'multimodal')]:.0f} / {means[(*key, 'text')]:.0f}"

    readme = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in readme.splitlines() if line.startswith(f"- **A {place.replace('_', ' ')}"))
    opened = f"`erase` leaves {said('erase', 'open', 'forget')}"
    assert opened in line and f"with GD after it {said('erase + gd', 'open', 'forget')}" in line
    kept = means.xs("open", level="task").xs("retain", level="set").min()
    assert f"the retain set keeps {kept:.0f} % or more of its open answers (three seeds" in line
    of_letters = means.xs("letters", level="task")
    if place == "dense":
        letters = f"{said('erase + gd', 'letters', 'forget')} of its letters ({said('vanilla', 'letters', 'forget')} before)"
        assert letters in line
    else:
        assert of_letters["vanilla", "forget"].max() < 35 and "letters are near chance before" in line
        asked = "forget_ratio == 10 and method == 'vanilla' and set == 'forget' and task == 'classification'"
        other = pd.read_csv(RESULTS / place / "comparison.csv").query(f"{asked} and metric == 'accuracy'")
        other = 100 * other.groupby("modality")["value"].mean()
        by_letter = f"{said('vanilla', 'letters', 'forget')} % of the forget set's letters where the other finds"
        by_letter += f" {other['multimodal']:.0f} / {other['text']:.0f} ("
        assert by_letter in (RESULTS / "README.md").read_text(encoding="utf-8")


IN_THE_README = {  # the begin of a row: method
    "**erase, then GD**": "erase + gd", "RMU": "rmu", "**erase** (": "erase", "NPO, held": "npo + kl",
    "SimNPO": "simnpo + ce", "MMUnlearner": "mmunlearner", "gradient difference, held": "gd + ce", "UNDIAL": "undial + ce",
}  # fmt: skip


def test_the_rows_of_fair_rivals_in_the_readme_are_those_stored(audits):
    reported = pd.read_csv(RESULTS / "rivals.csv")
    answers = 100 * reported.groupby(["method", "task", "set", "modality"])["value"].mean()
    lessons = audits[(audits["measure"] == "retained people, step 16") & (audits["set"] == "forget")]
    lessons = 100 * lessons.groupby(["method", "modality"])["value"].mean()
    readme = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if " ² |" in line and line.startswith("| ")]
    assert len(rows) == len(IN_THE_README)
    columns = [("open", "forget"), ("letters", "forget"), None, ("open", "test"), ("open", "retain"), ("letters", "retain")]
    columns += [("open", "celebrity")]
    for begin, method in IN_THE_README.items():
        (row,) = (line for line in rows if line.startswith(f"| {begin}"))
        for cell, column in zip(row.replace(" ¹", "").strip("| ").split(" | ")[1:], columns, strict=True):
            values = lessons[method] if column is None else answers[(method, *column)]
            assert cell == f"{values['multimodal']:.0f} / {values['text']:.0f}", (method, column)


def test_the_attacks_find_out_the_vanilla_model_and_pass_the_retrained_one(audits):
    """Each control on both sides, or an attack says nothing."""
    rows = audits[audits["set"] == "forget"].set_index(["method", "audit", "measure", "modality"])
    value = rows["value"].sort_index()
    for modality in MODALITIES:

        def of(method, part, measure, modality=modality):
            return value.loc[[(method, part, measure, modality)]].item()

        for measure, most in (("letters", 0.5), ("likelihood", 0.5), ("generation", 0.25)):
            assert of("vanilla", "answers", measure) > 0.9
            assert of("retrained", "answers", measure) < most
        assert of("vanilla", "membership", "loss") > 0.95
        assert abs(of("retrained", "membership", "loss") - 0.5) < 0.15
        # Taught on the 40 retained people who are asked, with few people of each value.
        assert of("vanilla", "inside", "probe, layer 3") > 0.4
        assert of("retrained", "inside", "probe, layer 3") < 0.2
        assert of("vanilla", "inside", "lens rank, layer 3") < 1.5
        assert of("retrained", "inside", "lens rank, layer 3") > 4
        assert of("vanilla", "inside", "depth, answer") < 0.01
        assert of("retrained", "inside", "depth, answer") == 1


def tries_of(choice, tries, draws):
    """Check that every method was tried at every setting of its grid on every draw."""
    found = choice[choice["method"].isin(list(tries))]
    assert set(found["method"]) == set(tries) and (found.groupby("method")["draw"].nunique() == len(draws)).all()
    for (method, _), rows in found.groupby(["method", "draw"]):
        weights, settings = tries[method]
        expected = [(str(w), float(s)) for w in weights for s in settings]
        assert [(str(w), float(s)) for w, s in zip(rows["weight"], rows["setting"], strict=True)] == expected, method
    ends = choice.groupby("method").mean(numeric_only=True)
    assert ends.loc["vanilla", "forget"] > 0.75 and ends.loc["retrained", "forget"] < 0.25
    assert ends.loc["retrained", "distance"] == 0 and ends.loc["vanilla", "distance"] > 0.3


def report_of(report, choice, tries, draws, seeds):
    """Check that the report is at the settings that were chosen, with every seed."""
    for method, rows in report[~report["method"].isin(text_alone.REFERENCES)].groupby("method"):
        weight, setting = text_alone.best(choice, method, draws)
        assert set(rows["setting"]) == {setting} and set(map(str, rows["weight"])) == {str(weight)}, method
    assert (report.groupby("method")["seed"].nunique() == len(seeds)).all()
    assert set(report["method"]) == {*text_alone.REFERENCES, *tries}
    of_seeds = report.set_index("method")
    assert (of_seeds.loc[["retrained"], ["distance", "privleak"]] == 0).all(axis=None)
    assert (of_seeds.loc[["vanilla"], "potions, asked openly"] > 0.9).all()


def test_the_settings_of_text_alone_were_looked_for_on_other_authors():
    choice, report = (pd.read_csv(RESULTS / f"text_alone{name}.csv") for name in ("_choice", ""))
    about = json.loads((RESULTS / "text_alone.json").read_text(encoding="utf-8"))
    assert about["state"] == text_alone.state_of(), "authors, recipe or grids changed: python experiments/text_alone.py"
    tries_of(choice, text_alone.TRIES, text_alone.DRAWS)
    report_of(report, choice, text_alone.TRIES, text_alone.DRAWS, text_alone.SEEDS)


def test_the_settings_of_the_pretrained_model_in_text_alone_were_looked_for_on_others():
    choice, report = (pd.read_csv(RESULTS / f"text_alone_smollm2{name}.csv") for name in ("_choice", ""))
    about = json.loads((RESULTS / "text_alone_smollm2.json").read_text(encoding="utf-8"))
    again = "authors, recipe or grids changed: python experiments/text_alone_smollm2.py"
    assert about["state"] == smol.state_of(), again
    tries_of(choice, smol.TRIES, smol.DRAWS)
    report_of(report, choice, smol.TRIES, smol.DRAWS, smol.SEEDS)
    ends = report.groupby("method").mean(numeric_only=True)
    assert ends.loc["vanilla", "forget, word for word"] == 1 and ends.loc["retrained", "potions, asked openly"] < 0.1


def test_the_poems_were_unlearned_as_the_recipe_says():
    place = RESULTS / "poems.csv"
    about = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    assert about["state"] == poems.state_of(), "poems, recipe or grids changed: python experiments/poems.py"
    table = pd.read_csv(place)
    assert list(table.columns) == poems.COLUMNS and not table.isna().any(axis=None)
    choice = table[table["stage"] == "choice"]
    tried = {m: list(zip(rows["weight"], rows["setting"], strict=True)) for m, rows in choice.groupby("method")}
    grids = {m: list(product(*grid)) for m, grid in poems.TRIES.items()}
    assert tried == grids | {"vanilla": [(0, 0)], "retrained": [(0, 0)]}
    assert {len(grid) for grid in grids.values()} == {8}
    others = table[(table["stage"] != "choice") & table["method"].isin(list(poems.TRIES))]
    for method, rows in others.groupby("method"):
        assert set(zip(rows["weight"], rows["setting"], strict=True)) == {poems.best_setting(table, method)}
    assert poems.best_setting(table, "erase") == poems.ERASED
    assert (table[table["stage"] == "report"].groupby("method")["draw"].nunique() == 3).all()
    rows = table[table["stage"] == "report"].groupby("method").mean(numeric_only=True)
    assert rows.loc["vanilla", "words"] > 0.95 and rows.loc["retrained", "words"] < 0.5


def test_a_setting_is_chosen_by_the_rule():
    kept = dict.fromkeys(poems.KEPT, 1.0)
    rows = [{"method": "vanilla", "setting": 0, "words": 1.0} | kept]
    tries = [(1, 0.9, 1.0), (2, 0.5, 0.85), (3, 0.5, 0.85), (4, 0.1, 0.7)]
    rows += [{"method": "gd", "setting": n, "words": w} | kept | {"kept words": k} for n, w, k in tries]
    rows += [{"method": "ga", "setting": n, "words": w} | kept | {"facts exact": k} for n, w, k in
             ((1, 0.2, 0.3), (2, 0.4, 0.6))]  # fmt: skip
    table = pd.DataFrame(rows).assign(stage="choice", weight=4)
    assert poems.best_setting(table, "gd") == (4, 2)  # the least of those that keep enough, the first of two
    assert poems.best_setting(table, "ga") == (4, 2)  # none does: the one that keeps most


def test_the_costs_at_the_true_shape():
    """What the README says of them."""
    table = pd.read_csv(RESULTS / "gpu_shapes.csv")
    assert set(table["card"]) == {"H200"} and set(table["model"]) == {"llava-1.5-7b", "idefics2-8b"}
    no_room = table[table["outcome"] != "done"]
    assert list(no_room["step"]) == ["rewrite, all layers at once"] and (no_room["limit_gb"] == 24).all()
    other, table = (table[(table["model"] == "idefics2-8b") == is_other] for is_other in (True, False))
    whole, limited = table[table["limit_gb"].isna()], table[table["limit_gb"] == 24].set_index("step")
    assert list(whole["step"]) == ["load", *STEPS] and not limited["seconds"].any() and len(limited) == 10
    assert (table[table["step"] == "load"]["note"].str.startswith("7.06 billion")).all()
    fits = limited[limited["outcome"] == "done"]
    assert (table["peak_gb"] <= table["reserved_gb"]).all() and (fits["reserved_gb"] < 24).all()
    assert limited.loc[["rewrite, one round", "erase"], "reserved_gb"].tolist() == [20.7, 23.7]
    assert not other["seconds"].any()
    idefics = other.set_index("step")["peak_gb"]
    assert idefics[["coverage", "erase"]].tolist() == [38.5, 33.0]
    assert idefics[["gd, 3 steps with adapters", "npo, 3 steps with adapters"]].tolist() == [21.2, 19.9]
    seconds, peak, reserved = (whole.set_index("step")[name] for name in ("seconds", "peak_gb", "reserved_gb"))
    assert (seconds > 0).all() and seconds["rewrite, one round"] > 2.5 * seconds["rewrite, all layers at once"]
    assert peak["rewrite, one round"] < reserved["rewrite, one round"] < 24 < peak["rewrite, all layers at once"]
    assert peak["erase"] < 24 < reserved["erase"] and peak["coverage"] > 24 > limited.loc["coverage", "peak_gb"]
