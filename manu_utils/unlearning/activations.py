"""One streaming pass over a set: running sums per neuron, never the activations themselves.

Derived in notebook 03.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .. import processes
from ..benchmark.records import Question
from ..checks import check_name, check_real, check_whole
from ..models.encoding import batches, plan_batches, predicting
from ..models.image_positions import check_positions, patch_positions
from ..models.neurons import MLP, find_neurons
from ..models.passes import check_finite, exact_device, hooked, last_hidden, quiet_pass
from ..models.prefix_tree import can_share, plan_shared_batches, read_shared, shared_batches
from ..models.silent import reads_neurons
from .partial import begin_pass, parts_left

POSITIONS = ("answer", "last", "all")


@dataclass(frozen=True)
class Statistics:
    """Five numbers per neuron, from which every score follows; sums, so two passes add up.

    Attributes:
        tokens: positions counted, int64 [n_mlps].
        sizes: neurons of each MLP.
        total, total_abs, total_squares, n_active: Σz, Σ|z|, Σz² and the count of |z| > τ, float64
            [n_neurons].
        tau: the threshold τ.
        modality: ``"multimodal"`` or ``"text"``.
    """

    tokens: Tensor
    sizes: tuple[int, ...]
    total: Tensor
    total_abs: Tensor
    total_squares: Tensor
    n_active: Tensor
    tau: float
    modality: str

    def counts(self) -> Tensor:
        """Positions counted for each neuron, float64 [n_neurons]; 1 for none, so means are 0."""
        return self.tokens.clamp(min=1).double().repeat_interleave(torch.tensor(self.sizes))

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both passes together; ValueError if τ, modality or model differ."""
        if (self.tau, self.modality, self.sizes) != (other.tau, other.modality, other.sizes):
            raise ValueError("only statistics of one model, one modality and one tau can be added.")
        sums = (
            getattr(self, name) + getattr(other, name)
            for name in ("total", "total_abs", "total_squares", "n_active")
        )
        return Statistics(self.tokens + other.tokens, self.sizes, *sums, self.tau, self.modality)


@torch.no_grad()
def collect_activations(
    model,
    processor,
    questions: Sequence[Question],
    *,
    tau: float = 0.1,
    positions: str = "answer",
    batch_size: int = 32,
    resume: str | Path | None = None,
    model_key: str | None = None,
    progress: bool = True,
) -> Statistics:
    """The statistics of every MLP neuron over questions of one modality.

    One forward pass without logits; memory does not grow with the number of questions. Padding
    never counts. In the vision tower all patches of every image count (see
    :func:`patch_positions`), in a text-only pass nothing does. An image counts once per question,
    but LLaVA on a Llama sees it once for all questions about it (one and the same object; not with
    ``positions="all"``): the sums are equal to rounding. Several processes share the pass
    (:mod:`manu_utils.processes`).

    Args:
        questions: all with an image or all without, with answers.
        tau: a neuron is active where |z| > τ.
        positions: tokens that count in the language model: those that predict the ``"answer"``, the
            ``"last"`` of the prompt, or ``"all"``.
        resume: a folder where the sums are kept as they grow; a pass that was killed goes on from
            there, to the same bits, and one that is done is read. Sums of other weights, questions
            or settings in it are left alone.
        model_key: what tells the model from others in that folder, in place of a hash of its
            weights (which takes half a minute for 7B); for a model that hooks change it must be
            given.

    Raises:
        OSError: ``resume`` cannot be written, and nothing is read.
        TypeError: tau or batch_size of another type, or a wrapped model.
        ValueError: no questions, mixed modalities, unknown positions, negative tau, images of which
            the padding is not known, activations or hidden states that are not finite, or a file in
            ``resume`` that is none of ours, which is left as it is.
    """
    _check(questions, tau, positions, batch_size)
    mlps = find_neurons(model)
    shared = can_share(model) and positions != "all"
    make, plan = (shared_batches, plan_shared_batches) if shared else (batches, plan_batches)
    planned = partial(plan, questions, processor, batch_size, with_answer=True)
    seen = {"pass": "statistics", "tau": tau, "positions": positions, "batch_size": batch_size}
    begun = begin_pass(resume, model, processor, questions, model_key, planned, **seen)
    reading: Reading

    def count(index: int, mlp: MLP):
        def hook(module, arguments: tuple[Tensor]) -> None:
            z = arguments[0].flatten(0, -2)  # [positions, neurons]
            sums.tokens[index] += add_what_counts(sums.parts[index], z, mlp, reading, tau)

        return reads_neurons(hook, only_read=True)

    counts = (
        (mlp.after.register_forward_pre_hook, count(index, mlp)) for index, mlp in enumerate(mlps)
    )
    options = {"with_answer": True, "device": model.device}
    with quiet_pass(model), hooked(counts):
        sums = _Sums(mlps, begun[2])  # made here, where no inference mode of the caller holds
        for _, own, done in parts_left(begun, questions, sums.so_far, "statistics", progress):
            for indices, batch in make(own, processor, batch_size, **options):
                reading = what_counts(model, batch, positions, len(indices))
                if shared:
                    hidden, _ = read_shared(model, batch)
                else:
                    hidden = last_hidden(model, batch, reading.tokens)
                    hidden = hidden.flatten(0, -2)[reading.tokens]
                sums.finite.append(torch.isfinite(hidden).all())
                done.update(len(indices))
    return sums.statistics(tau, questions[0].modality)


