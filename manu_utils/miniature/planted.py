"""A twin with a ground truth: a person's questions train that person's random neurons alone.

In the other models nobody knows which neurons hold a fact. Here we do, so a choice of neurons has a
precision and a recall. It is no evidence about real models, where nobody planted anything. Used in
notebook 07b.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..benchmark.records import Question
from ..models.encoding import encode
from ..models.neurons import MLP, find_neurons
from ..models.passes import gradients_of
from ..models.training import answer_loss, optimise, sample_forever
from .vanilla import CONTRIBUTION_SCALE


def draw_owners(model, people: Sequence[str], per_layer: int, seed: int = 0) -> dict[str, Tensor]:
    """person -> bool [n_neurons]: ``per_layer`` neurons of each language layer, nobody's twice.

    They are drawn among the neurons that write nothing yet (in the base model all that came when it
    was widened), so that planting takes nothing from what the model can do.

    Raises:
        ValueError: too few such neurons.
    """
    rng = random.Random(seed)
    mlps = find_neurons(model)
    owners = {
        person: torch.zeros(sum(mlp.size for mlp in mlps), dtype=torch.bool) for person in people
    }
    start = 0
    for mlp in mlps:
        if mlp.tower == "language":
            free = (mlp.after.weight == 0).all(0).nonzero()[:, 0].tolist()
            if len(free) < per_layer * len(people):
                raise ValueError(
                    f"{mlp.path} has {len(free)} neurons that write nothing, but {len(people)} "
                    f"people with {per_layer} each need more; lower per_layer."
                )
            drawn = rng.sample(free, per_layer * len(people))
            for index, mask in enumerate(owners.values()):
                mask[[start + n for n in drawn[index * per_layer : (index + 1) * per_layer]]] = True
        start += mlp.size
    return owners


def plant(
    model,
    processor,
    questions: dict[str, list[Question]],
    owners: dict[str, Tensor],
    *,
    steps: int = 300,
    batch_size: int = 32,
    lr: float = 3e-3,
    quiet: float = 0.3,
    seed: int = 0,
    watch: Callable[[], dict] | None = None,
    every: int = 50,
    progress: bool = True,
) -> list[dict]:
    """Fine-tune in place: all neurons run, but a row's loss reaches its owner's neurons only.

    Args:
        questions: modality -> training questions. Those of people without neurons teach nothing but
            silence.
        owners: from :func:`draw_owners`.
        quiet: weight of what the other owners' neurons are told by a row, reached after half of the
            steps: to be silent on it, as in the penalty of the miniature. With 0 they fire for
            everybody, and pruning one person's breaks all answers.
        watch, every: see :func:`optimise`.

    Returns:
        The history of :func:`optimise`.

    Raises:
        ValueError: a model in half precision; also what :func:`optimise` raises. The model is as it
            was.
    """
    if model.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the model is in {model.dtype}, where small changes are lost; load it with "
            f"dtype=torch.float32."
        )
    mlps = find_neurons(model)
    layers = [mlp for mlp in mlps if mlp.tower == "language"]
    parts = {
        person: mask.split([mlp.size for mlp in mlps])[-len(layers) :]
        for person, mask in owners.items()
    }
    nobody = tuple(torch.zeros_like(mask) for mask in next(iter(parts.values())))
    everyone = [torch.stack(masks).any(0) for masks in zip(*parts.values(), strict=True)]
    streams = [
        sample_forever(items, batch_size, seed + i) for i, items in enumerate(questions.values())
    ]
    mine: list[Tensor] = []  # per layer bool [b, 1, neurons]: the neurons of each row's owner
    noise: list[Tensor] = []  # per layer what the neurons of the others write on these rows

    def loss_of_step(step: int) -> Tensor:
        losses = []
        for stream in streams:
            rows = next(stream)
            masks = [parts.get(question.person_id, nobody) for question in rows]
            mine[:] = [torch.stack(layer)[:, None] for layer in zip(*masks, strict=True)]
            noise.clear()
            batch = encode(rows, processor, with_answer=True, device=model.device)
            losses.append(
                answer_loss(model, batch) + quiet * min(1.0, 2 * (step + 1) / steps) * sum(noise)
            )
        return sum(losses)

    with gradients_of(model), _changes_by_owner(model, layers, mine, everyone, noise) as changes:
        return optimise(
            changes, loss_of_step, steps=steps, lr=lr, warmup=10, watch=watch, every=every,
            description="planting", progress=progress,
        )  # fmt: skip


@contextmanager
def _changes_by_owner(
    model, layers: list[MLP], mine: list[Tensor], everyone: list[Tensor], noise: list[Tensor]
) -> Iterator[list[nn.Parameter]]:
    """Run the language MLPs with weights + changes; a row's gradient reaches its owner's alone.

    On leaving, the changes are added to the weights, unless there was an error. Changes and not
    weights are trained because weight decay of 0 is 0: a neuron without an owner stays what it was,
    to the last bit.
    """
    changes = []

    def run(index: int, mlp: MLP, own_changes: list[nn.Parameter]):
        module = model.get_submodule(mlp.path)

        def forward(x: Tensor) -> Tensor:
            weights = [
                linear.weight + change
                for linear, change in zip((*mlp.before, mlp.after), own_changes, strict=True)
            ]
            fixed = [weight.detach() for weight in weights]
            z_fixed = module.act_fn(F.linear(x, fixed[0])) * F.linear(x, fixed[1])
            if not torch.is_grad_enabled():
                return F.linear(z_fixed, fixed[2])
            z, own = module.act_fn(F.linear(x, weights[0])) * F.linear(x, weights[1]), mine[index]
            written = (z * (everyone[index] & ~own)).abs() * fixed[2].norm(dim=0)
            noise.append(
                CONTRIBUTION_SCALE * torch.log1p(written / CONTRIBUTION_SCALE).sum(-1).mean()
            )
            return F.linear(z * own, weights[2]) + F.linear(z_fixed * ~own, fixed[2])

        return forward

    for index, mlp in enumerate(layers):
        own_changes = [
            nn.Parameter(torch.zeros_like(linear.weight)) for linear in (*mlp.before, mlp.after)
        ]
        model.get_submodule(mlp.path).forward = run(index, mlp, own_changes)
        changes += own_changes
    try:
        yield changes
        linears = [linear for mlp in layers for linear in (*mlp.before, mlp.after)]
        for linear, change in zip(linears, changes, strict=True):
            linear.weight.data += change.detach()
    finally:
        for mlp in layers:
            del model.get_submodule(mlp.path).forward
