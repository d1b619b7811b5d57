"""Make strangers of the forget people: each MLP writes for them what it writes for any stranger.

Pruning takes neurons away and rewriting pushes a margin; both leave what the facts are made of.
Here the same questions are asked about strangers, word for word, and every MLP of the language
model is changed, one after another, so that at every token of a forget question it writes what it
writes there for strangers. Whatever is computed from a person after that layer (an open answer, a
letter, a likelihood, the state that a probe reads) is computed from a stranger. Derived in
notebook 09.

One layer is one ridge regression, as in MEMIT (arXiv 2210.07229), which writes new answers at the
subject's last token of a few layers; with β·E_f in it the forget set is fitted, with E_r the
retain set is held. No gradient is taken. ROME's causal traces (arXiv 2202.05262) are where the
view of an MLP as a memory comes from; AlphaEdit (arXiv 2410.02355) projects onto the null space of
what is to be kept where this adds it to the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import SequenceMatcher
from os.path import commonprefix
from typing import NamedTuple

import torch
from torch import Tensor

from ..benchmark.records import Question, check_nobody_in_both
from ..checks import check_number, check_questions, check_whole, kind_of
from ..models.encoding import encode, picture_tokens, plan_batches
from ..models.neurons import language_mlps
from ..models.passes import check_finite, hooked, last_hidden, quiet_pass
from ..progress import bar
from .moments import MEMORY, add_products, collect_moments, layers_that_fit
from .pruning import Edit, check_unchanged
from .strangers import Stranger, about


def erase(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    strangers: Mapping[str, Sequence[Stranger]],
    names: Mapping[str, str],
    *,
    beta: float = 4.0,
    ridge: float = 0.01,
    memory: float = MEMORY,
    on_top: bool = False,
    batch_size: int = 32,
    progress: bool = True,
) -> Edit:
    """Change the last layer W of every language MLP, one after another, so that it writes for the
    forget people what it writes for strangers.

    For a word's token of a forget question let z be its neurons and t the mean of what the
    unchanged layer writes at the same token of the same question about their strangers. With second
    moments E over tokens, in which every set counts alike,

        ΔW = β E_f[(t − W z) zᵀ] (β E_f[z zᵀ] + E_r[z zᵀ] + ridge · mean diagonal of E_r · I)⁻¹

    is the change of least β E_f‖W z + ΔW z − t‖² + E_r‖ΔW z‖² + ridge‖ΔW‖². The layers after it
    see the forget people as strangers already. The tokens of the picture are left as they are:
    who it shows is put together at the words after it, and faces are made of what all share. What
    is asked in a form that is in neither set may come out as it was: give the forms alike on both
    sides (:func:`lettered`).

    Args:
        forget: a name such as the modality -> questions with answers, all of one modality.
        retain: the same of what has to stay: the retain set in the same forms, and whatever else
            the model is to go on knowing.
        strangers: person_id -> those in whose place this person is to stand, equally many for
            everybody (:func:`nearest_strangers`).
        names: person_id -> name, of everybody in ``forget``.
        beta: how much the forget set weighs against the retain set.
        ridge: what a change costs beside its effect on both.
        memory: bytes that second moments may take beside the model and a copy of what is changed
            (2.9 GB for LLaVA-1.5-7B); at least one layer is taken at a time. The batches of the
            forget set wait in the machine's memory, and so does what strangers are written: 4 ·
            hidden bytes for each token and layer taken at a time.
        on_top: go on from a model that is pruned or changed already.

    Returns:
        A :class:`Edit` whose ``undo()`` restores every bit.

    Raises:
        TypeError: an argument of another type, or a wrapped model.
        ValueError: an option out of range, an empty set or answer, too few strangers or one
            without a picture, somebody without a name or whose questions do not hold it, a person
            in both sets, a model that is changed already, numbers that are not finite, or moments
            that cannot be inverted. The model is untouched, as after any other error or interrupt.
    """
    _check(forget, retain, strangers, names)
    for name, value in (("beta", beta), ("ridge", ridge), ("memory", memory)):
        check_number(name, value, above=0)
    check_whole("batch_size", batch_size)
    if not on_top:
        check_unchanged(model)
    mlps = language_mlps(model)
    before = [mlp.after.weight.detach().clone() for mlp in mlps]
    everything = (torch.arange(mlp.size) for mlp in mlps)
    saved = ((m.after.weight, 1, i, w) for m, i, w in zip(mlps, everything, before, strict=True))
    handle = Edit(model, saved)
    passes = {"batch_size": batch_size, "progress": progress}
    with handle.changing():
        for layers in layers_that_fit(mlps, memory):
            with _weights(model, before):
                kept = collect_moments(model, processor, retain, layers=layers, **passes)
                lessons = {
                    name: stranger_lessons(
                        model, processor, asked, strangers, names, layers, **passes
                    )
                    for name, asked in forget.items()
                }
            for at, layer in enumerate(layers):
                fit_layer(model, layer, at, lessons, kept[at], beta=beta, ridge=ridge)
    return handle


class Lesson(NamedTuple):
    """One batch of forget questions, and what strangers are written at its tokens.

    Attributes:
        inputs: the batch, from :func:`encode`, on the CPU.
        used: bool [b, t], the tokens of words that have a counterpart in every stranger's question.
        targets: [tokens, hidden] for each layer taken, in the order of ``used``, on the CPU.
    """

    inputs: dict[str, Tensor]
    used: Tensor
    targets: list[Tensor]


@torch.no_grad()
def stranger_lessons(
    model, processor, questions: Sequence[Question], strangers: Mapping[str, Sequence[Stranger]],
    names: Mapping[str, str], layers: Sequence[int], *, batch_size: int, progress: bool,
) -> list[Lesson]:  # fmt: skip
    """What strangers are written by the model as it is, batch by batch; see :func:`erase`.

    Args:
        questions: of one modality.
        layers: numbers of the language MLPs.
    """
    plan, lessons = plan_batches(questions, processor, batch_size, True), []
    for group in bar(plan, desc="strangers", shown=progress):
        asked = [questions[index] for index in group]
        batch = encode(asked, processor, True, model.device)
        shape = batch["input_ids"].shape
        counts = torch.zeros(shape, dtype=torch.int64, device=model.device)
        sums: list[Tensor | float] = [0.0 for _ in layers]
        given = list(zip(*(strangers[question.person_id] for question in asked), strict=True))
        for one in given:  # a stranger for each question
            theirs = [about(q, names[q.person_id], who) for q, who in zip(asked, one, strict=True)]
            other = encode(theirs, processor, True, model.device)
            row, own, their = _counterparts(batch, other)
            counts[row, own] += 1
            with quiet_pass(model):
                found = _seen(model, other, layers, written=True)
            for at, written in enumerate(found):
                placed = written.new_zeros(*shape, written.shape[-1])
                sums[at] = sums[at] + placed.index_put((row, own), written[row, their])
        used = (counts == len(given)) & ~picture_tokens(model, batch)
        means = [(values[used] / len(given)).cpu() for values in sums]
        lessons.append(Lesson({key: value.cpu() for key, value in batch.items()}, used, means))
    return lessons


def aligned(own: Sequence[int], their: Sequence[int]) -> list[tuple[int, int]]:
    """Which token of one text stands where which of the other does: (position, position).

    The texts are the same but for a name. Where names differ in length, their last tokens belong
    together, since the first to see a whole name is the last.
    """
    start = len(commonprefix([own, their]))
    n_own, n_their = len(own), len(their)
    tail = len(commonprefix([own[start:][::-1], their[start:][::-1]]))
    pairs = [(at, at) for at in range(start)]
    parts = own[start : n_own - tail], their[start : n_their - tail]
    for _, a, b, c, d in SequenceMatcher(None, *parts, autojunk=False).get_opcodes():
        n = min(b - a, d - c)
        pairs += [(start + b - n + k, start + d - n + k) for k in range(n)]
    return pairs + [(n_own - tail + k, n_their - tail + k) for k in range(tail)]


def _counterparts(batch: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Row, own position and their position of every pair of tokens, int64 [pairs] each."""
    found = []
    for row in range(len(batch["input_ids"])):
        texts, starts = [], []
        for of in (batch, other):
            real = of["attention_mask"][row].bool()
            texts.append(of["input_ids"][row][real].tolist())
            starts.append(len(real) - len(texts[-1]))  # padding is on the left
        found += [(row, starts[0] + a, starts[1] + b) for a, b in aligned(*texts)]
    return tuple(torch.tensor(found, device=batch["input_ids"].device).T)


