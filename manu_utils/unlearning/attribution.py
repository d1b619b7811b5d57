"""What neurons *write*: the contribution of each to the answer of a fact, by gradient × activation.

MANU's importance functions ask how loud a neuron is. Here we ask what it contributes to the margin
by which the right token beats the runner-up, from one backward pass and no training step. Derived
in notebook 04.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .. import processes
from ..benchmark.records import Question
from ..checks import check_answers, check_whole
from ..models.asking import answer_logits, as_memory_allows
from ..models.encoding import batches, plan_batches, with_answers
from ..models.image_positions import check_positions, patch_positions
from ..models.neurons import MLP, find_neurons
from ..models.passes import check_finite, gradients_in_range, gradients_of, hooked, quiet_pass
from ..models.prompts import answer_texts, prompt
from ..models.silent import reads_neurons
from .partial import begin_pass, parts_left


def token_rarity(questions: Sequence[Question], processor) -> Tensor:
    """How much each token tells an answer from the other answers: its inverse document frequency.

    The tokens that all answers share (end of sequence) get about 0, words that one kind
    of answer shares ("Was born in") get more, and the name of a town gets most.

    Args:
        processor: the model's processor; a tokenizer does for LLaVA-1.5, whose prompts need no chat
            template.

    Returns:
        float32 [vocabulary], log(answers / answers that hold the token); tokens in no answer get
        the largest value. All 0 where every answer is the same.

    Raises:
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("token_rarity needs at least one question.")
    tokenizer = getattr(processor, "tokenizer", processor)
    prompts = [prompt(question, processor) for question in questions]
    pairs = zip(prompts, answer_texts(questions, processor), strict=True)
    wholes, starts = with_answers(prompts, [before + answer for before, answer in pairs], tokenizer)
    answers = [whole[start:] for whole, start in zip(wholes, starts, strict=True)]
    counts = Counter(token for ids in answers for token in set(ids))
    rarity = torch.full((len(tokenizer),), math.log(len(answers)), dtype=torch.float32)
    for token, count in counts.items():
        rarity[token] = math.log(len(answers) / count)
    return rarity


