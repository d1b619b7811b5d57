"""The baselines that take gradient steps, each with a retain term and a weight of its own; and a
system prompt.

Gradient ascent, gradient difference, KL minimisation and NPO are those of MLLMU-Bench, derived in
notebook 06; its released scripts train on image + text rows only, as a dict with that one modality
does here, and also count the tokens of the prompt. The others come from work on text. What each
minimises is in :mod:`manu_utils.unlearning.losses`. Random and magnitude pruning, the other
baselines, are variants of :func:`unlearn`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import processes
from ..benchmark.records import MODALITIES, TASK_COLUMNS, Question, check_sets
from ..checks import check_name, check_number, check_questions, check_whole
from ..models.passes import check_model, kept_mode
from ..models.precision import check_trainable, device_of, float32_weights, language_weights
from ..models.training import answer_batches, check_schedule, train_language_model, weight_of
from .objectives import (
    OBJECTIVES,
    RETAIN_TERMS,
    Objective,
    checked_settings,
    refusing_questions,
    retain_loss,
)
from .saliency import check_mask, holding_back

if TYPE_CHECKING:
    from datasets import Dataset

METHODS = ("ga", "gd", "kl", "npo")  # those of MLLMU-Bench
RIVALS = ("simnpo", "rmu", "undial", "idk", "idk_preference")
INSTRUCTION = "You must not answer questions about private people. Say that you do not know."


def unlearn_by_training(
    method: str,
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]] | None = None,
    *,
    reference=None,
    retain_term: str | None = "own",
    retain_weight: float = 1.0,
    retain_batch_size: int | None = None,
    mask: dict[str, Tensor] | Callable[..., dict[str, Tensor]] | None = None,
    steps: int = 60,
    batch_size: int = 32,
    lr: float = 1e-3,
    lora_rank: int | None = None,
    watch: Callable[[], dict] | None = None,
    every: int = 20,
    log: Callable[[dict], None] | None = None,
    seed: int = 0,
    progress: bool = True,
    **settings,
) -> list[dict]:
    """Unlearn by gradient steps on the language model; vision tower and projector stay frozen.

    Each step takes one batch of every modality of ``forget`` and, where there is a retain term, one
    of the retain set beside it; the losses of the modalities add up. ``{"multimodal": ...}`` alone
    is what the released baselines train on. The learning rate rises over ten steps and then stays,
    so that step s of a long run is the end of a run of s steps. Several processes share each batch
    and take the same steps (:mod:`manu_utils.processes`).

    Args:
        method: one of :data:`METHODS` or :data:`RIVALS`: ``"ga"``, ``"gd"`` and ``"kl"`` (gradient
            ascent, differing in the retain term), ``"npo"``, ``"simnpo"``, ``"rmu"``, ``"undial"``,
            ``"idk"`` (answers replaced by refusals) and ``"idk_preference"`` (refusals preferred).
        model: changed in place; mode, dtypes and ``requires_grad`` are as before afterwards, and
            after an error or interrupt so are the weights. Where it is compared with what it was, a
            frozen copy of it is kept beside it; with ``lora_rank`` that shares its weights.
        forget: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        retain: the same for the retain set; a retain term needs the modalities of ``forget``.
        reference: π_ref of NPO and of the preference. None: the model as it is given (the paper of
            NPO); the released code of MLLMU-Bench takes a model that was fine-tuned on the retain
            set alone. It is put into eval mode meanwhile, and nothing of it changes.
        retain_term: ``"cross-entropy"``, ``"kl"`` (to the model as it is given), ``"states"``
            (squared distance to its hidden states in one layer) or None; any with any method.
            ``"own"``: cross-entropy for GD, KL for KL, states for RMU, none for the others.
        retain_weight: of the retain term, where the loss on the forget set has weight 1.
        retain_batch_size: questions of the retain set per modality and step (default: as many as
            of the forget set).
        mask: which weights move: name -> bool of a language weight's shape, or what makes it from
            (model, processor, forget, retain), such as :func:`saliency_mask`. None: all.
        lora_rank: see :func:`train_language_model`.
        watch, every, log: see :func:`optimise`.
        settings: ``beta`` of NPO (0.4), SimNPO (2.5), UNDIAL (10) and the preference (0.1);
            ``gamma`` of SimNPO (0); ``steering``, the length that RMU steers states to (20);
            ``layer`` of RMU and of ``"states"`` (the middle one); ``refusals`` of the last two
            methods, of which each question is given one.

    Returns:
        The history of :func:`optimise`.

    Raises:
        TypeError: a number that is none, questions that are no dict of lists, a setting that the
            method does not have, or a wrapped model. The model is untouched.
        ValueError: unknown method or retain term, a set that is missing or empty, an unknown
            modality or questions of the other one, an empty answer, a person in both sets, a
            reference for a method that has none, a mask of another model or together with LoRA, or
            a number out of range. The model is untouched.
        FloatingPointError: the loss is not finite, see :func:`optimise`.
        RuntimeError: no room, see :func:`train_language_model`, which may raise more.
    """
    term = _checked_term(method, retain_term, retain_weight, reference)
    sizes = (batch_size, batch_size if retain_batch_size is None else retain_batch_size)
    for name, size in zip(("batch_size", "retain_batch_size"), sizes, strict=True):
        check_whole(name, size)
    check_whole("seed", seed, least=0)
    check_schedule(steps=steps, lr=lr, every=every)
    _check_given(forget, retain, needs_retain=term is not None)
    check_trainable(model, lora_rank)
    settings = checked_settings(method, settings, model, seed)
    if mask is not None:
        mask = _checked_mask(mask, model, processor, forget, retain, lora_rank)
    objective, device = OBJECTIVES[method], device_of(model)
    used = {m: retain[m] for m in forget} if term is not None else {}
    batches = _batches(objective.answers, forget, used, processor, sizes, device, settings)
    reference, vanilla = _to_compare(model, reference, objective.compares, term, lora_rank)
    put_back = holding_back(model, mask)

    def loss_of_batches(to_forget, to_retain) -> Tensor:
        loss = _shared(objective.loss(model, reference, to_forget, settings), objective, to_forget)
        if term is None:
            return loss
        kept = retain_loss(term, model, vanilla, to_retain, settings["layer"])
        kept = kept * weight_of(to_retain)
        return loss + retain_weight * kept

    def loss_of_step(step: int) -> Tensor:
        put_back()
        return sum(loss_of_batches(*pair) for pair in next(batches))

    with _frozen(reference, lora_rank), _frozen(vanilla, lora_rank):
        history = train_language_model(
            model, loss_of_step, steps=steps, lr=lr, lora_rank=lora_rank, seed=seed, warmup=10,
            hold=1.0, watch=watch and (lambda: put_back() or watch()), every=every,
            log=log, description=method, progress=progress,
        )  # fmt: skip
    put_back()
    return history


def _checked_term(method: str, retain_term: str | None, weight: float, reference) -> str | None:
    """The retain term of a method, its own unless another is given."""
    check_name("method", method, (*METHODS, *RIVALS))
    if retain_term not in ("own", None):
        check_name("retain_term", retain_term, RETAIN_TERMS)
    check_number("retain_weight", weight, above=0)
    if reference is not None:
        if method not in ("npo", "idk_preference"):
            raise ValueError(f"only npo and idk_preference take a reference; {method} has none.")
        check_model(reference)
    return OBJECTIVES[method].retain_term if retain_term == "own" else retain_term


def _shared(loss: Tensor, objective: Objective, batch) -> Tensor:
    """The loss on a batch of the forget set, weighted as processes share it."""
    if objective.mean_over == "tokens":
        return loss * weight_of(batch)
    if processes.count() == 1:
        return loss
    one = batch[0] if objective.answers == "both" else batch
    return loss * processes.weight(len(one["input_ids"]))


def _to_compare(
    model, reference, compares: bool, term: str | None, lora_rank: int | None
) -> tuple:
    """What the loss and what the retain term compare with, or None: the model itself would move
    along, and KL and the ratio of NPO would stay 0, so that they get a copy. Adapters stand beside
    the weights and leave them as they are, so that the copy has the same tensors.
    """
    given = reference is not None and reference is not model
    copied = (compares and not given) or term in ("kl", "states")
    tensors = [] if lora_rank is None else [*model.parameters(), *model.buffers()]
    same = {id(tensor): tensor for tensor in tensors}  # which are not copied
    vanilla = copy.deepcopy(model, same) if copied else None
    return reference if given else vanilla, vanilla


def _checked_mask(mask, model, processor, forget, retain, lora_rank) -> dict[str, Tensor]:
    if lora_rank is not None:
        raise ValueError("adapters move whole matrices; give a mask or lora_rank, not both.")
    made = mask(model, processor, forget, retain) if callable(mask) else mask
    return check_mask(made, model)


def _check_given(forget, retain, *, needs_retain: bool) -> None:
    if not forget:
        raise ValueError("forget has no questions; pass modality -> questions.")
    check_questions("forget", forget)
    check_questions("retain", retain or {})
    check_sets(forget, retain or {}, tuple(forget), tuple(forget) if needs_retain else ())


def _batches(
    answers: str, forget: dict, retain: dict, processor, sizes: tuple[int, int], device, settings
) -> Iterator[Iterable[tuple]]:
    """Forever: of every modality a batch of the forget set and one of the retain set, or None."""
    seed = settings["seed"]
    if answers == "true":
        of_forget = answer_batches(forget, processor, sizes[0], seed, device)
    else:
        refusing, true = refusing_questions(forget, processor, settings)
        of_forget = answer_batches(refusing, processor, sizes[0], seed, device)
        if answers == "both":  # in the same order
            of_true = answer_batches(true, processor, sizes[0], seed, device)
            pairs = zip(of_forget, of_true, strict=False)
            of_forget = (list(zip(*pair, strict=True)) for pair in pairs)
    of_retain = repeat([None] * len(forget))
    if retain:
        apart = seed + len(MODALITIES)  # from the seeds of the forget set's batches
        of_retain = answer_batches(retain, processor, sizes[1], apart, device)
    return (zip(*pair, strict=True) for pair in zip(of_forget, of_retain, strict=False))


@contextmanager
def _frozen(model, lora_rank: int | None) -> Iterator[None]:
    """Inside, a model to compare with is in eval mode, and as precise as what is trained."""
    if model is None:
        yield
        return
    stream = _stream_weights(model) if lora_rank is None else ()
    with kept_mode(model), float32_weights(model, stream):
        model.eval()
        yield


def _stream_weights(model) -> list[torch.nn.Parameter]:
    """Embeddings, norms and biases: in float32, as in a model in training, they let a model in half
    precision carry what its layers add up in float32. Else KL would not begin at 0.
    """
    embedding = model.get_input_embeddings().weight
    return [p for p in language_weights(model) if p is embedding or p.ndim == 1]


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
            return {
                key: f"{instruction} {part}" if key == "Question" else instructed(part)
                for key, part in value.items()
            }
        return [instructed(part) for part in value] if isinstance(value, list) else value

    for column in TASK_COLUMNS.values():
        rows = [instructed(value) for value in dataset[column]]
        features = dataset.features[column]
        dataset = dataset.remove_columns(column).add_column(column, rows, feature=features)
    return dataset
