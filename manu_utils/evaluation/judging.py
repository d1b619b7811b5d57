"""Whether an answer is right: letters, missing words, statements. Derived in notebook 05."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from ..benchmark.records import Question


def parse_letter(response: str) -> str | None:
    """The official parser: the first character, upper-cased, if it is A, B, C or D, else None.

    >>> [parse_letter(text) for text in ("b", "Answer: B", "The answer is B", "Both")]
    ['B', 'A', None, 'B']
    """
    first = response.strip()[:1].upper()
    return first if first in tuple("ABCD") else None


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces: what two statements of one fact have in common.

    >>> normalise(" Works as a  Nurse.")
    'works as a nurse'
    """
    return " ".join(re.sub(f"[{re.escape(string.punctuation)}]", " ", text.lower()).split())


def judge(
    question: Question, response: str, likeliest: str, scorer
) -> dict[str, tuple[str, float]]:
    """metric -> (answer, value in 0..1) for one response.

    Args:
        likeliest: the likeliest option letter (classification).
        scorer: a ``rouge_score`` scorer of ``rougeL`` (generation).
    """
    if question.task == "classification":
        letter = parse_letter(response)
        return {
            "accuracy": (response, float(question.options.get(letter) == question.answer)),
            "likelihood": (likeliest, float(question.options[likeliest] == question.answer)),
        }
    if question.task == "cloze":
        return {"accuracy": (response, float(question.answer.lower() in response.lower()))}
    same = normalise(response) == normalise(question.answer)
    rouge = scorer.score(question.answer, response)["rougeL"].fmeasure
    return {"accuracy": (response, float(same)), "rougeL": (response, rouge)}


def bleu(truth: str, response: str, short: bool = False) -> float:
    """Sentence BLEU of nltk on words, smoothing method 1, as in the official code: 0 to 1.

    Args:
        short: a response of fewer than four words is compared in runs of up to its length, not of
            up to four, so that a short truth can get 1.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    words = response.split()
    if not words:
        return 0.0
    return float(
        sentence_bleu(
            [truth.split()],
            words,
            smoothing_function=SmoothingFunction().method1,
            auto_reweigh=short,
        )
    )


# a line that begins with it
_LINE = re.compile(r"^[\W_]*([A-Da-d])(?:[\W_]*$|\s*[.:)\]*,]|\s+[-–]\s)", re.MULTILINE)
_CUE = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)(?:\s+(?:is|would\s+be))?)\s*:?\s*[\"'*(\[]*"
    r"([A-D](?!\w)|[a-d](?=[\"'*)\].,;:]|\s*$))"
)
_ARTICLE = re.compile(
    r"(^|[.!?:]\s+)A(?=\s+(?!(?:or|and|is|because|since|as)\b)[a-z])", re.MULTILINE
)
_CAPITAL = re.compile(r"(?<![\w'’.-])([A-D])(?![\w'’-])")


def find_letter(response: str, letters: Sequence[str] = "ABCD") -> str | None:
    """The option that a response names: the one letter that stands by itself, or None.

    First a line that begins with the letter ("B", "(b)", "B: nurse", "**B**. Because ..."), then
    one after a cue ("the answer is B", "Option B"), then a capital anywhere, but for the article
    that a sentence begins with ("A nurse").

    >>> [find_letter(text) for text in ("b", "The answer is B", "(C) baker")]
    ['B', 'B', 'C']
    >>> [find_letter(text) for text in ("Both", "A or B", "A nurse")]
    [None, None, None]
    """
    for pattern, text in (
        (_LINE, response),
        (_CUE, response),
        (_CAPITAL, _ARTICLE.sub(r"\1", response)),
    ):
        named = {letter.upper() for letter in pattern.findall(text)} & set(letters)
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def holds(truth: str, response: str) -> bool:
    """Whether the words of the truth are in the response, one after the other and whole.

    >>> holds("US", "because"), holds("US", "In the US."), holds("29 May", "born on 29 May 1990")
    (False, True, True)
    """
    return (
        re.search(rf"(?<!\w){re.escape(truth.strip().lower())}(?!\w)", response.lower()) is not None
    )
