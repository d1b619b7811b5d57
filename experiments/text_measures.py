"""What is asked of a language model that was made to forget authors and potions, by TOFU's and
WMDP's measures: for text_alone.py and text_alone_smollm2.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from manu_utils.auditing import auc, membership_scores, privleak
from manu_utils.auditing.distances import ks_distance
from manu_utils.benchmark.multiple_choice import load_multiple_choice
from manu_utils.benchmark.records import Question
from manu_utils.benchmark.tofu import TofuSet
from manu_utils.evaluation.multiple_choice import choose
from manu_utils.evaluation.tofu import ask_tofu, summarise_tofu
from manu_utils.miniature.text_model import quiz_lessons
from manu_utils.miniature.text_world import HERBS, POTIONS, draw_world
from manu_utils.models.asking import known
from manu_utils.paths import data_dir
from sweep import QUIET

OF_AUTHORS = [
    "distance", "forget_quality", "model_utility", "probability", "rouge", "exact_memorisation",
    "extraction_strength", "truth_ratio", "forget, word for word", "retain, word for word", "auc",
    "privleak",
]  # fmt: skip
OF_QUIZ = [f"{name}, {how}" for name in ("potions", "herbs")
           for how in ("question", "choices alone", "asked openly")]  # fmt: skip
SPECS = {"potions": POTIONS, "herbs": HERBS}


def exact(model, processor, questions: list[Question]) -> float:
    """The share of answers that are right in every token."""
    return known(model, processor, questions, **QUIET).double().mean().item()


def names_of(spec: dict) -> list[str]:
    """All names that potions or herbs may have."""
    first, last = spec["names"]
    return [f"{one} {other}" for one in first for other in last]


def quiz_by_name() -> dict[str, list[Question]]:
    """``potions`` and ``herbs`` -> questions with the words of the right choice for an answer, and
    the thing that they are about for person_id.
    """
    lessons = quiz_lessons(draw_world())
    return {
        name: [replace(q, person_id=named_in(q, names_of(spec))) for q in lessons[name]]
        for name, spec in SPECS.items()
    }


def named_in(question: Question, names: Iterable[str]) -> str:
    return next(name for name in names if name in question.question)


def free_potions() -> list[str]:
    """Names of potions that do not exist."""
    taken = {question.person_id for question in quiz_by_name()["potions"]}
    return [name for name in names_of(POTIONS) if name not in taken]


def quiz_files(every: int = 1) -> dict[str, list[Question]]:
    """The questions with their choices, as they are published; every so manieth."""
    place = data_dir() / "quiz_mini"
    return {name: load_multiple_choice(place / f"{name}.json")[::every] for name in SPECS}


@dataclass
class Measures:
    """The questions, and the retrained model that answers are held against.

    Attributes:
        retrained: (model, processor).
        sets: of TOFU; ``forget`` is the set that is to be forgotten.
        forget: its questions as they were taught.
        holdout: questions about authors whom no model was taught.
        template: the words around a question of the quiz, as the models were taught.
        quiz: with their choices, and ``openly`` with the words of the right one as an answer.
    """

    retrained: tuple
    sets: Mapping[str, TofuSet]
    forget: list[Question]
    holdout: list[Question]
    template: str
    quiz: Mapping[str, list[Question]]
    openly: Mapping[str, list[Question]]

    @cached_property
    def reference(self) -> pd.DataFrame:
        return self.ask(*self.retrained)

    @cached_property
    def reference_auc(self) -> float:
        return self.auc_of(*self.retrained)

    def ask(self, model, processor) -> pd.DataFrame:
        return ask_tofu(model, processor, self.sets, max_new_tokens=40, **QUIET)

    def auc_of(self, model, processor) -> float:
        """How well the surprise of the least likely tokens (Min-40 %) tells the forget set from
        the holdout.
        """
        options = {"k": 0.4, "gradients": False, **QUIET}
        sides = [
            membership_scores(model, processor, side, **options)["min_k"]
            for side in (self.forget, self.holdout)
        ]
        return auc(*map(list, sides))

    def of_authors(self, model, processor) -> dict:
        """Values of :data:`OF_AUTHORS`."""
        asked = self.ask(model, processor)
        found = summarise_tofu(asked, self.reference).to_dict()
        sides = (of[of["set"] == "forget"]["truth_ratio"] for of in (asked, self.reference))
        found["distance"] = ks_distance(*map(list, sides))
        for name in ("forget", "retain"):
            of = asked[asked["set"] == name]["exact_memorisation"]
            found[f"{name}, word for word"] = float((of == 1).mean())
        found["auc"] = self.auc_of(model, processor)
        return found | {"privleak": privleak(found["auc"], self.reference_auc)}

    def of_quiz(self, model, processor) -> dict:
        """Values of :data:`OF_QUIZ`."""
        found = {}
        for name, questions in self.quiz.items():
            for how, shown in (("question", True), ("choices alone", False)):
                options = {"template": self.template, "question": shown, **QUIET}
                right = choose(model, processor, questions, **options)["right"]
                found[f"{name}, {how}"] = float(right.mean())
            found[f"{name}, asked openly"] = exact(model, processor, self.openly[name])
        return found
