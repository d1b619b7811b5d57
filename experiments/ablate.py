"""Every ablation of notebook 07, as one tidy CSV: what happens to MANU if one thing is changed and all else stays as it is.

    python experiments/ablate.py                                    # the bundled model
    python experiments/ablate.py --model build/dense --name dense   # the twin without the penalty: over α, and its locality
    python experiments/ablate.py --name planted                     # builds and measures the planted twin

The settings are the fixed defaults of the package with one change; nothing is chosen by looking at the results. Measured are
exact answers to open questions (cloze and generation, as in notebook 05) on the forget, test and celebrity sets and on 40
retained people; for the planted twin also the precision and recall of the chosen neurons; of the sparse and the dense model
also the effective number of language neurons per fact. A killed run goes on where it stopped: every measured unit is kept in
build/ablations, in a file named by the weights.
"""

import argparse
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.questions import open_questions
from manu_utils.benchmark.records import MODALITIES
from manu_utils.miniature.card import sampled_facts
from manu_utils.miniature.planted import draw_owners, plant
from manu_utils.models.asking import known
from manu_utils.models.encoding import batches
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.progress import bar
from manu_utils.unlearning.activations import Statistics, collect_activations
from manu_utils.unlearning.attribution import collect_attribution, effective_neurons
from manu_utils.unlearning.coverage import choose_by_coverage
from manu_utils.unlearning.pruning import prune_neurons, select_neurons
from manu_utils.unlearning.scores import RELEASED, VARIANTS, pool_layers, score, switched_score
from report import write_table

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "data" / "results" / "ablations.csv"
COLUMNS = ["model", "ablation", "setting", "seed", "alpha", "forget_ratio", "set", "modality", "value", "n"]
KEY = COLUMNS[:6]
SEEDS, ALPHA, RATIO, TAU = (0, 1, 2), 5.0, 10, 0.1
ALPHAS = (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0)
N_RETAIN, N_RETAIN_PEOPLE = 600, 40  # questions per modality that the scores see; people who are asked
TWIN_ALPHAS = (1.0, 2.0, 5.0, 10.0, 20.0)
WITHOUT_CELEBRITY = ("eps", "tau", "positions", "samples", "ours")  # where it says nothing new: the table stays small
# Every score takes α % of the whole model here, so that one thing differs at a time; "scope" has the towers.
FUNCTIONS = ("abs", "freq", "var", "rms")
N_PLANTED, N_PLANTED_FORGET, PER_LAYER, PLANTING_STEPS = 12, 3, 40, 160  # of the planted twin
QUIET = {"progress": False}

# From the printed equations to the authors' code, one more change on every rung. `switches` go to switched_score.
LADDER = {
    "paper": {},
    "no contrast of modalities": {"contrast": False},
    "one modality per tower": {"contrast": False, "one_modality": True},
    "sum of ratios": {"contrast": False, "one_modality": True, "sum_of_ratios": True, "eps": 1e-5},
    "weights 2, 0, 2, 2 (released_score)": RELEASED,
}
# The same differences, one at a time.
FROM_PAPER = {
    "paper: no contrast": {"contrast": False},
    "paper: sum of ratios": {"sum_of_ratios": True},
    "paper: weights 2, 0, 2, 2": {"weights": (2, 0, 2, 2)},
    "paper: last layer": {"last_layers": 1},
}
FROM_RELEASED = {
    "released_score: contrast": RELEASED | {"contrast": True, "one_modality": False},
    "released_score: both modalities": RELEASED | {"one_modality": False},
    "released_score: ratio of sums": RELEASED | {"sum_of_ratios": False},
    "released_score: weights 1, 1, 1, 1": RELEASED | {"weights": (1, 1, 1, 1)},
    "released_score: last layer": RELEASED | {"last_layers": 1},
}


@dataclass(frozen=True)
class Unit:
    """One thing to measure: its key in the table, and how its neurons are chosen (None: the locality of the facts)."""

    ablation: str
    setting: str
    seed: int
    alpha: float
    ratio: int
    choose: Callable[[], Tensor | None] | None


