"""How the models of each method are made at any settings: for the choice of the settings
(rivals.py) and for what is then asked of them (rivals.py, audit.py).
"""

import math
import random
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache, partial

from compare import SCALE
from edits import weights_of_paths
from manu_utils.auditing import names_of, profiles_of
from manu_utils.benchmark.loading import load_strangers
from manu_utils.benchmark.questions import evaluation_questions, open_questions, training_questions
from manu_utils.benchmark.records import MODALITIES
from manu_utils.evaluation.choosing import panels_by_task
from manu_utils.evaluation.tables import merit
from manu_utils.models.asking import exact_answers, truth_of
from manu_utils.models.neurons import language_mlps
from manu_utils.unlearning.erasing import fit_layer, stranger_lessons
from manu_utils.unlearning.moments import collect_moments
from manu_utils.unlearning.privacy_neurons import erase_privacy_neurons, privacy_scores
from manu_utils.unlearning.rivals import dampen, subtract_task_vector, task_vector
from manu_utils.unlearning.saliency import diagonal_fisher, saliency_mask
from manu_utils.unlearning.strangers import Stranger, lettered, mixed_names, nearest_strangers
from manu_utils.unlearning.weakening import knowledge_coefficients
from sweep import QUIET, in_turn, locked, read_table, rewritten, strengths, weakened, write_table

# Training with a retain term: the loss on the forget set, and its other options.
HELD = {
    "gd + ce": ("gd", {}),
    "gd + ce, lora": ("gd", {"lora_rank": 16}),
    "npo + kl": ("npo", {"retain_term": "kl"}),
    "npo + kl, lora": ("npo", {"retain_term": "kl", "lora_rank": 16}),
    "simnpo + ce": ("simnpo", {"retain_term": "cross-entropy"}),
    "undial + ce": ("undial", {"retain_term": "cross-entropy"}),
    "idk + ce": ("idk", {"retain_term": "cross-entropy"}),
    "preference + ce": ("idk_preference", {"retain_term": "cross-entropy"}),
    "rmu": ("rmu", {}),
    "mmunlearner": ("gd", {"mask": partial(saliency_mask, **QUIET)}),
    "mip-editor": ("rmu", {"mask": weights_of_paths}),
    "erase + gd": ("gd", {}),  # from the model that erasing leaves
    "erase + rmu": ("rmu", {}),
}
ERASED = (1.0, 0.003)  # β and ridge of erasing there: its own choice
HELD_RATE, HELD_BATCH = 2e-4, 32  # learning rate; retained questions per modality and step
HELD_STEPS = (96, 192, 384, 768)
ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0)
N_FISHER = 300  # questions per modality and set that SSD reads
ONE = (math.nan,)  # of methods with one knob
# Twelve tries of each method: what is varied first (`weight`), and second (`strength`).
TRIES = {
    **{name: ((1.0, 4.0, 16.0), HELD_STEPS) for name in HELD},  # of the retain term; steps
    "simnpo + ce": ((0.25, 1.0, 4.0), HELD_STEPS),
    "undial + ce": ((0.0625, 0.25, 1.0), HELD_STEPS),
    **{name: ((4.0, 32.0, 256.0), HELD_STEPS) for name in ("rmu", "mip-editor")},
    "erase + gd": ((4.0, 16.0, 64.0), (12, 24, 48, 96)),
    "erase + rmu": ((4.0, 32.0, 256.0), (48, 96, 192, 384)),
    "task vector": ((12.0, 24.0, 48.0), (1.0, 2.0, 4.0, 8.0)),  # steps of the copy; λ
    "ssd": ((1.0, 2.0, 5.0, 10.0), (1.0, 3.0, 10.0)),  # α; λ
    # α in %; 5.5 % of the neurons score above 0.
    "depn": (ONE, (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)),
    "kvw": ((0.005, 0.01, 0.02, 0.04), (1, 2, 4)),  # γ; rounds
    "paper": (ONE, ALPHAS),  # α in %
    "coverage": (ONE, ALPHAS),
    "rewrite": ((0.1, 0.3, 1.0), (2, 4, 8, 16)),  # ridge; rounds
    "erase": ((1.0, 2.0, 4.0, 8.0), (0.003, 0.01, 0.03)),  # β; ridge
}
N_KEPT = 700  # questions of each form and modality that erasing holds


