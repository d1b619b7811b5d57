"""One process against two on a CPU, one thread each, at scoring and evaluation.

Both have to find the same.

The processes are launched as a user's would be; the time is that of the work between two barriers,
without start-up and loading. What a second process can gain depends on the machine: two virtual
cores may be one, and other programs may want them. So a yardstick is timed in the same rounds,
matrix products that need nothing of each other, and the gain is compared with its.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench_scoring import questions_of
from manu_utils.benchmark.loading import load_benchmark
from manu_utils.evaluation.tables import evaluate
from manu_utils.models.loading import load_model
from manu_utils.processes import start
from manu_utils.unlearning.activations import collect_activations
from report import report, spread

# Of the yardstick's gain: the last batches do not come out even, and each process builds the table.
MIN_SHARE = 0.6
YARDSTICK = "products alone"


def child(questions, people, rounds, products, path):
    """Writes what this number of processes found and the seconds that it took."""
    accelerator = start()
    model, processor = load_model("tiny", device=accelerator.device)
    retain = load_benchmark("tiny").retain
    sets = {"retain": retain.select(range(min(people, len(retain))))}
    asked = questions_of("multimodal", questions)

    def score(asked=asked):
        sums = collect_activations(model, processor, asked, progress=False)
        return [sums.total.sum().item(), sums.total_squares.sum().item(), int(sums.n_active.sum())]

    def ask(sets=sets):
        return evaluate(model, processor, sets, progress=False)["answer"].tolist()

    def multiply():
        matrix = torch.ones(256, 256) / 256
        for _ in range(products // accelerator.num_processes):
            matrix = matrix @ matrix
        return round(matrix.sum().item())

    work = {"scoring": score, "evaluation": ask, YARDSTICK: multiply}
    score(asked[:64])  # warm up
    seconds = {name: [] for name in work}
    found = {}
    for _ in range(rounds):
        for name, function in work.items():
            accelerator.wait_for_everyone()
            started = time.perf_counter()
            found[name] = function()
            accelerator.wait_for_everyone()
            seconds[name].append(time.perf_counter() - started)
    if accelerator.is_main_process:
        Path(path).write_text(json.dumps({"seconds": seconds, "found": found}), encoding="utf-8")
    accelerator.end_training()


def launch(processes, options):
    """seconds and found of :func:`child` in so many processes."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
                    "--mixed_precision", "no", "--dynamo_backend", "no",
                    "--main_process_port", "0", "--num_processes", str(processes)]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(
            [*command, __file__, "--child", str(path), *options], check=True, env=environment
        )
        return json.loads(path.read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--questions", type=int, default=1500)
    parser.add_argument("--people", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--products", type=int, default=4000, help="of the yardstick, 256 x 256")
    arguments = parser.parse_args()
    if arguments.child:
        return child(
            arguments.questions,
            arguments.people,
            arguments.rounds,
            arguments.products,
            arguments.child,
        )

    names = ("questions", "people", "rounds", "products")
    options = [word for name in names for word in (f"--{name}", str(getattr(arguments, name)))]
    one, two = (launch(processes, options) for processes in (1, 2))
    rows, checks = [], {}
    gain = {name: min(one["seconds"][name]) / min(two["seconds"][name]) for name in one["seconds"]}
    for name in one["seconds"]:
        rows += [
            (f"{name}: one process", min(one["seconds"][name]), "s"),
            (f"{name}: two processes", min(two["seconds"][name]), "s"),
            (f"{name}: one / two", gain[name], "x"),
        ]
        if name == YARDSTICK:
            continue
        checks[f"{name}: two processes find the same as one"] = (
            one["found"][name] == two["found"][name]
        )
        times = [found["seconds"][key] for found in (one, two) for key in (name, YARDSTICK)]
        bound = MIN_SHARE * gain[YARDSTICK] / (1 + spread(*times))
        checks[f"{name}: two processes are at least {bound:.2f} x as fast"] = gain[name] >= bound
    return report("parallel", rows, checks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
