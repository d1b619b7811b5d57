"""Collect once, choose, prune: what was collected (``Evidence``), and all of it in one call (``unlearn``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import processes
from ..benchmark.records import MODALITIES, Question, check_sets
from ..checks import check_name, check_names, check_questions, check_whole
from ..models.neurons import check_alpha, find_neurons
from .activations import Statistics, collect_activations
from .attribution import collect_attribution
from .coverage import choose_by_coverage
from .pruning import Edit, check_unchanged, prune, pruned_neurons, select_neurons
from .released import choose_rows
from .scores import CONTROLS, PRUNINGS, score


class Evidence:
    """What the scores look at, collected once: any variant and any α can then be chosen without another pass.

    Statistics and attribution of the forget and the retain set are collected when they are first asked for, and kept. Only
    coverage looks at the forget set again, in its rounds, and what the released code does is read anew.

    Args:
        forget, retain, modalities: see :func:`unlearn`.

    Raises:
        TypeError, ValueError: see :func:`unlearn`.
    """

    def __init__(
        self,
        model,
        processor,
        forget: dict[str, list[Question]],
        retain: dict[str, list[Question]],
        *,
        modalities: Sequence[str] = MODALITIES,
        batch_size: int = 32,
        progress: bool = True,
    ):
        check_names("modalities", modalities, MODALITIES)
        check_whole("batch_size", batch_size)
        self.mlps = find_neurons(model)
        check_questions("forget", forget)
        check_questions("retain", retain)
        check_sets(forget, retain, modalities)
        self.given, self.modalities = (model, processor), tuple(modalities)
        self.sets = {name: {m: of[m] for m in modalities} for name, of in (("forget", forget), ("retain", retain))}
        self.options = {"batch_size": batch_size, "progress": progress}
        self._kept: dict[tuple[str, str], dict] = {}

    def with_retain(self, retain: dict[str, list[Question]]) -> Evidence:
        """The same forget set, not read again, beside another sample of the retain set."""
        other = Evidence(*self.given, self.sets["forget"], retain, modalities=self.modalities, **self.options)
        other._kept = {key: found for key, found in self._kept.items() if key[1] == "forget"}
        return other

    def statistics(self, of: str) -> dict[str, Statistics]:
        """Modality -> the statistics of ``"forget"`` or ``"retain"`` (:func:`collect_activations`)."""
        return self._once("statistics", of, lambda asked: collect_activations(*self.given, asked, **self.options))

    def attribution(self, of: str) -> dict[str, Tensor]:
        """Modality -> float32 [n_facts, n_neurons] of ``"forget"``, the mean [n_neurons] of ``"retain"``
        (:func:`collect_attribution`).
        """
        options = {"reduce": of == "retain", **self.options}
        return self._once("attribution", of, lambda asked: collect_attribution(*self.given, asked, **options))

    def _once(self, what: str, of: str, collect: Callable) -> dict:
        if (what, of) not in self._kept:
            self._kept[what, of] = {m: collect(asked) for m, asked in self.sets[of].items()}
        return self._kept[what, of]

    def scores(self, variant: str, seed: int = 0) -> Tensor:
        """:func:`score` of every neuron, float64 [n_neurons]."""
        sums = ({}, {}) if variant in CONTROLS else (self.statistics("forget"), self.statistics("retain"))
        return score(variant, *sums, mlps=self.mlps, seed=seed)

    def choose(
        self, variant: str, alpha: float, *, seed: int = 0, exclude: Tensor | None = None, allow_small: bool = False
    ) -> Tensor | dict[str, Tensor]:
        """What :func:`unlearn`, which explains the arguments, would prune. The model is as it was.

        Args:
            exclude: bool [n_neurons], neurons that must not be chosen, such as those pruned before.

        Returns:
            bool [n_neurons]; for ``"released_as_run"``, which chooses no neurons, path of a linear layer -> bool
            [out_features].

        Raises:
            TypeError, ValueError: see :func:`unlearn`.
        """
        check_alpha(alpha, allow_small)
        check_whole("seed", seed, least=0)
        check_name("variant", variant, PRUNINGS)
        if variant in ("paper", "released_score", "released_as_run") and set(self.modalities) != set(MODALITIES):
            raise ValueError(f"variant={variant!r} needs both modalities; use 'coverage' or 'ratio' with one.")
        if variant == "released_as_run":
            options = {"alpha": alpha, "seed": seed, "progress": self.options["progress"]}
            return choose_rows(*self.given, self.sets["forget"], self.sets["retain"], **options)
        if variant == "coverage":
            facts, cost = self.attribution("forget"), self.attribution("retain")
            more = {"facts": facts, "exclude": exclude, "allow_small": allow_small, **self.options}
            return choose_by_coverage(*self.given, self.sets["forget"], cost, alpha=alpha, **more)
        scores = self.scores(variant, seed)
        if exclude is not None:
            scores = scores.masked_fill(exclude, -torch.inf)
        if len(scores[scores > -torch.inf].unique()) < 2:
            raise ValueError(f"{variant} gives every neuron the same score, so that there is nothing to choose by.")
        per = "tower" if variant == "released_score" else "model"
        return select_neurons(scores, self.mlps, alpha, per, allow_small=allow_small)


def unlearn(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    variant: str = "coverage",
    alpha: float = 5.0,
    modalities: Sequence[str] = MODALITIES,
    seed: int = 0,
    allow_small: bool = False,
    on_top: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> Edit:
    """Score, select and prune in one call; several processes share its passes (:mod:`manu_utils.processes`).

    Args:
        forget, retain: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        variant: one of :data:`PRUNINGS`: ``"coverage"`` is ours, ``"paper"`` the printed equations,
            ``"released_score"`` the score of the authors' code on neurons, and ``"released_as_run"`` what their code prunes
            when it is run: rows of linear layers, see :mod:`manu_utils.unlearning.released`.
        alpha: percentage of all MLP neurons; of those of each tower for ``"released_score"``, and of the rows that their code
            looks at in each tower for ``"released_as_run"``.
        modalities: those to unlearn; ``("text",)`` for a benchmark without images. ``"paper"`` and the released ones need
            both.
        seed: of ``"random"``, and of the order in which ``"released_as_run"`` reads.
        allow_small: accept α below 0.5, see :func:`check_alpha`.
        on_top: prune more neurons of a model that is pruned already, or rewritten; without it such a model is refused, since α
            would add up from call to call.

    Returns:
        What was pruned, with ``undo()``.

    Raises:
        TypeError: an argument of another type, or a wrapped model; it says what to pass.
        ValueError: unknown variant, α not a percentage, a missing or empty modality, an empty answer, questions of the other
            modality, a person in both sets, a model that is changed already (:func:`check_unchanged`), or nothing to choose
            by; also what the functions that it calls raise. The model is untouched.
    """
    check_alpha(alpha, allow_small)
    given = {"modalities": modalities, "batch_size": batch_size, "progress": progress}
    evidence = Evidence(model, processor, forget, retain, **given)
    if not on_top:
        check_unchanged(model)
    chosen = evidence.choose(variant, alpha, seed=seed, exclude=pruned_neurons(model), allow_small=allow_small)
    # A GPU may round differently from run to run, and the copies of several processes must stay equal: the first decides.
    return prune(model, processes.gathered([chosen])[0])
