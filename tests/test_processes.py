"""Two processes choose the same neurons and write the same table as one, however they are launched."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from manu_utils import processes
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import MODALITIES, TASKS
from manu_utils.evaluation.tables import evaluate
from manu_utils.models.encoding import plan_batches
from manu_utils.models.loading import load_model
from manu_utils.models.prefix_tree import plan_shared_batches
from manu_utils.unlearning.activations import collect_activations
from manu_utils.unlearning.attribution import collect_attribution
from manu_utils.unlearning.evidence import unlearn

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "unlearn_on_several_gpus.py"
QUIET = {"progress": False}
SUMS = ("tokens", "total", "total_abs", "total_squares", "n_active")

# What a cell of a notebook would hold: functions, and their launch. Statistics, and of each kind of loss a training, with a
# batch that two processes cannot share evenly.
NOTEBOOK = """
import sys

import torch
from accelerate import notebook_launcher
from safetensors.torch import save_file

from manu_utils import processes
from manu_utils.benchmark.loading import load_benchmark
from manu_utils.models import fine_tune, load_model
from manu_utils.unlearning import collect_activations, collect_attribution, unlearn_by_training


def collect(folder, accelerator):
    model, processor = load_model("tiny", device=accelerator.device)
    every = {m: load_benchmark("tiny", 10).training_questions("forget", m)[:10] for m in ("multimodal", "text")}
    options = {"batch_size": 4, "progress": False}
    found = {}
    for modality, questions in every.items():
        for name, asked in (("ten", questions), ("one", questions[:1])):
            sums = collect_activations(model, processor, asked, **options)
            for field in ("tokens", "total", "total_abs", "total_squares", "n_active"):
                found[f"{modality} {name} {field}"] = getattr(sums, field).clone()
            rows = collect_attribution(model, processor, asked, **options)
            mean = collect_attribution(model, processor, asked, reduce=True, **options)
            found |= {f"{modality} {name} rows": rows, f"{modality} {name} mean": mean}
    try:
        collect_activations(model, processor, every["text"] + every["multimodal"], **options)
    except ValueError as error:
        print(f"process {accelerator.process_index} of {accelerator.num_processes}: {error}\\n", end="", flush=True)
    save_file(found, f"{folder}/{accelerator.process_index}.safetensors")


def train(folder, accelerator):
    benchmark = load_benchmark("tiny", 10)
    forget, retain = (
        {m: benchmark.training_questions(who, m)[:9] for m in ("multimodal", "text")} for who in ("forget", "retain")
    )
    rows = []
    options = {"steps": 3, "batch_size": 5, "every": 3, "log": rows.append, "progress": False}
    found = {}
    for method in ("fine_tune", "gd", "npo", "idk_preference"):
        model, processor = load_model("tiny", device=accelerator.device)
        before = [weight.clone() for weight in model.get_decoder().parameters()]
        if method == "fine_tune":
            fine_tune(model, processor, forget, lora_rank=2, **options)
        else:
            more = {"retain_term": "kl", "retain_batch_size": 3} if method == "npo" else {}
            unlearn_by_training(method, model, processor, forget, retain, **options, **more)
        pairs = zip(model.get_decoder().parameters(), before, strict=True)
        found[method] = torch.cat([(now - then).flatten() for now, then in pairs])
    found["losses"] = torch.tensor([row["loss"] for row in rows[1::2]])
    save_file(found, f"{folder}/{accelerator.num_processes}-{accelerator.process_index}.safetensors")


def work(folder):
    torch.set_num_threads(1)
    accelerator = processes.start()
    collect(folder, accelerator)
    train(folder, accelerator)
    accelerator.end_training()