class Lab:
    """One model and one benchmark: what several ablations need is computed once.

    Every method that computes something is cached, so its arguments are plain values.
    """

    def __init__(self, model, processor, data: str = "tiny"):
        self.model, self.processor = model, processor
        self.mlps = find_neurons(model)
        self.sizes = [mlp.size for mlp in self.mlps]
        self.vision = torch.cat([torch.full((mlp.size,), mlp.tower == "vision") for mlp in self.mlps])
        self.layer_of = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))
        self.benchmark = cache(lambda ratio: load_benchmark(data, ratio))
        for name in ("questions", "panels", "statistics", "linear_statistics", "attribution", "measure_bytes"):
            setattr(self, name, cache(getattr(self, name)))

    # -------------------------------------------------------------------------------------------- what the scores see

    def questions(self, people: str, modality: str, ratio: int, seed: int, n: int | None) -> tuple:
        """All training questions of the forget set, or the first n of each person's; the first n of the retain sample."""
        everything = self.benchmark(ratio).training_questions(people, modality)
        if people == "retain":
            return tuple(random.Random(seed).sample(everything, min(N_RETAIN, len(everything)))[:n])
        random.Random(seed).shuffle(everything)
        taken: dict[str, int] = {}
        chosen = []
        for question in everything:
            taken[question.person_id] = taken.get(question.person_id, 0) + 1
            if n is None or taken[question.person_id] <= n:
                chosen.append(question)
        return tuple(chosen)

    def statistics(
        self, people: str, modality: str, ratio: int, seed: int, n: int | None, tau: float, positions: str
    ) -> Statistics:
        asked = self.questions(people, modality, ratio, seed, n)
        return collect_activations(self.model, self.processor, asked, tau=tau, positions=positions, **QUIET)

    def linear_statistics(self, people: str, modality: str, ratio: int, seed: int, which: int) -> Statistics:
        asked = self.questions(people, modality, ratio, seed, None)
        return collect_linear(self.model, self.processor, asked, which)

    def pair(self, ratio=RATIO, seed=0, *, n_forget=None, n_retain=None, tau=TAU, positions="answer") -> tuple[dict, dict]:
        """(forget, retain), each modality -> statistics. All forget questions are the same for every seed."""
        forget_seed = 0 if n_forget is None else seed
        return (
            {m: self.statistics("forget", m, ratio, forget_seed, n_forget, tau, positions) for m in MODALITIES},
            {m: self.statistics("retain", m, ratio, seed, n_retain, tau, positions) for m in MODALITIES},
        )

    def attribution(self, people: str, modality: str, ratio: int, seed: int, n: int | None, rare: bool = True) -> Tensor:
        asked = self.questions(people, modality, ratio, seed, n)
        options = {"rarity": None if rare else self.even, "reduce": people == "retain"}
        return collect_attribution(self.model, self.processor, asked, **options, **QUIET)

    @property
    def even(self) -> Tensor:
        """The same weight for every token of an answer."""
        return torch.ones(len(self.processor.tokenizer))

    # ------------------------------------------------------------------------------------------------ choosing

    def by_score(self, variant: str, alpha=ALPHA, ratio=RATIO, seed=0, *, per="model", closed=None, **seen) -> Tensor:
        forget, retain = self.pair(ratio, seed, **seen)
        return self.top(score(variant, forget, retain, mlps=self.mlps, seed=seed), alpha, per=per, closed=closed)

    def top(self, scores: Tensor, alpha: float, *, per="model", closed: Tensor | None = None) -> Tensor:
        if closed is not None:
            scores = scores.masked_fill(closed, -torch.inf)
        return select_neurons(scores, self.mlps, alpha, per, allow_small=True)

    def facts_and_cost(self, ratio=RATIO, seed=0, *, n_forget=None, n_retain=None, rare=True) -> tuple[dict, dict]:
        forget_seed = 0 if n_forget is None else seed
        return (
            {m: self.attribution("forget", m, ratio, forget_seed, n_forget, rare) for m in MODALITIES},
            {m: self.attribution("retain", m, ratio, seed, n_retain, rare) for m in MODALITIES},
        )

    def by_coverage(self, alpha=ALPHA, ratio=RATIO, seed=0, *, n_forget=None, n_retain=None, rare=True, **options) -> Tensor:
        facts, cost = self.facts_and_cost(ratio, seed, n_forget=n_forget, n_retain=n_retain, rare=rare)
        forget_seed = 0 if n_forget is None else seed
        asked = {m: list(self.questions("forget", m, ratio, forget_seed, n_forget)) for m in MODALITIES}
        rarity = None if rare else self.even
        return choose_by_coverage(
            self.model, self.processor, asked, cost, alpha=alpha, facts=dict(facts), rarity=rarity, allow_small=True,
            **options, **QUIET,
        )  # fmt: skip

    def by_variant(self, variant: str, alpha=ALPHA, ratio=RATIO, seed=0, **seen) -> Tensor:
        if variant == "coverage":
            return self.by_coverage(alpha, ratio, seed, **seen)
        return self.by_score(variant, alpha, ratio, seed, **seen)

    def by_ratio(self, alpha: float, seed: int, floor: float) -> Tensor:
        return self.top(score("ratio", *self.pair(seed=seed), mlps=self.mlps, floor=floor), alpha)

    def by_attribution(self, alpha: float, seed: int, floor: float) -> Tensor:
        """Attribution ranked neuron by neuron: forget over retain with a floor, both modalities together."""
        facts, cost = self.facts_and_cost(seed=seed)
        gain = sum((rows / rows.sum(1, keepdim=True).clamp(min=1e-30)).mean(0) for rows in facts.values())
        price = sum(cost.values())
        return self.top((gain / (price / price.mean() + floor)).double(), alpha)

    def coverage_by_group(self, per: str, alpha: float, seed: int) -> Tensor:
        """Coverage with α % of every layer or tower of its own."""
        group_of = self.layer_of if per == "layer" else self.vision.long()
        chosen = torch.zeros(len(group_of), dtype=torch.bool)
        for group in group_of.unique():
            inside = group_of == group
            chosen |= self.by_coverage(alpha * float(inside.double().mean()), seed=seed, exclude=~inside)
        return chosen

    def in_rounds(self, variant: str, alpha: float, seed: int, rounds: int) -> Tensor:
        """Prune a part of the budget, look again, prune the next; the model is restored at the end."""
        if variant == "coverage":
            return self.by_coverage(alpha, seed=seed, rounds=rounds)
        n = sum(self.sizes)
        budget = round(alpha / 100 * n)
        chosen = torch.zeros(n, dtype=torch.bool)
        for number in range(1, rounds + 1):
            if number == 1:
                forget, retain = self.pair(seed=seed)
            else:
                with prune_neurons(self.model, chosen):
                    forget, retain = (
                        {
                            m: collect_activations(
                                self.model, self.processor, self.questions(people, m, RATIO, s, None), tau=TAU, **QUIET
                            )
                            for m in MODALITIES
                        }
                        for people, s in (("forget", 0), ("retain", seed))
                    )
            scores = score(variant, forget, retain, mlps=self.mlps)
            part = budget * number // rounds - int(chosen.sum())
            chosen = chosen | self.top(scores, 100 * part / n, closed=chosen)
        return chosen

    def as_the_authors_run_it(self, seed: int, *, pooled: bool, positions: str, linear: bool) -> Tensor:
        """The released score on neurons, step by step nearer to what the released code sees: α % of each tower."""
        scores = []
        for which in (0, -1) if linear else (None,):  # gate and up are chosen independently: cutting either is enough
            if linear:
                forget, retain = (
                    {m: self.linear_statistics(people, m, RATIO, s, which) for m in MODALITIES}
                    for people, s in (("forget", 0), ("retain", seed))
                )
            else:
                forget, retain = self.pair(seed=seed, positions=positions)
            if pooled:
                forget, retain = ({m: pool_layers(s, self.mlps) for m, s in of.items()} for of in (forget, retain))
            scores.append(switched_score(forget, retain, mlps=self.mlps, **RELEASED))
        return self.top(torch.stack(scores).amax(0), ALPHA, per="tower")

    # ------------------------------------------------------------------------------------------------ measuring

    def panels(self, ratio: int) -> dict[tuple[str, str], list]:
        """(set, modality) -> the open questions that are asked."""
        sets = self.benchmark(ratio).sets()
        n = len(sets["retain"])
        sets["retain"] = sets["retain"].select(sorted(random.Random(0).sample(range(n), min(N_RETAIN_PEOPLE, n))))
        return {(name, m): open_questions(people, m) for name, people in sets.items() for m in MODALITIES}

    def measure(self, chosen: Tensor | None, ratio: int = RATIO) -> list[tuple[str, str, float, int]]:
        """(set, modality, share of exact answers, n) without the chosen neurons."""
        return self.measure_bytes(None if chosen is None else chosen.numpy().tobytes(), ratio)

    def measure_bytes(self, chosen: bytes | None, ratio: int) -> list[tuple[str, str, float, int]]:
        """The cached part: settings that choose the same neurons are asked once."""
        if chosen is not None:
            selected = torch.frombuffer(bytearray(chosen), dtype=torch.bool)
            with prune_neurons(self.model, selected):
                return self.measure_bytes.__wrapped__(None, ratio)
        return [
            (name, m, known(self.model, self.processor, asked, **QUIET).double().mean().item(), len(asked))
            for (name, m), asked in self.panels(ratio).items()
        ]

    def locality(self) -> list[tuple[str, str, float, int]]:
        """("all", modality, median effective number of language neurons per fact, n facts), of the questions of the card."""
        rows = []
        for m in MODALITIES:
            asked = sampled_facts(self.benchmark(RATIO), m)
            facts = collect_attribution(self.model, self.processor, asked, **QUIET)[:, ~self.vision]
            rows.append(("all", m, effective_neurons(facts).median().item(), len(asked)))
        return rows

    def digest(self) -> str:
        """Names the weights and the data, so that results of two states are never mixed."""
        state = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            state.update(name.encode() + tensor.contiguous().numpy().tobytes())
        for people in self.benchmark(RATIO).sets().values():
            state.update(people._fingerprint.encode())
        return state.hexdigest()[:12]


