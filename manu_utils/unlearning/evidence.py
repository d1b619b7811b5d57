"""Collect once, choose, prune: what was collected (``Evidence``), and all at once (``unlearn``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import processes
from ..benchmark.records import MODALITIES, Question, check_sets
from ..checks import check_name, check_names, check_questions, check_whole
from ..models.fingerprints import fingerprint
from ..models.neurons import check_alpha, find_neurons
from ..models.passes import check_processor
from .activations import Statistics, collect_activations
from .attribution import collect_attribution
from .coverage import choose_by_coverage
from .pruning import Edit, check_unchanged, prune, pruned_neurons, select_neurons
from .released import choose_rows
from .scores import CONTROLS, PRUNINGS, score


class Evidence:
    """What the scores look at, collected once: any variant and any α can then be chosen without
    another pass.

    Statistics and attribution of the forget and the retain set are collected when they are first
    asked for, and kept. Only coverage looks at the forget set again, in its rounds, and what the
    released code does is read anew.

    Args:
        forget, retain, modalities: see :func:`unlearn`.
        tau, positions: of the statistics, see :func:`collect_activations`.
        resume, model_key: a folder where what is collected is kept as it comes, see
            :func:`collect_activations`.

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
        tau: float = 0.1,
        positions: str = "answer",
        batch_size: int = 32,
        resume: str | Path | None = None,
        model_key: str | None = None,
        progress: bool = True,
    ):
        check_names("modalities", modalities, MODALITIES)
        check_whole("batch_size", batch_size)
        self.mlps = find_neurons(model)
        check_processor(processor)
        check_questions("forget", forget)
        check_questions("retain", retain)
        check_sets(forget, retain, modalities)
        self.given, self.modalities = (model, processor), tuple(modalities)
        sets = {"forget": forget, "retain": retain}
        self.sets = {name: {m: of[m] for m in modalities} for name, of in sets.items()}
        self.seen = {"tau": tau, "positions": positions}
        self.options = {"batch_size": batch_size, "progress": progress}
        self.place = {"resume": resume, "model_key": model_key}
        self._kept: dict[str, dict[str, dict]] = {"forget": {}, "retain": {}}

    def beside(
        self,
        *,
        forget: dict[str, list[Question]] | None = None,
        retain: dict[str, list[Question]] | None = None,
    ) -> Evidence:
        """The same with another sample of a set; the set that stays is not read again."""
        samples = {"forget": forget, "retain": retain}
        sets = {name: self.sets[name] if of is None else of for name, of in samples.items()}
        options = {"modalities": self.modalities, **self.seen, **self.options, **self.place}
        other = Evidence(*self.given, **sets, **options)
        other._kept |= {name: self._kept[name] for name, of in samples.items() if of is None}
        return other

    def statistics(self, of: str) -> dict[str, Statistics]:
        """Modality -> the statistics of ``"forget"`` or ``"retain"``
        (:func:`collect_activations`).
        """
        return self._once("statistics", of, collect_activations, **self.seen)

    def attribution(self, of: str) -> dict[str, Tensor]:
        """Modality -> float32 [n_facts, n_neurons] of ``"forget"``, the mean [n_neurons] of
        ``"retain"`` (:func:`collect_attribution`).
        """
        return self._once("attribution", of, collect_attribution, reduce=of == "retain")

    def _once(self, what: str, of: str, collect: Callable, **options) -> dict:
        kept, asked = self._kept[of], self.sets[of]
        if what not in kept:
            options |= self.options | self.place
            if options["resume"] is not None:  # weights are hashed once for both modalities
                options["model_key"] = options["model_key"] or fingerprint(*self.given)
            kept[what] = {m: collect(*self.given, asked[m], **options) for m in asked}
        return kept[what]

    def scores(self, variant: str, seed: int = 0, **options) -> Tensor:
        """:func:`score`, which explains the options, of every neuron: float64 [n_neurons]."""
        sums = ({}, {})
        if variant not in CONTROLS:
            sums = (self.statistics("forget"), self.statistics("retain"))
        return score(variant, *sums, mlps=self.mlps, seed=seed, **options)

    def choose(
        self,
        variant: str,
        alpha: float,
        *,
        seed: int = 0,
        exclude: Tensor | None = None,
        per: str | None = None,
        allow_small: bool = False,
        **options,
    ) -> Tensor | dict[str, Tensor]:
        """What :func:`unlearn`, which explains the arguments, would prune. The model is as it was.

        Args:
            exclude: bool [n_neurons], neurons that must not be chosen, such as those pruned before.
            per: of what a score takes α %, see :func:`select_neurons`; by default as ``unlearn``.
            options: other settings of the variant, those of :func:`score` or, for coverage, of
                :func:`choose_by_coverage`.

        Returns:
            bool [n_neurons]; for ``"released_as_run"``, which chooses no neurons, path of a linear
            layer -> bool [out_features].

        Raises:
            TypeError, ValueError: see :func:`unlearn`; or ``per`` for what is no score.
        """
        check_alpha(alpha, allow_small)
        check_whole("seed", seed, least=0)
        check_name("variant", variant, PRUNINGS)
        needs_both = variant in ("paper", "released_score", "released_as_run")
        if needs_both and set(self.modalities) != set(MODALITIES):
            hint = "use 'coverage' or 'ratio' with one."
            raise ValueError(f"variant={variant!r} needs both modalities; {hint}")
        if per is not None and variant in ("coverage", "released_as_run"):
            raise ValueError(f"per={per!r} is for scores; {variant} takes no share of each group.")
        forget = self.sets["forget"]
        if variant == "released_as_run":
            options |= {"alpha": alpha, "seed": seed, "progress": self.options["progress"]}
            return choose_rows(*self.given, forget, self.sets["retain"], **options)
        if variant == "coverage":
            options |= {"facts": self.attribution("forget"), "allow_small": allow_small}
            options |= {"alpha": alpha, "exclude": exclude, **self.options}
            return choose_by_coverage(*self.given, forget, self.attribution("retain"), **options)
        scores = self.scores(variant, seed, **options)
        if exclude is not None:
            scores = scores.masked_fill(exclude, -torch.inf)
        if len(scores[scores > -torch.inf].unique()) < 2:
            same = f"{variant} gives every neuron the same score"
            raise ValueError(f"{same}, so that there is nothing to choose by.")
        if per is None:
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
    resume: str | Path | None = None,
    model_key: str | None = None,
    progress: bool = True,
) -> Edit:
    """Score, select and prune in one call.

    Several processes share its passes (:mod:`manu_utils.processes`).

    Args:
        forget, retain: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        variant: one of :data:`PRUNINGS`: ``"coverage"`` is ours, ``"paper"`` the printed equations,
            ``"released_score"`` the score of the authors' code on neurons, and
            ``"released_as_run"`` what their code prunes when it is run: rows of linear layers, see
            :mod:`manu_utils.unlearning.released`.
        alpha: percentage of all MLP neurons; of those of each tower for ``"released_score"``, and
            of the rows that their code looks at in each tower for ``"released_as_run"``.
        modalities: those to unlearn; ``("text",)`` for a benchmark without images. ``"paper"`` and
            the released ones need both.
        seed: of ``"random"``, and of the order in which ``"released_as_run"`` reads.
        allow_small: accept α below 0.5, see :func:`check_alpha`.
        on_top: prune more neurons of a model that is pruned already, or rewritten; without it such
            a model is refused, since α would add up from call to call.
        resume, model_key: a folder where statistics and attribution are kept as they come, so that
            a run that was killed goes on from there, see :func:`collect_activations`.

    Returns:
        What was pruned, with ``undo()``.

    Raises:
        TypeError: an argument of another type, or a wrapped model; it says what to pass.
        ValueError: unknown variant, α not a percentage, a missing or empty modality, an empty
            answer, questions of the other modality, a person in both sets, a model that is changed
            already (:func:`check_unchanged`), or nothing to choose by; also what the functions that
            it calls raise. The model is untouched.
    """
    given = {"modalities": modalities, "batch_size": batch_size, "progress": progress}
    given |= {"resume": resume, "model_key": model_key}
    evidence = Evidence(model, processor, forget, retain, **given)
    if not on_top:
        check_unchanged(model)
    chosen = evidence.choose(
        variant, alpha, seed=seed, exclude=pruned_neurons(model), allow_small=allow_small
    )
    # A GPU may round differently from run to run, and the copies of several processes must stay
    # equal: the first decides.
    return prune(model, processes.gathered([chosen])[0])
