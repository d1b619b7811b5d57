"""The MLP neurons of the language model and of the vision tower, found by structure.

A neuron is one coordinate of the input of an MLP's last linear layer: the gated product that enters ``down_proj``, or the
activation that enters ``fc2``. Explained in notebook 03.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

GATED, PLAIN = ("gate_proj", "up_proj", "down_proj"), ("fc1", "fc2")
_VISION = ("vision", "visual")
_NOT_AN_MLP_OF_A_TOWER = ("projector", "connector", "merger", "modality")


@dataclass(frozen=True)
class MLP:
    """One MLP: where it is, the linear layers that produce its neurons, and the one that reads them.

    Attributes:
        path: module path within the model.
        tower: ``"vision"`` or ``"language"``.
        layer: number of the layer within its tower, from 0.
        inputs: the layers whose row n makes neuron n (``gate_proj``, ``up_proj`` or ``fc1``).
        output: the layer whose column n is what neuron n writes (``down_proj`` or ``fc2``).
    """

    path: str
    tower: str
    layer: int
    inputs: tuple[nn.Linear, ...]
    output: nn.Linear

    @property
    def size(self) -> int:
        """The number of neurons."""
        return self.output.in_features


def find_neurons(model: nn.Module) -> list[MLP]:
    """Every MLP of both towers: vision first, then language, each in the order of its layers.

    A vector over "all neurons of the model" is the concatenation of the MLPs in this order. Projectors between the towers are
    not searched. LLaVA reads an earlier vision layer if ``vision_feature_layer`` says so; the layers after it are listed but
    have no effect.

    Raises:
        ValueError: no MLP of a known structure, or weights that are quantised.
    """
    found: dict[str, list[tuple[str, nn.Module, tuple[str, ...]]]] = {"vision": [], "language": []}
    for path, module in model.named_modules():
        names = next((names for names in (GATED, PLAIN) if all(hasattr(module, name) for name in names)), None)
        if names is None or any(word in path for word in _NOT_AN_MLP_OF_A_TOWER):
            continue
        tower = "vision" if any(word in path for word in _VISION) else "language"
        found[tower].append((path, module, names))
    if not found["vision"] and not found["language"]:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        raise ValueError(
            f"found no MLP with {' / '.join(GATED)} or {' / '.join(PLAIN)} among the modules {', '.join(kinds)}; "
            "add the names of its layers to manu_utils.neurons."
        )
    mlps = []
    for tower, members in found.items():
        for layer, (path, module, names) in enumerate(members):
            layers = [getattr(module, name) for name in names]
            for name, linear in zip(names, layers, strict=True):
                if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
                    raise ValueError(
                        f"{path}.{name} is a {type(linear).__name__} of {linear.weight.dtype}: quantised weights cannot be "
                        "pruned; load the model in float16, bfloat16 or float32, prune, and quantise afterwards."
                    )
                if type(linear).__module__.startswith("bitsandbytes"):
                    raise ValueError(f"{path}.{name} is quantised; load the model without load_in_4bit / load_in_8bit.")
            mlps.append(MLP(path, tower, layer, tuple(layers[:-1]), layers[-1]))
    return mlps