class _Sums:
    """What a pass adds up, from 0 or from what was kept of it.

    Attributes:
        parts: float64 [4, neurons] of each MLP, on the device of its layer if that has float64: no
            copy, no waiting for the GPU until the end.
        tokens: as in :class:`Statistics`.
        finite: of each batch, whether what the answers are read from is; the activations show in
            the sums.
    """

    def __init__(self, mlps: Sequence[MLP], kept: dict[str, Tensor]):
        self.mlps, self.sizes = mlps, tuple(mlp.size for mlp in mlps)
        zeros = torch.zeros(4, sum(self.sizes), dtype=torch.float64)
        self.parts = [
            part.to(exact_device(mlp.after.weight.device)).clone()
            for mlp, part in zip(mlps, kept.get("sums", zeros).split(self.sizes, 1), strict=True)
        ]
        self.tokens = kept.get("tokens", torch.zeros(len(mlps), dtype=torch.int64)).clone()
        self.finite = [kept["finite"].all()] if kept else []

    def so_far(self) -> dict[str, Tensor]:
        sums = torch.cat([part.cpu() for part in self.parts], dim=1)
        return {"tokens": self.tokens, "finite": torch.tensor([all(self.finite)]), "sums": sums}

    def statistics(self, tau: float, modality: str) -> Statistics:
        """The sums of all processes; ValueError where something was not finite."""
        so_far = self.so_far()
        total, tokens = processes.total(so_far["sums"]), processes.total(self.tokens)
        for mlp, part in zip(self.mlps, total.split(self.sizes, dim=1), strict=True):
            check_finite(f"activations of {mlp.path} are", part)
        if not all(processes.gathered([all(self.finite)])):
            check_finite("the last hidden states are", torch.tensor(torch.nan))
        return Statistics(tokens, self.sizes, *total, tau=tau, modality=modality)


def _check(questions: Sequence[Question], tau: float, positions: str, batch_size: int) -> None:
    if not questions:
        raise ValueError("collect_activations needs at least one question.")
    if len({question.modality for question in questions}) > 1:
        raise ValueError(
            "statistics are of one modality; pass the questions with and without an image "
            "separately."
        )
    check_name("positions", positions, POSITIONS)
    check_real("tau", tau)
    if not tau >= 0:
        raise ValueError(f"tau={tau} is negative; it is compared with |z|.")
    check_whole("batch_size", batch_size)


