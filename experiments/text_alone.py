"""The settings of notebook 10, looked for on stand-in authors: data/results/text_alone.csv.

    python experiments/text_alone.py        # about six minutes of one core; a killed run goes on

The first four authors of tofu_mini stand in for the last four, whom the notebook reports on and who
are left alone here. A model that was never taught the stand-ins is the reference. Every setting of
every method is held against it: the distance of the Kolmogorov-Smirnov test between the truth
ratios, and the share of exact answers about the stand-ins, the authors kept and the known ones.

The notebook takes, of each method, the smallest distance among the settings that keep four fifths
of what vanilla says exactly about the authors kept; where none does, the one that keeps most. The
number of steps is looked at along one run, since the learning rate does not decay.
"""

import random
from functools import cache

import torch

from manu_utils.auditing.distances import ks_distance
from manu_utils.benchmark.tofu import TofuSet
from manu_utils.evaluation.tofu import ask_tofu, forget_quality
from manu_utils.miniature import text_model
from manu_utils.miniature.authors import FACTS
from manu_utils.miniature.text_model import author_lessons, lesson
from manu_utils.miniature.text_world import FORGET, draw_world, perturbed
from manu_utils.models.asking import known
from manu_utils.paths import data_dir
from manu_utils.unlearning.baselines import METHODS, unlearn_by_training
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.pruning import select_neurons
from manu_utils.unlearning.scores import switched_score
from sweep import BUILD, QUIET, RESULTS, at_steps, begin, fingerprint, kept, strengths, sweep

PLACE, DATA = BUILD / "text_alone", data_dir() / "tofu_mini"
N = FORGET[10]
N_RETAIN = 200  # questions of the authors kept that a method is given, as in the notebook
STRENGTHS = {
    "paper": (2.0, 5.0, 10.0, 20.0, 30.0),
    "coverage": (2.0, 5.0, 10.0, 20.0, 30.0),
    "rewrite": (1, 2, 4, 8),
}
STEPS, TRAINING = (6, 8, 10, 12, 14, 16, 20, 26), {"lr": 1e-4, "batch_size": 24}
#: What every model of text_model depends on.
RECIPE = [
    text_model.SCHOOL, text_model.LESSONS, text_model.BATCH, text_model.BESIDE,
    text_model.PENALTY, text_model.NEURONS, text_model.HIDDEN, text_model.LAYERS,
]  # fmt: skip
COLUMNS = ["method", "setting", "distance", "quality", "forget", "retain", "known authors"]


def model_of(name: str, taught=None):
    """(model, processor), kept in build: the base, or the base taught these authors."""
    model, processor = text_model.build_language_model() if taught is None else model_of("base")

    def train():
        if taught is None:
            text_model.go_to_school(model, processor)
        else:
            text_model.teach(model, processor, author_lessons(taught))

    place = PLACE / f"{name}-{state_of(recipe_only=True)}.safetensors"
    return kept(place, model, train), processor


def set_of(authors) -> TofuSet:
    """The perturbed questions about some authors."""
    rng = random.Random("stand-ins")
    rows = [(author.name, perturbed(author, fact, rng)) for author in authors for fact in FACTS]
    return TofuSet(
        [lesson(who, row["question"], row["answer"]) for who, row in rows],
        [[lesson(who, row["question"], a) for a in row["perturbed_answer"]] for who, row in rows],
        [lesson(who, row["question"], row["paraphrased_answer"]) for who, row in rows],
        [],
    )


def plain(
    evidence: Evidence, method: str, alpha: float, *, seed: int = 0, exclude=None
) -> torch.Tensor:
    """What a pruning chooses; ``paper`` without the contrast, which one modality does not have.

    Args:
        exclude: neurons that are not to be chosen, bool [n_neurons].
    """
    if method != "paper":
        return evidence.choose(method, alpha, seed=seed, exclude=exclude)
    sums = (evidence.statistics(name) for name in ("forget", "retain"))
    scores = switched_score(*sums, mlps=evidence.mlps, contrast=False)
    if exclude is not None:
        scores = scores.masked_fill(exclude, -torch.inf)
    return select_neurons(scores, evidence.mlps, alpha)


def state_of(recipe_only: bool = False) -> str:
    if recipe_only:
        return fingerprint(repr(RECIPE))
    return fingerprint(repr([*RECIPE, STRENGTHS, STEPS, TRAINING]), DATA / "full.json")


def run() -> None:
    world = draw_world()
    forget_of, kept = world.authors[:N], world.authors[N:-N]
    asked = {"forget": set_of(forget_of)}
    lessons = {"forget": author_lessons(forget_of), "retain": author_lessons(kept)}
    sample = random.Random(0).sample(lessons["retain"], N_RETAIN)
    given = [{"text": lessons["forget"]}, {"text": sample}]
    panels = {
        "forget": lessons["forget"],
        "retain": random.Random(1).sample(lessons["retain"], 160),
        "known authors": random.Random(1).sample(author_lessons(world.public), 80),
    }

    @cache
    def ratios_of_retrained() -> list[float]:
        model, processor = model_of("stand-ins", world.authors[N:])
        return list(ask_tofu(model, processor, asked, generate=False, **QUIET)["truth_ratio"])

    def measure(model, processor) -> dict:
        ratios = ask_tofu(model, processor, asked, generate=False, **QUIET)["truth_ratio"]
        found = {"distance": ks_distance(ratios, ratios_of_retrained())}
        found["quality"] = forget_quality(ratios, ratios_of_retrained())
        for name, questions in panels.items():
            found[name] = known(model, processor, questions, **QUIET).double().mean().item()
        return found

    def rows_of(method: str) -> list[dict]:
        if method == "retrained":
            return [{"setting": 0} | measure(*model_of("stand-ins", world.authors[N:]))]
        model, processor = model_of("vanilla", world.authors)
        if method == "vanilla":
            return [{"setting": 0} | measure(model, processor)]
        if method in METHODS:
            rows = []

            def look(step: int) -> None:
                rows.append({"setting": step} | measure(model, processor))

            options = {**at_steps(STEPS, look), **TRAINING, **QUIET}
            unlearn_by_training(method, model, processor, *given, **options)
            return rows
        evidence = Evidence(model, processor, *given, modalities=("text",), **QUIET)
        return [
            {"setting": strength} | measure(model, processor)
            for strength in strengths(evidence, method, STRENGTHS[method], choose=plain)
        ]

    methods = ("vanilla", "retrained", *STRENGTHS, *METHODS)
    units = [({"method": method}, lambda method=method: rows_of(method)) for method in methods]
    sweep(RESULTS / "text_alone.csv", COLUMNS, units, float_format="%.4g")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = RESULTS / "text_alone.csv"
    begin(state_of(), place.with_suffix(".json"), "python experiments/text_alone.py", [place])
    run()
