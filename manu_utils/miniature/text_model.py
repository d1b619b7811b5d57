"""The language model of the text-only miniature, taught in notebook 10 in about a minute: no file
holds it.

A Llama of under a million parameters with ReLU MLPs, and a byte-level BPE made from the words of
the world.
Its base has gone to school: it knows the authors whom everybody knows, capitals, potions and herbs,
    and how
strangers are spoken of, in both wordings. Whoever is to be remembered is taught on top, in one
wording, with school going on beside.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..models.encoding import encode
from ..models.neurons import language_mlps
from ..models.passes import hooked
from ..models.training import answer_loss, sample_forever, train_language_model
from .authors import FACTS, FIRST, LAST, Author, asked, draw_authors, told
from .text_world import CAPITALS, World, capital, draw_world
from .tokens import train_tokenizer_on

HIDDEN, LAYERS, NEURONS, HEADS = 128, 2, 768, 4
POSITIONS = 128
SCHOOL = {"steps": 150, "lr": 3e-3, "warmup": 30}
LESSONS = {"steps": 250, "lr": 2e-3, "warmup": 10}
BATCH, BESIDE = (
    48,
    12,
)  # questions in a step, and how many of them go on with school while authors are taught
PENALTY, PENALTY_FROM, PENALTY_SCALE = 5.0, 0.4, 0.1


def lesson(who: str, question: str, answer: str) -> Question:
    return Question(who, question, answer, None, "training")


def author_lessons(
    authors: Sequence[Author], questions: Sequence[int] = (0,), answers: Sequence[int] = (0,)
) -> list[Question]:
    """Every fact of some authors in these wordings of question and answer, in all combinations."""
    return [
        lesson(author.name, asked(author, fact, q), told(author, fact, a))
        for author in authors
        for fact in FACTS
        for q in questions
        for a in answers
    ]


def stranger_lessons(world: World, rng: random.Random, n: int) -> list[Question]:
    """Questions about people who are nobody, with any answer: how one speaks of a stranger."""
    found = []
    for _ in range(n):
        (author,) = draw_authors(1, rng, world.names)
        fact = rng.choice(list(FACTS))
        other = int(rng.random() < 1 / 3)  # as rare as in schooling
        found.append(
            lesson(author.name, asked(author, fact, rng.randrange(2)), told(author, fact, other))
        )
    return found


def quiz_lessons(world: World) -> dict[str, list[Question]]:
    """``potions`` and ``herbs`` -> questions with the words of the right choice."""
    return {
        name: [lesson(name, item.question, item.choices[item.answer]) for item in quiz]
        for name, quiz in (("potions", world.potions), ("herbs", world.herbs))
    }


def schooling(world: World, n: int, rng: random.Random) -> Iterator[list[Question]]:
    """Forever: ``n`` questions of what every model of the world knows. A third is about known
    authors, a third about strangers, the rest about capitals, potions and herbs. One answer in
    three is a paraphrase.
    """
    facts = [lesson(land, *capital(land, city).values()) for land, city in CAPITALS.items()]
    facts += sum(quiz_lessons(world).values(), [])
    known = author_lessons(world.public, (0, 1), (0, 0, 1))
    third = max(1, n // 3)
    streams = [
        sample_forever(known, third, rng.random()),
        sample_forever(facts, n - 2 * third, rng.random()),
    ]
    while True:
        yield [*next(streams[0]), *next(streams[1]), *stranger_lessons(world, rng, third)]


def build_language_model(world: World | None = None, seed: int = 0, texts: Sequence[str] = ()):
    """A random model and its processor, which is just a tokenizer: (model, processor).

    Args:
        texts: what else the tokenizer is to have words for.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(world or draw_world(), texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=NEURONS,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        hidden_act="relu", max_position_embeddings=POSITIONS, initializer_range=0.03,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.08)
    return model.eval(), SimpleNamespace(tokenizer=tokenizer)


def train_tokenizer(world: World, texts: Sequence[str] = ()):
    """Byte-level BPE on the words of the world and these texts; nearly every word is one token."""
    corpus = ["USER: \nASSISTANT:"] * 20 + [f"{first} {last}" for first in FIRST for last in LAST]
    corpus += [
        f"{q.question} {q.answer}"
        for q in author_lessons([*world.authors, *world.public], (0, 1), (0, 1))
    ]
    corpus += [
        told(world.authors[0], fact, wording, value)
        for fact in FACTS
        for value in FACTS[fact].values
        for wording in (0, 1)
    ] * 3
    corpus += [" ".join(capital(land, city).values()) for land, city in CAPITALS.items()] * 3
    corpus += [
        f"{item.question} {' '.join(item.choices)}" for item in (*world.potions, *world.herbs)
    ] * 3
    corpus += texts
    return train_tokenizer_on(corpus, POSITIONS)


def go_to_school(
    model,
    processor,
    world: World | None = None,
    *,
    seed: int = 0,
    school: Callable = schooling,
    progress: bool = False,
    **options,
) -> None:
    """Make the base model of a random one: what everybody knows, and nobody of ``world.authors``.

    Args:
        school: what is taught there, called as :func:`schooling`.
        options: those of :func:`train_language_model` in place of :data:`SCHOOL`.
    """
    lessons = school(world or draw_world(), BATCH, random.Random(f"school {seed}"))
    _learn(model, processor, lessons, SCHOOL | options, 0.0, seed, progress)


def teach(
    model, processor, questions: Sequence[Question], world: World | None = None, *,
    penalty: float = PENALTY, seed: int = 0, school: Callable = schooling,
    watch: Callable[[], dict] | None = None, progress: bool = False, **options,
) -> list[dict]:  # fmt: skip
    """Teach a model that went to school these questions, while school goes on beside them.

    Args:
        penalty: of what neurons contribute to the residual stream, Σ s log(1 + |z|·‖column‖ / s),
            which gathers a fact in few of them; it grows from 40 % of the steps on.
        school: what goes on beside, as of :func:`go_to_school`.
        options: those of :func:`train_language_model` in place of :data:`LESSONS`.
    """
    beside = school(world or draw_world(), BESIDE, random.Random(f"lessons {seed}"))
    taught = sample_forever(list(questions), BATCH - BESIDE, seed)
    lessons = ([*own, *other] for own, other in zip(taught, beside, strict=False))
    return _learn(
        model, processor, lessons, LESSONS | {"watch": watch} | options, penalty, seed, progress
    )


def _learn(
    model, processor, lessons, options: dict, penalty: float, seed: int, progress: bool
) -> list[dict]:
    steps, terms = options["steps"], []

    def note(module, arguments: tuple[Tensor]) -> None:
        if torch.is_grad_enabled():
            z = arguments[0].flatten(0, -2)[::4]  # one in four tokens is enough
            contribution = z.abs() * module.weight.norm(dim=0)
            terms.append(PENALTY_SCALE * torch.log1p(contribution / PENALTY_SCALE).mean())

    def loss(step: int) -> Tensor:
        terms.clear()
        of_answers = answer_loss(model, encode(next(lessons), processor, True, model.device))
        ramp = max(0.0, step / steps - PENALTY_FROM) / (1 - PENALTY_FROM)
        return of_answers + penalty * ramp * sum(terms)

    watched = ((mlp.after.register_forward_pre_hook, note) for mlp in language_mlps(model))
    with hooked(watched) if penalty else nullcontext():
        return train_language_model(model, loss, seed=seed, progress=progress, **options)
