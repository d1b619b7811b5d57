"""The planted twin of notebook 07b: its neurons per person are known, so a choice has precision and
recall.
"""

import random
import time
from functools import partial

import torch
from torch import Tensor

import ways
from lab import RATIO, Lab, Unit
from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.questions import open_questions
from manu_utils.benchmark.records import MODALITIES
from manu_utils.miniature.planted import draw_owners, plant
from manu_utils.models.fingerprints import fingerprint
from manu_utils.models.loading import load_model
from manu_utils.unlearning.scores import VARIANTS
from sweep import BUILD, kept, say

N_PLANTED, N_FORGET, PER_LAYER, STEPS = 12, 3, 40, 160


class PlantedLab(Lab):
    """A few of the planted people are to be forgotten, the others are the retain set.

    Args:
        owners: person -> the neurons that were planted for them.
        draw: seed of who is to be forgotten.
    """

    def __init__(self, model, processor, owners: dict[str, Tensor], draw: int):
        super().__init__(model, processor)
        self.people = {"forget": sorted(random.Random(draw).sample(list(owners), N_FORGET))}
        self.people["retain"] = sorted(set(owners) - set(self.people["forget"]))
        self.planted = torch.stack([owners[person] for person in self.people["forget"]]).any(0)

    def questions(self, people, ratio, seed=0, n=None) -> dict:
        of, benchmark = self.people[people], self.benchmark(RATIO)
        return {m: benchmark.training_questions(of, m) for m in MODALITIES}

    def panels(self, ratio: int) -> dict[tuple[str, str], list]:
        sets = {name: self.questions(name, RATIO) for name in self.people}
        asked = {(name, m): of[m] for name, of in sets.items() for m in MODALITIES}
        return asked | {k: of for k, of in super().panels(RATIO).items() if k[0] == "celebrity"}

    def measure(self, chosen, ratio=RATIO):
        rows = super().measure(chosen, ratio)
        if chosen is None:
            return rows
        hits = int((chosen & self.planted).sum())
        for name, n in (("precision", int(chosen.sum())), ("recall", int(self.planted.sum()))):
            rows = [*rows, {"set": "planted", "modality": name, "value": hits / n, "n": n}]
        return rows


def planted_twin():
    """(model, processor, owners), trained once and kept in build/ablations."""
    model, processor = load_model("tiny-base")
    benchmark = load_benchmark("tiny", RATIO)
    people = sorted(random.Random(0).sample(benchmark.retain_ids, N_PLANTED))
    owners = draw_owners(model, people, PER_LAYER)

    def train():
        questions = {
            m: benchmark.training_questions(people, m) + open_questions(benchmark.celebrity, m)
            for m in MODALITIES
        }
        started = time.process_time()
        plant(model, processor, questions, owners, steps=STEPS, quiet=0.2)
        say(started, f"planted {N_PLANTED} people")

    place = BUILD / "ablations" / f"planted-{fingerprint(model, processor)[:16]}.safetensors"
    return kept(place, model, train), processor, owners


def planted_units(labs: dict[int, PlantedLab]) -> list[tuple[Lab, Unit]]:
    """Every score with a half, all and twice as many neurons as were planted for the people to be
    forgotten.
    """
    named = {v: partial(ways.by_variant, variant=v) for v in VARIANTS}
    named["ratio without floor"] = partial(ways.by_variant, variant="ratio", floor=0.0)
    named["attribution"] = ways.by_attribution
    found = []
    for draw, lab in labs.items():
        full = 100 * float(lab.planted.double().mean())
        planted = round(full, 4)
        found.append((lab, Unit("planted", "vanilla", draw, 0.0, 0, None)))
        found.append((lab, Unit("planted", "planted", draw, planted, 0, lambda lab: lab.planted)))
        for times in (0.5, 1.0, 2.0):
            alpha = round(times * full, 4)
            where = {"alpha": alpha, "ratio": RATIO, "seed": 0}
            found += [
                (lab, Unit("planted", name, draw, alpha, 0, partial(way, **where)))
                for name, way in named.items()
            ]
    return found
