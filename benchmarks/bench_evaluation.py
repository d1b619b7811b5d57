"""Batched evaluation against one question at a time: the same table, several times as fast."""

import argparse
import sys
import time

from manu_utils.benchmark import load_benchmark
from manu_utils.evaluation import evaluate
from manu_utils.models import load_model

from report import report

MIN_SPEED_UP = 6.0


def answers(frame):
    keys = ["set", "task", "modality", "metric", "person_id", "question"]
    return frame.sort_values(keys)["answer"].astype(str).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    model, processor = load_model("tiny")
    benchmark = load_benchmark("tiny")
    sets = {"forget": benchmark.forget.select(range(min(arguments.people, len(benchmark.forget))))}

    frames, seconds = {}, {}
    evaluate(model, processor, {"forget": sets["forget"].select([0])}, progress=False)  # warm up
    for size in (arguments.batch_size, 1):
        started = time.perf_counter()
        frames[size] = evaluate(model, processor, sets, batch_size=size, progress=False)
        seconds[size] = time.perf_counter() - started

    batched, single = frames[arguments.batch_size], frames[1]
    same = answers(batched) == answers(single)
    speed_up = seconds[1] / seconds[arguments.batch_size]
    rows = [
        ("questions x metrics", len(batched), ""),
        ("one at a time", seconds[1], "s"),
        (f"batches of {arguments.batch_size}", seconds[arguments.batch_size], "s"),
        ("one at a time / batched", speed_up, "x"),
    ]
    checks = {
        "batched and single answers are the same": same,
        f"batches are at least {MIN_SPEED_UP:g} x as fast": speed_up >= MIN_SPEED_UP,
    }
    return report("evaluation", rows, checks)


if __name__ == "__main__":
    sys.exit(main())
