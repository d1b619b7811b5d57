"""One streaming pass over a set: running sums per neuron, never the activations themselves. Derived in notebook 03."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_name, check_real, check_whole
from ..models.encoding import batches
from ..models.image_positions import check_positions, patch_positions
from ..models.neurons import MLP, find_neurons
from ..models.passes import exact_device, quiet_pass
from ..models.prefix_tree import can_share, read_shared, shared_batches
from ..progress import bar

POSITIONS = ("answer", "last", "all")


@dataclass(frozen=True)
class Statistics:
    """Five numbers per neuron, from which every score follows; sums, so two passes add up.

    Attributes:
        tokens: positions counted, int64 [n_mlps].
        sizes: neurons of each MLP.
        total, total_abs, total_squares, n_active: Σz, Σ|z|, Σz² and the count of |z| > τ, float64 [n_neurons].
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
        """Positions counted for each neuron, float64 [n_neurons]; 1 where there were none, so that means are 0."""
        return self.tokens.clamp(min=1).double().repeat_interleave(torch.tensor(self.sizes))

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both passes together; raises ValueError if τ, modality or model differ."""
        if (self.tau, self.modality, self.sizes) != (other.tau, other.modality, other.sizes):
            raise ValueError("only statistics of one model, one modality and one tau can be added.")
        sums = (
            getattr(self, name) + getattr(other, name) for name in ("total", "total_abs", "total_squares", "n_active")
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
    progress: bool = True,
) -> Statistics:
    """The statistics of every MLP neuron over questions of one modality.

    One forward pass without logits; memory does not grow with the number of questions. Padding never counts. In the vision
    tower all patches of every image count (see :func:`patch_positions`), in a text-only pass nothing does.
    An image counts once per question, but LLaVA on a Llama sees it once for all questions about it (one and the same object;
    not with ``positions="all"``), and computes its last MLP only where it counts: the sums are equal to rounding.

    Args:
        questions: all with an image or all without, with answers.
        tau: a neuron is active where |z| > τ.
        positions: tokens that count in the language model: those that predict the ``"answer"``, the ``"last"`` of the
            prompt, or ``"all"``.

    Raises:
        TypeError: tau or batch_size of another type, or a wrapped model.
        ValueError: no questions, mixed modalities, unknown positions, negative tau, images of which the padding is not
            known, or activations or hidden states that are not finite.
    """
    if not questions:
        raise ValueError("collect_activations needs at least one question.")
    modalities = {question.modality for question in questions}
    if len(modalities) > 1:
        raise ValueError("statistics are of one modality; pass the questions with and without an image separately.")
    check_name("positions", positions, POSITIONS)
    check_real("tau", tau)
    if not tau >= 0:
        raise ValueError(f"tau={tau} is negative; it is compared with |z|.")
    check_whole("batch_size", batch_size)
    mlps = find_neurons(model)
    # On the device of each layer, if it has float64: no copy, and no waiting for the GPU, until the end.
    devices = [exact_device(mlp.output.weight.device) for mlp in mlps]
    sums = [torch.zeros(4, mlp.size, dtype=torch.float64, device=device) for mlp, device in zip(mlps, devices, strict=True)]
    finite = []  # of each batch, whether what the answers are read from is; the activations show in the sums
    tokens = torch.zeros(len(mlps), dtype=torch.int64)
    make = shared_batches if shares_rows(model, positions) else batches
    last_path = [mlp.path for mlp in mlps if mlp.tower == "language"][-1]
    # Of the current batch: flat indices of the positions that count, and where questions share rows, how many share each.
    rows, last_rows, patches, questions_of_row = torch.empty(0), torch.empty(0), torch.empty(0), None
    n_questions = n_positions = 0  # its questions, and the positions of its images

    def count(index: int, mlp: MLP):
        def hook(module, arguments):
            z = arguments[0].flatten(0, -2)
            if mlp.tower == "vision":
                check_positions(mlp.path, len(z), n_positions)
            places = patches if mlp.tower == "vision" else last_rows if mlp.path == last_path else rows
            z = z.index_select(0, places.to(z.device))
            if mlp.tower == "language" or questions_of_row is None:
                add_sums(sums[index], z, tau)
                tokens[index] += len(z)
            else:  # LLaVA's images have one size
                z = z.unflatten(0, (len(questions_of_row), -1))
                add_sums(sums[index], z, tau, questions_of_row)
                tokens[index] += z.shape[1] * n_questions

        return hook

    hooks = []
    with quiet_pass(model):
        try:
            hooks += [mlp.output.register_forward_pre_hook(count(index, mlp)) for index, mlp in enumerate(mlps)]
            work = make(questions, processor, batch_size, with_answer=True, device=model.device)
            with bar(total=len(questions), desc="statistics", shown=progress) as shown:
                for indices, batch in work:
                    is_patch = patch_positions(model, batch)[1]
                    patches, n_positions, n_questions = is_patch.nonzero()[:, 0], len(is_patch), len(indices)
                    if "reads" in batch:
                        rows, last_rows, questions_of_row = _shared_positions(batch, positions)
                        hidden, _ = read_shared(model, batch)
                    else:
                        rows = last_rows = _positions(batch, positions).flatten().nonzero()[:, 0]
                        inputs = {key: value for key, value in batch.items() if key != "answer_mask"}
                        hidden = model.model(**inputs, use_cache=False).last_hidden_state.flatten(0, -2)[rows]
                    finite.append(torch.isfinite(hidden).all())
                    shown.update(n_questions)
        finally:
            for hook in hooks:
                hook.remove()
    for mlp, total in zip(mlps, sums, strict=True):
        if not torch.isfinite(total).all():
            raise ValueError(f"activations of {mlp.path} are not finite; load the model in float32 or bfloat16.")
    if not all(finite):
        raise ValueError("the last hidden states are not finite; load the model in float32 or bfloat16.")
    parts = torch.cat([total.cpu() for total in sums], dim=1)
    return Statistics(tokens, tuple(mlp.size for mlp in mlps), *parts, tau=tau, modality=modalities.pop())


def shares_rows(model, positions: str) -> bool:
    """Whether :func:`collect_activations` puts questions that share an image or a prompt into one row."""
    return can_share(model) and positions != "all"


def _positions(batch: dict[str, Tensor], positions: str) -> Tensor:
    """Bool [b, t]: the language positions that count."""
    if positions == "all":
        return batch["attention_mask"].bool()
    predicts = torch.zeros_like(batch["answer_mask"])
    predicts[:, :-1] = batch["answer_mask"][:, 1:]
    if positions == "last":
        predicts &= ~batch["answer_mask"]
    return predicts


def _shared_positions(batch: dict[str, Tensor], positions: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of a shared batch: the flat indices of the language positions that count, their places among what the last MLP sees,
    and the number of questions of each row, int64 [r].
    """
    question, row, position = batch["reads"].T
    begins = torch.ones_like(question, dtype=torch.bool)  # the first of its question
    begins[1:] = question[1:] != question[:-1]
    chosen = begins if positions == "last" else torch.ones_like(begins)
    flat = row * batch["input_ids"].shape[1] + position
    return flat[chosen], chosen.nonzero()[:, 0], row[begins].bincount()


def add_sums(sums: Tensor, z: Tensor, tau: float, times: Tensor | None = None) -> None:
    """Add the sums over positions of z to ``sums``, in float64 on its device, whatever the device of z.

    Args:
        sums: float64 [4, neurons], changed in place.
        z: [positions, neurons]; [rows, positions, neurons] with ``times``, int64 [rows], how often each row counts.
    """
    parts = _sums(z, tau).to(sums.device)
    if times is None:
        sums += parts
    else:
        sums += (parts.double() * times.to(sums.device)[:, None]).sum(1)


def _sums(z: Tensor, tau: float) -> Tensor:
    """Σz, Σ|z|, Σz² and the count of |z| > τ over the rows of z [..., n, neurons]: [4, ..., neurons]."""
    z = z if z.dtype == torch.float64 else z.float()
    magnitude = z.abs()
    active = (magnitude - tau).sign_().clamp_(min=0)  # 1 where |z| > τ; on a CPU half the time of a comparison
    return torch.stack([z.sum(-2), magnitude.sum(-2), (z * z).sum(-2), active.sum(-2)])
