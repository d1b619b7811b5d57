"""The official protocol in batches against one prompt at a time: the same answers, but faster.

"One at a time" is the official loop: a prompt is encoded with all its pictures and continued by
``generate`` on its own. In a batch the shots, which most prompts of a set begin with, are read
once, and each picture is seen once. Process time (on a GPU wall time), task by task; the two ways
alternate, and what counts is the median of the rounds' ratios.
"""

import argparse
import sys
import time
import warnings
from statistics import median

import torch

from manu_utils.benchmark.loading import load_benchmark, load_config
from manu_utils.benchmark.records import MODALITIES, TASKS
from manu_utils.evaluation.official import official_prompts
from manu_utils.evaluation.shots import encode_prompts, respond
from manu_utils.models.loading import load_model
from report import report

MIN_SPEED_UP = 3.0
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


@torch.no_grad()
def respond_alone(model, processor, prompts):
    """`respond` as the official code does it."""
    decoded = []
    for one in prompts:
        batch = encode_prompts([one], processor, model.device)
        ids = model.generate(**batch, do_sample=False, max_new_tokens=50)[0]
        decoded.append(processor.tokenizer.decode(ids[2:], skip_special_tokens=True))
    return decoded


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=12, help="of each set")
    parser.add_argument("--sets", nargs="+", default=["forget"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # Few shots go beyond the positions of the miniature.
    warnings.filterwarnings("ignore", "prompts of up to")
    model, processor = load_model("tiny")
    full, sets = load_config("tiny", "Full_Set"), load_benchmark("tiny").sets()
    sets = {
        name: sets[name].select(range(min(arguments.people, len(sets[name]))))
        for name in arguments.sets
    }

    def in_batches(size):
        return lambda prompts: respond(
            model, processor, prompts, echo=True, batch_size=size, progress=False
        )

    ways = {
        "one at a time": lambda prompts: respond_alone(model, processor, prompts),
        "batch_size=1": in_batches(1),
        f"batch_size={arguments.batch_size}": in_batches(arguments.batch_size),
    }
    rows, speed_ups, same = [], {}, True
    for task in TASKS:
        prompts = [
            one
            for name, dataset in sets.items()
            for modality in MODALITIES
            for one in official_prompts(dataset, full, name, task, modality, processor, seed=0)
        ]
        seconds = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            answers = []
            for way, run in ways.items():
                started = clock()
                answers.append(run(prompts))
                seconds[way].append(clock() - started)
            same = same and answers[0] == answers[1] == answers[2]
        alone, single, batched = seconds.values()
        speed_ups[task] = median(one / other for one, other in zip(alone, batched, strict=True))
        rows += [(f"{task}: prompts", len(prompts), "")]
        for way, times in seconds.items():
            rows += [(f"{task}: {way}", median(times), f"s ({min(times):.2f} to {max(times):.2f})")]
        rows += [(f"{task}: one at a time / in batches", speed_ups[task], "x")]
        rows += [
            (
                f"{task}: batch_size=1 / in batches",
                median(a / b for a, b in zip(single, batched, strict=True)),
                "x",
            )
        ]
    checks = {
        "answers in batches are those of one prompt at a time": same,
        f"batches are at least {MIN_SPEED_UP:g} x as fast in every task": min(speed_ups.values())
        >= MIN_SPEED_UP,
    }
    return report("official", rows, checks)


if __name__ == "__main__":
    sys.exit(main())
