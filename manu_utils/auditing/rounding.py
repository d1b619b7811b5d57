"""Rounding weights: what quantisation brings back. Derived in notebook 09.

Unlearning that moves weights by less than half a step of the rounded ones is undone when they are
rounded (Zhang et al., arXiv 2410.16454: 21 % of the forgotten knowledge before, 83 % at 4 bits).
Weights that are exactly zero stay so under every symmetric scheme, so a pruned neuron stays pruned;
a scheme whose zero point is no whole number of steps makes no such promise.

The rounding is simulated: rounded values in the weights' own dtype, so no package is needed and the
answers are those of a quantised model that computes in that dtype. Activations stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..benchmark.records import Question
from ..checks import check_whole
from ..models.asking import exact_answers
from ..models.neurons import find_neurons
from ..models.passes import check_model, kept_weights
from ..progress import bar
from ..unlearning.pruning import pruned_neurons

if TYPE_CHECKING:
    import pandas as pd

# (bits, group) as in :func:`rounded`
SETTINGS = ((8, None), (6, None), (4, None), (4, 64), (3, None), (2, None), ("nf4", None))
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NormalFloat with 4 bits (QLoRA, arXiv 2305.14314; bitsandbytes' numbers): with p = 0.9677083,
the quantiles of N(0, 1) at 8 equal steps from p to 1/2, at 7 negated, and 0, over the largest."""


