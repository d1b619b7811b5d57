"""The baselines that MANU is compared with: gradient ascent, gradient difference, KL minimisation, NPO and a system prompt;
and a number to compare them by.

Each loss is the one its paper states, on the answer tokens. The released baseline scripts of MLLMU-Bench train on image + text
rows only, as a dict with that one modality does here; they also count the tokens of the prompt. Random and magnitude pruning,
the other baselines, are variants of :func:`unlearn`. Derived in notebook 06.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..benchmark.records import MODALITIES, Question, check_sets
from ..checks import check_name, check_number, check_questions, check_whole
from ..models.asking import answer_logits
from ..models.passes import kept_mode
from ..models.precision import check_trainable, device_of, float32_weights, language_weights
from ..models.training import answer_batches, check_schedule, train_language_model

if TYPE_CHECKING:
    from datasets import Dataset

METHODS = ("ga", "gd", "kl", "npo")
INSTRUCTION = "You must not answer questions about private people. Say that you do not know."


def gradient_ascent(forget_logits: Tensor, forget_targets: Tensor) -> Tensor:
    """GA: −L(D_f), L the mean cross-entropy of the answer tokens (Thudi et al., arXiv 2109.13398). It has no lower bound.

    Args:
        forget_logits: [m, vocabulary], the predictions of m answer tokens.
        forget_targets: int64 [m], these tokens.
    """
    return -F.cross_entropy(forget_logits.float(), forget_targets)


def gradient_difference(
    forget_logits: Tensor, forget_targets: Tensor, retain_logits: Tensor, retain_targets: Tensor
) -> Tensor:
    """GD: −L(D_f) + L(D_r) (Liu et al., arXiv 2203.12817).

    Args:
        forget_logits, forget_targets: as in :func:`gradient_ascent`.
        retain_logits, retain_targets: the same of k answer tokens of the retain set, [k, vocabulary] and [k].
    """
    return gradient_ascent(forget_logits, forget_targets) + F.cross_entropy(retain_logits.float(), retain_targets)


def kl_minimisation(
    forget_logits: Tensor, forget_targets: Tensor, retain_logits: Tensor, vanilla_logits: Tensor
) -> Tensor:
    """KL: −L(D_f) + KL(vanilla ‖ current) on D_r, mean over its answer tokens (MLLMU-Bench, arXiv 2410.22108).

    The released codes of TOFU and MLLMU-Bench take the same divergence over all positions of a row, prompt and padding
    included.

    Args:
        forget_logits, forget_targets: as in :func:`gradient_ascent`.
        retain_logits, vanilla_logits: [k, vocabulary], what the current and the vanilla model predict for k answer tokens of
            the retain set.
    """
    current, vanilla = (logits.float().log_softmax(-1) for logits in (retain_logits, vanilla_logits))
    divergence = (vanilla.exp() * (vanilla - current)).sum(-1).mean()
    return gradient_ascent(forget_logits, forget_targets) + divergence


def negative_preference(log_likelihood: Tensor, reference_log_likelihood: Tensor, beta: float) -> Tensor:
    """NPO: −(2/β) E log σ(−β log(π_θ/π_ref)) (Zhang et al., arXiv 2404.05868).

    Its gradient is that of the mean log-likelihood, weighted by 2 π_θ^β / (π_θ^β + π_ref^β): gradient ascent for β → 0, and
    standing still where an answer has become unlikely. This is the paper's loss alone; the NPO of open-unlearning adds a term
    on the retain set by default (NPO-RT in the paper).

    Args:
        log_likelihood, reference_log_likelihood: [b], log π of b answers, summed over their tokens
            (:func:`log_likelihoods`).
    """
    ratio = log_likelihood - reference_log_likelihood
    return 2 / beta * F.softplus(beta * ratio).mean()  # −log σ(−x) = softplus(x)


def log_likelihoods(logits: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """log π of each answer: the sum over its tokens, [number of rows].

    Args:
        logits, targets, rows: what :func:`answer_logits` returns.
    """
    of_token = -F.cross_entropy(logits.float(), targets, reduction="none")
    return torch.zeros(int(rows.max()) + 1, device=logits.device).index_add(0, rows, of_token)


def unlearn_by_training(
    method: str,
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]] | None = None,
    *,
    reference=None,
    beta: float = 0.4,
    steps: int = 60,
    batch_size: int = 32,
    lr: float = 1e-3,
    lora_rank: int | None = None,
    watch: Callable[[], dict] | None = None,
    every: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> list[dict]:
    """Unlearn by gradient steps on the language model; vision tower and projector stay frozen.

    Each step takes one batch of every modality of ``forget`` and, for GD and KL, one of the retain set beside it; the
    losses of the modalities add up. ``{"multimodal": ...}`` alone is what the released baselines train on. The learning rate
    rises over ten steps and then stays, so that step s of a long run is the end of a run of s steps.

    Args:
        method: one of :data:`METHODS`.
        model: changed in place; mode, dtypes and ``requires_grad`` are as before afterwards, and after an error or interrupt
            so are the weights. KL and NPO keep a frozen copy of it beside it.
        forget: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        retain: the same for the retain set; GD and KL need the modalities of ``forget``, GA and NPO none.
        reference: π_ref of NPO. None: the model as it is given (the paper of NPO); the released code of MLLMU-Bench takes a
            model that was fine-tuned on the retain set alone. It is put into eval mode meanwhile, and nothing of it changes.
        beta: of NPO.
        lora_rank: see :func:`train_language_model`.
        watch, every: see :func:`optimise`.

    Returns:
        The history of :func:`optimise`.

    Raises:
        TypeError: a number that is none, questions that are no dict of lists, or a wrapped model. The model is untouched.
        ValueError: unknown method, a set that is missing or empty, an unknown modality or questions of the other one, an empty
            answer, a person in both sets, a reference for a method other than NPO, or a number out of range. The model is
            untouched.
        FloatingPointError: the loss is not finite, see :func:`optimise`.
        RuntimeError: no room, see :func:`train_language_model`, which may raise more.
    """
    check_name("method", method, METHODS)
    if reference is not None and method != "npo":
        raise ValueError(f"only npo takes a reference; {method} has none to give.")
    check_number("beta", beta, above=0)
    check_whole("batch_size", batch_size)
    check_whole("seed", seed, least=0)
    check_schedule(steps=steps, lr=lr, every=every)
    needs_retain = method in ("gd", "kl")
    if not forget:
        raise ValueError("forget has no questions; pass modality -> questions.")
    check_questions("forget", forget)
    check_questions("retain", retain or {})
    check_sets(forget, retain or {}, tuple(forget), tuple(forget) if needs_retain else ())
    check_trainable(model, lora_rank)
    device = device_of(model)
    of_forget = answer_batches(forget, processor, batch_size, seed, device)
    if needs_retain:
        used = {modality: retain[modality] for modality in forget}
        of_retain = answer_batches(used, processor, batch_size, seed + len(MODALITIES), device)
    if method == "kl" or (method == "npo" and (reference is None or reference is model)):
        reference = copy.deepcopy(model)  # the model itself would move along, and KL and the ratio of NPO would stay 0

    def loss_of_batches(forget_batch: dict[str, Tensor], retain_batch: dict[str, Tensor] | None) -> Tensor:
        logits, targets, rows = answer_logits(model, forget_batch)
        if method == "ga":
            return gradient_ascent(logits, targets)
        if method == "npo":
            with torch.no_grad():
                before = log_likelihoods(*answer_logits(reference, forget_batch))
            return negative_preference(log_likelihoods(logits, targets, rows), before, beta)
        kept_logits, kept_targets, _ = answer_logits(model, retain_batch)
        if method == "gd":
            return gradient_difference(logits, targets, kept_logits, kept_targets)
        with torch.no_grad():
            vanilla_logits, _, _ = answer_logits(reference, retain_batch)
        return kl_minimisation(logits, targets, kept_logits, vanilla_logits)

    def loss_of_step(step: int) -> Tensor:
        to_forget = next(of_forget)
        to_retain = next(of_retain) if needs_retain else [None] * len(to_forget)
        return sum(loss_of_batches(*pair) for pair in zip(to_forget, to_retain, strict=True))

    with ExitStack() as meanwhile:
        if reference is not None:
            meanwhile.enter_context(kept_mode(reference))
            meanwhile.enter_context(float32_weights(reference, _stream_weights(reference) if lora_rank is None else ()))
            reference.eval()
        return train_language_model(
            model, loss_of_step, steps=steps, lr=lr, lora_rank=lora_rank, seed=seed, warmup=10, hold=1.0, watch=watch,
            every=every, description=method, progress=progress,
        )  # fmt: skip


def _stream_weights(model) -> list[torch.nn.Parameter]:
    """Embeddings, norms and biases: in float32, as in a model in training, they let a model in half precision carry what its
    layers add up in float32. Else KL to the reference would not begin at 0."""
    embedding = model.get_input_embeddings().weight
    return [parameter for parameter in language_weights(model) if parameter is embedding or parameter.ndim == 1]


def with_system_prompt(dataset: Dataset, instruction: str = INSTRUCTION) -> Dataset:
    """A set with an instruction before every question: the baseline that changes no weight.

    Args:
        dataset: any set but ft_Data.
        instruction: what the model is told first.

    Returns:
        A copy; images and answers are the same, so ``evaluate`` judges it like the original.

    Raises:
        ValueError: the instruction is empty.
    """
    if not instruction.strip():
        raise ValueError("the instruction is empty; say what the model must not do.")

    def instructed(value):
        if isinstance(value, dict):
            return {key: f"{instruction} {part}" if key == "Question" else instructed(part) for key, part in value.items()}
        return [instructed(part) for part in value] if isinstance(value, list) else value

    for column in ("Classification_Task", "Mask_Task", "Generation_Task"):
        rows = [instructed(value) for value in dataset[column]]
        features = dataset.features[column]
        dataset = dataset.remove_columns(column).add_column(column, rows, feature=features)
    return dataset