def strangers_of(rows):
    names = names_of(rows)
    return [Stranger(names[i], image) for i, image in zip(rows["ID"], rows["image"], strict=True)]


class Lab:
    """One set of people to forget, and how each method changes the model."""

    def __init__(self, bench):
        self.bench = bench
        self.model, self.processor = bench.model, bench.processor
        self.layers = range(len(language_mlps(self.model)))
        rows = load_strangers(SCALE)["ft_Data"]
        half = len(rows) // 2
        self.taught = rows.select(range(half))
        self.strangers = strangers_of(self.taught)
        others = strangers_of(rows.select(range(half, len(rows))))
        self.names = names_of(bench.benchmark.training)
        public = profiles_of(bench.benchmark.celebrity).values()
        met = [*(profile["Name"] for profile in public), *self.names.values()]
        kept = {stranger.name for stranger in (*self.strangers, *others)}
        self.more_names = [name for name in mixed_names(met) if name not in kept]
        # kept for the seed used last
        for costly in ("erasing", "moments", "fisher", "coefficients"):
            setattr(self, costly, lru_cache(maxsize=1)(getattr(self, costly)))

    def erasing(self, seed):
        """E_r of each layer and the lessons, from which every β and ridge can be fitted."""
        bench, names, forget, retain = self.bench, self.names, {}, {}
        everyone = {m: [q for of in bench.training.values() for q in of[m]] for m in MODALITIES}
        gone = {q.person_id for q in bench.training["forget"]["text"]}
        public = bench.benchmark.celebrity
        public = public.select(range(1, len(public), 2))  # the others are asked
        for m, asked in everyone.items():
            forget[m] = bench.training["forget"][m]
            retain[m] = some(bench.training["retain"][m], seed)
            for draw in (0, 1):  # with other options each time
                letters = lettered(asked, names, seed=2 * seed + draw)
                forget[f"{m}, letters {draw}"] = [q for q in letters if q.person_id in gone]
                kept = [q for q in letters if q.person_id not in gone]
                retain[f"{m}, letters {draw}"] = some(kept, seed)
            theirs = training_questions(self.taught, m)
            theirs += lettered(theirs, names_of(self.taught), seed=seed)
            retain[f"{m}, strangers"] = some(theirs, seed)
            options = evaluation_questions(public, "classification", m)
            letters = [replace(q, answer=truth_of(q)) for q in options]
            retain[f"{m}, public"] = open_questions(public, m) + letters
        given = (self.model, self.processor)
        asked = [q for of in bench.training["forget"].values() for q in of]
        near = nearest_strangers(
            *given, asked, names, self.strangers, more_names=self.more_names, seed=seed
        )
        passes = {"batch_size": 32, **QUIET}
        lessons = {
            name: stranger_lessons(*given, of, near, names, self.layers, **passes)
            for name, of in forget.items()
        }
        return collect_moments(*given, retain, **QUIET), lessons

    @contextmanager
    def erased(self, beta, ridge, seed):
        """:func:`manu_utils.unlearning.erase`, with what it collects kept for the next."""
        self.bench.reset()
        moments, lessons = self.erasing(seed)
        for layer in self.layers:
            options = {"beta": beta, "ridge": ridge}
            fit_layer(self.model, layer, layer, lessons, moments[layer].clone(), **options)
        yield
        self.bench.reset()

    def results(self, method, weight, values, seed, measure):
        """strength -> what ``measure()`` finds with the model changed to it."""
        bench = self.bench
        if method in (*HELD, "rewrite", "kvw"):  # a table gives steps and rounds as 24.0
            values = [round(strength) for strength in values]
        if method in HELD:
            loss, options = HELD[method]
            options = options | {"retain_weight": weight, "retain_batch_size": HELD_BATCH}
            if method.startswith("erase"):
                options["start"] = self.erased(*ERASED, seed)
            at = (HELD_RATE, values, seed, lambda _: measure())
            return bench.path(loss, "both", *at, **options)
        bench.reset()
        if method in ("paper", "coverage"):
            changes = strengths(bench.evidence(seed), method, values, seed)
        else:
            name = method.replace(" ", "_")
            changes = getattr(self, name)(weight, values, seed)
        found = {strength: measure() for strength in changes}
        bench.reset()
        return found

    def erase(self, beta, ridges, seed):
        return in_turn(ridges, lambda ridge: self.erased(beta, ridge, seed))

    def moments(self, seed):
        return collect_moments(self.model, self.processor, self.bench.sample(seed), **QUIET)

    def rewrite(self, ridge, rounds, seed):
        moments, forget = self.moments(seed), self.bench.training["forget"]
        return rewritten((self.model, self.processor), forget, moments, rounds, ridge=ridge)

    def fisher(self, seed):
        """The importances of the forget and of the retain set."""
        few = (
            {m: some(asked, seed, N_FISHER) for m, asked in questions.items()}
            for questions in self.bench.training.values()
        )
        given = (self.model, self.processor)
        return [diagonal_fisher(*given, part, seed=seed, **QUIET) for part in few]

    def ssd(self, alpha, values, seed):
        shrunk = partial(dampen, self.model, *self.fisher(seed), alpha=alpha)
        return in_turn(values, lambda strength: shrunk(strength=strength))

    def task_vector(self, steps, scales, seed):
        forget = self.bench.training["forget"]
        options = {"steps": round(steps), "lr": HELD_RATE, "seed": seed, **QUIET}
        vector = task_vector(self.model, self.processor, forget, **options)
        minus = partial(subtract_task_vector, self.model, vector)
        return in_turn(scales, lambda scale: minus(scale=scale))

    def depn(self, _, alphas, seed):
        gone = partial(erase_privacy_neurons, self.model, self.privacy)
        return in_turn(alphas, lambda alpha: gone(alpha=alpha))

    @cached_property
    def privacy(self):
        forget = self.bench.training["forget"]
        return privacy_scores(self.model, self.processor, forget, **QUIET)

    def coefficients(self, seed):
        """What KVW knows of the retain set."""
        return knowledge_coefficients(self.model, self.processor, self.bench.sample(seed))

    def kvw(self, gamma, rounds, seed):
        given, forget = (self.model, self.processor), self.bench.training["forget"]
        return weakened(given, forget, self.coefficients(seed), rounds, gamma, seed)


