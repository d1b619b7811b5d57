"""Unlearning on all devices: score, prune, evaluate, save. Copy it and change what it loads.

    python examples/unlearn_on_several_gpus.py  # one process
    accelerate launch --num_processes 4 examples/unlearn_on_several_gpus.py  # four GPUs
    accelerate launch --multi_gpu --num_processes 2 examples/unlearn_on_several_gpus.py  # two, CPU

All three print the same table and save the same weights. (``--multi_gpu`` is how accelerate is told
to start several processes; with ``--cpu`` it starts one.)
"""

import argparse
import random

from manu_utils.benchmark import MODALITIES, load_benchmark
from manu_utils.evaluation import evaluate, summarise
from manu_utils.models import load_model, save_model
from manu_utils.processes import start
from manu_utils.unlearning import PRUNINGS, unlearn


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="tiny, a folder or a Hub id")
    parser.add_argument("--data", default="tiny", help="tiny, a folder or a Hub id")
    parser.add_argument("--forget-ratio", type=int, default=10)
    parser.add_argument("--variant", default="coverage", choices=PRUNINGS)
    parser.add_argument("--alpha", type=float, default=5.0, help="percentage of neurons")
    parser.add_argument(
        "--questions",
        type=int,
        default=600,
        help="at most so many of each set and modality are scored",
    )
    parser.add_argument("--people", type=int, help="evaluate at most so many of each set")
    parser.add_argument("--save", help="folder for the pruned model")
    parser.add_argument("--table", help="CSV for the answers")
    arguments = parser.parse_args()

    accelerator = start()
    model, processor = load_model(arguments.model, device=accelerator.device)
    benchmark = load_benchmark(arguments.data, arguments.forget_ratio)
    questions = {}
    for people in ("forget", "retain"):
        questions[people] = {m: benchmark.training_questions(people, m) for m in MODALITIES}
        for modality, every in questions[people].items():  # the same sample on every process
            questions[people][modality] = random.Random(0).sample(
                every, min(arguments.questions, len(every))
            )
    sets = benchmark.sets()
    if arguments.people:
        sets = {
            name: dataset.select(range(min(arguments.people, len(dataset))))
            for name, dataset in sets.items()
        }

    variant, alpha = arguments.variant, arguments.alpha
    unlearn(
        model, processor, questions["forget"], questions["retain"], variant=variant, alpha=alpha
    )
    frame = evaluate(model, processor, sets)
    # every process has the same model and the same table; one writes
    if accelerator.is_main_process:
        print(summarise(frame).to_string(index=False))
        if arguments.table:
            frame.to_csv(arguments.table, index=False)
        if arguments.save:
            save_model(model, processor, arguments.save)
    accelerator.end_training()


if __name__ == "__main__":
    main()
