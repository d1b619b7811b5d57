"""What the scoring pass costs, against bare forward passes over the same questions, and whether its memory grows.

Two bare passes, without hooks or logits: of batches as anybody would make them, and of the shared batches that scoring makes
for LLaVA, in which each image is seen once. All passes tokenise and encode the same questions. They alternate, so that a busy
machine slows all alike, and the fastest of several rounds counts. The time of encoding alone is measured too, so that the
ratio of the computation is also known. Peak memory is that of a process of its own for each size.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from manu_utils.activations import collect_activations
from manu_utils.batches import batches, shared_batches
from manu_utils.benchmark import load_benchmark
from manu_utils.models import load_model
from manu_utils.shared import additive_mask
from report import report

BATCH = 32
MAX_RATIO = 1.10
MAX_GROWTH_MB = 16  # of the peak, from 1x to 20x samples: a batch's worth of allocator noise, not 20 batches


def questions_of(modality, number):
    questions = load_benchmark("tiny").training_questions("retain", modality)
    return (questions * (number // len(questions) + 1))[:number]


@torch.no_grad()
def bare_forward(model, processor, questions):
    for _, batch in batches(questions, processor, BATCH, with_answer=True, device=model.device):
        inputs = {key: value for key, value in batch.items() if key != "answer_mask"}
        model.model(**inputs, use_cache=False)


@torch.no_grad()
def bare_shared(model, processor, questions):
    for _, batch in shared_batches(questions, processor, BATCH, with_answer=True, device=model.device):
        inputs = {key: batch[key] for key in ("input_ids", "position_ids", "pixel_values") if key in batch}
        model.model(**inputs, attention_mask=additive_mask(batch["attention_mask"], model.dtype), use_cache=False)


def encoding(model, processor, questions):
    for _ in shared_batches(questions, processor, BATCH, with_answer=True, device=model.device):
        pass


def scoring(model, processor, questions):
    collect_activations(model, processor, questions, batch_size=BATCH, progress=False)


def seconds(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def peak_mb(number, modality):
    """Peak memory of a process that loads the model and scores `number` questions."""
    command = [sys.executable, __file__, "--child", str(number), "--modality", modality]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def child(number, modality):
    model, processor = load_model("tiny")
    scoring(model, processor, questions_of(modality, number))
    print(own_peak_mb())


def own_peak_mb():
    """Peak resident memory of this process. On Linux ``ru_maxrss`` would start at the peak of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    import resource  # not on Windows, where only the timings run

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--modality", default="multimodal", help=argparse.SUPPRESS)
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=64, help="1x of the memory measurement")
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child, arguments.modality)

    model, processor = load_model("tiny")
    rows, checks = [], {}
    for modality in ("multimodal", "text"):
        questions = questions_of(modality, arguments.questions)
        rounds = {encoding: [], bare_forward: [], bare_shared: [], scoring: []}
        for function in rounds:  # warm up
            function(model, processor, questions[: 2 * BATCH])
        for _ in range(arguments.rounds):
            for function, times in rounds.items():
                times.append(seconds(function, model, processor, questions))
        encoded, bare, shared, scored = (min(times) for times in rounds.values())
        rows += [
            (f"{modality}: bare forward", bare, "s"),
            (f"{modality}: bare forward of shared batches", shared, "s"),
            (f"{modality}: scoring pass", scored, "s"),
            (f"{modality}: encoding of shared batches", encoded, "s"),
            (f"{modality}: scoring / bare", scored / bare, "x"),
            (f"{modality}: scoring / bare of shared batches", scored / shared, "x"),
            (f"{modality}: scoring / bare of shared batches, without encoding", (scored - encoded) / (shared - encoded), "x"),
        ]
        for name, floor in (("bare pass", bare), ("bare pass of shared batches", shared)):
            checks[f"{modality}: scoring costs at most {MAX_RATIO} x a {name}"] = scored / floor <= MAX_RATIO
        if sys.platform == "win32":
            continue
        one, twenty = (peak_mb(n * arguments.samples, modality) for n in (1, 20))
        rows += [(f"{modality}: peak memory, {arguments.samples} samples", one, "MB"),
                 (f"{modality}: peak memory, {20 * arguments.samples} samples", twenty, "MB")]  # fmt: skip
        checks[f"{modality}: peak memory grows by at most {MAX_GROWTH_MB} MB at 20 x the samples"] = (
            twenty - one <= MAX_GROWTH_MB
        )
    return report("scoring", rows, checks)


if __name__ == "__main__":
    sys.exit(main())
