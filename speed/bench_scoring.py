"""What the scoring pass costs against bare forward passes, and whether its memory grows.

Two bare passes, without hooks or logits: of batches as anybody would make them, and of the shared
batches that scoring makes for LLaVA, in which each image is seen once. All passes tokenise and
encode the same questions. They alternate, and the fastest of several rounds counts; on a CPU the
time is that of the processor, whatever else the machine does. The time of encoding alone is
measured too, so that the ratio of the computation is also known. Peak memory is that of processes
of their own, several for each size.
"""

import argparse
import subprocess
import sys
import time

import torch

from manu_utils.benchmark.loading import load_benchmark
from manu_utils.models.encoding import batches
from manu_utils.models.loading import load_model
from manu_utils.models.prefix_tree import additive_mask, shared_batches
from manu_utils.processes import own_peak_mb
from manu_utils.unlearning.activations import collect_activations
from report import report, spread

BATCH = 32
MAX_RATIO = 1.10
# Of the peak, from 1 x to 20 x the samples. More samples hold longer ones, and the allocator keeps
# what it once had: 3 to 5 % in all. If activations were kept, the peak would be much higher.
MAX_GROWTH = 1.10
EQUAL_RUNS = 3  # of each peak
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


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
    for _, batch in shared_batches(
        questions, processor, BATCH, with_answer=True, device=model.device
    ):
        inputs = {
            key: batch[key] for key in ("input_ids", "position_ids", "pixel_values") if key in batch
        }
        model.model(
            **inputs,
            attention_mask=additive_mask(batch["attention_mask"], model),
            use_cache=False,
        )


def encoding(model, processor, questions):
    for _ in shared_batches(questions, processor, BATCH, with_answer=True, device=model.device):
        pass


def scoring(model, processor, questions):
    collect_activations(model, processor, questions, batch_size=BATCH, progress=False)


def seconds(function, *arguments):
    started = clock()
    function(*arguments)
    return clock() - started


def peaks_mb(number, modality):
    """Peak memory of some processes that load the model and score `number` questions."""
    command = [sys.executable, __file__, "--child", str(number), "--modality", modality]
    runs = [
        subprocess.run(command, check=True, capture_output=True, text=True)
        for _ in range(EQUAL_RUNS)
    ]
    return [float(done.stdout.split()[-1]) for done in runs]


def child(number, modality):
    model, processor = load_model("tiny")
    scoring(model, processor, questions_of(modality, number))
    print(own_peak_mb())


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
            (
                f"{modality}: scoring / bare of shared batches, without encoding",
                (scored - encoded) / (shared - encoded),
                "x",
            ),
        ]
        for name, pass_ in (
            ("bare pass", bare_forward),
            ("bare pass of shared batches", bare_shared),
        ):
            bound = MAX_RATIO * (1 + spread(rounds[pass_], rounds[scoring]))
            checks[f"{modality}: scoring costs at most {bound:.2f} x a {name}"] = (
                scored <= bound * min(rounds[pass_])
            )
        one, twenty = (peaks_mb(n * arguments.samples, modality) for n in (1, 20))
        rows += [(f"{modality}: peak memory, {arguments.samples} samples", min(one), "MB"),
                 (f"{modality}: peak memory, {20 * arguments.samples} samples", min(twenty),
                  "MB")]  # fmt: skip
        bound = MAX_GROWTH * (1 + spread(one, twenty))
        checks[
            f"{modality}: peak memory at 20 x the samples is at most {bound:.2f} x that at 1 x"
        ] = min(twenty) <= bound * min(one)
    return report("scoring", rows, checks)


if __name__ == "__main__":
    sys.exit(main())