if __name__ == "__main__":
    notebook_launcher(work, args=(sys.argv[1],), num_processes=2, use_port=sys.argv[2])
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launched(*command):
    """The output of a command that uses this checkout; the package that is installed may be another."""
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment = os.environ | quiet | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are launched: how many threads share a product of matrices shows in its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained():
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def in_a_notebook(tmp_path_factory):
    """What each of two processes of ``notebook_launcher`` found, what they printed, and the folder of all they wrote."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "cell.py").write_text(NOTEBOOK, encoding="utf-8")
    printed = launched(folder / "cell.py", folder, free_port())
    return [load_file(folder / f"{process}.safetensors") for process in (0, 1)], printed, folder


def test_the_script_under_accelerate_launch_gives_the_same_neurons_and_table(trained, benchmark, tmp_path):
    model, processor = trained
    table, folder = tmp_path / "table.csv", tmp_path / "pruned"
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", 1, "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", 0, "--num_processes", 2)  # fmt: skip
    printed = launched(*launch, SCRIPT, "--questions", 12, "--people", 1, "--table", table, "--save", folder)
    assert printed.count("forget classification multimodal   accuracy") == 1  # one process prints

    asked = {
        people: {m: random.Random(0).sample(benchmark.training_questions(people, m), 12) for m in MODALITIES}
        for people in ("forget", "retain")
    }
    with unlearn(model, processor, asked["forget"], asked["retain"], **QUIET):
        after = {name: value.clone() for name, value in model.state_dict().items()}
        expected = evaluate(model, processor, {name: part.select([0]) for name, part in benchmark.sets().items()}, **QUIET)
    saved = load_model(folder, device="cpu")[0].state_dict()
    changed = [name for name, value in model.state_dict().items() if not value.equal(after[name])]
    assert changed and all(saved[name].equal(value) for name, value in after.items())
    found = pd.read_csv(table, dtype={"person_id": str}, keep_default_na=False)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("name, n", [("ten", 10), ("one", 1)])  # one question: the second process has nothing to do
def test_notebook_launcher_gives_the_same_sums(in_a_notebook, trained, benchmark, modality, name, n):
    questions = benchmark.training_questions("forget", modality)[:n]
    options = {"batch_size": 4, **QUIET}
    sums = collect_activations(*trained, questions, **options)
    rows = collect_attribution(*trained, questions, **options)
    mean = collect_attribution(*trained, questions, reduce=True, **options)
    for found in in_a_notebook[0]:
        for field in SUMS:
            assert found[f"{modality} {name} {field}"].equal(getattr(sums, field)), field
        assert found[f"{modality} {name} rows"].equal(rows)
        torch.testing.assert_close(found[f"{modality} {name} mean"], mean, rtol=1e-6, atol=1e-12)


def test_two_processes_train_the_weights_that_one_does(in_a_notebook, tmp_path):
    names = {"__name__": "cell"}
    exec(compile(NOTEBOOK, "cell", "exec"), names)
    names["train"](tmp_path, processes.start())
    alone = load_file(tmp_path / "1-0.safetensors")
    first, second = (load_file(in_a_notebook[2] / f"2-{process}.safetensors") for process in (0, 1))
    for method in ("fine_tune", "gd", "npo", "idk_preference"):
        assert first[method].equal(second[method]) and alone[method].any()
        assert (first[method] - alone[method]).norm() < 0.01 * alone[method].norm(), method
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-4, atol=1e-6)
    assert len(second["losses"]) == 0  # one process logs


def test_an_error_is_raised_on_every_process(in_a_notebook):
    for process in (0, 1):
        assert f"process {process} of 2: " in in_a_notebook[1]
    assert in_a_notebook[1].count("one modality") == 2


def test_a_script_that_was_not_launched_is_one_process():
    assert processes.start().num_processes == processes.count() == 1 and processes.number() == 0
    assert processes.own([[3], [1, 2]]) == [[3], [1, 2]] and processes.gathered([1]) == [1]
    assert processes.own_indices(3, lambda: pytest.fail("planned in vain")) == [0, 1, 2]
    assert processes.total(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n_processes", [2, 3, 5])
def test_a_part_of_the_batches_is_cut_into_the_same_batches(trained, benchmark, monkeypatch, shared, n_processes):
    every = [q for task in TASKS for m in MODALITIES for q in evaluation_questions(benchmark.forget, task, m)]
    make = plan_shared_batches if shared else plan_batches
    plan = make(every, trained[1], 32, True)
    assert sorted(index for batch in plan for index in batch) == list(range(len(every)))
    monkeypatch.setattr(processes, "count", lambda: n_processes)
    for process in range(n_processes):
        monkeypatch.setattr(processes, "number", lambda process=process: process)
        indices = processes.own_indices(len(every), lambda: plan)
        again = make([every[index] for index in indices], trained[1], 32, True)
        assert [[indices[index] for index in batch] for batch in again] == processes.own(plan)
