"""The MLP neurons of the language model and of the vision tower, found by structure.

A neuron is one coordinate of the input of an MLP's last linear layer: the gated product that enters
``down_proj``, or the activation that enters ``fc2``. Explained in notebook 03.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checks import check_real
from .passes import check_model

# Names of the linear layers of an MLP, the one that reads the neurons last.
STRUCTURES = (("gate_proj", "up_proj", "down_proj"), ("fc1", "fc2"), ("linear_fc1", "linear_fc2"))
_VISION = ("vision", "visual")
_BETWEEN_THE_TOWERS = ("projector", "connector", "resampler", "merger", "audio")
# what transformers calls them, a list of MLPs or one module of fused tensors
_EXPERTS = ("experts", "expert")
_FUSED = ("gate_up_proj",)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class MLP:
    """One MLP: where it is, the linear layers that produce its neurons, the one that reads them.

    Attributes:
        path: module path within the model.
        tower: ``"vision"`` or ``"language"``.
        layer: number of the layer within its tower, from 0.
        before: the layers whose row n makes neuron n (``gate_proj``, ``up_proj`` or ``fc1``).
        after: the layer whose column n is what neuron n writes (``down_proj`` or ``fc2``).
    """

    path: str
    tower: str
    layer: int
    before: tuple[nn.Linear, ...]
    after: nn.Linear

    @property
    def size(self) -> int:
        """The number of neurons."""
        return self.after.in_features


def towers(model: nn.Module) -> dict[str, list[tuple[str, nn.Module, tuple[str, ...]]]]:
    """Where the MLPs of both towers are: tower -> (path, module, names of its linear layers).

    Raises:
        TypeError: a wrapped model, see :func:`check_model`.
        ValueError: a tower without an MLP of a known structure, with the modules that were looked
            at; layers that route tokens to experts, of which only some would be found; or gate and
            up in one fused matrix.
    """
    check_model(model)
    found: dict[str, list[tuple[str, nn.Module, tuple[str, ...]]]] = {"vision": [], "language": []}
    # what else has linear layers, for the error
    seen: dict[str, dict[str, None]] = {"vision": {}, "language": {}}
    for path, module in model.named_modules():
        if not any(part.isdecimal() for part in path.split(".")) or any(
            word in path for word in _BETWEEN_THE_TOWERS
        ):
            continue
        if path.rpartition(".")[2] in _EXPERTS:
            raise ValueError(
                f"{path} of {type(model).__name__} is a mixture of experts, to which each token is "
                f"routed differently: their neurons are not supported, and the other ones alone "
                "would not be all; use a dense model."
            )
        tower = "vision" if any(word in path for word in _VISION) else "language"
        names = next(
            (names for names in STRUCTURES if all(hasattr(module, name) for name in names)), None
        )
        if names is not None:
            found[tower].append((path, module, names))
        elif fused := [name for name in _FUSED if hasattr(module, name)]:
            raise ValueError(
                f"{path}.{fused[0]} of {type(model).__name__} holds the gate and the other input "
                f"of its neurons in one matrix, which is not supported; use a model with gate_proj "
                "and up_proj apart, or split the matrix in two."
            )
        elif linear := [
            name for name, child in module.named_children() if isinstance(child, nn.Linear)
        ]:
            where = ".".join("*" if part.isdecimal() else part for part in path.split("."))
            seen[tower][f"{where} ({' / '.join(linear)})"] = None
    has_vision = getattr(getattr(model, "config", None), "vision_config", None) is not None
    if missing := [
        tower for tower in found if not found[tower] and (tower == "language" or has_vision)
    ]:
        known = ", ".join(" / ".join(names) for names in STRUCTURES)
        looked = (
            "; ".join(where for tower in missing for where in seen[tower])
            or "no numbered layer with linear layers"
        )
        raise ValueError(
            f"found no MLP with {known} in the {' and '.join(missing)} layers of "
            f"{type(model).__name__}; looked at {looked}. Add the names of its layers to "
            "manu_utils.models.neurons.STRUCTURES."
        )
    return found


def find_neurons(model: nn.Module) -> list[MLP]:
    """Every MLP of both towers: vision first, then language, each in the order of its layers.

    A vector over "all neurons of the model" is the concatenation of the MLPs in this order. An MLP
    counts if it is part of a numbered layer (``layers.3``, ``blocks.3``) of a tower; pooling heads
    and whatever lies between the towers (projectors, connectors, resamplers, mergers) do not. LLaVA
    reads an earlier vision layer if ``vision_feature_layer`` says so; the layers after it are
    listed but have no effect.

    Raises:
        ValueError: a tower without an MLP of a known structure, or weights that are quantised,
            wrapped by an adapter or offloaded.
    """
    mlps = []
    for tower, members in towers(model).items():
        for layer, (path, module, names) in enumerate(members):
            layers = [getattr(module, name) for name in names]
            for name, linear in zip(names, layers, strict=True):
                _check_weights(f"{path}.{name}", linear)
            n_neurons = layers[-1].in_features
            if wrong := [
                name for name in names[:-1] if getattr(module, name).out_features != n_neurons
            ]:
                raise ValueError(
                    f"{path}.{wrong[0]} makes {getattr(module, wrong[0]).out_features} rows for "
                    f"{n_neurons} neurons; row n must make neuron n, so this structure is not "
                    "supported."
                )
            mlps.append(MLP(path, tower, layer, tuple(layers[:-1]), layers[-1]))
    return mlps


def language_mlps(model: nn.Module) -> list[MLP]:
    """The MLPs of the language model, in the order of its layers; see :func:`find_neurons`."""
    return [mlp for mlp in find_neurons(model) if mlp.tower == "language"]


def split_selected(selected: Tensor, mlps: Sequence[MLP]) -> tuple[Tensor, ...]:
    """One selection of neurons, taken apart by MLP.

    Args:
        selected: bool [n_neurons] in the order of ``mlps``, all of :func:`find_neurons`.

    Returns:
        bool [n] for every MLP of n neurons.

    Raises:
        TypeError: no tensor.
        ValueError: not boolean, or of another length.
    """
    n = sum(mlp.size for mlp in mlps)
    if not isinstance(selected, Tensor):
        raise TypeError(
            f"selected must be a tensor, bool [{n}] for this model, not a "
            f"{type(selected).__name__}."
        )
    if selected.dtype != torch.bool or selected.shape != (n,):
        raise ValueError(
            f"selected must be bool [{n}] for this model, not {selected.dtype} "
            f"{list(selected.shape)}."
        )
    return selected.split([mlp.size for mlp in mlps])


def check_alpha(alpha: float, allow_small: bool = False) -> None:
    """Check that ``alpha`` is a percentage of neurons.

    A value below 0.5 is refused, since 0.05 nearly always means 5 %; ``allow_small`` is for those
    who do mean 0.05 %.

    Raises:
        TypeError: not a number; True is none.
        ValueError: outside (0, 100), or below 0.5 without ``allow_small``.
    """
    check_real("alpha", alpha)
    if not math.isfinite(alpha) or not 0 < alpha < 100:
        raise ValueError(
            f"alpha={alpha} is a percentage of all neurons and must lie between 0 and 100."
        )
    if alpha < 0.5 and not allow_small:
        raise ValueError(
            f"alpha={alpha} looks like a fraction; alpha is a percentage: pass {100 * alpha:g} for "
            f"{100 * alpha:g} %, or allow_small=True if you do mean {alpha} %."
        )


def count_of(alpha: float, n: int) -> int:
    """α % of n neurons as a number, at least 1."""
    return max(1, round(alpha / 100 * n))


def _check_weights(path: str, linear: nn.Module) -> None:
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"{path} is a {type(linear).__name__}, not a plain torch.nn.Linear: merge adapters "
            f"(merge_and_unload) and load quantised models in float16, bfloat16 or float32."
        )
    if linear.weight.dtype not in _FLOATS or type(linear).__module__.startswith("bitsandbytes"):
        raise ValueError(
            f"{path} is a {type(linear).__name__} of {linear.weight.dtype}: quantised weights "
            f"cannot be pruned; load the model in float16, bfloat16 or float32, prune, and "
            "quantise afterwards."
        )
    if linear.weight.is_meta:
        raise ValueError(
            f"{path} is offloaded to the CPU or to disk, and weights that are not in memory cannot "
            f"be pruned: load the model in bfloat16, with device='cpu', or on more GPUs with "
            "device_map='auto', so that all of it fits."
        )