def some(questions, seed, n=None):
    return random.Random(seed).sample(questions, min(n or N_KEPT, len(questions)))


def asked_sets(bench):
    """The sets of a bench, of the public figures every second: erasing is given the others."""
    sets = dict(bench.sets)
    if public := sets.get("celebrity"):
        sets["celebrity"] = public.select(range(0, len(public), 2))
    return sets


def by_task(bench, model=None):
    """task -> exact answers by (set, modality), of every set that the bench asks."""
    given = model or bench.model, bench.processor
    panels = panels_by_task(asked_sets(bench))
    return {task: exact_answers(*given, of) for task, of in panels.items()}


def choices(lab, base, method, seed):
    """Rows of every try of a method, on stand-ins."""
    bench, rows = lab.bench, []
    if not hasattr(lab, "ends"):
        bench.reset()
        lab.ends = [by_task(bench, model) for model in (None, base)]
    weights, values = TRIES[method]

    def measure():
        found = by_task(bench)
        parts = [{t: series(part[t]) for t in part} for part in (found, *lab.ends)]
        return {t: merit(*(part[t] for part in parts)) for t in found}

    for weight in weights:
        for strength, tasks in lab.results(method, weight, values, seed, measure).items():
            key = {"weight": weight, "strength": strength}
            rows += [key | {"task": task} | part for task, part in tasks.items()]
    return rows


def series(frame):
    return frame.set_index(["set", "modality"])["value"]


def best_settings(table):
    """method -> (weight, strength) with the best mean merit of tasks and draws; of equal ones the
    first.

    Raises:
        ValueError: a method that was tried on other draws than the first.
    """
    found, draws = {}, set(table["draw"][table["method"] == table["method"].iloc[0]])
    for method, rows in table.groupby("method", sort=False):
        if set(rows["draw"]) != draws:
            raise ValueError(f"{method} was not tried on the draws {sorted(draws)} of the others.")
        means = rows.groupby(["weight", "strength"], sort=False, dropna=False)["merit"].mean()
        found[method] = means.idxmax()
    return found


def written(settings):
    """Settings as tables have them: "0.0001 24"; "none" of a reference."""
    return " ".join(f"{value:g}" for value in settings if value == value) or "none"


def drop_other_settings(place, columns, settings):
    """Remove rows of methods whose settings have been chosen anew."""
    with locked():
        table = read_table(place, columns)
        now = table["method"].map(lambda method: written(settings.get(method, ())))
        if len(table) and not (stays := table["settings"] == now).all():
            write_table(table[stays], place, "%.5g")
