"""TOFU as its authors judge it (arXiv 2401.06121), with the measures that OpenUnlearning
(2506.12618) added. Notebook 10.

:func:`ask_tofu` asks a model and gives one row a question; the other functions are formulas over
numbers. A *loss* is the mean cross-entropy over the tokens of an answer, its end of sequence
included, and the probability of an answer exp(-loss): the geometric mean over its tokens.

What the common implementations do, and these functions do not:

- They add 1e-10 to every denominator. Here ratios of probabilities are differences of losses, and
  nothing is added.
- TOFU's paper and its ``utils.py`` average the *probabilities* of the wrong answers, its
  ``aggregate_eval_stat.py`` and OpenUnlearning their *losses*, and published tables come from the
  latter two. Both means are here (``mean=``). ``aggregate_eval_stat.py`` also turns the ratio
  upside down, which neither a KS test nor min(x, 1/x) notices.
- Extraction strength is never below 1/length there: where even the last token is wrong, the suffix
  of one token still counts.
- Without a retrained model forget quality is None there, and a table averages over what is left.
  Here it is refused.
- TOFU's own code asks 300 of the 400 retain questions. Here all are asked.
- In float16 the losses of two short answers round to one number and the ratio to exactly 1. Here
  they are taken in float32.

The truth ratio of real authors and world facts is over the answer itself, as there, since they have
no paraphrase.

Forget quality is a p-value: it says whether the two samples can be told apart, not how far apart
they are, and it falls with the number of questions. A high one from a handful of questions means
little.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..benchmark.records import Question
from ..benchmark.tofu import TofuSet
from ..checks import check_name
from ..models.asking import answer_logits, generate_answers, in_batches

if TYPE_CHECKING:
    import pandas as pd

# Their probability is relative to that of the wrong answers.
CHOSEN_AMONG_WRONG = ("real_authors", "world_facts")
OF_UTILITY = ("retain", *CHOSEN_AMONG_WRONG)
MAX_NEW_TOKENS = 200


# ----------------------------------------------------------------------------------------- formulas


def probability(loss: float) -> float:
    """exp(-loss): how likely a token of the answer is, in the geometric mean."""
    return math.exp(-loss)


def relative_probability(loss: float, wrong: Sequence[float]) -> float:
    """P(answer) / (P(answer) + Σ P(wrong answer)), from losses."""
    return 1 / (1 + sum(_exp(loss - other) for other in wrong))


def truth_ratio(paraphrased: float, wrong: Sequence[float], mean: str = "geometric") -> float:
    """How likely wrong answers are beside the right one in other words, from losses; all in one
    wording.

    Well below 1: the model tells the truth from lies. About 1: it does not know. Above: lies are
    likelier.

    Args:
        paraphrased: loss of the paraphrased answer.
        wrong: losses of the wrong answers.
        mean: over the wrong answers: ``"geometric"``, exp(-mean loss), as in published tables;
            ``"arithmetic"``, the mean of exp(-loss), as in the paper.

    >>> round(truth_ratio(1.0, [2.0, 4.0]), 4), round(truth_ratio(1.0, [2.0, 4.0], "arithmetic"), 4)
    (0.1353, 0.2088)

    Raises:
        ValueError: no wrong answer, or another mean.
    """
    check_name("mean", mean, ("geometric", "arithmetic"))
    if not len(wrong):
        raise ValueError("a truth ratio needs at least one wrong answer.")
    if mean == "geometric":
        return _exp(paraphrased - sum(wrong) / len(wrong))
    return sum(_exp(paraphrased - other) for other in wrong) / len(wrong)


def _exp(value: float) -> float:
    """Finite also for a model that was driven to losses of hundreds."""
    return math.exp(min(value, 700.0))


def forget_truth_ratio(ratios: Sequence[float]) -> float:
    """Mean of min(R, 1/R): 1 where right and wrong are as likely, less where one is preferred."""
    ratios = np.asarray(ratios, float)
    return float(np.minimum(ratios, 1 / ratios).mean())


def utility_truth_ratio(ratios: Sequence[float]) -> float:
    """Mean of max(0, 1 - R): high where the truth is far likelier than what is wrong."""
    return float(np.maximum(0, 1 - np.asarray(ratios, float)).mean())


def forget_quality(ratios: Sequence[float], retrained: Sequence[float] | None) -> float:
    """The p-value of a two-sample Kolmogorov-Smirnov test: can the truth ratios of the forget set
    be told from those of a model that was retrained without it?

    Args:
        ratios: R of each forget question, as they are, not min(R, 1/R).
        retrained: those of the retrained model.

    Raises:
        ValueError: no retrained model, no ratio, or one that is not finite.
    """
    from scipy.stats import ks_2samp

    if retrained is None:
        raise ValueError(
            "forget quality compares with a model that was retrained without the forget set, and "
            "none is given: train one on the retain set alone with the recipe of the model, ask "
            "it, and pass its answers; no number stands for it."
        )
    for name, values in (("the model", ratios), ("the retrained model", retrained)):
        if not len(values) or not np.isfinite(np.asarray(values, float)).all():
            raise ValueError(f"the truth ratios of {name} must be finite numbers, at least one.")
    return float(ks_2samp(ratios, retrained).pvalue)


def model_utility(parts: Mapping[str, float]) -> float:
    """The harmonic mean of nine numbers: 0 as soon as one of them is.

    Args:
        parts: ``"retain probability"`` and so on, of :func:`utility_parts`.

    Raises:
        ValueError: not nine numbers from 0 to 1.
    """
    if len(parts) != 9 or not all(0 <= value <= 1 for value in parts.values()):
        raise ValueError(
            f"model utility is of nine numbers from 0 to 1, see utility_parts; these are "
            f"{dict(parts)}."
        )
    return 9 / sum(1 / value for value in parts.values()) if all(parts.values()) else 0.0


def rouge_recall(answer: str, truth: str) -> float:
    """The share of the words of the truth that are in the answer in the same order: ROUGE-L recall,
    of stemmed words.

    Raises:
        ValueError: a truth without a letter from a to z or a digit, for which rouge_score counts 0
            whatever was answered.
    """
    from rouge_score import rouge_scorer

    if not re.search("[a-z0-9]", truth.lower()):
        raise ValueError(
            f"ROUGE-L cannot judge an answer to {truth!r}: rouge_score knows the words of a-z and "
            f"0-9 alone, and would count 0; leave writing out (generate=False)."
        )
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return scorer.score(truth, answer)["rougeL"].recall


def exact_memorisation(right: Sequence[bool]) -> float:
    """The share of an answer's tokens that are the arg-max, given the true ones before them."""
    return sum(map(bool, right)) / len(right)