@torch.no_grad()
def collect_linear(model, processor, questions, which: int, tau: float = TAU) -> Statistics:
    """What the authors' code records: outputs of the linear layers before the non-linearity, at every position, pads too.

    Args:
        which: 0 for ``gate_proj`` / ``fc1``, -1 for ``up_proj`` / ``fc1``.
    """
    mlps = find_neurons(model)
    sums = [torch.zeros(4, mlp.size, dtype=torch.float64) for mlp in mlps]
    tokens = torch.zeros(len(mlps), dtype=torch.int64)

    def count(index: int):
        def hook(module, arguments, output):
            z = output.flatten(0, -2).double().cpu()
            sums[index] += torch.stack([z.sum(0), z.abs().sum(0), (z * z).sum(0), (z.abs() > tau).double().sum(0)])
            tokens[index] += len(z)

        return hook

    hooks = [mlp.before[which].register_forward_hook(count(index)) for index, mlp in enumerate(mlps)]
    try:
        for _, batch in batches(questions, processor, 32, with_answer=True, device=model.device):
            model.model(**{key: value for key, value in batch.items() if key != "answer_mask"}, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    sizes = tuple(mlp.size for mlp in mlps)
    return Statistics(tokens, sizes, *torch.cat(sums, dim=1), tau=tau, modality=questions[0].modality)


# ------------------------------------------------------------------------------------------------ what is measured


def all_units(lab: Lab) -> list[Unit]:
    """Every unit, grouped so that those that share statistics follow each other."""
    units = [Unit("alpha", "vanilla", 0, 0.0, ratio, lambda: None) for ratio in (5, 10, 15)]
    units.append(Unit("locality", "effective neurons", 0, 0.0, RATIO, None))

    def add(ablation, setting, choose, *, seeds=SEEDS, alpha=ALPHA, ratio=RATIO):
        units.extend(Unit(ablation, setting, seed, alpha, ratio, lambda seed=seed: choose(seed)) for seed in seeds)

    def seeds_of(variant):
        return SEEDS[:1] if variant == "magnitude" else SEEDS  # it looks at no data: the same for every seed

    for alpha in ALPHAS:
        for v in VARIANTS:
            add("alpha", v, lambda seed, v=v, a=alpha: lab.by_variant(v, a, seed=seed), seeds=seeds_of(v), alpha=alpha)
    for ratio in (5, 15):
        for v in VARIANTS:
            add("ratio", v, lambda seed, v=v, r=ratio: lab.by_variant(v, ratio=r, seed=seed), seeds=seeds_of(v), ratio=ratio)
        scaled = ALPHA * ratio / RATIO  # as many neurons per forgotten person as at 10 %
        add("ratio", "coverage", lambda seed, r=ratio, a=scaled: lab.by_coverage(a, r, seed), alpha=scaled, ratio=ratio)

    def switched(seed, seen=None, **switches):
        return lab.top(switched_score(*lab.pair(seed=seed, **(seen or {})), mlps=lab.mlps, **switches), ALPHA)

    for i, name in enumerate(FUNCTIONS):
        alone = tuple(int(j == i) for j in range(4))
        without = tuple(int(j != i) for j in range(4))
        add("functions", f"{name} alone", lambda seed, w=alone: switched(seed, weights=w))
        add("functions", f"without {name}", lambda seed, w=without: switched(seed, weights=w))
    for eps in (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0):
        add("eps", f"{eps:g}", lambda seed, e=eps: switched(seed, eps=e))
    for tau in (0.0, 0.01, 0.1, 0.5, 1.0):
        add("tau", f"{tau:g}", lambda seed, t=tau: switched(seed, {"tau": t}))
        add("tau", f"freq alone, {tau:g}", lambda seed, t=tau: switched(seed, {"tau": t}, weights=(0, 1, 0, 0)))
    for positions in ("answer", "last", "all"):
        for v in ("paper", "released_score", "ratio"):
            add("positions", f"{v}: {positions}", lambda seed, v=v, p=positions: lab.by_score(v, seed=seed, positions=p))

    for setting, switches in LADDER.items():
        add("ladder", setting, lambda seed, s=switches: switched(seed, **s))
    for setting, pooled, positions, linear in (
        ("α % of each tower", False, "answer", False),
        ("pooled over layers", True, "answer", False),
        ("all tokens", True, "all", False),
        ("linear outputs, pads too", True, "all", True),
    ):
        options = {"pooled": pooled, "positions": positions, "linear": linear}
        add("ladder", setting, lambda seed, o=options: lab.as_the_authors_run_it(seed, **o))
    for setting, switches in (FROM_PAPER | FROM_RELEASED).items():
        add("switch", setting, lambda seed, s=switches: switched(seed, **s))

    for v in ("paper", "released_score", "ratio"):
        for per in ("model", "tower", "layer"):
            add("scope", f"{v}: {per}", lambda seed, v=v, p=per: lab.by_score(v, seed=seed, per=p))
    add("scope", "coverage: model", lambda seed: lab.by_coverage(seed=seed))
    for per in ("tower", "layer"):
        add("scope", f"coverage: {per}", lambda seed, p=per: lab.coverage_by_group(p, ALPHA, seed))

    share = float(lab.vision.double().mean())
    for v in ("paper", "released_score", "ratio"):
        for tower, closed in (("language", lab.vision), ("vision", ~lab.vision)):
            alpha = ALPHA * (share if tower == "vision" else 1 - share)
            add("towers", f"{v}: {tower}", lambda seed, v=v, a=alpha, c=closed: lab.by_score(v, a, seed=seed, closed=c))
    for tower, closed in (("language", lab.vision), ("vision", ~lab.vision)):
        alpha = ALPHA * (share if tower == "vision" else 1 - share)
        add("towers", f"coverage: {tower}", lambda seed, a=alpha, c=closed: lab.by_coverage(a, seed=seed, exclude=c))

    for v in ("released_score", "coverage"):
        for n in (1, 3, 6, 12):  # questions per person and modality
            add("samples", f"{v}: forget {n}", lambda seed, v=v, n=n: lab.by_variant(v, seed=seed, n_forget=n))
        for n in (25, 50, 100, 300, 600):  # questions per modality
            add("samples", f"{v}: retain {n}", lambda seed, v=v, n=n: lab.by_variant(v, seed=seed, n_retain=n))
    for v in ("paper", "ratio", "coverage"):
        for rounds in (1, 2, 4):
            add("rounds", f"{v}: {rounds}", lambda seed, v=v, k=rounds: lab.in_rounds(v, ALPHA, seed, k))

    plain = {"rounds": 1, "balance": 0.0}
    add("steps", "1 ratio of mean squares", lambda seed: lab.by_ratio(ALPHA, seed, 0.0))
    add("steps", "2 with a floor", lambda seed: lab.by_ratio(ALPHA, seed, 2.0))
    add("steps", "3 what it writes", lambda seed: lab.by_attribution(ALPHA, seed, 0.3))
    add("steps", "4 chosen jointly", lambda seed: lab.by_coverage(seed=seed, **plain))
    add("steps", "5 balanced", lambda seed: lab.by_coverage(seed=seed, rounds=1))
    add("steps", "6 in rounds", lambda seed: lab.by_coverage(seed=seed))
    for option, values in (
        ("floor", (0.01, 0.1, 0.3, 1.0, 3.0)), ("share", (0.1, 0.2, 0.3, 0.5, 0.9)), ("balance", (0.0, 1.0, 4.0, 8.0)),
    ):  # fmt: skip
        for value in values:
            add("ours", f"{option} {value:g}", lambda seed, o=option, v=value: lab.by_coverage(seed=seed, **{o: v}))
    add("ours", "every token alike", lambda seed: lab.by_coverage(seed=seed, rare=False))
    return units


# ------------------------------------------------------------------------------------------------ the planted twin


class PlantedLab(Lab):
    """The planted twin: a few of its people are to be forgotten, the others are the retain set.

    Args:
        owners: person -> the neurons that were planted for them.
        draw: seed of who is to be forgotten.
    """

    def __init__(self, model, processor, owners: dict[str, Tensor], draw: int):
        super().__init__(model, processor)
        self.people = {"forget": sorted(random.Random(draw).sample(list(owners), N_PLANTED_FORGET))}
        self.people["retain"] = sorted(set(owners) - set(self.people["forget"]))
        self.planted = torch.stack([owners[person] for person in self.people["forget"]]).any(0)

    def questions(self, people, modality, ratio, seed, n) -> tuple:
        return tuple(self.benchmark(RATIO).training_questions(self.people[people], modality))

    def panels(self, ratio: int) -> dict[tuple[str, str], list]:
        asked = {(name, m): self.questions(name, m, RATIO, 0, None) for name in self.people for m in MODALITIES}
        celebrity = {k: questions for k, questions in super().panels(RATIO).items() if k[0] == "celebrity"}
        return asked | celebrity

    def measure(self, chosen, ratio=RATIO):
        rows = super().measure(chosen, ratio)
        if chosen is not None:
            hits, n, n_planted = (int(mask.sum()) for mask in (chosen & self.planted, chosen, self.planted))
            rows += [("planted", "precision", hits / n, n), ("planted", "recall", hits / n_planted, n_planted)]
        return rows


def planted_twin():
    """(model, processor, owners), trained once and kept in build/ablations."""
    from safetensors.torch import load_model as load_weights
    from safetensors.torch import save_model

    model, processor = load_model("tiny-base")
    benchmark = load_benchmark("tiny", RATIO)
    people = sorted(random.Random(0).sample(benchmark.retain_ids, N_PLANTED))
    owners = draw_owners(model, people, PER_LAYER)
    place = ROOT / "build" / "ablations" / f"planted-{Lab(model, processor).digest()}.safetensors"
    if place.exists():
        load_weights(model, place)
        return model, processor, owners
    questions = {m: benchmark.training_questions(people, m) + open_questions(benchmark.celebrity, m) for m in MODALITIES}
    started = time.process_time()
    plant(model, processor, questions, owners, steps=PLANTING_STEPS, quiet=0.2)
    print(f"planted {N_PLANTED} people in {time.process_time() - started:.0f} s of CPU")
    place.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, f"{place}.part")
    os.replace(f"{place}.part", place)
    return model, processor, owners


