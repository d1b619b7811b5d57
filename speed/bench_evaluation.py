"""Batched evaluation against one question at a time: the same table, several times as fast.

"One at a time" is the official loop: every question is encoded, answered by ``generate`` with up to
50 tokens and judged on its own, its options likewise, each in a pass of its own.
``evaluate(batch_size=1)``, which stops earlier and skips what it need not compute, is timed as
well, to tell the gain of batches from the rest. The runs alternate and the fastest round counts; on
a CPU the time is that of the processor, whatever else the machine does.
"""

import argparse
import sys
import time
from dataclasses import replace

import torch
from rouge_score.rouge_scorer import RougeScorer

from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import MODALITIES, TASKS
from manu_utils.evaluation.judging import judge
from manu_utils.evaluation.tables import evaluate
from manu_utils.models.asking import answer_logits
from manu_utils.models.encoding import encode
from manu_utils.models.loading import load_model
from report import report, spread

# Half of what was measured: how much a large product gains over small ones differs between CPUs.
MIN_SPEED_UP = 4.0
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def likeliest_alone(model, processor, question):
    """`likeliest_options` of one question, option by option."""
    asked = replace(question, question=f"{question.question} __", task="cloze", options=None)
    means = {}
    for letter, words in question.options.items():
        batch = encode(
            [replace(asked, answer=words)], processor, with_answer=True, device=model.device
        )
        logits, targets, _ = answer_logits(model, batch)
        means[letter] = logits.float().log_softmax(-1).gather(1, targets[:, None]).mean().item()
    return max(means, key=means.get)


@torch.no_grad()
def one_at_a_time(model, processor, sets):
    """(metric, answer, value) of every question, in the order of `evaluate`."""
    tokenizer = processor.tokenizer
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    results = []
    for dataset in sets.values():
        for task in TASKS:
            for question in [
                q for modality in MODALITIES for q in evaluation_questions(dataset, task, modality)
            ]:
                batch = encode([question], processor, with_answer=False, device=model.device)
                ids = model.generate(**batch, do_sample=False, max_new_tokens=50)[
                    0, batch["input_ids"].shape[1] :
                ]
                response, letter = tokenizer.decode(ids, skip_special_tokens=True).strip(), ""
                if question.options:
                    letter = likeliest_alone(model, processor, question)
                results += [
                    (metric, *result)
                    for metric, result in judge(question, response, letter, scorer).items()
                ]
    return results


def results_of(frame):
    return list(zip(frame["metric"], frame["answer"], frame["value"], strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    model, processor = load_model("tiny")
    forget = load_benchmark("tiny").forget
    sets = {"forget": forget.select(range(min(arguments.people, len(forget))))}

    def batches_of(size):
        return lambda sets: results_of(
            evaluate(model, processor, sets, batch_size=size, progress=False)
        )

    ways = {
        "one at a time": lambda sets: one_at_a_time(model, processor, sets),
        "evaluate(batch_size=1)": batches_of(1),
        f"evaluate(batch_size={arguments.batch_size})": batches_of(arguments.batch_size),
    }
    results, seconds = {}, {way: [] for way in ways}
    for run in ways.values():  # warm up
        run({"forget": forget.select([0])})
    for _ in range(arguments.rounds):
        for way, run in ways.items():
            started = clock()
            results[way] = run(sets)
            seconds[way].append(clock() - started)
    official, single, batched = ways
    fastest = {way: min(times) for way, times in seconds.items()}
    speed_up = fastest[official] / fastest[batched]
    bound = MIN_SPEED_UP / (1 + spread(seconds[official], seconds[batched]))
    rows = [("questions x metrics", len(results[batched]), "")]
    rows += [(way, time, "s") for way, time in fastest.items()]
    rows += [
        (f"{official} / {batched}", speed_up, "x"),
        (f"{single} / {batched}", fastest[single] / fastest[batched], "x"),
    ]
    checks = {
        "batched and single answers are the same": results[batched] == results[single],
        "and those of the official loop are, too": results[batched] == results[official],
        f"batches are at least {bound:.1f} x as fast as the official loop": speed_up >= bound,
    }
    return report("evaluation", rows, checks)


if __name__ == "__main__":
    sys.exit(main())
