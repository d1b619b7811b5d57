"""What others call MANU when they compare with it: two published reimplementations.

Written from a reading of their code (PreckLi/MIP-Editor, ``manu.py``;
JunkaiChen1/Open-MMunlearning, ``src/trainer/unlearn/manu.py``); none of it is here. The paper's own
score is ``variant="paper"``, what its authors' code does is in
:mod:`manu_utils.unlearning.released`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..benchmark.records import Question, check_sets
from ..checks import check_number, check_questions, check_whole
from ..models.encoding import batches, encode, fitting
from ..models.neurons import check_alpha, find_neurons, language_mlps, towers
from ..models.passes import check_finite, exact_device, hooked, last_hidden, quiet_pass
from ..progress import bar
from .pruning import Edit, check_unchanged, prune_rows
from .released import EPS, LAST_LAYERS


def manu_of_mip_editor(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    alpha: float = 10.0,
    factor: float = 0.9,
    tau: float = 0.1,
    batch_size: int = 32,
    on_top: bool = False,
    progress: bool = True,
) -> Edit:
    """The MANU that MIP-Editor (arXiv 2511.06793) compares with: it prunes nothing.

    Where it leaves the paper of MANU:

    - the α % of neurons that are chosen are multiplied by 0.9, not by 0 (``decay=0.1``);
    - language MLPs alone, no vision tower;
    - the last position of a sequence alone counts;
    - the text-only form is the question with its picture left out, "this person" and the place of
      the image included, not the one that names the person;
    - I_abs divides by the sum of the signed means, I_freq counts z > τ without the magnitude, and
      the four are added unweighted.

    Left out is that its batches are padded on the right, so that there the last position of all but
    the longest row is padding, and that it reads lettered questions.

    Args:
        forget, retain: ``"multimodal"`` -> questions with answers; others are not looked at.
        alpha: percentage of the neurons of the language model.
        factor: 0 prunes what it chooses.
        on_top: change a model that is changed already; without it such a model is refused.

    Raises:
        TypeError: an argument of another type, or a wrapped model.
        ValueError: a number out of range, no multimodal questions, an empty answer, a person in
            both sets, or activations that are not finite. The model is untouched.
    """
    check_alpha(alpha, allow_small=True)
    check_number("factor", factor, least=0, below=1)
    check_number("tau", tau)
    check_whole("batch_size", batch_size)
    _check_multimodal(forget, retain)
    if not on_top:
        check_unchanged(model)
    importance = []
    for questions in (forget["multimodal"], retain["multimodal"]):
        z = [
            _last_activations(model, processor, questions, picture, batch_size, progress)
            for picture in (True, False)
        ]
        importance.append(importance_of_mip_editor(*z, tau))
    scores = importance[0] / (importance[1] + 1e-6)
    check_finite("the scores are", scores)
    mlps = language_mlps(model)
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[scores.topk(int(alpha / 100 * len(scores))).indices] = True
    saved = []
    for mlp, part in zip(mlps, chosen.split([mlp.size for mlp in mlps]), strict=True):
        weight = mlp.after.weight
        index = part.nonzero()[:, 0].to(weight.device)
        if len(index):
            saved.append((weight, 1, index, weight.detach().index_select(1, index)))
    if not saved:
        raise ValueError(f"alpha={alpha:g} of {len(scores)} neurons is less than one; raise alpha.")
    handle = Edit(model, saved)
    with torch.no_grad(), handle.changing():
        for weight, _, index, values in saved:
            weight.index_copy_(1, index, factor * values)
    return handle


def importance_of_mip_editor(multimodal: Tensor, text: Tensor, tau: float) -> Tensor:
    """I_abs + I_freq + I_var + I_rms as MIP-Editor computes them, float64 [neurons].

    Args:
        multimodal, text: [questions, neurons], activations with the picture and without.
    """
    multimodal, text = multimodal.double(), text.double()
    means = (multimodal.mean(0), text.mean(0))
    active = tuple((z > tau).sum(0) for z in (multimodal, text))
    squares = tuple((z * z).sum(0) for z in (multimodal, text))
    i_abs = (means[0] - means[1]).abs() / (means[0] + means[1] + 1e-6)
    i_freq = (active[0] - active[1]).abs() / (active[0] + active[1] + 1e-6)
    i_var = (multimodal.var(0) + text.var(0)).sqrt()
    i_rms = ((squares[0] - squares[1]).abs() / (squares[0] + squares[1] + 1e-6)).sqrt()
    return i_abs + i_freq + i_var + i_rms


@torch.no_grad()
def _last_activations(
    model, processor, questions: Sequence[Question], picture: bool, batch_size: int, progress: bool
) -> Tensor:
    """z of every language neuron at the last token of each answer: [questions, neurons], CPU."""
    mlps = language_mlps(model)
    found: dict[str, list[Tensor]] = {mlp.path: [] for mlp in mlps}

    def keep(path: str):
        return lambda module, arguments: found[path].append(arguments[0][:, -1].float().cpu())

    hooks = [(mlp.after.register_forward_pre_hook, keep(mlp.path)) for mlp in mlps]
    work = batches(questions, processor, batch_size, with_answer=True, device=model.device)
    with quiet_pass(model), hooked(hooks), bar(total=len(questions), shown=progress) as shown:
        for indices, batch in work:
            read = batch if picture else {k: batch[k] for k in ("input_ids", "attention_mask")}
            last_hidden(model, read)
            shown.update(len(indices))
    return torch.cat([torch.cat(parts) for parts in found.values()], dim=1)


def manu_of_open_mmunlearning(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    alpha: float = 10.0,
    on_top: bool = False,
    progress: bool = True,
) -> Edit:
    """The MANU of the benchmark Open-MMUnlearning: rows of linear layers in the last three layers.

    Where it leaves the paper of MANU:

    - only the last three layers of each tower are looked at and pruned;
    - outputs of linear layers and the rows that make them, as in the authors' code, not neurons:
      before the non-linearity, and of ``down_proj`` channels of the residual stream;
    - no contrast of the modalities: vision rows are scored by pictures, language rows by the same
      question with the picture left out;
    - Σ 2 (F / (R + 1e-5) − 1) over mean magnitude, standard deviation and root mean square; how
      often a row is active does not count;
    - all three are means over questions, read one by one, prompt and answer alike.

    Against the authors' code, layers are not pooled, and values are not cut. Left out are the
    system prompt, and adapters of which it zeroes the rows instead where they are not merged.

    Args:
        forget, retain: ``"multimodal"`` -> questions with answers; others are not looked at. Of the
            larger set as many as the smaller one has are read, the first ones.
        alpha: percentage of these rows of each tower.
        on_top: change a model that is changed already; without it such a model is refused.

    Raises:
        TypeError: an argument of another type, or a wrapped model.
        ValueError: α no percentage, no multimodal questions, an empty answer, a person in both
            sets, or outputs that are not finite. The model is untouched.
    """
    check_alpha(alpha, allow_small=True)
    _check_multimodal(forget, retain)
    if not on_top:
        check_unchanged(model)
    find_neurons(model)  # refuses what cannot be pruned
    kept = []
    for questions in (forget["multimodal"], retain["multimodal"]):
        fits = fitting(questions, processor, with_answer=True)[0]
        kept.append([questions[index] for index in fits])
    n = min(map(len, kept))
    rows: dict[str, Tensor] = {}
    for tower, members in towers(model).items():
        paths = [f"{path}.{name}" for path, _, names in members[-LAST_LAYERS:] for name in names]
        if not paths:
            continue
        asked = [items[:n] for items in kept]
        if tower == "language":
            asked = [[replace(question, image=None) for question in items] for items in asked]
        of_forget, of_retain = (
            _output_statistics(model, processor, items, paths, progress) for items in asked
        )
        scores = {p: (2 * (of_forget[p] / (of_retain[p] + EPS) - 1)).sum(0) for p in paths}
        pool = torch.cat(list(scores.values()))
        check_finite(f"the scores of the {tower} tower are", pool)
        threshold = pool.topk(max(1, int(alpha / 100 * len(pool)))).values[-1]
        rows |= {path: score >= threshold for path, score in scores.items()}
    return prune_rows(model, rows)


@torch.no_grad()
def _output_statistics(
    model, processor, questions: Sequence[Question], paths: Sequence[str], progress: bool
) -> dict[str, Tensor]:
    """Path of a linear layer -> mean magnitude, standard deviation and root mean square of each of
    its outputs over the positions of a question, mean over questions: float64 [3, rows], CPU.
    """
    sums: dict[str, Tensor] = {}

    def add(path: str):
        def hook(module, arguments, output: Tensor) -> None:
            x = output.to(exact_device(output.device)).double().flatten(0, -2)
            parts = (x.abs().mean(0), x.std(0, correction=0), (x * x).mean(0).sqrt())
            sums[path] = sums.get(path, 0) + torch.stack(parts).cpu() / len(questions)

        return hook

    hooks = [(model.get_submodule(path).register_forward_hook, add(path)) for path in paths]
    with quiet_pass(model), hooked(hooks):
        for question in bar(questions, desc="outputs", shown=progress):
            batch = encode([question], processor, with_answer=True, device=model.device)
            last_hidden(model, batch)
    return sums


def _check_multimodal(forget: dict, retain: dict) -> None:
    check_questions("forget", forget)
    check_questions("retain", retain)
    check_sets(forget, retain, ("multimodal",))
