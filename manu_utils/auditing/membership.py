"""Membership: can one tell from a model's losses whom it was taught? Derived in notebook 09.

Members are the people in question (the forget set), strangers are people of the same world whom no
model has met (:func:`load_strangers`). **Every score is a surprise: low looks like a member.** How
well a score tells members from strangers: :mod:`manu_utils.auditing.telling_apart`.

Scores: loss (Yeom et al., arXiv 1709.01604), zlib and reference (Carlini et al., 2012.07805), Min-K
% (Shi et al., 2310.16789), Min-K++ (Zhang et al., 2404.02936), gradient norm (as for language
models in 2402.17012); settings as in OpenUnlearning (2506.12618). They are taken on the tokens of
the answer, given picture and question; the token that ends an answer is left out, since every model
knows it. A raw text has none.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_number, check_questions, check_whole
from ..models.asking import answer_logits, in_batches
from ..models.encoding import batches, encode, fitting
from ..models.passes import gradients_of, hooked, quiet_pass
from ..models.precision import device_of, language_weights
from ..progress import bar

if TYPE_CHECKING:
    import pandas as pd


def token_log_probs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How likely each token was, and how that compares with the other tokens (Min-K++).

    Args:
        logits: [m, vocabulary], at the positions that predict the tokens.
        targets: the tokens, int64 [m].

    Returns:
        log p float32 [m], and z = (log p - μ) / σ float32 [m], where μ and σ² (at least 1e-6) are
        mean and variance of log p under the model's own distribution of that token.
    """
    log_p = logits.float().log_softmax(-1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    variance = (p * (log_p - mean[:, None]).square()).sum(-1)
    own = log_p.gather(1, targets[:, None])[:, 0]
    return own, (own - mean) / variance.clamp_min(1e-6).sqrt()


def loss_score(log_probs: Tensor) -> float:
    """Minus the mean of float [m]."""
    return -log_probs.mean().item()


def min_k_score(values: Tensor, k: float = 0.2) -> float:
    """Minus the mean of the lowest share ``k`` of the tokens' values float [m], of one at least.

    Of log p this is Min-K %, of z (:func:`token_log_probs`) Min-K++.
    """
    return -values.sort().values[: max(1, int(k * len(values)))].mean().item()


def zlib_score(loss: float, text: str) -> float:
    """The loss by the bytes of the compressed answer, which stand for how surprising the text is to
    anyone.
    """
    return loss / len(zlib.compress(text.encode()))


def membership_scores(
    model,
    processor,
    questions: Sequence[Question],
    *,
    reference=None,
    k: float = 0.2,
    gradients: bool = True,
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """How much the true answer to each question surprises a model; low looks like a member. The
    model is unchanged.

    Args:
        questions: with answers, of both modalities if wanted, such as :func:`open_questions`; or
            raw texts, such as the sides of :func:`load_muse`.
        reference: a model of the same processor that was not taught these people, or None for no
            such column.
        k: the share of tokens that Min-K % and Min-K++ look at, above 0 and at most 1.
        gradients: one backward pass a question for the gradient norm; False for no such column.

    Returns:
        One row a question: person_id, modality, question, answer, loss, zlib, min_k, min_k_pp,
            grad_norm (mean over the
        weight tensors of the language model of the norm of the loss's gradient, of this question
        alone) and reference (loss less that of the reference). Questions too long for the model are
        left out, as a warning says.

    Raises:
        TypeError: questions that are no list, a wrapped model, or a number of the wrong type.
        ValueError: no questions, questions and raw texts at once, an empty answer, k or batch_size
            out of range, or logits that are not finite.
    """
    import pandas as pd

    check_questions("questions", {"questions": questions})
    check_number("k", k, above=0)
    check_whole("batch_size", batch_size)
    if not questions or k > 1:
        raise ValueError(
            f"k={k!r} is above 1."
            if questions
            else "there is no question to score; pass at least one."
        )
    if len({q.task == "raw" for q in questions}) > 1:
        raise ValueError("some questions are raw texts; score them apart, their scores differ.")
    asked = [questions[index] for index in fitting(questions, processor, with_answer=True)[0]]
    found = _answer_scores(model, processor, asked, k, batch_size, progress)
    frame = pd.DataFrame(found.numpy(), columns=["loss", "min_k", "min_k_pp"])
    zlibs = [zlib_score(loss, q.answer) for loss, q in zip(frame["loss"], asked, strict=True)]
    frame.insert(1, "zlib", zlibs)
    if gradients:
        frame["grad_norm"] = _gradient_norms(model, processor, asked, progress)
    if reference is not None:
        others = _answer_scores(reference, processor, asked, k, batch_size, progress)[:, 0]
        frame["reference"] = frame["loss"] - others.numpy()
    about = [(q.person_id, q.modality, q.question, q.answer) for q in asked]
    return pd.concat(
        [pd.DataFrame(about, columns=["person_id", "modality", "question", "answer"]), frame],
        axis=1,
    )


def _without_ends(rows: Tensor, questions: Sequence[Question]) -> Tensor:
    """bool [m]: not the token that ends an answer, the last of a question that is no raw text;
    ``rows`` int64 [m] holds the question of each, all of one together.
    """
    if questions[0].task == "raw":
        return torch.ones_like(rows, dtype=torch.bool)
    return torch.cat([rows[1:] == rows[:-1], rows.new_zeros(1, dtype=torch.bool)])


@torch.no_grad()
def _answer_scores(
    model, processor, questions: Sequence[Question], k: float, batch_size: int, progress: bool
) -> Tensor:
    """Loss, Min-K % and Min-K++ of each question: float64 [n_questions, 3]."""

    def scores(batch: dict[str, Tensor]) -> list[tuple[float, float, float]]:
        logits, targets, rows = answer_logits(model, batch)
        log_p, z = (values.double().cpu() for values in token_log_probs(logits, targets))
        kept = _without_ends(rows, questions)
        sizes, kept = rows[kept].bincount().tolist(), kept.cpu()
        parts = zip(log_p[kept].split(sizes), z[kept].split(sizes), strict=True)
        return [(loss_score(a), min_k_score(a, k), min_k_score(b, k)) for a, b in parts]

    found = torch.zeros(len(questions), 3, dtype=torch.float64)
    options = (batch_size, True, progress, "membership", batches)
    for indices, batch_scores in in_batches(scores, model, processor, questions, *options):
        found[indices] = torch.tensor(batch_scores, dtype=torch.float64)
    return found


def _gradient_norms(model, processor, questions: Sequence[Question], progress: bool) -> list[float]:
    """Of each question; one weight's gradient is in memory at a time."""
    weights = language_weights(model)
    norms: list[Tensor] = []

    def note(weight) -> None:
        norms.append(weight.grad.float().norm())
        weight.grad = None

    def norm_of(question: Question) -> float:
        norms.clear()
        logits, targets, rows = answer_logits(
            model, encode([question], processor, True, device_of(model))
        )
        log_p, _ = token_log_probs(logits, targets)
        (-log_p[_without_ends(rows, questions)].mean()).backward()
        return torch.stack([norm.cpu() for norm in norms]).mean().item()

    own = [weight.grad for weight in weights]  # the caller's
    try:
        for weight in weights:
            weight.grad = None
        with quiet_pass(model), gradients_of(model, weights):
            with hooked([(weight.register_post_accumulate_grad_hook, note) for weight in weights]):
                return [
                    norm_of(question)
                    for question in bar(questions, desc="gradients", shown=progress)
                ]
    finally:
        for weight, grad in zip(weights, own, strict=True):
            weight.grad = grad