@dataclass(frozen=True)
class Reading:
    """What counts in one batch.

    Attributes:
        tokens: flat indices of the positions of the language model, int64.
        patches: those of the vision tower, int64.
        n_positions: all positions of the vision tower, those that do not count included.
        n_questions: of the batch; a number, so that no layer waits for the GPU to count them.
        sharing: how many questions share each row and its image, int64 [rows]; None where each has
            its own.
    """

    tokens: Tensor
    patches: Tensor
    n_positions: int
    n_questions: int
    sharing: Tensor | None


def what_counts(model, batch: dict[str, Tensor], positions: str, n_questions: int) -> Reading:
    """The :class:`Reading` of a batch of n questions, which may be of :func:`shared_batches`."""
    is_patch = patch_positions(model, batch)[1]
    if "reads" in batch:
        tokens, sharing = _shared_positions(batch, positions)
    else:
        tokens, sharing = _positions(batch, positions).flatten().nonzero()[:, 0], None
    return Reading(tokens, is_patch.nonzero()[:, 0], len(is_patch), n_questions, sharing)


def _positions(batch: dict[str, Tensor], positions: str) -> Tensor:
    """Bool [b, t]: the language positions that count."""
    if positions == "all":
        return batch["attention_mask"].bool()
    predicts = predicting(batch)
    if positions == "last":
        predicts &= ~batch["answer_mask"]
    return predicts


def _shared_positions(batch: dict[str, Tensor], positions: str) -> tuple[Tensor, Tensor]:
    """Flat indices of the language positions that count, and questions of each row, int64 [r]."""
    question, row, position = batch["reads"].T
    begins = torch.ones_like(question, dtype=torch.bool)  # the first of its question
    begins[1:] = question[1:] != question[:-1]
    flat = row * batch["input_ids"].shape[1] + position
    return flat[begins] if positions == "last" else flat, row[begins].bincount()


def add_what_counts(sums: Tensor, z: Tensor, mlp: MLP, reading: Reading, tau: float) -> int:
    """Add the sums over the positions of z [positions, neurons] that count (:func:`add_sums`), and
    return how many tokens these are; a shared image's count once for each of its questions.
    """
    vision = mlp.tower == "vision"
    if vision:
        check_positions(mlp.path, len(z), reading.n_positions)
    z = z.index_select(0, (reading.patches if vision else reading.tokens).to(z.device))
    if not vision or reading.sharing is None:
        add_sums(sums, z, tau)
        return len(z)
    z = z.unflatten(0, (len(reading.sharing), -1))  # LLaVA's images have one size
    add_sums(sums, z, tau, reading.sharing)
    return z.shape[1] * reading.n_questions


def add_sums(sums: Tensor, z: Tensor, tau: float, times: Tensor | None = None) -> None:
    """Add the sums over positions of z to ``sums``, in float64 on its device, wherever z is.

    Args:
        sums: float64 [4, neurons], changed in place.
        z: [positions, neurons]; [rows, positions, neurons] with ``times``, int64 [rows], how often
            each row counts.
    """
    parts = _sums(z, tau).to(sums.device)
    if times is None:
        sums += parts
    else:
        sums += (parts.double() * times.to(sums.device)[:, None]).sum(1)


def _sums(z: Tensor, tau: float) -> Tensor:
    """Σz, Σ|z|, Σz² and count of |z| > τ over rows of z [..., n, neurons]: [4, ..., neurons]."""
    z = z if z.dtype == torch.float64 else z.float()
    magnitude = z.abs()
    # 1 where |z| > τ; on a CPU half the time of a comparison.
    active = (magnitude - tau).sign_().clamp_(min=0)
    return torch.stack([z.sum(-2), magnitude.sum(-2), (z * z).sum(-2), active.sum(-2)])
