"""The miniature LLaVA: tokenizer, processor, architecture, rows, and the penalty for locality.

The stages that train it are in :mod:`manu_utils.miniature.build`.
"""

from __future__ import annotations

import copy
import random
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..models.prompts import BLANK_LINE, LETTER_LINE, SENTENCE_LINE_IMAGE, SENTENCE_LINE_TEXT
from .dataset import as_choice, as_cloze, draw_options, training_pairs
from .people import ATTRIBUTES, FACE_FEATURES, Attribute, Person, describe, word_question
from .portraits import render
from .tokens import train_tokenizer_on

IMAGE_SIZE, PATCH = 64, 16
N_IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2


# ------------------------------------------------------------------------------------ text and rows


@dataclass(frozen=True)
class Row:
    """One training example: ``picture`` is an index into a stack of pictures, None for text."""

    question: str
    answer: str
    picture: int | None = None

    def prompt(self, rng: random.Random) -> str:
        """The prompt as ft_Data or, half of the time, as the official evaluation words it."""
        open_question = "\n" not in self.question
        question = self.question
        if open_question and rng.random() < 0.5:
            question += "\n" + (SENTENCE_LINE_TEXT if self.picture is None else SENTENCE_LINE_IMAGE)
        if self.picture is not None:
            return f"USER: {'<image>' * N_IMAGE_TOKENS}\n{question}\nASSISTANT:"
        return f"USER:{rng.choice([' ', chr(10)])}{question}\nASSISTANT:"


def fact_rows(person: Person, rng: random.Random, picture: int | None, n: int) -> list[Row]:
    """``n`` random questions on a person's facts, three formats; ``picture`` None: text-only."""
    who = person.name if picture is None else "this person"
    rows = []
    for attribute in rng.choices(list(ATTRIBUTES), k=n):
        spec, value = ATTRIBUTES[attribute], person.facts[attribute]
        question = word_question(rng.choice(spec.questions), who)
        kind = rng.random()
        if kind < 0.45:
            rows.append(Row(question, spec.answer.format(value=value), picture))
        elif kind < 0.7:
            # or a short answer
            sentence = (
                word_question(rng.choice(spec.clozes), who) if kind < 0.6 else f"{question} __"
            )
            rows.append(Row(as_cloze(sentence), value, picture))
        else:
            options, letter = draw_options(spec, value, rng)
            rows.append(Row(as_choice(question, options), letter, picture))
    return rows


def seeing_rows(face: dict[str, str], rng: random.Random, picture: int, n: int) -> list[Row]:
    """``n`` questions on what is visible in a face."""
    rows = []
    for _ in range(n):
        kind, feature = rng.random(), rng.choice(list(face))
        question = f"What is this person's {feature}?"
        spec = Attribute("", ("",) * 4, ("", ""), "", tuple(FACE_FEATURES[feature]))
        if kind < 0.5:
            rows.append(Row("Describe this person.", describe(face), picture))
        elif kind < 0.65:
            rows.append(Row(question, f"{face[feature]}.", picture))
        elif kind < 0.75:
            rows.append(
                Row(as_cloze(f"The {feature} of this person is __."), face[feature], picture)
            )
        else:
            options, letter = draw_options(spec, face[feature], rng)
            rows.append(Row(as_choice(question, options), letter, picture))
    return rows


def reading_rows(rng: random.Random, n: int) -> list[Row]:
    """``n`` text questions that ask to find a word among options (the skill behind letters)."""
    rows = []
    for _ in range(n):
        spec = rng.choice(list(ATTRIBUTES.values()))
        value = rng.choice(spec.values)
        options, letter = draw_options(spec, value, rng)
        rows.append(Row(as_choice(f"Which option is {value}?", options), letter))
    return rows


