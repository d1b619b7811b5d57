"""Our score: which neurons *write* the facts, and a choice of neurons that takes its share of every fact.

MANU's importance functions ask how loud a neuron is. Here we ask what it contributes to one answer: gradient × activation of
the margin by which the right token beats the runner-up, from one backward pass and no training step. Neurons are then chosen
jointly (greedy coverage), so that each fact of each modality loses its share before any loses it twice; that is what
balances the modalities. Derived in notebook 04.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from .batches import answer_texts, batches
from .benchmark import Question
from .checks import check_answers, check_finite, check_real, quiet_pass
from .neurons import check_alpha, find_neurons
from .patches import check_positions, patch_positions
from .progress import bar
from .training import answer_logits, gradients_of


def token_rarity(questions: Sequence[Question], processor) -> Tensor:
    """How much each token tells an answer from the other answers: its inverse document frequency.

    The tokens that all answers share ("Works as a", end of sequence) get about 0, a name of a town much more.

    Args:
        processor: the model's processor; a tokenizer does for LLaVA-1.5, whose prompts need no chat template.

    Returns:
        float32 [vocabulary], log(answers / answers that hold the token); tokens in no answer get the largest value. All 0
        where every answer is the same.

    Raises:
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("token_rarity needs at least one question.")
    tokenizer = getattr(processor, "tokenizer", processor)
    answers = tokenizer(answer_texts(questions, processor))["input_ids"]
    counts = Counter(token for ids in answers for token in set(ids))
    rarity = torch.full((len(tokenizer),), math.log(len(answers)), dtype=torch.float32)
    for token, count in counts.items():
        rarity[token] = math.log(len(answers) / count)
    return rarity


def answer_margins(model, batch: dict[str, Tensor], rarity: Tensor) -> Tensor:
    """The margin of each answer: the logit of the right token minus the best other one, summed with the weights ``rarity``.

    An answer of which no token has a weight, since all answers hold them, is weighted evenly: a margin of nothing would leave
    nothing to attribute.

    Args:
        batch: what :func:`manu_utils.batches.encode` returns with ``with_answer=True``; b rows.
        rarity: [vocabulary], see :func:`token_rarity`.

    Returns:
        float32 [b], differentiable.

    Raises:
        ValueError: a margin that is not finite.
    """
    logits, targets, rows = answer_logits(model, batch)
    right = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    weights = rarity.to(logits.device, torch.float32)[targets]
    zeros = torch.zeros(len(batch["input_ids"]), device=rows.device, dtype=torch.float32)
    weights = torch.where(zeros.index_add(0, rows, weights)[rows] > 0, weights, 1.0)
    margins = zeros.index_add(0, rows, (right - others).float() * weights)
    check_finite("the margin of an answer is", margins)
    return margins