def extraction_strength(right: Sequence[bool]) -> float:
    """1 - k/n for the smallest k such that all tokens from k on are the arg-max: how much of the
    answer comes by itself.

    >>> extraction_strength([False, True, False, True]), extraction_strength([True, False])
    (0.25, 0.0)
    """
    n = len(right)
    k = next((k for k in range(n, 0, -1) if not right[k - 1]), 0)
    return 1 - k / n


# ----------------------------------------------------------------------------------- asking a model


@torch.no_grad()
def answer_measures(
    model, processor, questions: Sequence[Question], *, batch_size: int = 64, progress: bool = True
) -> Tensor:
    """Loss, exact memorisation and extraction strength of the true answer to each question: float64
    [n_questions, 3].

    Questions that are too long for the model are NaN, as a warning says.

    Raises:
        TypeError, ValueError: see :func:`manu_utils.models.asking.known`.
    """
    found = torch.full((len(questions), 3), math.nan, dtype=torch.float64)

    def measure(batch: dict[str, Tensor]) -> Tensor:
        logits, targets, rows = answer_logits(model, batch)
        loss = -logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0].double().cpu()
        sizes, right = rows.bincount().tolist(), (logits.argmax(-1) == targets).cpu()
        parts = zip(loss.split(sizes), right.split(sizes), strict=True)
        found = [
            (of.mean(), exact_memorisation(hits), extraction_strength(hits)) for of, hits in parts
        ]
        return torch.tensor(found, dtype=torch.float64)

    options = (batch_size, True, progress, "answers, read")
    for indices, values in in_batches(measure, model, processor, questions, *options):
        found[indices] = values
    return found


