"""Known word for word, and known about: what MUSE (arXiv 2407.06460) asks of an unlearned model.
Notebook 11.

The owner of a text wants (1) no verbatim memory, (2) no knowledge memory and (3) no privacy
leakage; who runs the model wants (4) utility on the rest, also when (5) more is to be forgotten at
once and when (6) requests follow one another. Where the law protects the words and not the facts,
(2) may stay: :func:`six_questions` gives the number and leaves the judgement to the reader.

As in MUSE's code: greedy answers of at most 128 (a continuation, whose truth is cut to as many) or
32 tokens (an answer); mean F1 of ROUGE-L over words in lower case, not stemmed. Its own files
(:func:`manu_utils.benchmark.load_muse`) are raw texts, with the shots in the prompt, and an answer
ends before :data:`STOPS`. What it does and these functions do not: it loads models in 8 bits, takes
out spaces before punctuation when it decodes, and compares an AUC that counts the other way round,
which the formula of :func:`manu_utils.auditing.privleak` undoes. The longest common part (as in
CoTaEval, 2406.18664) and extraction strength (:mod:`manu_utils.evaluation.tofu`) are not MUSE's:
ROUGE-L counts words that come in order with gaps between them, which two texts of one grammar have
anyway.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..benchmark.records import Question, check_list
from ..checks import check_whole
from ..models.asking import generate_answers
from .tofu import answer_measures

if TYPE_CHECKING:
    import pandas as pd

CONTINUATION_TOKENS, ANSWER_TOKENS = 128, 32
STOPS = ("\n\n", "\nQuestion", "Question:")  # where a model after shots goes on to the next
QUESTIONS = (
    "1 verbatim memory", "2 knowledge memory", "3 privacy leakage", "4 utility", "5 scalability",
    "6 sustainability",
)  # fmt: skip


class Rouge(NamedTuple):
    """ROUGE-L of two texts: the longest common subsequence of words by the words of each."""

    precision: float
    recall: float
    f1: float


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, letters and digits, as the package ``rouge_score`` finds
    them.

    >>> words_of("The moon's mill, 1921.")
    ['the', 'moon', 's', 'mill', '1921']
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(written: str, truth: str) -> Rouge:
    """ROUGE-L as MUSE takes it, without stemming; 0 where a side has no word.

    Args:
        written: of the model; precision is by its words.
        truth: recall is by its words.

    >>> rouge_l("the slow moon", "the moon sleeps")
    Rouge(precision=0.6666666666666666, recall=0.6666666666666666, f1=0.6666666666666666)
    """
    from rouge_score import rouge_scorer

    return Rouge(*rouge_scorer.RougeScorer(["rougeL"]).score(truth, written)["rougeL"])


def recited(written: str, truth: str) -> list[bool]:
    """Which words of the truth are in one longest common subsequence; their share is the recall of
    :func:`rouge_l`.

    >>> recited("the moon, slow and pale", "the slow pale moon")
    [True, True, True, False]
    """
    one, other = words_of(written), words_of(truth)
    table = [[0] * (len(other) + 1)]  # [i][j]: of the first i and the first j words
    for word in one:
        before, row = table[-1], [0]
        for j, with_word in enumerate(other, 1):
            row.append(before[j - 1] + 1 if word == with_word else max(before[j], row[j - 1]))
        table.append(row)
    found, i, j = [False] * len(other), len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            found[j - 1] = True
            i, j = i - 1, j - 1
        elif table[i][j - 1] >= table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found


def longest_common_part(written: str, truth: str) -> int:
    """How many words in a row, without a gap, two texts share at most.

    >>> longest_common_part("the slow moon sleeps", "a slow moon, and the slow moon sleeps")
    4
    """
    one, other = words_of(written), words_of(truth)
    longest, row = 0, [0] * (len(other) + 1)
    for word in one:
        row = [0] + [row[j] + 1 if word == at else 0 for j, at in enumerate(other)]
        longest = max(longest, *row)
    return longest


def ask_verbatim(
    model, processor, questions: Sequence[Question], *, max_new_tokens: int = CONTINUATION_TOKENS,
    batch_size: int = 64, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """How much of a text a model recites. The model is as it was.

    Args:
        questions: the beginning of a text as question, what follows it as answer.

    Returns:
        One row a question: person_id, prompt, truth (as far as it can be written in so many
        tokens), written, rouge (F1), recall, longest (words in a row), longest_share (of the words
        of the truth) and extraction_strength (of the whole answer; NaN where it is too long for
        the model).

    Raises:
        TypeError, ValueError: no question, questions and raw texts at once, an empty answer,
            max_new_tokens or batch_size below 1, or logits that are not finite.
    """
    options = {"batch_size": batch_size, "progress": progress}
    more = {"max_new_tokens": max_new_tokens, "cut": True}
    frame = _asked(model, processor, questions, **more, **options)
    longest = [
        longest_common_part(*pair) for pair in zip(frame["written"], frame["truth"], strict=True)
    ]
    frame["longest"] = longest
    frame["longest_share"] = [
        n / max(1, len(words_of(t))) for n, t in zip(longest, frame["truth"], strict=True)
    ]
    frame["extraction_strength"] = answer_measures(model, processor, questions, **options)[
        :, 2
    ].tolist()
    return frame


def ask_knowledge(
    model, processor, questions: Sequence[Question], *, max_new_tokens: int = ANSWER_TOKENS,
    batch_size: int = 64, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """How well a model answers questions about a text. The model is as it was.

    Args:
        questions: such as those of :func:`manu_utils.benchmark.load_muse`, which are raw texts.

    Returns:
        One row a question: person_id, prompt, truth, written, rouge (F1), recall and exact (the
        same words).

    Raises:
        TypeError, ValueError: see :func:`ask_verbatim`.
    """
    options = {"batch_size": batch_size, "progress": progress}
    more = {"max_new_tokens": max_new_tokens, "cut": False, "stop": STOPS}
    frame = _asked(model, processor, questions, **more, **options)
    pairs = zip(frame["written"], frame["truth"], strict=True)
    frame["exact"] = [words_of(written) == words_of(truth) for written, truth in pairs]
    return frame


def _asked(
    model, processor, questions: Sequence[Question], *, max_new_tokens: int, cut: bool,
    stop: Sequence[str] = (), **options,
) -> pd.DataFrame:  # fmt: skip
    """What is written and what is true, compared.

    Args:
        cut: whether a truth ends after ``max_new_tokens``, too.
        stop: where an answer to a raw text ends.
        options: of :func:`generate_answers`.
    """
    import pandas as pd

    check_list(questions)
    check_whole("max_new_tokens", max_new_tokens)
    raw = {question.task == "raw" for question in questions}
    if len(raw) > 1:
        raise ValueError("some questions are raw texts; ask them apart, they end otherwise.")
    options |= {"max_new_tokens": max_new_tokens, "stop": stop if True in raw else ()}
    written = generate_answers(model, processor, questions, **options)
    if empty := next((q for q in questions if not words_of(q.answer)), None):
        raise ValueError(
            f"{empty.question!r} has no words as answer; there is nothing to compare with."
        )
    tokenizer = processor.tokenizer
    truths = [q.answer.removeprefix(" ") for q in questions]  # which load_muse puts before a truth
    if cut:
        # as MUSE counts: what a tokenizer puts before a text is one of them
        ids = [own[:max_new_tokens] for own in tokenizer(truths)["input_ids"]]
        truths = [tokenizer.decode(own, skip_special_tokens=True) for own in ids]
    scores = [rouge_l(*pair) for pair in zip(written, truths, strict=True)]
    return pd.DataFrame(
        {
            "person_id": [q.person_id for q in questions],
            "prompt": [q.question for q in questions],
            "truth": truths,
            "written": written,
            "rouge": [score.f1 for score in scores],
            "recall": [score.recall for score in scores],
        }
    )


def six_questions(
    verbatim: float, knowledge: float, leakage: float, utility: float,
    by_size: Mapping[int, float], by_request: Sequence[float],
) -> pd.DataFrame:  # fmt: skip
    """MUSE's six questions about one model as rows that can be put below one another.

    Args:
        verbatim, knowledge: mean ROUGE-L F1 on the forget set, of :func:`ask_verbatim` and
            :func:`ask_knowledge`.
        leakage: :func:`manu_utils.auditing.privleak`, in %, 0 as retrained, from -100.
        utility: mean ROUGE-L F1 of answers about the retain set.
        by_size: number of texts forgotten at once -> utility afterwards.
        by_request: utility after the first, second, ... request of the same size.

    Returns:
        Columns question (:data:`QUESTIONS`), at (texts forgotten, or number of requests; missing
        for the first four) and value.

    Raises:
        ValueError: a share that is not from 0 to 1, a leakage that is not finite or below -100, no
            size or request, or sizes that are not whole numbers above 0.
    """
    import pandas as pd

    shares = {"verbatim": verbatim, "knowledge": knowledge, "utility": utility}
    shares |= {f"by_size[{size}]": value for size, value in by_size.items()}
    shares |= {f"by_request[{i}]": value for i, value in enumerate(by_request)}
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}; give a mean ROUGE-L, from 0 to 1.")
    if not math.isfinite(leakage) or leakage < -100 - 1e-6:
        raise ValueError(f"leakage is {leakage!r}; give privleak in %, which is never below -100.")
    if not by_size or not len(by_request):
        raise ValueError("scalability needs one size at least, sustainability one request.")
    for size in by_size:
        check_whole("a size", size)
    four = zip(QUESTIONS, (verbatim, knowledge, leakage, utility), strict=False)
    rows = [(question, None, value) for question, value in four]
    rows += [(QUESTIONS[4], size, by_size[size]) for size in sorted(by_size)]
    rows += [(QUESTIONS[5], number, value) for number, value in enumerate(by_request, 1)]
    frame = pd.DataFrame(rows, columns=["question", "at", "value"])
    return frame.astype({"at": "Int64", "value": float})