def answer_margins(model, batch: dict[str, Tensor], rarity: Tensor) -> Tensor:
    """The margin of each answer: right logit minus the best other, summed with weights ``rarity``.

    An answer of which no token has a weight, since all answers hold them, is weighted evenly: a
    margin of nothing would leave nothing to attribute.

    Args:
        batch: what :func:`answer_logits` takes; b questions.
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
    zeros = torch.zeros(int(rows[-1]) + 1, device=rows.device, dtype=torch.float32)
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
    resume: str | Path | None = None,
    model_key: str | None = None,
    progress: bool = True,
) -> Tensor:
    """What every neuron contributes to every answer: the positive part of Σ_tokens z · ∂margin/∂z.

    The margin is the logit of the right token minus the best other one, summed over the answer's
    tokens with the weights ``rarity``. One forward and one backward pass, shared by several
    processes (:mod:`manu_utils.processes`); the weights of the model are not touched. The backward
    pass keeps the activations of a batch; when CUDA is out of memory, the batch is halved.

    Args:
        questions: of one modality, with answers.
        rarity: [vocabulary] weights of the answer tokens, see :func:`token_rarity` (default: rarity
            among ``questions``).
        reduce: return the mean over questions, each scaled to sum 1, without keeping a row per
            question.
        resume, model_key: see :func:`collect_activations`.

    Returns:
        float32 [n_questions, n_neurons] in the order of :func:`find_neurons`, or [n_neurons] with
        ``reduce``.

    Raises:
        ValueError: no questions, mixed modalities, an empty answer, weights that are negative or
            not finite, images laid out in an unknown way, a gradient that is not finite, or a file
            in ``resume`` that is none of ours.
    """
    if not questions:
        raise ValueError("collect_attribution needs at least one question.")
    if len({question.modality for question in questions}) > 1:
        raise ValueError(
            "one call takes one modality; split the questions with and without an image."
        )
    check_answers(questions)
    check_whole("batch_size", batch_size)
    mlps = find_neurons(model)
    rarity = token_rarity(questions, processor) if rarity is None else rarity
    if not torch.isfinite(rarity).all() or (rarity < 0).any():
        raise ValueError("rarity holds weights that are negative or not finite; see token_rarity.")
    n_neurons = sum(mlp.size for mlp in mlps)
    plan = partial(plan_batches, questions, processor, batch_size, with_answer=True)
    # One process adds up in float32, several in float64, so that their number does not show.
    exact = torch.float64 if processes.count() > 1 else torch.float32
    shape, exact = ((n_neurons,), exact) if reduce else ((len(questions), n_neurons), torch.float32)
    seen = {"pass": "attribution", "reduce": reduce, "rarity": rarity, "batch_size": batch_size}
    begun = begin_pass(resume, model, processor, questions, model_key, plan, **seen)
    kept = begun[2]
    with quiet_pass(model), gradients_of(model), _attributing(model, mlps, rarity) as contributions:
        # made here, where no inference mode of the caller makes it one that cannot be added to
        result = kept["result"].clone() if kept else torch.zeros(shape, dtype=exact)
        left = parts_left(begun, questions, lambda: {"result": result}, "attribution", progress)
        for part, own, done in left:
            for indices, rows in as_memory_allows(
                contributions, batches, processor, own, batch_size, True, model.device
            ):
                if reduce:
                    result += scaled_to_one(rows).sum(0) / len(questions)
                else:
                    result[[part[index] for index in indices]] = rows
                done.update(len(indices))
    return processes.total(result).float()


@contextmanager
def _attributing(
    model, mlps: Sequence[MLP], rarity: Tensor
) -> Iterator[Callable[[dict[str, Tensor]], Tensor]]:
    """Inside, a function from a batch of b questions to their attribution: float32 [b, n_neurons],
    on the CPU.
    """
    inputs_of: dict[str, Tensor] = {}

    def keep(path: str):
        def hook(module, arguments):
            z = arguments[0]
            inputs_of[path] = z if z.requires_grad else z.detach().requires_grad_()
            return (inputs_of[path],)

        # their product with the gradient is all that is used, which is 0 where nothing is read
        return reads_neurons(hook, only_read=True)

    def contributions(batch: dict[str, Tensor]) -> Tensor:
        try:  # a function of its own: the next batch is read when this one's tensors are gone
            with torch.enable_grad():
                margin = answer_margins(model, batch, rarity).sum()
                inputs = list(inputs_of.values())
                gradients = gradients_in_range(margin, inputs)
            gradient_of = dict(zip(inputs_of, gradients, strict=True))
            return _contributions(model, mlps, batch, inputs_of, gradient_of)
        finally:
            inputs_of.clear()

    with hooked((mlp.after.register_forward_pre_hook, keep(mlp.path)) for mlp in mlps):
        yield contributions


def _contributions(
    model,
    mlps: Sequence[MLP],
    batch: dict[str, Tensor],
    inputs_of: dict[str, Tensor],
    gradient_of: dict[str, Tensor | None],
) -> Tensor:
    """The positive part of Σ_tokens z · ∂margin/∂z of b questions: float32 [b, n_neurons], CPU."""
    question, _ = patch_positions(model, batch)
    b, parts = len(batch["input_ids"]), []
    for mlp in mlps:
        gradient = gradient_of.get(mlp.path)
        if gradient is None:  # not on the way to the answer: no image, or after the feature layer
            parts.append(torch.zeros(b, mlp.size, dtype=torch.float32))
            continue
        wide = torch.promote_types(gradient.dtype, torch.float32)  # a product may leave float16
        product = (inputs_of[mlp.path].detach() * gradient.to(wide)).float()
        if mlp.tower == "vision":
            product = _by_question(mlp.path, product.flatten(0, -2), question, b)
        total_of = product.sum(1)
        check_finite("the attribution is", total_of)  # before −∞ becomes 0
        parts.append(total_of.clamp(min=0).cpu())
    return torch.cat(parts, dim=1)


def _by_question(path: str, values: Tensor, question: Tensor, b: int) -> Tensor:
    """Values [n, neurons] of a tower as [b, positions, neurons], zeros after shorter images."""
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
    return attribution.sum(1) ** 2 / (attribution**2).sum(1).clamp(
        min=torch.finfo(attribution.dtype).tiny
    )


def scaled_to_one(rows: Tensor) -> Tensor:
    return rows / rows.sum(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