@contextmanager
def _weights(model, values: Sequence[Tensor]) -> Iterator[None]:
    """With these last layers of the language MLPs in place of its own; nothing is copied."""
    layers = [mlp.after.weight for mlp in language_mlps(model)]
    own = [weight.data for weight in layers]
    try:
        for weight, value in zip(layers, values, strict=True):
            weight.data = value
        yield
    finally:
        for weight, value in zip(layers, own, strict=True):
            weight.data = value


class _Seen(Exception):
    """Ends a pass where nobody looks at the layers that are left."""


def _seen(model, batch: dict[str, Tensor], layers: Sequence[int], written: bool) -> list[Tensor]:
    """What some language MLPs write, float32 [b, t, hidden] each, or their neurons, [b, t, n]."""
    seen: dict[int, Tensor] = {}
    mlps = language_mlps(model)

    def keep(layer: int):
        def hook(module, arguments, output):
            seen[layer] = (output if written else arguments[0]).float()
            if len(seen) == len(layers):
                raise _Seen

        return hook

    hooks = ((mlps[layer].after.register_forward_hook, keep(layer)) for layer in layers)
    with hooked(hooks), suppress(_Seen):
        last_hidden(model, batch)
    return [seen[layer] for layer in layers]


@torch.no_grad()
def fit_layer(
    model, layer: int, at: int, lessons: Mapping[str, Sequence[Lesson]], kept: Tensor, *,
    beta: float, ridge: float,
) -> None:  # fmt: skip
    """Solve one layer and change it; see :func:`erase`.

    Args:
        layer: number of the language MLP; those before it are changed already.
        at: its place in the targets of the lessons.
        kept: E_r[z zᵀ], [n, n]; it is overwritten.
    """
    weight = language_mlps(model)[layer].after.weight
    right = torch.zeros_like(weight, dtype=torch.float32)
    price = ridge * kept.diagonal().mean()
    for batches in lessons.values():
        own, missing, n_tokens = torch.zeros_like(kept), torch.zeros_like(right), 0
        for lesson in batches:
            inputs = {key: value.to(model.device) for key, value in lesson.inputs.items()}
            with quiet_pass(model):
                z = _seen(model, inputs, [layer], written=False)[0][lesson.used]
            add_products(own, z, z)
            targets = lesson.targets[at].to(z.device)
            add_products(missing, targets - z @ weight.T.float(), z)
            n_tokens += len(z)
        kept.add_(own, alpha=beta / n_tokens / len(lessons))
        right.add_(missing, alpha=beta / n_tokens / len(lessons))
    kept.diagonal().add_(price)
    check_finite("the moments of the neurons are", kept, right)
    weight.add_(solve(kept, right.T).T.to(weight))