def collect_attribution(
    model,
    processor,
    questions: Sequence[Question],
    *,
    rarity: Tensor | None = None,
    reduce: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> Tensor:
    """What every neuron contributes to every answer: the positive part of Σ_tokens z · ∂margin/∂z.

    The margin is the logit of the right token minus the best other one, summed over the answer's tokens with the weights
    ``rarity``. One forward and one backward pass; the weights of the model are not touched.

    Args:
        questions: of one modality, with answers.
        rarity: [vocabulary] weights of the answer tokens, see :func:`token_rarity` (default: rarity among ``questions``).
        reduce: return the mean over questions, each scaled to sum 1, without keeping a row per question.

    Returns:
        float32 [n_questions, n_neurons] in the order of :func:`find_neurons`, or [n_neurons] with ``reduce``.

    Raises:
        ValueError: no questions, mixed modalities, an empty answer, weights that are negative or not finite, images laid out
            in an unknown way, or a gradient that is not finite.
    """
    if not questions:
        raise ValueError("collect_attribution needs at least one question.")
    if len({question.modality for question in questions}) > 1:
        raise ValueError("one call takes one modality; split the questions with and without an image.")
    check_answers(questions)
    mlps = find_neurons(model)
    rarity = token_rarity(questions, processor) if rarity is None else rarity
    if not torch.isfinite(rarity).all() or (rarity < 0).any():
        raise ValueError("rarity holds weights that are negative or not finite; see token_rarity.")
    n_neurons = sum(mlp.size for mlp in mlps)
    inputs_of: dict[str, Tensor] = {}

    def keep(path: str):
        def hook(module, arguments):
            z = arguments[0] if arguments[0].requires_grad else arguments[0].detach().requires_grad_()
            inputs_of[path] = z
            return (z,)

        return hook

    hooks = []
    with quiet_pass(model), gradients_of(model):
        result = torch.zeros((n_neurons,) if reduce else (len(questions), n_neurons), dtype=torch.float32)
        try:
            hooks += [mlp.output.register_forward_pre_hook(keep(mlp.path)) for mlp in mlps]
            work = batches(questions, processor, batch_size, with_answer=True, device=model.device)
            total = math.ceil(len(questions) / batch_size)
            for indices, batch in bar(work, total=total, desc="attribution", shown=progress):
                inputs_of.clear()
                with torch.enable_grad():
                    margin = answer_margins(model, batch, rarity).sum()
                    paths = list(inputs_of)
                    gradients = torch.autograd.grad(margin, [inputs_of[path] for path in paths], allow_unused=True)
                gradient_of = dict(zip(paths, gradients, strict=True))
                question, _ = patch_positions(model, batch)
                parts = []
                for mlp in mlps:
                    gradient = gradient_of.get(mlp.path)
                    if gradient is None:  # not on the way to the answer: no image, or after the feature layer
                        parts.append(torch.zeros(len(indices), mlp.size, dtype=torch.float32))
                        continue
                    product = (inputs_of[mlp.path].detach() * gradient).float()
                    if mlp.tower == "vision":
                        product = _by_question(mlp.path, product.flatten(0, -2), question, len(indices))
                    total_of = product.sum(1)
                    check_finite("the attribution is", total_of)  # before −∞ becomes 0
                    parts.append(total_of.clamp(min=0).cpu())
                rows = torch.cat(parts, dim=1)
                if reduce:
                    result += _normalise(rows).sum(0) / len(questions)
                else:
                    result[indices] = rows
        finally:
            for hook in hooks:
                hook.remove()
    return result


def _by_question(path: str, values: Tensor, question: Tensor, b: int) -> Tensor:
    """Values [n, neurons] at the positions of a vision tower as [b, positions, neurons], zeros after the shorter images."""
    check_positions(path, len(values), len(question))
    counts = question.bincount(minlength=b).tolist()
    if len(set(counts)) == 1:
        return values.view(b, -1, values.shape[-1])
    return torch.nn.utils.rnn.pad_sequence(values.split(counts), batch_first=True)


def effective_neurons(attribution: Tensor) -> Tensor:
    """How many neurons share each fact: (Σ a)² / Σ a², between 1 and the number of neurons.

    Args:
        attribution: [n_facts, n_neurons], not negative.

    Returns:
        [n_facts]; 0 for a fact to which nothing contributes.
    """
    return attribution.sum(1) ** 2 / (attribution**2).sum(1).clamp(min=torch.finfo(attribution.dtype).tiny)


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
    """Choose α % of all neurons so that every forget fact, of either modality, loses its share of attribution.

    Greedy: the next neurons are those with the most attribution that is still to be taken, over what the retain set would
    lose, ``Σ_f w_m min(a_fn, still needed_f) / (R_n / mean R + floor)``. The weight w_m of the fact's modality is what is left
    of it, over what is left of the modality with most left, to the power ``balance``: the modality that lags is served first.
    A row of zeros is a fact that is gone already. When every fact has lost ``share``, the rest is shared out the same way.
    Neurons are taken a hundredth of the budget at a time.

    Args:
        forget: modality -> [n_facts, n_neurons], from :func:`collect_attribution`.
        retain: modality -> [n_neurons] (``reduce=True``) or [n_facts, n_neurons].
        alpha: percentage of all neurons, in (0, 100).
        share: how much of its attribution each fact loses before any loses more, in (0, 1].
        floor: keeps neurons that the retain set hardly uses from looking free.
        balance: how strongly the modality that lags is preferred, at least 0 (not at all).
        exclude: bool [n_neurons], neurons that must not be chosen, such as those pruned before.
        allow_small: accept α below 0.5, see :func:`manu_utils.neurons.check_alpha`.

    Returns:
        bool [n_neurons] with exactly max(1, round(α / 100 · n_neurons)) chosen.

    Raises:
        TypeError: α, share, floor or balance is no number.
        ValueError: α, share, floor or balance out of range, too few neurons left, different modalities or numbers of
            neurons, values that are negative or not finite, or nothing to choose by: no attribution of any forget fact, or
            none of the retain set in a modality.
    """
    check_alpha(alpha, allow_small)
    for name, value in (("share", share), ("floor", floor), ("balance", balance)):
        check_real(name, value)
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must lie in (0, 1].")
    if not 0 < floor < math.inf:
        raise ValueError(f"floor={floor} must be positive; it is what a neuron costs that the retain set does not use.")
    if not 0 <= balance < math.inf:
        raise ValueError(f"balance={balance} must not be negative.")
    if set(forget) != set(retain):
        raise ValueError(f"forget has modalities {sorted(forget)} but retain has {sorted(retain)}; collect both for both.")
    if len(widths := {rows.shape[-1] for rows in (*forget.values(), *retain.values())}) > 1:
        raise ValueError(f"attribution of {sorted(widths)} neurons: forget and retain are of different models.")
    if not forget or not all(len(rows) for rows in forget.values()):
        raise ValueError("forget needs the attribution of at least one fact in each modality.")
    if not all(torch.isfinite(rows).all() for rows in (*forget.values(), *retain.values())):
        raise ValueError("the attribution holds NaN or infinity; collect it again in float32.")
    if any((rows < 0).any() for rows in (*forget.values(), *retain.values())):
        raise ValueError("the attribution holds negative values; it is the positive part of what a neuron contributes.")
    if silent := [modality for modality in retain if not retain[modality].any()]:
        raise ValueError(
            f"no neuron contributes to the {silent[0]} answers of the retain set, so that all would look free of charge; pass "
            "questions whose answers the model knows."
        )
    # Each modality counts alike, whatever the number of its facts.
    facts = torch.cat([_normalise(forget[modality]) / len(forget[modality]) for modality in forget])
    cost = sum(_normalise(retain[m]).mean(0) if retain[m].dim() == 2 else retain[m] for m in forget) / len(forget)
    weight = 1 / (cost / cost.mean().clamp(min=1e-30) + floor)
    n = facts.shape[1]
    budget = max(1, round(alpha / 100 * n))
    modality_of = torch.arange(len(forget)).repeat_interleave(torch.tensor([len(rows) for rows in forget.values()]))
    size = facts.sum(1)
    remaining = torch.zeros(len(forget), dtype=size.dtype).index_add_(0, modality_of, size)
    needed = share * size
    selected = torch.zeros(n, dtype=torch.bool)
    closed = torch.zeros(n, dtype=torch.bool) if exclude is None else exclude.clone()
    if budget > (free := n - int(closed.sum())):
        raise ValueError(f"alpha={alpha} asks for {budget} neurons but only {free} may be chosen; lower alpha.")
    if not facts[:, ~closed].any():
        raise ValueError(
            "no neuron that may be chosen contributes to any of the forget facts, so that there is nothing to choose by; pass "
            "questions whose answers the model knows, and exclude fewer neurons."
        )
    at_once = max(1, budget // 100)
    while (left := budget - int(selected.sum())) > 0:
        preference = (remaining / remaining.max().clamp(min=1e-30)).clamp(min=0) ** balance
        gain = preference[modality_of] @ torch.minimum(facts, needed[:, None]) * weight
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


def _normalise(rows: Tensor) -> Tensor:
    return rows / rows.sum(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