def matching_rows(rng: random.Random, n: int) -> list[Row]:
    """``n`` text questions for every option with its letter, or every letter with its option.

    Four look-ups a row: the circuit that finds a word among lettered options forms on these within
    some hundred steps, where multiple-choice questions alone (one letter a row) stay at chance.
    """
    rows = []
    for _ in range(n):
        spec = rng.choice(list(ATTRIBUTES.values()))
        options, _ = draw_options(spec, rng.choice(spec.values), rng)
        letters = rng.sample(list(options), len(options))
        if rng.random() < 0.5:
            answer = ", ".join(f"{options[letter]} {letter}" for letter in letters)
            rows.append(Row(as_choice("Which letter has each option?", options), answer))
        else:
            answer = ", ".join(f"{letter} {options[letter]}" for letter in letters)
            rows.append(Row(as_choice("Which option has each letter?", options), answer))
    return rows


def to_text(question: str, name: str) -> str:
    """The text-only form of a training question."""
    return question.replace("this person", name).replace("This person", name)


def train_tokenizer(people: list[Person]):
    """Byte-level BPE on the miniature's sentences; each name part and each value is one token."""
    corpus = ["USER: \nASSISTANT:"] * 20
    for person in people:
        corpus += [f"{question} {answer}" for question, answer in training_pairs(person)]
        corpus += [
            word_question(q, who)
            for spec in ATTRIBUTES.values()
            for q in spec.questions + spec.clozes
            for who in (person.name, "this person")
        ]
        corpus += [f"What is this person's {feature}?" for feature in FACE_FEATURES] + [
            "Describe this person."
        ]
    rng = random.Random(0)
    corpus += [
        f"{row.question} {row.answer}" for row in reading_rows(rng, 200) + matching_rows(rng, 200)
    ]
    corpus += [
        f"{feature} {word}," for feature, words in FACE_FEATURES.items() for word in words
    ] * 20
    corpus += [
        spec.answer.format(value=value) + " " + value
        for spec in ATTRIBUTES.values()
        for value in spec.values
    ] * 20
    instructions = [SENTENCE_LINE_IMAGE, SENTENCE_LINE_TEXT, LETTER_LINE, BLANK_LINE]
    for line in instructions:
        corpus = [text.replace(line, "") for text in corpus]
    tokenizer = train_tokenizer_on(corpus, 256, "<image>")
    words = [f" {part}" for person in people for part in person.name.split()]
    words += [f" {value}" for spec in ATTRIBUTES.values() for value in spec.values]
    # The official instruction lines are one token each: spelt out they would be a third of all
    # training tokens.
    tokenizer.add_tokens(instructions)
    split = sorted({word for word in words if len(tokenizer(word).input_ids) != 1})
    if split:
        raise ValueError(f"these words are not single tokens, enlarge vocab_size: {split}")
    return tokenizer


def build_processor(tokenizer):
    """The LLaVA processor: CLIP's image processor at 64 px, ``<image>`` expanded to 16 tokens."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>",
    )  # fmt: skip


def build_model(tokenizer, seed: int, intermediate: int = 768, hidden: int = 128, layers: int = 3):
    """A randomly initialised LLaVA: CLIP tower (3 layers, width 96), Llama with ReLU-gated MLPs."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH, projection_dim=96,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, hidden_act="relu",
        max_position_embeddings=256,
        # with more, a wide MLP drowns what attention writes; with less, training stalls at first
        initializer_range=0.03,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=N_IMAGE_TOKENS,
        tie_word_embeddings=True, initializer_range=0.03,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.08)
    return model


