"""What the ablations share: a model with its benchmark, what scores see of it, what it answers."""

import random
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.questions import open_questions
from manu_utils.benchmark.records import MODALITIES
from manu_utils.miniature.card import sampled_facts
from manu_utils.models.asking import exact_answers
from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning.attribution import collect_attribution, effective_neurons
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.pruning import prune_neurons
from sweep import QUIET

RATIO, TAU = 10, 0.1
N_RETAIN, N_RETAIN_PEOPLE = 600, 40  # questions per modality that scores see; people who are asked


class Lab:
    """One model and one benchmark: what several ablations need is computed once."""

    def __init__(self, model, processor):
        self.model, self.processor, self.mlps = model, processor, find_neurons(model)
        towers = [torch.full((mlp.size,), mlp.tower == "vision") for mlp in self.mlps]
        self.vision = torch.cat(towers)  # bool [n_neurons]
        self.kept = {}

    def once(self, key, make: Callable):
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def benchmark(self, ratio: int):
        return self.once(ratio, lambda: load_benchmark("tiny", ratio))

    def questions(self, people: str, ratio: int, seed: int = 0, n: int | None = None) -> dict:
        """Modality -> all questions of the forget set, or n of each person's; n of the retain
        sample.
        """
        found = {}
        for m in MODALITIES:
            everything = list(self.benchmark(ratio).training_questions(people, m))
            if people == "retain":
                sample = random.Random(seed).sample(everything, min(N_RETAIN, len(everything)))
                found[m] = sample[:n]
                continue
            random.Random(seed).shuffle(everything)
            found[m], taken = [], Counter()
            for question in everything:
                taken[question.person_id] += 1
                if n is None or taken[question.person_id] <= n:
                    found[m].append(question)
        return found

    def evidence(
        self, ratio=RATIO, seed=0, *, n_forget=None, n_retain=None, tau=TAU, positions="answer"
    ) -> Evidence:
        """What the scores see. All forget questions are the same for every seed."""
        key = (ratio, tau, positions)

        def read():
            sets = (self.questions(name, ratio) for name in ("forget", "retain"))
            options = {"tau": tau, "positions": positions, **QUIET}
            return Evidence(self.model, self.processor, *sets, **options)

        def with_sample(found: Evidence, name: str, n: int | None):
            return found.beside(**{name: self.questions(name, ratio, seed, n)})

        everyone, key = self.once(key, read), (*key, seed, n_retain)
        found = self.once(key, lambda: with_sample(everyone, "retain", n_retain))
        if n_forget is None:
            return found
        return self.once((*key, n_forget), lambda: with_sample(found, "forget", n_forget))

    def panels(self, ratio: int) -> dict[tuple[str, str], list]:
        """(set, modality) -> the open questions that are asked."""
        sets = self.benchmark(ratio).sets()
        n = len(sets["retain"])
        asked = random.Random(0).sample(range(n), min(N_RETAIN_PEOPLE, n))
        sets["retain"] = sets["retain"].select(sorted(asked))
        return {(name, m): open_questions(of, m) for name, of in sets.items() for m in MODALITIES}

    def measure(self, chosen: Tensor | None, ratio: int = RATIO) -> list[dict]:
        """Set, modality, value (exact answers) and n without the chosen neurons; those of equal
        settings are asked once.
        """

        def ask():
            panels = self.once(("panels", ratio), lambda: self.panels(ratio))
            with nullcontext() if chosen is None else prune_neurons(self.model, chosen):
                answers = exact_answers(self.model, self.processor, panels)
            return answers.to_dict("records")

        neurons = None if chosen is None else chosen.numpy().tobytes()
        return self.once(("answers", ratio, neurons), ask)

    def locality(self) -> list[dict]:
        """The median number of language neurons per fact, of the questions of the card."""
        rows = []
        for m in MODALITIES:
            asked = sampled_facts(self.benchmark(RATIO), m)
            facts = collect_attribution(self.model, self.processor, asked, **QUIET)
            value = effective_neurons(facts[:, ~self.vision]).median().item()
            rows.append({"set": "all", "modality": m, "value": value, "n": len(asked)})
        return rows


class Unit(NamedTuple):
    """One thing to measure: its key in the table, and how its neurons are chosen (None: none)."""

    ablation: str
    setting: str
    seed: int
    alpha: float
    ratio: int
    choose: Callable[[Lab], Tensor] | None
