"""Ways to choose neurons, which the ablations compare: each takes a lab, α, the forget ratio and a
seed, and gives bool [n_neurons]. The model is as it was.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from lab import TAU, Lab
from manu_utils.models.encoding import batches
from manu_utils.models.neurons import count_of
from manu_utils.models.passes import hooked
from manu_utils.unlearning.activations import Statistics
from manu_utils.unlearning.attribution import collect_attribution
from manu_utils.unlearning.coverage import choose_by_coverage
from manu_utils.unlearning.pruning import prune_neurons, select_neurons
from manu_utils.unlearning.scores import RELEASED, pool_layers, switched_score
from sweep import QUIET


def by_variant(
    lab: Lab, alpha: float, ratio: int, seed: int, *, variant: str, seen=None, **options
) -> Tensor:
    """α % of the whole model, also of the released score, so that one thing differs at a time.

    Args:
        seen: of :meth:`Lab.evidence`.
    """
    if variant != "coverage":
        options = {"per": "model"} | options
    evidence = lab.evidence(ratio, seed, **(seen or {}))
    return evidence.choose(variant, alpha, seed=seed, allow_small=True, **options)


def switched(lab: Lab, alpha: float, ratio: int, seed: int, *, seen=None, **switches) -> Tensor:
    """By :func:`switched_score`."""
    evidence = lab.evidence(ratio, seed, **(seen or {}))
    sums = (evidence.statistics("forget"), evidence.statistics("retain"))
    scores = switched_score(*sums, mlps=lab.mlps, **switches)
    return select_neurons(scores, lab.mlps, alpha, allow_small=True)


def by_attribution(lab: Lab, alpha: float, ratio: int, seed: int, *, floor: float = 0.3) -> Tensor:
    """Neuron by neuron: forget over retain with a floor, both modalities together."""
    evidence = lab.evidence(ratio, seed)
    facts, cost = evidence.attribution("forget"), evidence.attribution("retain")
    shares = (rows / rows.sum(1, keepdim=True).clamp(min=1e-30) for rows in facts.values())
    gain, price = sum(rows.mean(0) for rows in shares), sum(cost.values())
    scores = (gain / (price / price.mean() + floor)).double()
    return select_neurons(scores, lab.mlps, alpha, allow_small=True)


def every_token_alike(lab: Lab, alpha: float, ratio: int, seed: int) -> Tensor:
    """Coverage with the same weight for every token of an answer."""
    given, sets = (lab.model, lab.processor), lab.evidence(ratio, seed).sets
    options = {"rarity": torch.ones(len(lab.processor.tokenizer)), **QUIET}
    retain = sets["retain"].items()
    cost = {m: collect_attribution(*given, asked, reduce=True, **options) for m, asked in retain}
    return choose_by_coverage(*given, sets["forget"], cost, alpha=alpha, **options)


def of_one_tower(
    lab: Lab, alpha: float, ratio: int, seed: int, *, variant: str, tower: str
) -> Tensor:
    """α % of one tower's neurons, and none of the other's."""
    share = float(lab.vision.double().mean())
    alpha *= share if tower == "vision" else 1 - share
    closed = ~lab.vision if tower == "vision" else lab.vision
    return by_variant(lab, alpha, ratio, seed, variant=variant, exclude=closed)


def coverage_by_group(lab: Lab, alpha: float, ratio: int, seed: int, *, per: str) -> Tensor:
    """Coverage with α % of every layer or tower of its own."""
    sizes = torch.tensor([mlp.size for mlp in lab.mlps])
    layers = torch.arange(len(sizes)).repeat_interleave(sizes)
    group_of = layers if per == "layer" else lab.vision.long()
    chosen = torch.zeros(len(group_of), dtype=torch.bool)
    for group in group_of.unique():
        inside = group_of == group
        part = alpha * float(inside.double().mean())
        chosen |= by_variant(lab, part, ratio, seed, variant="coverage", exclude=~inside)
    return chosen


def in_rounds(
    lab: Lab, alpha: float, ratio: int, seed: int, *, variant: str, rounds: int
) -> Tensor:
    """A part of the budget, look again without it, the next part."""
    if variant == "coverage":
        return by_variant(lab, alpha, ratio, seed, variant=variant, rounds=rounds)
    n, evidence = len(lab.vision), lab.evidence(ratio, seed)
    budget, chosen = count_of(alpha, n), torch.zeros(n, dtype=torch.bool)
    for number in range(1, rounds + 1):
        part = budget * number // rounds - int(chosen.sum())
        with prune_neurons(lab.model, chosen) if chosen.any() else nullcontext():
            again = evidence.beside(**evidence.sets) if chosen.any() else evidence
            more = {"exclude": chosen, "per": "model", "allow_small": True}
            more = again.choose(variant, 100 * part / n, **more)
        chosen = chosen | more
    return chosen


def as_the_authors_run_it(
    lab: Lab, alpha: float, ratio: int, seed: int, *, pooled=False, positions="answer", linear=False
) -> Tensor:
    """The released score, step by step nearer to what their code sees: α % of each tower."""
    evidence, scores = lab.evidence(ratio, seed, positions=positions), []
    for which in (0, -1) if linear else (None,):  # gate and up apart: cutting either is enough
        sums = [evidence.statistics(name) for name in evidence.sets if not linear]
        if linear:
            sets = evidence.sets.values()
            sums = [{m: collect_linear(lab, q, which) for m, q in of.items()} for of in sets]
        if pooled:
            sums = [{m: pool_layers(s, lab.mlps) for m, s in of.items()} for of in sums]
        scores.append(switched_score(*sums, mlps=lab.mlps, **RELEASED))
    highest = torch.stack(scores).amax(0)
    return select_neurons(highest, lab.mlps, alpha, "tower", allow_small=True)


@torch.no_grad()
def collect_linear(lab: Lab, questions: list, which: int) -> Statistics:
    """What the authors' code records: outputs of the linear layers before the non-linearity, at
    every position, pads too.

    Args:
        which: 0 for ``gate_proj`` / ``fc1``, -1 for ``up_proj`` / ``fc1``.
    """
    model, mlps = lab.model, lab.mlps
    sums = [torch.zeros(4, mlp.size, dtype=torch.float64) for mlp in mlps]
    tokens = torch.zeros(len(mlps), dtype=torch.int64)

    def count(index: int):
        def hook(module, arguments, output):
            z = output.flatten(0, -2).double().cpu()
            active = (z.abs() > TAU).double()
            parts = [values.sum(0) for values in (z, z.abs(), z * z, active)]
            sums[index] += torch.stack(parts)
            tokens[index] += len(z)

        return hook

    layers = enumerate(mlp.before[which] for mlp in mlps)
    with hooked((layer.register_forward_hook, count(index)) for index, layer in layers):
        options = {"with_answer": True, "device": model.device}
        for _, batch in batches(questions, lab.processor, 32, **options):
            del batch["answer_mask"]
            model.model(**batch, use_cache=False)
    sizes = tuple(mlp.size for mlp in mlps)
    modality = questions[0].modality
    return Statistics(tokens, sizes, *torch.cat(sums, dim=1), tau=TAU, modality=modality)
