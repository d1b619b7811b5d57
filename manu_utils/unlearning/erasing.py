"""Make strangers of the forget people: what each MLP writes for them becomes what it writes for somebody it never met.

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

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import SequenceMatcher
from os.path import commonprefix
from typing import NamedTuple

import PIL.Image
import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_number, check_questions, check_whole
from ..models.encoding import encode, plan_batches
from ..models.passes import check_finite, hooked, quiet_pass
from ..progress import bar
from .pruning import Edit, check_unchanged
from .rewriting import collect_moments, language_mlps, layers_that_fit


class Stranger(NamedTuple):
    """Somebody whom the model never met: a name and a portrait."""

    name: str
    picture: PIL.Image.Image


def about(question: Question, name: str, stranger: Stranger) -> Question:
    """The same question about a stranger: their portrait for the person's, their name for ``name``
    wherever it stands. All other words stay, the answer's too, since a stranger has no facts.
    """
    picture = None if question.image is None else stranger.picture
    words = (question.question, question.answer)
    asked, answer = (text.replace(name, stranger.name) for text in words)
    return replace(question, question=asked, answer=answer, image=picture)


def lettered(
    questions: Sequence[Question],
    names: Mapping[str, str],
    *,
    n: int = 1,
    seed: int = 0,
) -> list[Question]:
    """Training questions asked with four options: what is erased as a sentence alone may still be
    found by its letter.

    The wrong options are the answers of others to the same wording, without the words that all of
    its answers begin and end with ("Lives in Porto." is "Porto"). Wordings with a blank or with fewer
    than four different answers are left out.

    Args:
        questions: of as many people as there are; task ``"training"``.
        names: person_id -> name.
        n: how often each is asked, with other options each time.

    Returns:
        Questions of the task ``"classification"``. Their answer is the right letter, which is what
        the model is to write.
    """
    rng = random.Random(seed)
    groups = defaultdict(list)
    for question in questions:
        wording = question.question.replace(names[question.person_id], "{who}")
        groups[wording].append(question)
    made = []
    for wording, group in groups.items():
        values = dict(zip((q.answer for q in group), _values([q.answer for q in group]), strict=True))
        different = sorted(set(values.values()))
        if "[Blank]" in wording or len(different) < 4:
            continue
        for question in group:
            right = values[question.answer]
            others = [value for value in different if value != right]
            for _ in range(n):
                options = [right, *rng.sample(others, 3)]
                rng.shuffle(options)
                letter = "ABCD"[options.index(right)]
                lettered = dict(zip("ABCD", options, strict=True))
                made.append(
                    replace(question, task="classification", options=lettered, answer=letter)
                )
    return made


def _values(answers: Sequence[str]) -> list[str]:
    """Answers without the whole words that all of them begin and end with."""
    words = [re.findall(r"\w+|[^\w\s]|\s+", answer) for answer in answers]
    first = len(commonprefix(words))
    last = len(commonprefix([part[first:][::-1] for part in words]))
    return ["".join(part[first : len(part) - last]).strip() for part in words]


def erase(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    strangers: Sequence[Stranger],
    names: Mapping[str, str],
    *,
    beta: float = 10.0,
    ridge: float = 0.01,
    others: int = 4,
    memory: float = 4e9,
    on_top: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Change the last layer W of every language MLP, one after another, so that it writes for the
    forget people what it writes for strangers.

    For a token of a forget question let z be its neurons and t the mean of what the unchanged
    layer writes at the same token of the same question about ``others`` strangers. With second
    moments E over tokens, in which every set counts alike,

        ΔW = β E_f[(t − W z) zᵀ] (β E_f[z zᵀ] + E_r[z zᵀ] + ridge · mean diagonal of E_r · I)⁻¹

    is the change of least β E_f‖W z + ΔW z − t‖² + E_r‖ΔW z‖² + ridge‖ΔW‖². The layers after it
    see the forget people as strangers already. What is asked in a form that is in neither set may
    come out as it was: give the forms alike on both sides (:func:`lettered`).

    Args:
        forget: a name such as the modality -> questions with answers, all of one modality.
        retain: the same of what has to stay: the retain set in the same forms, and whatever else
            the model is to go on knowing.
        strangers: at least ``others``. Each person is given as many of them, drawn by ``seed``.
        names: person_id -> name, of everybody in ``forget``.
        beta: how much the forget set weighs against the retain set.
        ridge: what a change costs beside its effect on both.
        memory: bytes that second moments may take beside the model; at least one layer is taken
            at a time. What strangers are written waits in the machine's memory: 4 · hidden bytes
            for each token of the forget set and layer taken at a time.
        on_top: go on from a model that is pruned or changed already.

    Returns:
        A :class:`Edit` whose ``undo()`` restores every bit.

    Raises:
        TypeError: an argument of another type, or a wrapped model.
        ValueError: an option out of range, an empty set or answer, too few strangers, somebody
            without a name, a person in both sets, a model that is changed already, or numbers
            that are not finite. The model is untouched, as after any other error or interrupt.
    """
    _check(forget, retain, strangers, names, beta=beta, ridge=ridge, others=others)
    for name, value in (("batch_size", batch_size), ("others", others)):
        check_whole(name, value)
    check_number("memory", memory, above=0)
    if not on_top:
        check_unchanged(model)
    mlps = language_mlps(model)
    before = [mlp.after.weight.detach().clone() for mlp in mlps]
    drawn = _draw(forget, strangers, others, seed)
    everything = (torch.arange(mlp.size) for mlp in mlps)
    saved = ((m.after.weight, 1, i, w) for m, i, w in zip(mlps, everything, before, strict=True))
    handle = Edit(model, saved)
    passes = {"batch_size": batch_size, "progress": progress}
    try:
        with quiet_pass(model), torch.no_grad():
            for layers in layers_that_fit(mlps, memory):
                with _weights(model, before):
                    kept = collect_moments(model, processor, retain, layers=layers, **passes)
                    lessons = {
                        name: list(_lessons(model, processor, asked, drawn, names, layers, **passes))
                        for name, asked in forget.items()
                    }
                for at, layer in enumerate(layers):
                    _fit(model, layer, at, lessons, kept[at], beta, ridge)
    except BaseException:
        handle.undo()
        raise
    return handle.made()


