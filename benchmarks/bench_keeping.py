"""Running sums against keeping the activations, as the code released with the paper does: time and peak memory per sample.

What is imitated of the released collection, on the CPU where there is no GPU: batches of 4 in the order of the questions;
hooks on the *outputs* of all linear layers of every MLP; every position counts, padding too; values in float32, clamped to
±1000, moved to the CPU and appended to a list per layer; lists concatenated and reduced to mean |z|, share of |z| > τ,
standard deviation and root mean square.

- "keep": one pass over all questions, reduced at the end.
- "keep in chunks": as released, ten batches at a time, the loader started again for every chunk and run to its end.

To be fair to it, each layer is hooked once, not three times under different names, and the reduction is plainer than theirs.
Ours runs as users run it, in batches of 32 that see each image once, and in batches of 4 as well, to tell the gain of
large batches from the rest. Each size and way is a process of its own; in it the fastest of some rounds counts, after a
warm-up.
"""

import argparse
import subprocess
import sys
import time

import torch

from bench_scoring import own_peak_mb, questions_of
from manu_utils.activations import collect_activations
from manu_utils.batches import encode
from manu_utils.models import load_model
from manu_utils.neurons import find_neurons
from report import report

RELEASED_BATCH = 4
CHUNK = 10  # batches
CLAMP, TAU = 1e3, 0.1
MIN_SPEED_UP = 5.0
MAX_GROWTH_MB = 32  # runs of one size differ by 15; what is kept grows by hundreds


def ours(model, processor, questions):
    return collect_activations(model, processor, questions, progress=False)


def ours_in_small_batches(model, processor, questions):
    return collect_activations(model, processor, questions, batch_size=RELEASED_BATCH, progress=False)


def loader(model, processor, questions):
    for start in range(0, len(questions), RELEASED_BATCH):
        yield encode(questions[start : start + RELEASED_BATCH], processor, with_answer=True, device=model.device)


def reduce(kept):
    """layer -> mean |z|, share of |z| > τ, standard deviation, root mean square, each [n]."""
    found = {}
    for path, values in kept.items():
        z = torch.cat(values)
        found[path] = (z.abs().mean(0), (z.abs() > TAU).float().mean(0), z.std(0), z.pow(2).mean(0).sqrt())
    return found


@torch.no_grad()
def keep(model, processor, questions, chunk=None):
    """Keeps all activations of all questions, or of ``chunk`` batches at a time."""
    kept, results = {}, []

    def append(path):
        def hook(module, inputs, output):
            z = output.detach().float().clamp(-CLAMP, CLAMP).cpu().clone()
            kept.setdefault(path, []).append(z.flatten(0, -2))

        return hook

    hooks = []
    n_batches = -(-len(questions) // RELEASED_BATCH)
    chunk = chunk or n_batches
    try:
        for mlp in find_neurons(model):
            for number, linear in enumerate((*mlp.inputs, mlp.output)):
                hooks.append(linear.register_forward_hook(append(f"{mlp.path}.{number}")))
        for start in range(0, n_batches, chunk):
            for number, batch in enumerate(loader(model, processor, questions)):
                if start <= number < start + chunk:
                    batch.pop("answer_mask")
                    model.model(**batch, use_cache=False)
            results.append(reduce(kept))
            kept.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return {path: torch.stack([torch.stack(result[path]) for result in results]).mean(0) for path in results[0]}


def keep_in_chunks(model, processor, questions):
    return keep(model, processor, questions, CHUNK)


WAYS = {
    "running sums": ours,
    "running sums in batches of 4": ours_in_small_batches,
    "keep": keep,
    "keep in chunks": keep_in_chunks,
}


def child(way, number, modality, rounds):
    """Prints seconds and peak MB of one way and size. On a CPU the seconds are of the processor, whatever else it does."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    model, processor = load_model("tiny")
    questions = questions_of(modality, number)
    WAYS[way](model, processor, questions[:RELEASED_BATCH])  # warm up
    times = []
    for _ in range(rounds):
        started = clock()
        WAYS[way](model, processor, questions)
        times.append(clock() - started)
    print(min(times), own_peak_mb())


def measure(way, number, modality, rounds):
    command = [sys.executable, __file__, "--child", way, "--samples", str(number), "--modality", modality]
    command += ["--rounds", str(rounds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()[-2:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--modality", default="multimodal", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, default=32, help="1x; 16 times as many are kept at once")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child, arguments.samples, arguments.modality, arguments.rounds)

    rows, checks = [], {}
    for modality in ("multimodal", "text"):
        per_sample, peak = {}, {}
        for factor in (1, 4, 16):
            number = factor * arguments.samples
            for way in WAYS:
                seconds, peak[way, factor] = measure(way, number, modality, arguments.rounds)
                per_sample[way, factor] = 1000 * seconds / number
                rows += [
                    (f"{modality}: {way}, {number} samples, per sample", per_sample[way, factor], "ms"),
                    (f"{modality}: {way}, {number} samples, peak memory", peak[way, factor], "MB"),
                ]
            for way in list(WAYS)[1:]:
                rows.append((f"{modality}: {way} / running sums, {number} samples",
                             per_sample[way, factor] / per_sample["running sums", factor], "x"))  # fmt: skip
        growth = peak["running sums", 16] - peak["running sums", 4]  # 1 x does not fill a batch
        checks[f"{modality}: running sums: peak memory grows by at most {MAX_GROWTH_MB} MB from 4 x to 16 x"] = (
            growth <= MAX_GROWTH_MB
        )
        checks[f"{modality}: running sums are at least {MIN_SPEED_UP:g} x as fast per sample as keeping, at 16 x"] = (
            per_sample["keep", 16] >= MIN_SPEED_UP * per_sample["running sums", 16]
        )
    return report("keeping", rows, checks)


if __name__ == "__main__":
    sys.exit(main())