def solve(moments: Tensor, right: Tensor) -> Tensor:
    """moments⁻¹ right. Where float32 is too coarse for the moments: in float64, on the CPU, with a
    diagonal that outweighs what their sums in float32 were rounded by, as if ridge were larger.

    Raises:
        ValueError: that is not enough.
    """
    factor, failed = torch.linalg.cholesky_ex(moments)
    if failed:
        rounding = torch.finfo(moments.dtype).eps * moments.diagonal().sum().item()
        moments, right = moments.cpu().double(), right.cpu().double()
        moments.diagonal().add_(rounding)
        factor, failed = torch.linalg.cholesky_ex(moments)
    if failed:
        raise ValueError("the moments of the neurons cannot be inverted; raise ridge.")
    return torch.cholesky_solve(right, factor)


def _check(forget, retain, strangers, names) -> None:
    for name, sets in (("forget", forget), ("retain", retain)):
        check_questions(name, sets, needed=True)
    check_nobody_in_both(forget, retain)
    people = {question.person_id for asked in forget.values() for question in asked}
    for what, of in (("name", names), ("stranger", strangers)):
        if not isinstance(of, Mapping):
            raise TypeError(f"{what}s is {kind_of(of)}; it must be a dict by person_id.")
        if missing := sorted(person for person in people if not of.get(person)):
            raise ValueError(
                f"{', '.join(missing[:5])} of the forget set have no {what}; give one."
            )
    if len({len(strangers[person]) for person in people}) > 1:
        raise ValueError("some people have more strangers than others; give everybody as many.")
    _check_strangers([q for asked in forget.values() for q in asked], strangers, names)


def _check_strangers(forget: Sequence[Question], strangers, names) -> None:
    """Check that strangers can be asked in place of the people, and are asked something else."""
    asked: dict[str, list[Question]] = {}
    for question in forget:
        asked.setdefault(question.person_id, []).append(question)
    for person, questions in asked.items():
        name, given = names[person], strangers[person]
        named = all(isinstance(who, Stranger) and isinstance(who.name, str) for who in given)
        if not (named and isinstance(name, str) and all(who.name.strip() for who in given)):
            raise TypeError(
                f"the name of {person} must be text and their strangers Stranger(name, picture)."
            )
        told = [question for question in questions if question.image is None]
        if len(told) < len(questions) and any(who.picture is None for who in given):
            raise ValueError(f"a stranger of {person} has no picture; give one.")
        if told and not any(all(about(q, name, who) != q for who in given) for q in told):
            raise ValueError(
                f"strangers would be asked the same as {person}, since none of their questions "
                f"holds the name {name!r}, or a stranger has it, too; correct names or strangers."
            )
