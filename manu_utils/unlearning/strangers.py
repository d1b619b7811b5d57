"""Strangers in place of the people to forget, and the same facts asked by letter: what
:func:`manu_utils.unlearning.erase` is given. Derived in notebook 09.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import PIL.Image
import torch
from torch import Tensor

from ..benchmark.records import Question
from ..benchmark.values import differing_parts
from ..checks import check_whole
from ..models.encoding import encode, picture_tokens
from ..models.passes import hooked, last_hidden, quiet_pass


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


def nearest_strangers(
    model,
    processor,
    forget: Sequence[Question],
    names: Mapping[str, str],
    strangers: Sequence[Stranger],
    *,
    n: int = 4,
    more_names: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, list[Stranger]]:
    """For each person the strangers who are most like them: the less is taken from what others
    share with a person, the less they lose.

    Portraits are near by the cosine of the mean of what the language model is shown of them. Names
    are taken that share a word with the person's, the first and the last in turn, then any. So a
    name and a portrait that are put together need not belong together.

    Args:
        forget: questions about everybody to forget; portraits are taken from those with an image.
        names: person_id -> name.
        strangers: at least n.
        more_names: other names that nobody has whom the model met (:func:`mixed_names`).

    Raises:
        ValueError: fewer than n strangers, or somebody without a name.
    """
    check_whole("n", n)
    if len(strangers) < n:
        raise ValueError(f"{len(strangers)} strangers are fewer than n={n}; give more of them.")
    rng = random.Random(seed)
    pool = [*more_names, *(stranger.name for stranger in strangers)]
    portraits = {q.person_id: q.image for q in forget if q.image is not None}
    people = sorted({question.person_id for question in forget})
    pictures = [stranger.picture for stranger in strangers]
    near = _nearest(model, processor, [portraits.get(person) for person in people], pictures)
    found = {}
    for person, order in zip(people, near, strict=True):
        if not names.get(person):
            raise ValueError(f"names has no name of {person}; give it.")
        words = names[person].split()
        mixed = rng.sample(pool, len(pool))
        alike = [[name for name in mixed if name.split()[at] == words[at]] for at in (0, -1)]
        turns = [name for pair in zip_longest(*alike) for name in pair if name]
        chosen = list(dict.fromkeys([*turns, *mixed]))[:n]
        found[person] = [
            Stranger(a, strangers[k].picture) for a, k in zip(chosen, order, strict=False)
        ]
    return found


def mixed_names(names: Iterable[str]) -> list[str]:
    """First words of names with last words of others, without the names themselves.

    >>> mixed_names(["Anna Berg", "Leo Kay"])
    ['Anna Kay', 'Leo Berg']
    """
    taken = set(names)
    parts = [sorted({name.split()[at] for name in taken}) for at in (0, -1)]
    return [mixed for a in parts[0] for b in parts[1] if (mixed := f"{a} {b}") not in taken]


@torch.no_grad()
def _nearest(model, processor, own: Sequence, others: Sequence) -> list[list[int]]:
    """For each picture the numbers of the other ones, nearest first; of None in their order."""
    given = [picture for picture in [*own, *others] if picture is not None]
    if len(given) < len(others) + 1:
        return [list(range(len(others))) for _ in own]
    with quiet_pass(model):
        found = [_mean_shown(model, processor, picture) for picture in given]
    mine, rest = iter(found), torch.stack(found[-len(others) :])
    orders = []
    for picture in own:
        likeness = torch.zeros(len(others))
        if picture is not None:
            likeness = torch.cosine_similarity(next(mine)[None], rest)
        orders.append(likeness.argsort(descending=True, stable=True).tolist())
    return orders


def _mean_shown(model, processor, picture) -> Tensor:
    """The mean of what the language model is given at the tokens of a picture, [hidden]."""
    asked = [Question("", "Who is this?", "Nobody.", picture, "training")]
    batch = encode(asked, processor, True, model.device)
    given = {}

    def look(module, arguments, named) -> None:
        given.update(named)

    options = {"with_kwargs": True}
    register = partial(model.get_decoder().register_forward_pre_hook, **options)
    with hooked([(register, look)]):
        last_hidden(model, batch)
    return given["inputs_embeds"][picture_tokens(model, batch)].float().mean(0)


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
    its answers begin and end with ("Lives in Porto." is "Porto"). Wordings with a blank or with
    fewer than four different answers are left out.

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
        answers = [question.answer for question in group]
        values = dict(zip(answers, differing_parts(answers), strict=True))
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
