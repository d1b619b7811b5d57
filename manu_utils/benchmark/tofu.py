"""TOFU (arXiv 2401.06121): 20 questions about each of 200 fictitious authors, in text alone.

:func:`load_tofu` gives it the sets and tasks of MLLMU-Bench (:mod:`manu_utils.benchmark.columns`).
For TOFU as its authors judge it (:mod:`manu_utils.evaluation.tofu`), :func:`load_tofu_sets` keeps
the perturbed and paraphrased answers and reads ``world_facts_perturbed`` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .columns import choice_of, evaluated_row, joined, read_columns, told_row
from .records import Question
from .sets import Benchmark

if TYPE_CHECKING:
    from datasets import Dataset

QUESTIONS_PER_AUTHOR = 20  # the rows are in the order of the authors


def load_tofu(
    source: str | Path, forget_ratio: int, modalities: Sequence[str] = ("text",)
) -> Benchmark:
    """TOFU as a :class:`Benchmark` of text-only questions; sets as in :mod:`.columns`.

    Args:
        forget_ratio: 1, 5 or 10.
        modalities: of what will be asked; a benchmark without pictures takes any.

    Raises:
        ValueError: a missing column, or a question that is not in ``full``; also what
            ``read_config`` raises.
    """
    authored = _tofu_authors(source)

    def by_author(config: str, columns: list[str]) -> dict[str, list[dict]]:
        grouped: dict[str, list[dict]] = {}
        for author, row in authored(config, columns):
            grouped.setdefault(author, []).append(row)
        return grouped

    perturbed = ["question", "answer", "perturbed_answer"]
    paraphrased = [*perturbed, "paraphrased_question", "paraphrased_answer"]
    forget = by_author(f"forget{forget_ratio:02}_perturbed", paraphrased)
    retain = by_author(f"retain{100 - forget_ratio}", ["question", "answer"])
    asked_of_retain = by_author("retain_perturbed", perturbed)
    real = {
        f"real_{place:03}": [row]
        for place, row in enumerate(read_columns(source, "real_authors_perturbed", perturbed), 1)
    }

    def evaluated(
        name: str, people: Iterable[str], rows: dict[str, list[dict]], wording: str = ""
    ) -> Dataset:
        asked = []
        for person in people:
            pairs = [
                (row[f"{wording}question"], row[f"{wording}answer"], row["perturbed_answer"])
                for row in rows.get(person, [])
            ]
            choices = [choice_of(*pair) for pair in pairs]
            told = [("Pure_Text", question, answer) for question, answer, _ in pairs]
            asked.append(evaluated_row(person, text_choices=choices, generation=told))
        return joined(f"TOFU {name}", ["classification/text", "generation/text"], [(asked, None)])

    told = [
        told_row(person, rows) for person, rows in by_author("full", ["question", "answer"]).items()
    ]
    return Benchmark(
        forget=evaluated("forget", forget, forget),
        retain=evaluated("retain", retain, asked_of_retain),
        test=evaluated("test", forget, forget, "paraphrased_"),
        celebrity=evaluated("celebrity", real, real),
        training=joined("TOFU training", None, [(told, None)]),
        forget_ratio=forget_ratio,
        source=str(source),
    )


@dataclass(frozen=True)
class TofuSet:
    """What is asked of one group of TOFU, all lists in the order of the file.

    Attributes:
        asked: the questions with their answers, as they are taught.
        wrong: for each of them the same question with several wrong answers.
        paraphrased: the same questions with the answer in other words; the answer itself for real
            authors and world facts, which have no other wording.
        reworded: the questions in other words with the answer in other words; empty where there are
        none.
    """

    asked: list[Question]
    wrong: list[list[Question]]
    paraphrased: list[Question]
    reworded: list[Question]

    def __post_init__(self):
        lengths = [len(self.asked), len(self.wrong), len(self.paraphrased)]
        if len(set(lengths)) > 1 or len(self.reworded) not in (0, lengths[0]):
            raise ValueError(
                f"asked, wrong, paraphrased and reworded have {[*lengths, len(self.reworded)]} "
                f"entries; they must be of the same questions (reworded may be empty)."
            )


def load_tofu_sets(source: str | Path, forget_ratio: int) -> dict[str, TofuSet]:
    """TOFU as its authors judge it: the four sets of questions of the perturbed configs.

    Args:
        source: a local folder or ``"locuslab/TOFU"``.
        forget_ratio: 1, 5 or 10.

    Returns:
        Name -> questions. People are called as in :func:`load_tofu`, real authors and facts by
        their number.

    Raises:
        ValueError: a missing column, a question that is not in ``full``, or a question without a
            wrong answer; also what ``read_config`` raises.
    """
    authored, plain = _tofu_authors(source), ["question", "answer", "perturbed_answer"]

    def numbered(config: str) -> Iterator[tuple[str, dict]]:
        return (
            (f"{config}_{i + 1:03}", row)
            for i, row in enumerate(read_columns(source, f"{config}_perturbed", plain))
        )

    def read(config: str, rows: Iterable[tuple[str, dict]], paraphrases: bool) -> TofuSet:
        rows = list(rows)
        if empty := [row["question"] for _, row in rows if not row["perturbed_answer"]]:
            raise ValueError(
                f"{config} of {source} has no wrong answer for {empty[0]!r}; fetch the file again."
            )
        other = "paraphrased_answer" if paraphrases else "answer"
        return TofuSet(
            asked=[_asked(who, row["question"], row["answer"]) for who, row in rows],
            wrong=[
                [_asked(who, row["question"], wrong) for wrong in row["perturbed_answer"]]
                for who, row in rows
            ],
            paraphrased=[_asked(who, row["question"], row[other]) for who, row in rows],
            reworded=[
                _asked(who, row["paraphrased_question"], row[other])
                for who, row in rows
                if paraphrases
            ],
        )

    worded = [*plain, "paraphrased_question", "paraphrased_answer"]
    forget_of = f"forget{forget_ratio:02}_perturbed"
    return {
        "forget": read(forget_of, authored(forget_of, worded), True),
        "retain": read("retain_perturbed", authored("retain_perturbed", worded), True),
        "real_authors": read("real_authors_perturbed", numbered("real_authors"), False),
        "world_facts": read("world_facts_perturbed", numbered("world_facts"), False),
    }


def load_tofu_holdout(source: str | Path, forget_ratio: int) -> list[Question]:
    """``holdoutXX`` of TOFU: authors whom no model was taught, the control of membership tests.

    Raises:
        ValueError, FileNotFoundError: see ``read_config``; older releases of TOFU have no such
            config.
    """
    rows = read_columns(source, f"holdout{forget_ratio:02}", ["question", "answer"])
    return [
        _asked(f"holdout_{place // QUESTIONS_PER_AUTHOR + 1:03}", row["question"], row["answer"])
        for place, row in enumerate(rows)
    ]


def _asked(person: str, question: str, answer: str) -> Question:
    return Question(person, question, answer, None, "training")


def _tofu_authors(source: str | Path) -> Callable[[str, list[str]], Iterator[tuple[str, dict]]]:
    """A reader of (author, row) of the configs that ask about the authors of ``full``."""
    full = read_columns(source, "full", ["question", "answer"])
    if len(full) % QUESTIONS_PER_AUTHOR:
        raise ValueError(
            f"full of {source} has {len(full)} rows, which is not {QUESTIONS_PER_AUTHOR} for each "
            f"author."
        )
    author_of: dict = {}
    for place, row in enumerate(full):
        author = f"{place // QUESTIONS_PER_AUTHOR + 1:03}"
        author_of[row["question"].strip(), row["answer"].strip()] = author
        author_of.setdefault(row["question"].strip(), author)

    def authored(config: str, columns: list[str]) -> Iterator[tuple[str, dict]]:
        for row in read_columns(source, config, columns):
            question = row["question"].strip()
            author = author_of.get((question, row["answer"].strip())) or author_of.get(question)
            if author is None:
                raise ValueError(
                    f"{config} of {source} asks {question!r}, which is not in full; fetch both "
                    f"from the same release."
                )
            yield author, row

    return authored