def planted_units(labs: dict[int, PlantedLab]) -> list[tuple[Lab, Unit]]:
    """Every score with a half, all and twice as many neurons as were planted for the people to be forgotten."""
    units = []
    for draw, lab in labs.items():
        full = 100 * float(lab.planted.double().mean())
        ways = {v: lambda a, lab=lab, v=v: lab.by_variant(v, a, seed=0) for v in VARIANTS}
        ways["ratio without floor"] = lambda a, lab=lab: lab.by_ratio(a, 0, 0.0)
        ways["attribution"] = lambda a, lab=lab: lab.by_attribution(a, 0, 0.3)
        units.append((lab, Unit("planted", "vanilla", draw, 0.0, 0, lambda: None)))
        units.append((lab, Unit("planted", "planted", draw, round(full, 4), 0, lambda lab=lab: lab.planted)))
        for times in (0.5, 1.0, 2.0):
            alpha = round(times * full, 4)
            units += [(lab, Unit("planted", v, draw, alpha, 0, lambda c=c, a=alpha: c(a))) for v, c in ways.items()]
    return units


# ------------------------------------------------------------------------------------------------ running


def run(units: list[tuple[Lab, Unit]], name: str, digest: str) -> pd.DataFrame:
    """Measure what is not yet in the file of these weights, and return all of it."""
    place = ROOT / "build" / "ablations" / f"{name}-{digest}.csv"
    table = pd.read_csv(place) if place.exists() else pd.DataFrame(columns=COLUMNS)
    done = set(table[KEY].itertuples(index=False, name=None))
    seconds: dict[str, list[float]] = {}
    for lab, unit in bar(units, desc=f"ablations of {name}"):
        key = (name, unit.ablation, unit.setting, unit.seed, unit.alpha, unit.ratio)
        if key in done:
            continue
        started = time.process_time()
        measured = lab.measure(unit.choose(), unit.ratio) if unit.choose else lab.locality()
        seconds.setdefault(unit.ablation, []).append(time.process_time() - started)
        rows = pd.DataFrame([(*key, s, m, round(value, 4), n) for s, m, value, n in measured], columns=COLUMNS)
        table = pd.concat([table, rows], ignore_index=True) if len(table) else rows
        write_table(table, place)
    for ablation, times in seconds.items():
        print(f"{ablation}: {len(times)} units, {sum(times):.0f} s of CPU, {sum(times) / len(times):.1f} s a unit")
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a bundled name or a folder")
    parser.add_argument("--name", default="sparse", help='what the table calls this model; "planted": the planted twin')
    parser.add_argument("--only", nargs="*", help="ablations to run (default: all)")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    started = time.process_time()
    if arguments.name == "planted":
        model, processor, owners = planted_twin()
        labs = {draw: PlantedLab(model, processor, owners, draw) for draw in arguments.seeds}
        units, lab = planted_units(labs), next(iter(labs.values()))
    else:
        lab = Lab(*load_model(arguments.model))
        wanted = [unit for unit in all_units(lab) if unit.seed in arguments.seeds]
        if arguments.name != "sparse":  # a twin is compared over α, and by where its facts are
            wanted = [u for u in wanted if u.ablation in ("alpha", "locality")]
            wanted = [u for u in wanted if u.ratio == RATIO and u.alpha in (0.0, *TWIN_ALPHAS)]
        units = [(lab, unit) for unit in wanted if arguments.only is None or unit.ablation in arguments.only]
    table = run(units, arguments.name, lab.digest())
    table = table[~(table["ablation"].isin(WITHOUT_CELEBRITY) & (table["set"] == "celebrity"))]
    table = table.assign(alpha=table["alpha"].map("{:g}".format))
    if arguments.output.exists():  # the rows of the other models stay
        kept = pd.read_csv(arguments.output, dtype={"alpha": str})
        table = pd.concat([kept[kept["model"] != arguments.name], table]).sort_values("model", kind="stable")
    write_table(table, arguments.output)
    size = arguments.output.stat().st_size
    print(f"{len(table)} rows, {size / 1000:.0f} kB in {arguments.output}, {time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    sys.exit(main())
