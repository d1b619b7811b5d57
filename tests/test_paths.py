"""Whatever is written is the old one or the new one, whole, with nothing beside it."""

import os
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import run_all
import torch

import sweep
from manu_utils import paths
from manu_utils.evaluation.answers_file import append_answers
from manu_utils.miniature import bottles_model, build
from manu_utils.models import saving
from manu_utils.teaching.leaderboard import append_leaderboard


class Plain(torch.nn.Module):
    """As much of a model and of a processor as is needed to save them."""

    def __init__(self, value: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(value))

    def save_pretrained(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / f"weight {self.weight.item()}").touch()


def a_run(place, value):
    columns = ["set", "task", "modality", "metric", "value", "n"]
    summary = pd.DataFrame([["forget", "classification", "text", "accuracy", value, 8]], columns=columns)
    append_leaderboard(place, summary, scale="tiny", seed=0, method="paper", alpha=5.0)


def an_answer(place, value):
    append_answers(place, [{"key": f"{int(value):064}", "run": "a", "answer": str(value)}])


WRITERS = {
    "table": lambda place, value: sweep.write_table(pd.DataFrame({"a": [value]}), place),
    "tensors": lambda place, value: saving.write_tensors(place, {"a": torch.tensor(value)}, "test", {}),
    "notebook": lambda place, value: run_all.write(nbformat.v4.new_notebook(metadata={"value": value}), place),
    "half precision": lambda place, value: bottles_model.save_model(Plain(value), place),
    "checkpoint": lambda place, value: build.save_checkpoint(Plain(value), Plain(0.0), place, []),
    "leaderboard": a_run,
    "answers": an_answer,
}


def content(place):
    """name -> bytes of the files at ``place``, in any order (that of a header in safetensors differs from write to
    write); nothing else may be there but a lock.
    """
    assert {path.name for path in place.parent.iterdir()} <= {place.name, f".{place.name}.lock"}
    files = place.iterdir() if place.is_dir() else [place]
    return {file.name: sorted(file.read_bytes()) for file in files}


def alone(writer, folder, *values):
    """What it leaves where nobody disturbs it."""
    for value in values:
        WRITERS[writer](folder / "place", value)
    return content(folder / "place")


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "answers"])  # which are appended
def test_an_interrupted_write_leaves_the_old_one_and_nothing_beside_it(writer, tmp_path, monkeypatch):
    before = alone(writer, tmp_path, 1.0)
    replace = os.replace

    def interrupt(source, target):
        if target == tmp_path / "place" and not source.name.endswith(".old"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(paths, "os", SimpleNamespace(replace=interrupt))
    with pytest.raises(KeyboardInterrupt):
        WRITERS[writer](tmp_path / "place", 2.0)
    assert content(tmp_path / "place") == before


@pytest.mark.parametrize("writer", [*WRITERS, "model"])
def test_an_interrupted_first_write_leaves_nothing(writer, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(WRITERS, "model", lambda place, value: saving.save_model(Plain(value), Plain(0.0), place))
    for check in ("check_weights", "check_processor"):
        monkeypatch.setattr(saving, check, lambda given: None)
    monkeypatch.setattr(paths, "os", SimpleNamespace(replace=interrupt))
    with pytest.raises(KeyboardInterrupt):
        WRITERS[writer](tmp_path / "place", 2.0)
    assert {path.name for path in tmp_path.iterdir()} <= {".place.lock"}


@pytest.mark.parametrize("writer", WRITERS)
def test_of_two_that_write_at_once_one_is_left_whole(writer, tmp_path, monkeypatch):
    ways = [(1.0, 2.0), (2.0, 1.0)]
    wanted = [alone(writer, tmp_path / f"{order}", *order) for order in ways]
    together, replace = threading.Barrier(2, timeout=0.3), os.replace

    def meet(source, target):
        with suppress(threading.BrokenBarrierError):  # those with a lock wait for each other
            together.wait()
        replace(source, target)

    monkeypatch.setattr(paths, "os", SimpleNamespace(replace=meet))
    place, failed = tmp_path / "both" / "place", []

    def write(value):
        try:
            WRITERS[writer](place, value)
        except OSError as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(value,)) for value in (1.0, 2.0)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert content(place) in wanted and len(failed) <= (writer == "checkpoint")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_half_of_it_is_never_seen(kind, tmp_path):
    place = tmp_path / "place"

    def write(text, error=None):
        with paths.whole(place) as part:
            if kind == "folder":
                part.mkdir()
                part = part / "file"
            part.write_text(text)
            if error is not None:
                raise error

    for error in (ValueError("wrong"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write("half", error)
        assert not list(tmp_path.iterdir())
    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("half", KeyboardInterrupt())
    assert list(content(place).values()) == [sorted(b"old")]
    write("new")
    assert list(content(place).values()) == [sorted(b"new")]


@pytest.mark.parametrize("when", ["set aside", "put back"])
def test_the_old_folder_is_never_lost(when, tmp_path, monkeypatch):
    """Interrupted as soon as it is set aside; or it cannot be put back, as where Windows holds a file of it."""
    place, replace = tmp_path / "place", os.replace
    place.mkdir()
    (place / "file").write_text("old")

    def moved(source, target):
        if target != place:
            replace(source, target)
            if when == "set aside":
                raise KeyboardInterrupt
        elif when == "put back":
            raise PermissionError("it is in use")
        else:
            replace(source, target)

    monkeypatch.setattr(paths, "os", SimpleNamespace(replace=moved))
    with pytest.raises((KeyboardInterrupt, PermissionError)), paths.whole(place) as part:
        part.mkdir()
    assert [file.read_text() for file in tmp_path.rglob("file")] == ["old"]
    assert place.exists() == (when == "set aside")


def test_what_a_killed_process_left_goes_a_day_later_and_what_others_write_stays(tmp_path):
    names = [".a.1.part", ".a.2.part", ".ab.1.part", ".b.a.1.part"]
    for name in names:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - 25 * 60 * 60,) * 2)
    os.utime(tmp_path / ".a.2.part")
    with paths.whole(tmp_path / "a") as part:
        part.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names[1:], "a"]


def test_what_another_process_has_just_put_in_place_is_no_error(tmp_path, monkeypatch):
    """Its folder is seen, and gone before its age is asked for."""
    seen = tmp_path / ".a.1.part"
    monkeypatch.setattr(type(tmp_path), "glob", lambda *_: iter([seen]))
    with paths.whole(tmp_path / "a") as part:
        part.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_has_the_rights_that_any_file_has(tmp_path):
    (tmp_path / "any").touch()
    saving.write_tensors(tmp_path / "tensors", {"a": torch.ones(1)}, "test", {})
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "any").stat().st_mode