def round_weights(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Symmetric round-to-nearest: s · round(w / s) with s = max|w| / (2^(bits − 1) − 1).

    Args:
        weight: float [out, in] of a linear layer.
        bits: 2 to 8.
        group: one s for so many input columns of a row; the last group may be shorter. None: one s
            for each row (output channel).

    Returns:
        [out, in] in the dtype of ``weight``, computed in float32 at least. Zeros stay exactly zero.

    Raises:
        TypeError: no float matrix, or a number that is none.
        ValueError: a number out of range, or weights that are not finite.
    """
    _check_setting(bits, group, named=())
    blocks = _blocks(_checked(weight), group)
    scale = blocks.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1  # a row of zeros
    rounded = (blocks / scale).round() * scale
    return rounded.flatten(1)[:, : weight.shape[1]].to(weight.dtype)


def nf4(weight: Tensor, block: int = 64) -> Tensor:
    """Each weight to the nearest of the 16 numbers of :data:`NF4`, times max|w| of its block.

    As bitsandbytes does it without its second quantisation, that of the maxima: blocks run over the
    rows one after another, so a block may hold the end of one row and the start of the next.

    Args:
        weight: float [out, in] of a linear layer.
        block: numbers that share a maximum.

    Returns, raises: see :func:`round_weights`.
    """
    check_whole("block", block)
    blocks = _blocks(_checked(weight).reshape(1, -1), block)
    scale = blocks.abs().amax(-1, keepdim=True)
    table = torch.tensor(NF4, dtype=blocks.dtype, device=weight.device)
    borders = (table[1:] + table[:-1]) / 2
    index = torch.bucketize(blocks / scale.masked_fill(scale == 0, 1), borders)
    return (table[index] * scale).flatten()[: weight.numel()].view_as(weight).to(weight.dtype)


@contextmanager
def rounded(
    model, bits: int | str = 4, group: int | None = None, *, vision: bool = False
) -> Iterator[nn.Module]:
    """Inside, the linear layers of the language model are rounded; on leaving, every bit is back.

    The output layer and the embeddings stay as they are, as in transformers' own loading in 4 or 8
    bits. It yields the model; the copy of the weights is kept on the CPU.

    Args:
        bits: 2 to 8 for :func:`round_weights`, or ``"nf4"``.
        group: input columns that share a scale, None for whole rows; of NF4 the block, None for 64.
        vision: round the vision tower and what lies between the towers, too.

    Raises:
        TypeError: a number that is none, or a wrapped model.
        ValueError: a number out of range, or a model that is quantised, holds adapters, is
            offloaded, or has weights that are not finite. The model is untouched.
    """
    _check_setting(bits, group)
    weights = _linear_weights(model, vision)
    with kept_weights(weights):
        with torch.no_grad():
            for weight in weights:
                if bits == "nf4":
                    new = nf4(weight, group or 64)
                else:
                    new = round_weights(weight, bits, group)
                weight.copy_(new)
        yield model


def answers_when_rounded(
    model,
    processor,
    asked: Mapping[tuple[str, str], Sequence[Question]],
    settings: Sequence[tuple[int | str, int | None]] = SETTINGS,
    *,
    vision: bool = False,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """What the model knows as it is, and under each setting of :func:`rounded`.

    Args:
        model: as it was afterwards, also after an error or interrupt.
        asked: (set, modality) -> questions with answers, as for :func:`relearn`.
        settings: (bits, group).

    Returns:
        Columns rounding (``"none"``, ``"4 bits"``, ``"4 bits by 64"``, ``"nf4 by 64"``), set,
        modality, value (share of exact answers, 0 to 1) and n (questions).

    Raises:
        TypeError, ValueError: see :func:`rounded` and :func:`manu_utils.models.exact_answers`.
    """
    import pandas as pd

    names = _names(settings)
    _linear_weights(model, vision)  # raises before anything is asked
    options = {"batch_size": batch_size}
    tables = [exact_answers(model, processor, asked, **options).assign(rounding="none")]
    for name, setting in bar(zip(names, settings, strict=True), total=len(names), shown=progress):
        with rounded(model, *setting, vision=vision):
            tables.append(exact_answers(model, processor, asked, **options).assign(rounding=name))
    return pd.concat(tables, ignore_index=True)[["rounding", "set", "modality", "value", "n"]]


def zeros_when_rounded(
    model, settings: Sequence[tuple[int | str, int | None]] = SETTINGS, *, vision: bool = False
) -> pd.DataFrame:
    """Whether what is exactly zero stays so: every weight, and every neuron that is pruned.

    Args:
        model, settings, vision: as for :func:`answers_when_rounded`.

    Returns:
        One row per setting: rounding; zeros, the weights of 0 before, and zeros_left, those of them
        that still are; pruned and pruned_left, the same of neurons (:func:`pruned_neurons`).

    Raises:
        TypeError, ValueError: see :func:`rounded`.
    """
    import pandas as pd

    names = _names(settings)
    weights = _linear_weights(model, vision)
    zero, pruned = [(weight == 0).cpu() for weight in weights], pruned_neurons(model)
    rows = []
    for name, setting in zip(names, settings, strict=True):
        with rounded(model, *setting, vision=vision):
            left = sum(int((w.cpu()[was] == 0).sum()) for w, was in zip(weights, zero, strict=True))
            still = int((pruned_neurons(model) & pruned).sum())
        rows.append((name, sum(int(was.sum()) for was in zero), left, int(pruned.sum()), still))
    return pd.DataFrame(rows, columns=["rounding", "zeros", "zeros_left", "pruned", "pruned_left"])


def _blocks(weight: Tensor, size: int | None) -> Tensor:
    """[rows, columns] -> [rows, blocks, size] in float32 at least, the last block padded with 0."""
    size = min(size or weight.shape[1], weight.shape[1])
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    filled = nn.functional.pad(weight, (0, -weight.shape[1] % size))
    return filled.unflatten(1, (-1, size))


def _checked(weight: Tensor) -> Tensor:
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise TypeError("weight must be a float tensor [out, in], as that of a torch.nn.Linear.")
    if not weight.isfinite().all():
        raise ValueError("weights that are not finite cannot be rounded; load the model again.")
    return weight.detach()


def _check_setting(bits, group, named: Sequence[str] = ("nf4",)) -> None:
    if bits not in named:
        check_whole("bits", bits, least=2)
        if bits > 8:
            raise ValueError(f"bits={bits} must be 2 to 8; more change next to nothing.")
    if group is not None:
        check_whole("group", group)


def _names(settings) -> list[str]:
    """How each setting is called in a table."""
    pairs = isinstance(settings, Sequence) and [
        setting for setting in settings if isinstance(setting, tuple) and len(setting) == 2
    ]
    if not pairs or len(pairs) < len(settings):
        raise TypeError("settings must be pairs of bits and group, such as ((8, None), (4, 64)).")
    for setting in settings:
        _check_setting(*setting)
    groups = [64 if group is None and bits == "nf4" else group for bits, group in settings]
    kinds = [bits if bits == "nf4" else f"{bits} bits" for bits, _ in settings]
    return [f"{kind} by {g}" if g else kind for kind, g in zip(kinds, groups, strict=True)]


def _linear_weights(model, vision: bool) -> list[nn.Parameter]:
    """The weights that are rounded, each once; see :func:`rounded`."""
    check_model(model)
    output = model.get_output_embeddings()
    found: dict[int, nn.Parameter] = {}
    for path, module in (model if vision else model.get_decoder()).named_modules():
        if module is output or not hasattr(module, "in_features"):
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear) or type(weight) is not nn.Parameter:
            raise ValueError(
                f"{path} is a {type(module).__name__} without plain float weights, which rounding "
                "needs: merge adapters; of a model that is quantised already, load the checkpoint "
                "that it was made from."
            )
        if weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2:
            needed = "load the model whole, in float16, bfloat16 or float32"
            raise ValueError(f"{path} is offloaded or holds {weight.dtype}: {needed}.")
        found[id(weight)] = weight
    find_neurons(model)  # raises where layers are of a kind without in_features
    return list(found.values())
