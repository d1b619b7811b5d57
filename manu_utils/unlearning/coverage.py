"""Our choice of neurons: jointly, so that each fact of each modality loses its share once.

That is what balances the modalities. Derived in notebook 04.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_number, check_questions, check_whole
from ..models.asking import known
from ..models.neurons import check_alpha, count_of, find_neurons
from .attribution import collect_attribution, scaled_to_one
from .pruning import prune_neurons


def select_by_coverage(
    forget: dict[str, Tensor],
    retain: dict[str, Tensor],
    *,
    alpha: float,
    share: float = 0.9,
    floor: float = 0.3,
    balance: float = 4.0,
    exclude: Tensor | None = None,
    allow_small: bool = False,
) -> Tensor:
    """Choose α % of all neurons so that every forget fact loses its share of attribution.

    Greedy: the next neurons are those with the most attribution that is still to be taken, over
    what the retain set would lose, ``Σ_f w_m min(a_fn, still needed_f) / (R_n / mean R + floor)``.
    The weight w_m of the fact's modality is what is left of it, over what is left of the modality
    with most left, to the power ``balance``: the modality that lags is served first. A row of zeros
    is a fact that is gone already. When every fact has lost ``share``, the rest is shared out the
    same way. Neurons are taken a hundredth of the budget at a time.

    Args:
        forget: modality -> [n_facts, n_neurons], from :func:`collect_attribution`.
        retain: modality -> [n_neurons] (``reduce=True``) or [n_facts, n_neurons].
        alpha: percentage of all neurons, in (0, 100).
        share: how much of its attribution each fact loses before any loses more, in (0, 1].
        floor: keeps neurons that the retain set hardly uses from looking free.
        balance: how strongly the modality that lags is preferred, at least 0 (not at all).
        exclude: bool [n_neurons], neurons that must not be chosen, such as those pruned before.
        allow_small: accept α below 0.5, see :func:`check_alpha`.

    Returns:
        bool [n_neurons] with exactly max(1, round(α / 100 · n_neurons)) chosen.

    Raises:
        TypeError: α, share, floor or balance is no number.
        ValueError: α, share, floor or balance out of range, too few neurons left, different
            modalities or numbers of neurons, values that are negative or not finite, or nothing to
            choose by: no attribution of any forget fact, or none of the retain set in a modality.
    """
    check_alpha(alpha, allow_small)
    budget = count_of(alpha, max((rows.shape[-1] for rows in forget.values()), default=1))
    return take_by_coverage(
        forget, retain, budget, share=share, floor=floor, balance=balance, exclude=exclude
    )


def take_by_coverage(
    forget: dict[str, Tensor], retain: dict[str, Tensor], budget: int, *, share: float,
    floor: float, balance: float, exclude: Tensor | None,
) -> Tensor:  # fmt: skip
    """:func:`select_by_coverage` of a number of neurons, ``budget``."""
    check_number("share", share, above=0, most=1)
    check_number("floor", floor, above=0)
    check_number("balance", balance, least=0)
    _check_attribution(forget, retain)
    # Each modality counts alike, whatever the number of its facts.
    facts = torch.cat(
        [scaled_to_one(forget[modality]) / len(forget[modality]) for modality in forget]
    )
    cost = sum(
        scaled_to_one(retain[m]).mean(0) if retain[m].dim() == 2 else retain[m] for m in forget
    ) / len(forget)
    weight = 1 / (cost / cost.mean().clamp(min=1e-30) + floor)
    modality_of = torch.arange(len(forget)).repeat_interleave(
        torch.tensor([len(rows) for rows in forget.values()])
    )
    n = facts.shape[1]
    closed = torch.zeros(n, dtype=torch.bool) if exclude is None else exclude.clone()
    if budget > (free := n - int(closed.sum())):
        raise ValueError(
            f"{budget} neurons are asked for but only {free} may be chosen; lower alpha."
        )
    if not facts[:, ~closed].any():
        raise ValueError(
            "no neuron that may be chosen contributes to any of the forget facts, so that there is "
            "nothing to choose by; pass questions whose answers the model knows, and exclude fewer "
            "neurons."
        )
    return _greedy(facts, modality_of, weight, closed, budget, share, balance)


def _check_attribution(forget: dict[str, Tensor], retain: dict[str, Tensor]) -> None:
    if set(forget) != set(retain):
        raise ValueError(
            f"forget has modalities {sorted(forget)} but retain has {sorted(retain)}; collect both "
            f"for both."
        )
    if len(widths := {rows.shape[-1] for rows in (*forget.values(), *retain.values())}) > 1:
        raise ValueError(
            f"attribution of {sorted(widths)} neurons: forget and retain are of different models."
        )
    if not forget or not all(len(rows) for rows in forget.values()):
        raise ValueError("forget needs the attribution of at least one fact in each modality.")
    if not all(torch.isfinite(rows).all() for rows in (*forget.values(), *retain.values())):
        raise ValueError("the attribution holds NaN or infinity; collect it again in float32.")
    if any((rows < 0).any() for rows in (*forget.values(), *retain.values())):
        raise ValueError(
            "the attribution holds negative values; it is the positive part of what a neuron "
            "contributes."
        )
    if silent := [modality for modality in retain if not retain[modality].any()]:
        raise ValueError(
            f"no neuron contributes to the {silent[0]} answers of the retain set, so that all "
            f"would look free of charge; pass questions whose answers the model knows."
        )


def _greedy(
    facts: Tensor, modality_of: Tensor, weight: Tensor, closed: Tensor, budget: int, share: float,
    balance: float,
) -> Tensor:  # fmt: skip
    """The neurons that take most of what the facts still have to lose, a hundredth at a time.

    Args:
        facts: [n_facts, n_neurons], what each fact has in each neuron.
        modality_of: [n_facts], the number of each fact's modality.
        weight: [n_neurons], one over what a neuron costs.
        closed: bool [n_neurons], neurons that must not be chosen; those chosen are added.
    """
    size = facts.sum(1)
    remaining = torch.zeros(int(modality_of.max()) + 1, dtype=size.dtype)
    remaining.index_add_(0, modality_of, size)
    needed = share * size
    selected = torch.zeros_like(closed)
    at_once = max(1, budget // 100)
    used = facts.any(0).nonzero()[:, 0]  # what no fact uses has no gain
    part, weight, gain = facts[:, used], weight[used], torch.zeros(len(closed), dtype=facts.dtype)
    while (left := budget - int(selected.sum())) > 0:
        preference = (remaining / remaining.max().clamp(min=1e-30)).clamp(min=0) ** balance
        gain[used] = preference[modality_of] @ torch.minimum(part, needed[:, None]) * weight
        gain[closed] = -1.0
        if gain.max() <= 0 and bool((needed < size).any()):
            needed = (size - facts[:, selected].sum(1)).clamp(min=0)
            size = needed  # a second time there is nothing left to raise
            continue
        chosen = gain.topk(min(at_once, left)).indices
        selected[chosen] = closed[chosen] = True
        taken = facts[:, chosen].sum(1)
        needed = (needed - taken).clamp(min=0)
        remaining.index_add_(0, modality_of, -taken)
    return selected


def choose_by_coverage(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, Tensor],
    *,
    alpha: float,
    facts: dict[str, Tensor] | None = None,
    rounds: int = 2,
    floor: float = 0.3,
    share: float = 0.9,
    balance: float = 4.0,
    rarity: Tensor | None = None,
    exclude: Tensor | None = None,
    allow_small: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> Tensor:
    """Our choice of neurons: :func:`select_by_coverage` in rounds, each with a part of the budget.

    A fact that loses its first neurons often lives on in others, which shows once those are gone.
    So each round looks again: it prunes what is chosen so far, attributes the facts that are still
    known, chooses, and undoes the pruning.

    Args:
        forget: modality -> questions with answers.
        retain: modality -> attribution [n_neurons] or [n_facts, n_neurons] of the retain set in the
            unpruned model.
        alpha: percentage of all MLP neurons, over all rounds.
        facts: modality -> attribution of the forget questions in the unpruned model, where it is at
            hand (say, for another α).
        rounds: number of looks; one is plain coverage.
        floor, share, balance: see :func:`select_by_coverage`.
        rarity: weights of the answer tokens, see :func:`collect_attribution`.
        exclude: bool [n_neurons], neurons that must not be chosen, such as those of one tower.

    Returns:
        bool [n_neurons] with max(1, round(α / 100 · n_neurons)) chosen. The model is as it was.

    Raises:
        ValueError: rounds below 1, or nothing to choose by: no neuron contributes to the forget
            answers of a modality; also what ``select_by_coverage`` and ``collect_attribution``
            raise. The model is as it was.
    """
    check_alpha(alpha, allow_small)
    check_whole("rounds", rounds)
    check_whole("batch_size", batch_size)
    check_questions("forget", forget)
    n = sum(mlp.size for mlp in find_neurons(model))
    budget = count_of(alpha, n)
    selected = torch.zeros(n, dtype=torch.bool)
    exclude = torch.zeros(n, dtype=torch.bool) if exclude is None else exclude
    options = {"batch_size": batch_size, "progress": progress}
    for number in range(1, rounds + 1):
        part = budget * number // rounds - int(selected.sum())
        if part < 1:
            continue
        still = {}
        with prune_neurons(model, selected) if selected.any() else nullcontext():
            if selected.any() or facts is None:
                facts = {
                    m: collect_attribution(model, processor, forget[m], rarity=rarity, **options)
                    for m in forget
                }
            if selected.any():
                still = {m: known(model, processor, forget[m], **options) for m in forget}
        if not selected.any() and (silent := [m for m in facts if not facts[m].any()]):
            raise ValueError(
                f"no neuron contributes to the {silent[0]} forget answers, so that there is "
                f"nothing to choose by; pass questions whose answers the model knows."
            )
        if any(alive.any() for alive in still.values()):
            for modality, alive in still.items():
                facts[modality][~alive] = 0
        selected = selected | take_by_coverage(
            facts,
            retain,
            part,
            share=share,
            floor=floor,
            balance=balance,
            exclude=selected | exclude,
        )
    return selected
