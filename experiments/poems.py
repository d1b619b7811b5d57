"""Made-up poems unlearned by every method (notebook 11): data/results/poems.csv.

    python experiments/poems.py        # about an hour of one core; a killed run goes on

A model was taught 32 poems by heart, and facts about them. Eight tries of each method are made on
four stand-ins drawn from the poems that stay. Chosen is the try with the least ROUGE-L among those
that keep four fifths of each of: other poems recited, facts about other poems, facts about the
stand-ins (of the last two exact answers); where none does, the one that keeps most of what it keeps
least of. With this setting each of three requests of four poems is unlearned (``draw``), and again
without saying that the facts about them are to stay; then eight and twelve poems at once, and
request after request: all of it in three models (``seed``), settings being those of the first.
Methods are given the poems as they go on after their first line; that they are also asked for by
title alone is told to none.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import pandas as pd

from edits import EDITS, Request, changed, edited
from manu_utils.auditing import auc, membership_scores
from manu_utils.evaluation.verbatim import ask_knowledge, ask_verbatim
from manu_utils.miniature import poems as world
from manu_utils.miniature import text_model
from manu_utils.miniature.text_world import draw_world
from manu_utils.models.asking import known
from manu_utils.unlearning.baselines import METHODS
from manu_utils.unlearning.strangers import Stranger
from sweep import (
    BUILD,
    QUIET,
    Unit,
    at_steps,
    begin,
    fingerprint,
    in_the_order_of,
    kept,
    read_arguments,
    read_table,
    sweep,
)
from text_alone import RECIPE, REFERENCES
from text_methods import HELD, train

PLACE = BUILD / "poems"
OWN = world.draw_world_of_poems()
ALPHAS = (2.0, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0)
STEPS = (6, 8, 10, 11, 12, 13, 14, 16)
HELD_STEPS = (4, 8, 12, 16, 24, 32, 40, 48)
NONE = (0.0,)  # of methods with one knob
# Eight tries of each method: what is varied first (`weight`), and second (`setting`).
TRIES = {
    "paper": (NONE, ALPHAS),  # α in %
    "coverage": (NONE, ALPHAS),
    "rewrite": ((0.1,), (1, 2, 3, 4, 6, 8, 12, 16)),  # ridge; rounds
    **dict.fromkeys(METHODS, (NONE, STEPS)),
    **dict.fromkeys(HELD, ((4.0,), HELD_STEPS)),  # of the retain term; steps
    "simnpo + ce": ((4.0,), (8, 16, 24, 32, 48, 64, 96, 128)),
    "rmu": ((4.0,), (24, 48, 96, 144, 192, 256, 384, 512)),
    "erase": ((16.0, 64.0), (0.003, 0.01, 0.03, 0.1)),  # β; ridge
    "erase + gd": ((16.0, 64.0), (4, 8, 12, 24)),
    "ssd": ((6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 20.0, 28.0), (1.0,)),  # α; λ
    "task vector": ((24.0, 48.0), (1.5, 2.0, 3.0, 4.0)),  # steps of the copy; λ
    "kvw": ((0.02,), (8, 12, 16, 20, 24, 28, 32, 48)),  # γ; rounds
    "depn": (NONE, (2.0, 4.0, 5.0, 6.0, 7.0, 7.5, 8.0, 10.0)),  # α in %
}
ERASED = (64.0, 0.01)  # β and ridge of erasing before GD: its own choice
N_STRANGERS = 4  # for each poem to forget
SEEDS = (0, 1, 2)  # of the models; settings are chosen on the first
N_KEPT = 160  # questions of the retain set that a method is given
MEASURES = (
    "words", "recall", "longest", "longest share", "extraction", "words by title", "facts",
    "facts exact", "kept words", "kept facts", "kept facts exact", "kept authors", "auc",
)  # fmt: skip
COLUMNS = ["stage", "method", "seed", "draw", "weight", "setting", "poems", *MEASURES]


def model_of(name: str, seed: int = 0):
    """(model, processor), kept in build: base, vanilla, or retrained without all three requests."""
    model, processor = world.build_poem_model(seed) if name == "base" else model_of("base", seed)

    def train():
        options = {"school": world.poem_schooling, "seed": seed}
        if name == "base":
            text_model.go_to_school(model, processor, **options, **world.SCHOOL)
        else:
            lessons = world.lessons_of(OWN.taught if name == "vanilla" else OWN.retain)
            text_model.teach(model, processor, lessons, **options, **world.LESSONS)

    place = PLACE / f"{name}-{seed}-{state_of(recipe_only=True)}.safetensors"
    return kept(place, model, train), processor


def state_of(recipe_only: bool = False) -> str:
    recipe = [*RECIPE, world.SCHOOL, world.LESSONS, world.REPEATED]
    if recipe_only:
        return fingerprint(repr([*recipe, world.poem_rows()]))
    grids = [TRIES, HELD, ERASED, N_STRANGERS, N_KEPT, SEEDS]
    return fingerprint(repr([*recipe, world.poem_rows(), *grids]))


def request_of(model, processor, asked_for, draw: int, gone=(), facts_held=True) -> Request:
    """That a model forget how these poems go on after their first line; poems that are ``gone`` are
    in neither set.
    """
    stays = [poem for poem in OWN.taught if poem not in (*asked_for, *gone)]
    kept = [*world.recitals(stays), *world.about(stays)]
    kept += text_model.author_lessons(draw_world().authors[: world.N_AUTHORS])
    kept = random.Random(draw).sample(kept, N_KEPT)
    if facts_held:
        kept += world.about(asked_for)
    forget = world.recitals(asked_for, ("first line",))
    near = partial(strangers_to, forget)
    return Request(model, processor, {"text": forget}, {"text": kept}, near, len(forget))


def strangers_to(recitals, seed: int) -> tuple[dict, dict]:
    """For each poem others that nobody has written, and what each is called by: its title and first
    line, as the question has them.
    """
    before, after = world.CONTINUE.split("{title}")[0], world.CONTINUE.split("{first}")[1]

    def called(question) -> str:
        return question.question.removeprefix(before).removesuffix(after)

    rng, taken = random.Random(f"strangers {seed}"), {p.title for p in (*OWN.taught, *OWN.holdout)}
    names = {question.person_id: called(question) for question in recitals}
    near = {}
    for title in names:
        poems = world.draw_poems(N_STRANGERS, rng, taken)
        unknown = world.recitals(poems, ("first line",))
        near[title] = [Stranger(called(question), None) for question in unknown]
    return near, names


def measure(model, processor, asked_for) -> dict:
    """Everything that is asked about a model of which these poems are gone."""
    others = OWN.retain[world.N_REQUEST :]
    some = random.Random(0).sample(world.about(others), 48)
    ask = {"max_new_tokens": 40, **QUIET}  # nothing here is longer
    words = ask_verbatim(model, processor, world.recitals(asked_for, ("first line",)), **ask)
    title = ask_verbatim(model, processor, world.recitals(asked_for, ("title",)), **ask)
    facts = ask_knowledge(model, processor, world.about(asked_for), **QUIET)
    kept = ask_verbatim(model, processor, world.recitals(others[:8], ("first line",)), **ask)
    kept_facts = ask_knowledge(model, processor, some, **QUIET)
    authors = text_model.author_lessons(draw_world().authors[: world.N_AUTHORS])[::3]
    sides = [
        membership_scores(model, processor, world.recitals(of), k=0.4, gradients=False, **QUIET)
        for of in (asked_for, OWN.holdout)
    ]
    values = {
        "words": words["rouge"], "recall": words["recall"], "longest": words["longest"],
        "longest share": words["longest_share"], "extraction": words["extraction_strength"],
        "words by title": title["rouge"], "facts": facts["rouge"], "facts exact": facts["exact"],
        "kept words": kept["rouge"], "kept facts": kept_facts["rouge"],
        "kept facts exact": kept_facts["exact"],
        "kept authors": known(model, processor, authors, **QUIET).double(),
    }  # fmt: skip
    found = {name: float(value.mean()) for name, value in values.items()}
    return found | {"auc": auc(*(list(side["min_k"]) for side in sides))}


@contextmanager
def unlearned(
    request: Request, method: str, weight: float, setting: float, seed: int, **watched
) -> Iterator[None]:
    """The model changed by one method, also on top of an earlier request. What was trained stays
    so.
    """
    if method in EDITS:
        with changed(request, method, weight, setting, seed):
            yield
        return
    options = {"steps": int(setting), "retain_batch_size": 24, **watched}
    with request.start(method, ERASED, seed):
        train(request, method, weight, seed, **options)
        yield


def tries(method: str) -> list[dict]:
    """Every setting of a method, on the stand-ins."""
    (weights, settings), rows = TRIES[method], []
    for weight in weights:
        given = model_of("vanilla")
        request = request_of(*given, OWN.stand_ins, 0)

        def note(setting, weight=weight, given=given) -> None:
            key = {"weight": weight, "setting": setting, "poems": len(OWN.stand_ins)}
            rows.append(key | measure(*given, OWN.stand_ins))

        if method in EDITS:
            for setting in edited(request, method, weight, settings, 0):
                note(setting)
            continue
        watched = at_steps(settings, note)
        with unlearned(request, method, weight, watched.pop("steps"), 0, **watched):
            pass
    return rows


KEPT = ("kept words", "kept facts exact", "facts exact")


def best_setting(table: pd.DataFrame, method: str) -> tuple[float, float]:
    """(weight, setting) by the rule above, from the rows of the choice."""
    rows = table[table["stage"] == "choice"]
    vanilla = rows[rows["method"] == "vanilla"].iloc[0]
    own = rows[rows["method"] == method]
    least = (own[list(KEPT)] / vanilla[list(KEPT)].astype(float)).min(axis=1)
    if (least >= 0.8).any():
        best = own[least >= 0.8].sort_values(["words", "weight", "setting"]).iloc[0]
    else:
        best = own.loc[least.idxmax()]
    return best["weight"], best["setting"]


Settings = Callable[[str], tuple[float, float]]  # method -> (weight, setting)


def row_of(settings: Settings, method: str, given: tuple, asked_for) -> dict:
    weight, setting = settings(method) if method in TRIES else (0, 0)
    key = {"weight": weight, "setting": setting, "poems": len(asked_for)}
    return key | measure(*given, asked_for)


def after(settings: Settings, method: str, seed: int, asked_for, draw: int, **held) -> list[dict]:
    """What one request leaves of vanilla, or a reference as it is."""
    if method in REFERENCES:
        return [row_of(settings, method, model_of(method, seed), asked_for)]
    given = model_of("vanilla", seed)
    request = request_of(*given, asked_for, draw, **held)
    with unlearned(request, method, *settings(method), draw):
        return [row_of(settings, method, given, asked_for)]


def in_turn(settings: Settings, method: str, seed: int) -> list[dict]:
    """What is left after one request, two, and three."""
    given, gone, rows = model_of("vanilla", seed), [], []
    with ExitStack() as stack:
        for draw, asked_for in enumerate(OWN.requests):
            request = request_of(*given, asked_for, draw, gone)
            stack.enter_context(unlearned(request, method, *settings(method), draw))
            gone = [*gone, *asked_for]
            rows.append(row_of(settings, method, given, gone))
    return rows


def units(settings: Settings, seeds: Sequence[int]) -> list[Unit]:
    """The choice, and what is reported of these seeds."""
    one, stand_ins = partial(after, settings), OWN.stand_ins
    found = [(("choice", m, 0, 0), partial(one, m, 0, stand_ins, 0)) for m in REFERENCES]
    found += [(("choice", m, 0, 0), partial(tries, m)) for m in TRIES]
    given_retain = [m for m in TRIES if m not in ("ga", "npo", "task vector", "depn")]
    for seed in seeds:
        for stage, methods in (
            ("report", [*REFERENCES, *TRIES]),
            ("facts not held", given_retain),
        ):
            held = {"facts_held": stage == "report"}
            found += [
                ((stage, m, seed, draw), partial(one, m, seed, of, draw, **held))
                for m in methods
                for draw, of in enumerate(OWN.requests)
            ]
        found += [(("in turn", m, seed, 0), partial(in_turn, settings, m, seed)) for m in TRIES]
        found += [
            (("at once", m, seed, n), partial(one, m, seed, OWN.forget[:n], 0))
            for n in (8, 12)
            for m in TRIES
        ]
    return [(dict(zip(COLUMNS, key, strict=False)), make) for key, make in found]


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS), help="of the report")
    arguments = read_arguments(parser, given)
    place = arguments.out / "poems.csv"
    begin(state_of(), place.with_suffix(".json"), "python experiments/poems.py", [place])

    def settings(method: str) -> tuple[float, float]:
        return best_setting(read_table(place, COLUMNS), method)

    order = in_the_order_of(
        [*REFERENCES, *TRIES], ["stage", "method", "seed", "draw"], decimals=12
    )
    sweep(place, COLUMNS, units(settings, arguments.seeds), arrange=order, float_format="%.4g")


if __name__ == "__main__":
    main()