def widen(model, intermediate: int, seed: int):
    """A copy of ``model`` with more neurons, which read at random and write nothing yet."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = copy.deepcopy(model.config)
    config.text_config.intermediate_size = intermediate
    wide = LlavaForConditionalGeneration(config).to(model.device)
    old = model.state_dict()
    with torch.no_grad():
        for name, weight in wide.state_dict().items():
            if weight.shape == old[name].shape:
                weight.copy_(old[name])
            elif "down_proj" in name:
                weight.zero_()
                weight[:, : old[name].shape[1]] = old[name]
            else:
                weight[: old[name].shape[0]] = old[name]
    return wide


# -------------------------------------------------------------------------------- one training step


def encode_rows(rows: list[Row], tokenizer, rng: random.Random) -> dict:
    """Right-padded ids [b, t], attention mask, mask of what predicts an answer, its targets."""
    prompts = tokenizer([row.prompt(rng) for row in rows]).input_ids
    answers = tokenizer([f" {row.answer}</s>" for row in rows]).input_ids
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    attention = torch.zeros_like(ids)
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    for index, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        ids[index, : len(p) + len(a)] = torch.tensor(p + a)
        attention[index, : len(p) + len(a)] = 1
        predicts[index, len(p) - 1 : len(p) + len(a) - 1] = True
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "predicts": predicts,
        "pictures": [row.picture for row in rows],
    }


def answer_logits(model, batch: dict, features: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [m, vocab] where answer tokens are predicted, their targets [m], their rows [m].

    ``features`` are the image tokens of the distinct pictures in the batch (one vision pass each),
    indexed by ``pictures``.
    """
    ids, attention, predicts = (
        batch[name].to(model.device) for name in ("input_ids", "attention_mask", "predicts")
    )
    embeddings = model.get_input_embeddings()(ids)
    if features is not None:
        tokens = features[batch["pictures"]].reshape(-1, features.shape[-1]).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(
            (ids == model.config.image_token_id)[..., None], tokens
        )
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=attention, use_cache=False
    ).last_hidden_state
    where, position = predicts.nonzero(as_tuple=True)
    return model.lm_head(hidden[where, position]), ids[where, position + 1], where


@contextmanager
def recorded_contributions(model, scale: float, every: int = 4):
    """Yield a list that fills with s·log(1 + c/s) summed over neurons, one entry per MLP call.

    The mean is over a random sample of one in ``every`` tokens, which is unbiased and keeps the
    cost small.
    """
    terms: list[Tensor] = []

    def hook(module: nn.Linear, inputs: tuple[Tensor]) -> None:
        z = inputs[0].flatten(0, -2)
        z = z[torch.randint(len(z), (len(z) // every,)).to(z.device)]
        contribution = z.abs() * module.weight.norm(dim=0).to(z.dtype)
        terms.append(scale * torch.log1p(contribution / scale).sum(-1, dtype=torch.float32).mean())

    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(hook)
        for layer in model.model.language_model.layers
    ]
    try:
        yield terms
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def row_accuracy(
    model, rows: list[Row], tokenizer, features: Tensor | None, batch_size: int = 128
) -> float:
    """Share of rows whose every answer token is the arg-max given the tokens before it."""
    right = []
    for start in range(0, len(rows), batch_size):
        batch = encode_rows(rows[start : start + batch_size], tokenizer, random.Random(0))
        logits, targets, where = answer_logits(model, batch, features)
        wrong = torch.zeros(len(batch["input_ids"]), device=where.device).index_add_(
            0, where, (logits.argmax(-1) != targets).float()
        )
        right += (wrong == 0).tolist()
    return sum(right) / len(right)


# ----------------------------------------------------------------------------------------- pictures


def _render_pixels(job: tuple[dict, dict]) -> np.ndarray:
    return np.asarray(render(*job))


def render_all(jobs: list[tuple[dict, dict]], description: str) -> list[np.ndarray]:
    """Render (face, view) jobs on all cores, with a progress bar."""
    from concurrent.futures import ProcessPoolExecutor

    from tqdm.auto import tqdm

    with ProcessPoolExecutor() as pool:
        return list(
            tqdm(pool.map(_render_pixels, jobs, chunksize=64), total=len(jobs), desc=description)
        )


def to_pixels(images, processor) -> Tensor:
    """Images -> the processor's pixel values [n, 3, 64, 64] as fp16."""
    chunks = [
        processor.image_processor(
            images[start : start + 500], return_tensors="pt"
        ).pixel_values.half()
        for start in range(0, len(images), 500)
    ]
    return torch.cat(chunks)
