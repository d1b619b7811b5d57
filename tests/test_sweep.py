"""What the long runs share: killed and resumed, another state, two processes, whole files."""

import argparse
import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import sweep as runs
from manu_utils.unlearning.evidence import Evidence

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["method", "seed", "set", "value"]


@pytest.fixture(autouse=True)
def build(tmp_path_factory, monkeypatch):
    """A folder of its own for the lock."""
    monkeypatch.setattr(runs, "BUILD", tmp_path_factory.mktemp("build"))


def unit(method, seed=0, value=0.5, asked=None):
    def measure():
        if asked is not None:
            asked.append((method, seed))
        if isinstance(value, BaseException):
            raise value
        return [{"set": name, "value": value} for name in ("forget", "retain")]

    return {"method": method, "seed": seed}, measure


def test_a_killed_run_goes_on_after_the_last_unit(tmp_path, capsys):
    place, asked = tmp_path / "new" / "table.csv", []
    first = unit("paper", value=1 / 3, asked=asked)
    with pytest.raises(KeyboardInterrupt):
        runs.sweep(place, COLUMNS, [first, unit("ratio", value=KeyboardInterrupt())])
    assert place.read_text().splitlines()[0] == ",".join(COLUMNS)
    table = runs.sweep(place, COLUMNS, [first, unit("ratio", value=0.1, asked=asked)])
    assert asked == [("paper", 0), ("ratio", 0)]
    assert list(table["method"]) == ["paper", "paper", "ratio", "ratio"]
    assert list(table["value"]) == [1 / 3, 1 / 3, 0.1, 0.1]  # to the last bit, though read again
    assert [path.name for path in place.parent.iterdir()] == ["table.csv"]
    lines = [line.split("s  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["table 1/2: paper, 0", "table 2/2: ratio, 0"]


def test_the_same_method_at_another_seed_is_another_unit(tmp_path):
    place, asked = tmp_path / "table.csv", []
    for _ in range(2):
        runs.sweep(place, COLUMNS, [unit("random", seed, asked=asked) for seed in (0, 1)])
    assert asked == [("random", 0), ("random", 1)]


def test_a_unit_without_rows_is_left_to_a_later_run(tmp_path):
    place, key = tmp_path / "table.csv", {"method": "retrained", "seed": 0}
    table = runs.sweep(place, COLUMNS, [(key, list)])
    assert not place.exists() and list(table.columns) == COLUMNS and not len(table)
    assert len(runs.sweep(place, COLUMNS, [unit("retrained")])) == 2


def test_the_table_is_arranged_and_written_in_its_format(tmp_path):
    place = tmp_path / "table.csv"
    options = {"arrange": lambda table: table.sort_values("method"), "float_format": "%.3g"}
    units = [unit("ratio", value=0.12345), unit("paper", value=1.0)]
    runs.sweep(place, COLUMNS, units, **options)
    assert place.read_bytes() == (
        b"method,seed,set,value\npaper,0,forget,1\npaper,0,retain,1\n"
        b"ratio,0,forget,0.123\nratio,0,retain,0.123\n"
    )


def test_a_parquet_table_is_the_same_whatever_was_measured_first(tmp_path):
    """Killed, gone on with in another order, and measured in one go: the same bytes; texts are kept once."""
    units = [unit("ratio", value=1 / 3), unit("paper", seed=1, value=1.0), unit("paper", value=0.0)]
    options = {"arrange": runs.in_the_order_of(["paper", "ratio"], ["method", "seed"], 6)}
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    with pytest.raises(KeyboardInterrupt):
        runs.sweep(one, COLUMNS, [units[0], unit("paper", value=KeyboardInterrupt())], **options)
    asked = []
    again = [unit("ratio", asked=asked), *units[1:]]
    table = runs.sweep(one, COLUMNS, again, **options)
    runs.sweep(other, COLUMNS, units[::-1], **options)
    assert not asked and one.read_bytes() == other.read_bytes()
    assert list(table["method"]) == ["paper"] * 4 + ["ratio"] * 2 and list(table["seed"]) == [0, 0, 1, 1, 0, 0]
    assert list(table["value"]) == [0, 0, 1, 1, 0.333333, 0.333333]
    read = pd.read_parquet(one)
    assert isinstance(read["set"].dtype, pd.CategoricalDtype) and read["seed"].dtype == "int64"
    assert not isinstance(table["set"].dtype, pd.CategoricalDtype)  # or another text could not be added
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.parquet", "other.parquet"]


def test_what_another_process_wrote_meanwhile_stays_but_for_the_same_unit(tmp_path):
    place = tmp_path / "table.csv"

    def measure():  # while it measures, another process finishes this unit and one more
        both = [unit("paper", value=0.25), unit("ratio", value=0.75)]
        runs.sweep(place, COLUMNS, both)
        return [{"set": "forget", "value": 0.5}]

    table = runs.sweep(place, COLUMNS, [({"method": "paper", "seed": 0}, measure)])
    assert sorted(zip(table["method"], table["value"], strict=True)) == [
        ("paper", 0.5), ("ratio", 0.75), ("ratio", 0.75),
    ]  # fmt: skip


def test_two_processes_share_a_table(tmp_path):
    """Each writes twenty units of its own, and none is lost."""
    code = (
        "import sys, pathlib, sweep\n"
        "place, name = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "sweep.BUILD = place.parent / 'build'\n"
        "units = [({'method': name, 'seed': seed}, lambda: [{'set': 'forget', 'value': 0.5}])"
        " for seed in range(20)]\n"
        f"sweep.sweep(place, {COLUMNS}, units)\n"
    )
    place = tmp_path / "table.csv"
    path = os.pathsep.join([str(ROOT / "experiments"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command, around = [sys.executable, "-c", code, str(place)], os.environ | {"PYTHONPATH": path}
    running = [subprocess.Popen([*command, name], env=around) for name in ("paper", "ratio")]
    assert [process.wait() for process in running] == [0, 0]
    table = pd.read_csv(place)
    assert len(table) == 40 and not table.duplicated().any()


def test_another_state_starts_anew(tmp_path):
    about, tables = tmp_path / "about.json", [tmp_path / "one.csv", tmp_path / "two.csv"]
    other = tmp_path / "other.csv"
    for file in (*tables, other):
        file.write_text("x")
    runs.begin("a", about, "python run.py", tables)
    assert not tables[0].exists() and not tables[1].exists() and other.exists()
    assert json.loads(about.read_text()) == {"command": "python run.py", "state": "a"}
    tables[0].write_text("x")
    runs.begin("a", about, "python run.py", tables)
    assert tables[0].exists()
    runs.begin("b", about, "python run.py", tables)
    assert not tables[0].exists() and json.loads(about.read_text())["state"] == "b"


def test_a_fingerprint_is_of_the_settings_and_the_files(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    found = {runs.fingerprint("a"), runs.fingerprint("b"), runs.fingerprint("a", file)}
    file.write_bytes(b"2")
    found |= {runs.fingerprint("a", file)}
    assert len(found) == 4 and {len(state) for state in found} == {16}
    assert runs.fingerprint("a", file) in found


@pytest.mark.parametrize("method", ["ratio", "released_as_run", "rewrite"])
def test_strengths_change_the_model_one_after_the_other(tiny_model, questions, method, monkeypatch):
    def as_if_known(model, processor, items, **_):
        return torch.ones(len(items)).bool()

    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", as_if_known)
    evidence, model = Evidence(*tiny_model, **questions, progress=False), tiny_model[0]

    def weights():
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    before, values = weights(), (1, 3) if method == "rewrite" else (2.0, 10.0)
    found = [(value, weights()) for value in runs.strengths(evidence, method, values)]
    assert [value for value, _ in found] == list(values)
    assert not found[0][1].equal(before) and not found[0][1].equal(found[1][1])
    assert weights().equal(before)


@pytest.mark.parametrize("folder", ["experiments", "speed"])
def test_a_script_imports_what_lies_beside_it_or_is_installed(folder):
    """``python experiments/compare.py`` finds no module of another folder of scripts."""
    others = {"experiments", "speed", "tests"} - {folder}
    own = {file.stem for file in (ROOT / folder).glob("*.py")}
    elsewhere = {file.stem for at in others for file in (ROOT / at).glob("*.py")} - own
    for file in (ROOT / folder).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not elsewhere & set(modules), f"{file.name}, line {node.lineno}"


def test_on_a_gpu_a_long_run_reads_and_trains_in_float32(monkeypatch):
    monkeypatch.setattr(runs.precision, "pick_dtype", runs.precision.pick_dtype)  # put back at the end
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_num_threads()
    arguments = runs.read_arguments(argparse.ArgumentParser(), ["--threads", str(before)])
    assert runs.precision.pick_dtype("cuda") == torch.float32
    assert arguments.out == runs.RESULTS and torch.get_num_threads() == before