def ask_tofu(
    model, processor, sets: Mapping[str, TofuSet], *, generate: bool = True,
    mean: str = "geometric", max_new_tokens: int = MAX_NEW_TOKENS, batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Every measure of TOFU for every question. The model is as it was.

    Args:
        sets: of :func:`load_tofu_sets`, or some of them.
        generate: also write answers, for ``rouge``; without it that column is NaN.
        mean: of :func:`truth_ratio`.

    Returns:
        One row a question: set, person_id, question, answer, probability (of real authors and world
        facts beside the wrong answers, :func:`relative_probability`), truth_ratio, rouge,
        exact_memorisation, extraction_strength and paraphrased_probability. What is too long for
        the model is NaN.

    Raises:
        TypeError, ValueError: no question, batch_size or max_new_tokens below 1, another mean, or
            logits that are not finite.
    """
    import pandas as pd

    check_name("mean", mean, ("geometric", "arithmetic"))
    options = {"batch_size": batch_size, "progress": progress}
    frames = []
    if not sets:
        raise ValueError("there is no set to ask about; see load_tofu_sets.")
    for name, group in sets.items():
        flat = [question for wrong in group.wrong for question in wrong]
        everything = [*group.asked, *group.paraphrased, *flat]
        measures = answer_measures(model, processor, everything, **options)
        n = len(group.asked)
        losses = measures[:, 0].tolist()
        own, other = losses[:n], losses[n : 2 * n]
        wrong = [
            part.tolist()
            for part in measures[2 * n :, 0].split([len(part) for part in group.wrong])
        ]
        pairs = list(zip(own, wrong, strict=True))
        if name in CHOSEN_AMONG_WRONG:
            chances = [relative_probability(*pair) for pair in pairs]
        else:
            chances = [probability(loss) for loss in own]
        rouges = [math.nan] * n
        if generate:
            written = generate_answers(
                model, processor, group.asked, max_new_tokens=max_new_tokens, **options
            )
            rouges = [  # what was too long to be asked has no loss either
                math.nan if math.isnan(loss) else rouge_recall(text, q.answer)
                for loss, text, q in zip(own, written, group.asked, strict=True)
            ]
        columns = {
            "set": name,
            "person_id": [q.person_id for q in group.asked],
            "question": [q.question for q in group.asked],
            "answer": [q.answer for q in group.asked],
            "probability": chances,
            "truth_ratio": [
                truth_ratio(loss, of, mean) for loss, of in zip(other, wrong, strict=True)
            ],
            "rouge": rouges,
            "exact_memorisation": measures[:n, 1].tolist(),
            "extraction_strength": measures[:n, 2].tolist(),
            "paraphrased_probability": [probability(loss) for loss in other],
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def utility_parts(asked: pd.DataFrame) -> dict[str, float]:
    """The nine numbers of model utility: of retain, real authors and world facts each the mean
    probability, the mean ROUGE-L recall and :func:`utility_truth_ratio`. Questions without a number
    are left out.

    Raises:
        ValueError: one of the three sets is missing, or nothing was written.
    """
    parts = {}
    for name in OF_UTILITY:
        rows = asked[asked["set"] == name].dropna(subset=["probability", "truth_ratio", "rouge"])
        if rows.empty:
            raise ValueError(
                f"there is no answer of the set {name}; model utility needs "
                f"{', '.join(OF_UTILITY)}, with rouge."
            )
        parts[f"{name} probability"] = float(rows["probability"].mean())
        parts[f"{name} rouge"] = float(rows["rouge"].mean())
        parts[f"{name} truth ratio"] = utility_truth_ratio(rows["truth_ratio"])
    return parts


def summarise_tofu(asked: pd.DataFrame, retrained: pd.DataFrame | None) -> pd.Series:
    """One line of a table of TOFU.

    Args:
        asked, retrained: of :func:`ask_tofu`, of the model and of the one retrained without the
            forget set.

    Returns:
        forget_quality, model_utility, and of the forget set the means of probability, rouge,
        exact_memorisation, extraction_strength and :func:`forget_truth_ratio`.

    Raises:
        ValueError: see :func:`forget_quality` and :func:`utility_parts`.
    """
    import pandas as pd

    forget = asked[asked["set"] == "forget"].dropna(subset=["truth_ratio"])
    of_retrained = None
    if retrained is not None:
        of_retrained = retrained[retrained["set"] == "forget"]["truth_ratio"].dropna()
    means = forget[["probability", "rouge", "exact_memorisation", "extraction_strength"]].mean()
    return pd.Series(
        {
            "forget_quality": forget_quality(forget["truth_ratio"], of_retrained),
            "model_utility": model_utility(utility_parts(asked)),
            **means,
            "truth_ratio": forget_truth_ratio(forget["truth_ratio"]),
        }
    )