class _Lesson(NamedTuple):
    """One batch of forget questions, and what strangers are written at its tokens.

    Attributes:
        inputs: of the model, without the mask of the answers.
        used: bool [b, t], the tokens that have a counterpart in every stranger's question.
        targets: [tokens, hidden] for each layer taken, in the order of ``used``.
    """

    inputs: dict[str, Tensor]
    used: Tensor
    targets: list[Tensor]


def _lessons(
    model, processor, questions: Sequence[Question], drawn: Mapping[str, Sequence[Stranger]],
    names: Mapping[str, str], layers: Sequence[int], *, batch_size: int, progress: bool,
) -> Iterator[_Lesson]:  # fmt: skip
    plan = plan_batches(questions, processor, batch_size, True)
    for group in bar(plan, desc="strangers", shown=progress):
        asked = [questions[index] for index in group]
        batch = encode(asked, processor, True, model.device)
        shape = batch["input_ids"].shape
        counts = torch.zeros(shape, dtype=torch.int64, device=model.device)
        sums: list[Tensor | float] = [0.0 for _ in layers]
        strangers = list(zip(*(drawn[question.person_id] for question in asked), strict=True))
        for one in strangers:  # of each question
            theirs = [about(q, names[q.person_id], who) for q, who in zip(asked, one, strict=True)]
            other = encode(theirs, processor, True, model.device)
            row, own, their = _counterparts(batch, other)
            counts[row, own] += 1
            for at, written in enumerate(_seen(model, other, layers, written=True)):
                placed = written.new_zeros(*shape, written.shape[-1])
                sums[at] = sums[at] + placed.index_put((row, own), written[row, their])
        used = counts == len(strangers)
        inputs = {key: value for key, value in batch.items() if key != "answer_mask"}
        yield _Lesson(inputs, used, [values[used] / len(strangers) for values in sums])


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
    """With these last layers of the language MLPs in place of the model's own; nothing is copied."""
    layers = [mlp.after.weight for mlp in language_mlps(model)]
    own = [weight.data for weight in layers]
    try:
        for weight, value in zip(layers, values, strict=True):
            weight.data = value
        yield
    finally:
        for weight, value in zip(layers, own, strict=True):
            weight.data = value


def _seen(model, batch: dict[str, Tensor], layers: Sequence[int], written: bool) -> list[Tensor]:
    """What some language MLPs write, float32 [b, t, hidden] each, or their neurons, [b, t, n]."""
    seen: dict[int, Tensor] = {}
    mlps = language_mlps(model)

    def keep(layer: int):
        def hook(module, arguments, output):
            seen[layer] = (output if written else arguments[0]).float()

        return hook

    hooks = ((mlps[layer].after.register_forward_hook, keep(layer)) for layer in layers)
    with hooked(hooks):
        model.model(**{k: v for k, v in batch.items() if k != "answer_mask"}, use_cache=False)
    return [seen[layer] for layer in layers]


def _fit(model, layer, at, lessons, kept: Tensor, beta: float, ridge: float) -> None:
    """Solve one layer and change it; ``kept`` is E_r[z zᵀ], [n, n], and is used up."""
    weight = language_mlps(model)[layer].after.weight
    right = torch.zeros_like(weight, dtype=torch.float32)
    price = ridge * kept.diagonal().mean()
    for batches in lessons.values():
        own, missing, n_tokens = torch.zeros_like(kept), torch.zeros_like(right), 0
        for lesson in batches:
            z = _seen(model, lesson.inputs, [layer], written=False)[0][lesson.used]
            own.addmm_(z.T, z)
            missing.addmm_((lesson.targets[at] - z @ weight.T.float()).T, z)
            n_tokens += len(z)
        kept.add_(own, alpha=beta / n_tokens / len(lessons))
        right.add_(missing, alpha=beta / n_tokens / len(lessons))
    kept.diagonal().add_(price)
    check_finite("the moments of the neurons are", kept, right)
    weight.add_(torch.cholesky_solve(right.T, torch.linalg.cholesky(kept)).T.to(weight.dtype))


def _draw(forget, strangers: Sequence[Stranger], others: int, seed: int):
    rng = random.Random(seed)
    people = sorted({question.person_id for asked in forget.values() for question in asked})
    return {person: rng.sample(list(strangers), others) for person in people}


def _check(forget, retain, strangers, names, *, beta, ridge, others) -> None:
    for name, value in (("beta", beta), ("ridge", ridge)):
        check_number(name, value, above=0)
    check_whole("others", others)
    for name, sets in (("forget", forget), ("retain", retain)):
        check_questions(name, sets)
        if not sets or not all(sets.values()):
            raise ValueError(f"{name} needs questions in every part, such as {{'text': [...]}}.")
    people = [{q.person_id for asked in of.values() for q in asked} for of in (forget, retain)]
    if both := sorted(people[0] & people[1]):
        raise ValueError(f"forget and retain share people, such as {', '.join(both[:5])}; take them out of one set.")
    if missing := sorted(people[0] - set(names)):
        raise ValueError(f"names has no name of {', '.join(missing[:5])}; erase needs to know where it stands.")
    if len(strangers) < others:
        raise ValueError(f"{len(strangers)} strangers are fewer than others={others}; give more, or set others lower.")
