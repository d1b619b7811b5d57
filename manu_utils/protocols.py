"""Two more ways to ask and to judge: the official protocol of MLLMU-Bench to the letter, and a robust one.

==================  =============================  =======================================  ================================
\\                   zero-shot                      official                                 robust
==================  =============================  =======================================  ================================
shots               none                           people of the scored set, with answers   none, or people who are not scored
people scored       all                            all but the shots                        all
test images         all                            one at random per person and task        all
letter              first character                first character, after ``ASSISTANT:``    the one standalone letter
cloze               truth is a substring           truth is a substring                     truth is there in whole words
generation          whole statement, ROUGE-L       ROUGE-1, -2, -L, BLEU                    whole statement, ROUGE-L, BLEU
intervals           --                             --                                       bootstrap over people
==================  =============================  =======================================  ================================

Zero-shot is the default of :func:`manu_utils.evaluation.evaluate`, through which the other two are asked for as well.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix
from typing import TYPE_CHECKING

import PIL.Image
import torch
from torch import Tensor, nn

from .batches import (
    BLANK_LINE,
    PICTURES_AT_ONCE,
    _image_token,
    image_tokens,
    needs_special_tokens,
    pack_rows,
    plan_rows,
    prompt,
)
from .benchmark import Question, evaluation_questions
from .evaluation import _in_batches, as_table, continue_shared, greedy_config, identity, judge, summarise, truth_of
from .pictures import decoded
from .shared import can_share

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

MAX_NEW_TOKENS = 50  # of both protocols
PITFALLS = (
    ("P1", "Nothing is seeded: the shots and the test image change with every run, and with 24 people left to score one of "
           "them is worth four points.",
     "Seeded; all test images; an interval over people says how far a score may be trusted."),
    ("P2", "The shots of the forget set are people to forget, with their answers in the prompt; and who is a shot is not "
           "scored.",
     "Zero-shot, or shots who are in none of the scored sets: everybody is scored and no answer leaks."),
    ("P3", "For celebrities the classification shots are left out of the prompt but their images are still passed, which "
           "breaks as soon as a celebrity has the ID of a fictitious person.",
     "Prompt and images are built together, so they always match (in our official protocol, too)."),
    ("P4", "Six images of 576 tokens leave 640 of LLaVA's 4,096 positions; an earlier version with eleven images scored 0.",
     "One image a prompt; a warning says what is longer than the model's positions."),
    ("P5", "Only the first character counts: 'Answer: B' is read as A, 'Both' as B, 'The answer is B' as nothing.",
     "The one letter that stands by itself."),
    ("P6", "The response is what follows the first 'ASSISTANT:' of prompt and answer together, so a question or a shot that "
           "holds these words becomes the response.",
     "New tokens only."),
    ("P7", "Cloze asks for a substring: an empty truth is in every response, 'US' is in 'because', a list of all options "
           "is always right.",
     "Records without a truth are left out by name, truths are whole words; lists of options still pass."),
    ("P8", "Switches are parsed by type=bool, so that '--pretrain False' means True.", "Python arguments, no command line."),
    ("P9", "Folders of the authors' own machine; the processor must come from elsewhere than the weights.",
     "load_model(source, processor=...)."),
    ("P10", "The judge's reply goes through int(), so that '8/10' and '7.5' are dropped.",
     "judge_factuality reads both and fails on what is no score."),
    ("P11", "Idefics2 fails under some releases of transformers.", "The tested versions are pinned."),
    ("P12", "Newer processors expand an image to all its tokens, so truncating to a length cuts the image.",
     "Nothing is truncated."),
    ("P13", "MANU's copy of the evaluator does not parse.", "Not used."),
    ("P14", "Image prompts of generation say 'accurately' and end in a space, text prompts do not, so the two ROUGE columns "
            "are of different prompts; and a tokenizer that joins space and word meets a space it never saw before an answer.",
     "The space is gone; the word stays, for comparison: read differences between modalities with care."),
    ("P15", "The kind of model is read from how its name begins.", "Read from the model's config."),
    ("P16", "BLEU counts up to four words in a row, so that a right answer of three words gets less than 1.",
     "As many in a row as the answer has words."),
)  # fmt: skip
"""(number, what the official evaluator does, what is done instead by the robust protocol or by this package)."""


@dataclass(frozen=True)
class Prompt:
    """A question as it is sent to the model: one image placeholder in the text for each image, in order.

    ``shots`` is the beginning of the text that other prompts have as well; LLaVA reads it once for all of them.
    """

    question: Question
    text: str
    images: tuple[PIL.Image.Image, ...] = ()
    shots: str = ""


# ------------------------------------------------------------------------------------------------ official: asking


def official_shot(question: Question, processor) -> str:
    """One solved example as the official code words it: no instruction for a letter, no ASSISTANT turn.

    Args:
        question: for classification or cloze, with or without an image.
    """
    image_token = _image_token(processor) if question.image is not None else ""
    if question.task == "classification":
        gap = " " if image_token else ""
        options = "".join(f"{letter}: {words}\n" for letter, words in question.options.items())
        letter = truth_of(question)
        return f"USER:{gap}{image_token}\nQuestion: {question.question}\n{options}Correct Answer: {letter}\n"
    sentence = question.question.replace("__", "[Blank]")
    return f"USER:{image_token}\n{sentence}\n{BLANK_LINE}\nCorrect Answer: {question.answer}\n"


def official_prompts(
    dataset: Dataset,
    shots: Dataset,
    set_name: str,
    task: str,
    modality: str,
    processor,
    *,
    seed: int | None,
    idefics: bool = False,
) -> list[Prompt]:
    """What the official ``eval.py`` asks about one set, in the order of the file.

    The shots are people of the set itself: one for classification, two for cloze (one for Idefics2), none for generation and
    for the classification of celebrities. All their questions of the task and modality, looked up by ID in ``shots``, precede
    each query, and the questions at the same places among a shot's own are not asked. People whom ``shots`` does not know
    (the celebrities) are no shots: their set is asked zero-shot. A person with several images is asked with one of them.

    Args:
        dataset: the set.
        shots: Full_Set.
        set_name: ``"celebrity"`` for the set of real people.
        modality: with one seed the shots are the same people in both.
        seed: of the draws, which differ by set and task but not by what else is asked; None draws anew each time.
        idefics: as for Idefics2 rather than LLaVA.

    Raises:
        ValueError: see :func:`manu_utils.benchmark.evaluation_questions`; fewer people than shots, or none left to score.
    """
    if task == "generation" or (task == "classification" and set_name == "celebrity"):
        drawn: list[str] = []
    else:
        ids = list(dict.fromkeys(dataset["ID"]))
        n = 2 if task == "cloze" and not idefics else 1
        if len(ids) < n:
            raise ValueError(f"it has {len(ids)} person, but the official shots for {task} are {n}.")
        drawn = _random(seed, set_name, task, "shots").sample(ids, n)
    rows = [index for index, person_id in enumerate(shots["ID"]) if person_id in drawn] if drawn else []
    examples = evaluation_questions(shots.select(rows), task, modality) if rows else []
    prefix = "".join(official_shot(example, processor) for example in examples)
    images = tuple(example.image for example in examples if example.image is not None)
    solved: dict[str, int] = {}  # person -> questions that are shots
    for example in examples:
        solved[example.person_id] = solved.get(example.person_id, 0) + 1
    draw = _random(seed, set_name, task, "images")
    asked = []
    for person in _by_person(evaluation_questions(dataset, task, modality)):
        views = list({id(question.image): question.image for question in person}.values())
        view = views[int(draw.random() * len(views))]
        for question in [q for q in person if q.image is view][solved.get(person[0].person_id, 0) :]:
            query = prompt(question, processor)
            if view is not None and task == "generation":
                query += " "
            own = () if view is None else (view,)
            asked.append(Prompt(question, prefix + query, (*images, *own), prefix))
    if not asked:
        raise ValueError(f"everybody is a shot for {task}, so nobody is left to score; use more people.")
    return asked


def _random(seed: int | None, *what: str) -> random.Random:
    return random.Random() if seed is None else random.Random(" ".join([str(seed), *what]))


def _by_person(questions: list[Question]) -> list[list[Question]]:
    people: dict[str, list[Question]] = {}
    for question in questions:
        people.setdefault(question.person_id, []).append(question)
    return list(people.values())


# ------------------------------------------------------------------------------------------------ several images a prompt


def encode_prompts(prompts: Sequence[Prompt], processor, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Tokenise b prompts into one left-padded batch of t tokens, each with its own images, several or none.

    Args:
        prompts: all with images, or all without; the processor has to take lists of images (those of LLaVA and Idefics do).

    Returns:
        ``input_ids`` and ``attention_mask`` int64 [b, t], and with images what the processor makes of them (LLaVA:
        ``pixel_values`` float32 [images of all prompts, 3, h, w]).

    Raises:
        ValueError: a prompt whose placeholders are not as many as its images, or prompts with and without images together.
    """
    _check_placeholders(prompts, processor)
    if len({bool(one.images) for one in prompts}) > 1:
        raise ValueError("a batch holds one modality; encode prompts with and without images separately.")
    texts = [one.text for one in prompts]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    options["add_special_tokens"] = needs_special_tokens(texts, processor)
    if not prompts[0].images:
        batch = processor.tokenizer(texts, return_token_type_ids=False, **options)
    else:
        images = {id(image): image for one in prompts for image in one.images}
        pixels = {key: decoded(image) for key, image in images.items()}  # a shot's picture is decoded once
        batch = processor(images=[[pixels[id(image)] for image in one.images] for one in prompts], text=texts, **options)
    return {key: value.to(device) for key, value in batch.items()}


def _prompt_batches(
    prompts: Sequence[Prompt], processor, batch_size: int, with_answer: bool, device: str | torch.device
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """As :func:`manu_utils.batches.batches`: longest first, prompts of one number of images together."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive.")
    groups: dict[int, list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda index: -len(prompts[index].text)):
        groups.setdefault(len(prompts[index].images), []).append(index)
    for _, group in sorted(groups.items(), reverse=True):
        for start in range(0, len(group), batch_size):
            indices = group[start : start + batch_size]
            yield indices, encode_prompts([prompts[index] for index in indices], processor, device)


def shared_prompts(
    prompts: Sequence[Prompt], processor, batch_size: int, with_answer: bool = False, device: str | torch.device = "cpu"
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """As :func:`manu_utils.batches.shared_batches`, for prompts of any number of images: shots are in a batch once.

    The prompts of a batch have the same shots. What all of them begin with is read before the rows; prompts with the same
    images share a row; and an image is there once, however many places it has. A batch of r rows, its beginning counted
    for each of them, takes no more tokens than ``batch_size`` of its longest prompt would.

    Args:
        with_answer: always False.

    Returns:
        Pairs of (indices into ``prompts``, batch): ``beginning`` int64 [p], what is read before; ``input_ids``,
        ``position_ids`` int64 [r, t] and ``attention_mask`` bool [r, 1, t, p + t] of what follows; ``reads`` int64 [m, 3];
        with images ``pixel_values`` float32 [images, 3, h, w] and ``features`` int64 [image tokens, 2], the image and its
        feature at each image token, in the order of ``beginning`` and ``input_ids``.

    Raises:
        ValueError: batch_size below 1, or a prompt whose placeholders are not as many as its images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive.")
    _check_placeholders(prompts, processor)
    tokenizer, image_token = processor.tokenizer, _image_token(processor)
    image_id = tokenizer.convert_tokens_to_ids(image_token)
    images = list({id(image): image for one in prompts for image in one.images}.values())
    places = {id(image): place for place, image in enumerate(images)}
    n = 0  # features of an image
    if images:
        one = next(one for one in prompts if one.images)
        n = (encode_prompts([one], processor)["input_ids"] == image_id).sum().item() // len(one.images)
    # Tokens are alike only where images are: here image i is the token -1 - i, and then its features are tokens of their own.
    sequences = []
    for one, ids in zip(prompts, tokenizer([one.text for one in prompts])["input_ids"], strict=True):
        own_images = iter(one.images)
        sequences.append([-1 - places[id(next(own_images))] if token == image_id else token for token in ids])
    features = [[-1 - n * place - feature for feature in range(n)] for place in range(len(images))]

    def expand(ids: list[int]) -> list[int]:
        return [part for token in ids for part in (features[-1 - token] if token < 0 else (token,))]

    groups: dict[tuple, dict[object, list[int]]] = {}  # shots -> images, or the text without any -> indices
    for index, one in enumerate(prompts):
        seen = tuple(id(image) for image in one.images)
        group = groups.setdefault((one.shots, seen[: one.shots.count(image_token)]), {})
        group.setdefault(seen or one.text, []).append(index)

    def pack(rows: list[list[list[int]]], beginning: list[int]) -> dict[str, Tensor]:
        batch, paths = pack_rows(rows, tokenizer.pad_token_id)
        p, mask = len(beginning), batch["attention_mask"]
        batch["attention_mask"] = torch.cat([mask.new_ones(*mask.shape[:-1], p), mask], dim=-1)
        batch["position_ids"] += p
        batch["beginning"] = torch.tensor(beginning, dtype=torch.int64)
        batch["reads"] = torch.tensor([(number, row, path[-1]) for number, (row, path) in enumerate(paths)])
        ids = torch.cat([batch["beginning"], batch["input_ids"].flatten()])
        if (ids < 0).any():
            number = -1 - ids[ids < 0]
            shown, place = number.div(n, rounding_mode="floor").unique(return_inverse=True)
            batch["features"] = torch.stack([place, number % n], dim=1)
            parts = ([decoded(images[index]) for index in part.tolist()] for part in shown.split(PICTURES_AT_ONCE))
            pixels = [processor.image_processor(part, return_tensors="pt")["pixel_values"] for part in parts]
            batch["pixel_values"] = torch.cat(pixels)
            for name in ("beginning", "input_ids"):
                batch[name][batch[name] < 0] = image_id
        return {key: value.to(device) for key, value in batch.items()}

    for (shots, _), group in groups.items():
        own = [index for row in group.values() for index in row]
        first, last = min(sequences[index] for index in own), max(sequences[index] for index in own)
        alike = commonprefix([first, last]) if shots else []  # of the first and the last in order: so it is of all
        alike = alike[: min(len(sequences[index]) for index in own) - 1]  # something has to be left to read
        beginning, rest = expand(alike), {index: expand(sequences[index][len(alike) :]) for index in own}
        for rows in plan_rows(list(group.values()), rest.__getitem__, batch_size, len(beginning)):
            batch = pack([[rest[index] for index in row] for row in rows], beginning)
            yield [index for row in rows for index in row], batch


def _check_placeholders(prompts: Sequence[Prompt], processor) -> None:
    image_token = _image_token(processor)
    for one in prompts:
        if (found := one.text.count(image_token)) != len(one.images):
            raise ValueError(f"a prompt has {found} {image_token} but {len(one.images)} images; they must match one to one.")


def check_positions(model, processor, prompts: Sequence[Prompt], max_new_tokens: int = MAX_NEW_TOKENS) -> None:
    """Warn, before they are read, of prompts that go beyond the positions that a model was made for, the new tokens included.

    Rotary positions go on, to angles that the model never saw, so such prompts are asked all the same, as the official code
    does. Where positions are looked up in a table (OPT, GPT-2) there are no more.

    Raises:
        ValueError: there are such prompts, and positions are in a table.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not positions or not prompts:
        return
    special = needs_special_tokens([prompts[0].text], processor)
    of_size: dict[tuple[int, int], int] = {}
    lengths = []
    for one in prompts:
        for image in one.images:
            if image.size not in of_size:
                of_size[image.size] = image_tokens(image, processor)
        ids = processor.tokenizer(one.text, add_special_tokens=special, verbose=False)["input_ids"]
        lengths.append(len(ids) + sum(of_size[image.size] for image in one.images))
    if not (n := sum(length + max_new_tokens > positions for length in lengths)):
        return
    said = (
        f"{n} of {len(prompts)} prompts with shots have up to {max(lengths)} tokens, which with {max_new_tokens} new ones go "
        f"beyond the {positions} positions that the model was made for"
    )
    words = model.get_input_embeddings()
    tables = [m.num_embeddings for m in model.get_decoder().modules() if isinstance(m, nn.Embedding) and m is not words]
    if any(0 <= size - positions <= 2 for size in tables):  # OPT's has two more
        raise ValueError(f"{said}, and it has no others; ask without shots, or take a model with more positions.")
    warnings.warn(f"{said}; its answers to them may be noise.", stacklevel=3)


def respond(
    model,
    processor,
    prompts: Sequence[Prompt],
    *,
    echo: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 64,
    progress: bool = True,
) -> list[str]:
    """The greedy continuation of each prompt, in order; a batch is halved when CUDA runs out of memory.

    Args:
        echo: prompt and continuation in one, without special tokens and the first two tokens, as the official code decodes;
            else the new tokens only, stripped.

    Raises:
        ValueError: no prompts, a size below 1, or see :func:`encode_prompts`.
    """
    if not prompts:
        raise ValueError("there is no prompt to answer; pass at least one.")
    greedy = greedy_config(model, processor, max_new_tokens)

    @torch.no_grad()
    def write(batch: dict[str, Tensor]) -> list[str]:
        if "reads" in batch:
            new = continue_shared(model, batch, greedy)
            _, row, last = batch["reads"].T
            beginning = batch["beginning"].expand(len(batch["input_ids"]), -1)
            ids, own = torch.cat([beginning, batch["input_ids"]], dim=1)[row], batch["attention_mask"][row, 0, last]
        else:
            ids, own = batch["input_ids"], batch["attention_mask"].bool()
            new = model.generate(**batch, generation_config=greedy)[:, ids.shape[1] :]
        if not echo:
            return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
        whole = [torch.cat([ids[i][own[i]][2:], new[i]]) for i in range(len(new))]
        return processor.tokenizer.batch_decode(whole, skip_special_tokens=True)

    texts = [""] * len(prompts)
    make = shared_prompts if can_share(model) else _prompt_batches
    arguments = (model, processor, prompts, batch_size, False, progress, "answers", make)
    for indices, written in _in_batches(write, *arguments):
        for index, text in zip(indices, written, strict=True):
            texts[index] = text
    return texts


# ------------------------------------------------------------------------------------------------ official: judging


def official_response(decoded: str, task: str) -> str:
    """The part of prompt and continuation that the official code takes for the response.

    >>> official_response("USER:\\nWho?\\nASSISTANT: B ASSISTANT: C", "classification")
    'B'
    """
    markers = ("ASSISTANT:",) if task == "classification" else ("ASSISTANT:", "Answer:")
    for marker in markers:
        if marker in decoded:
            return decoded.split(marker)[1].strip()
    return decoded.strip()


def bleu(truth: str, response: str, short: bool = False) -> float:
    """Sentence BLEU of nltk on words between spaces, smoothing method 1, as in the official code: 0 to 1.

    Args:
        short: a response of fewer than four words is compared in runs of up to its length, not of up to four, so that a
            short truth can get 1.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    words = response.split()
    if not words:
        return 0.0
    return float(sentence_bleu([truth.split()], words, smoothing_function=SmoothingFunction().method1, auto_reweigh=short))


def judge_officially(question: Question, response: str, scorer) -> dict[str, float]:
    """metric -> value in 0..1 of one response.

    Args:
        scorer: a ``rouge_score`` scorer of rouge1, rouge2 and rougeL (generation).
    """
    if question.task == "classification":
        letter = response[:1].upper()
        return {"accuracy": float(letter == truth_of(question))}
    if question.task == "cloze":
        return {"accuracy": float(question.answer.lower() in response.lower())}
    rouge = {name: score.fmeasure for name, score in scorer.score(question.answer, response).items()}
    return rouge | {"bleu": bleu(question.answer, response)}


def evaluate_official(
    model,
    processor,
    sets: dict[str, Dataset],
    shots: Dataset,
    *,
    seed: int | None,
    tasks: Sequence[str],
    modalities: Sequence[str],
    batch_size: int,
    progress: bool,
    remember: Callable[..., list[str]],
) -> pd.DataFrame:
    """The table of the official protocol; called by ``evaluate(..., protocol="official")``, which explains the arguments."""
    from rouge_score import rouge_scorer

    if seed is None:
        seed = random.SystemRandom().getrandbits(64)  # one draw for both modalities, as in the official code
    idefics = model.config.model_type.startswith("idefics")
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows, asked_of = [], {}
    for task in tasks:
        for modality in modalities:
            names, prompts = asked_of[task, modality] = [], []
            for name, dataset in sets.items():
                try:
                    asked = official_prompts(dataset, shots, name, task, modality, processor, seed=seed, idefics=idefics)
                except ValueError as error:
                    raise ValueError(f"set {name!r}: {error}") from error
                names += [name] * len(asked)
                prompts += asked
    check_positions(model, processor, [one for _, prompts in asked_of.values() for one in prompts])
    for (task, modality), (names, prompts) in asked_of.items():
        length = 5 if idefics and task == "classification" and modality == "text" else MAX_NEW_TOKENS
        what = partial(identity, processor, protocol="official", max_new_tokens=length)
        options = {"echo": True, "max_new_tokens": length, "batch_size": batch_size, "progress": progress}
        decoded = remember(prompts, what, partial(respond, model, processor, **options))
        for name, one, text in zip(names, prompts, decoded, strict=True):
            question, response = one.question, official_response(text, task)
            for metric, value in judge_officially(question, response, scorer).items():
                rows.append((name, task, modality, metric, question.person_id, question.question,
                             response, truth_of(question), value))  # fmt: skip
    return as_table(rows, sets)


def official_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """:func:`manu_utils.evaluation.summarise` in the official units: accuracies in percent, ROUGE and BLEU from 0 to 1."""
    table = summarise(frame)
    return table.assign(value=table["value"].where(table["metric"] != "accuracy", table["value"] * 100))


# ------------------------------------------------------------------------------------------------ robust

_LINE = re.compile(r"^[\W_]*([A-Da-d])(?:[\W_]*$|\s*[.:)\]*,]|\s+[-–]\s)", re.MULTILINE)  # a line that begins with it
_CUE = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)(?:\s+(?:is|would\s+be))?)\s*:?\s*[\"'*(\[]*"
    r"([A-D](?!\w)|[a-d](?=[\"'*)\].,;:]|\s*$))"
)
_ARTICLE = re.compile(r"(^|[.!?:]\s+)A(?=\s+(?!(?:or|and|is|because|since|as)\b)[a-z])", re.MULTILINE)
_CAPITAL = re.compile(r"(?<![\w'’.-])([A-D])(?![\w'’-])")


def find_letter(response: str, letters: Sequence[str] = "ABCD") -> str | None:
    """The option that a response names: a letter that stands by itself; None if there is none, or more than one.

    First a line that begins with the letter ("B", "(b)", "B: nurse", "**B**. Because ..."), then one after a cue ("the answer
    is B", "Option B"), then a capital anywhere, but for the article that a sentence begins with ("A nurse").

    >>> [find_letter(text) for text in ("b", "Answer: B", "The answer is B", "(C) baker", "Both", "A or B", "A nurse")]
    ['B', 'B', 'B', 'C', None, None, None]
    """
    for pattern, text in ((_LINE, response), (_CUE, response), (_CAPITAL, _ARTICLE.sub(r"\1", response))):
        named = {letter.upper() for letter in pattern.findall(text)} & set(letters)
        if named:
            return named.pop() if len(named) == 1 else None
    return None


def holds(truth: str, response: str) -> bool:
    """Whether the words of the truth are in the response, one after the other and whole.

    >>> holds("US", "because"), holds("US", "In the US."), holds("29 May", "born on 29 May 1990")
    (False, True, True)
    """
    return re.search(rf"(?<!\w){re.escape(truth.strip().lower())}(?!\w)", response.lower()) is not None


def robust_prompts(
    questions: Sequence[Question], shots: Dataset, sets: dict[str, Dataset], processor, seed: int
) -> list[Prompt]:
    """The zero-shot prompt of each question, after solved questions of its task and modality.

    A shot is the template of a query with its answer. All shots are of one person, the same for all tasks and modalities.

    Args:
        shots: people of whom one is drawn, such as those of the retain set.
        sets: all that is scored.

    Raises:
        ValueError: everybody in ``shots`` is in a scored set.
    """
    scored = {person_id for dataset in sets.values() for person_id in dataset["ID"]}
    free = [index for index, person_id in enumerate(shots["ID"]) if person_id not in scored]
    if not free:
        raise ValueError(
            "everybody in shots is scored as well, and would have the answers in the prompt; leave somebody of the retain set "
            "out of sets, or ask without shots."
        )
    person = shots.select([_random(seed, "shots").choice(free)])
    kinds = dict.fromkeys((question.task, question.modality) for question in questions)
    examples = {kind: evaluation_questions(person, *kind) for kind in kinds}
    prefixes = {
        kind: "".join(f"{prompt(example, processor)} {truth_of(example)}\n" for example in solved)
        for kind, solved in examples.items()
    }
    prompts = []
    for question in questions:
        kind = (question.task, question.modality)
        images = tuple(q.image for q in (*examples[kind], question) if q.image is not None)
        prompts.append(Prompt(question, prefixes[kind] + prompt(question, processor), images, prefixes[kind]))
    return prompts


def judge_robustly(question: Question, response: str, likeliest: str, scorer) -> dict[str, tuple[str, float]]:
    """metric -> (answer, value in 0..1) of one response: :func:`manu_utils.evaluation.judge` with the better parsers and BLEU.

    Args:
        likeliest, scorer: see :func:`manu_utils.evaluation.judge`.
    """
    judged = judge(question, response, likeliest, scorer)
    if question.task == "classification":
        right = find_letter(response, tuple(question.options)) == truth_of(question)
        return judged | {"accuracy": (response, float(right))}
    if question.task == "cloze":
        return {"accuracy": (response, float(holds(question.answer, response)))}
    return judged | {"bleu": (response, bleu(question.answer, response, short=True))}


def summarise_with_intervals(
    frame: pd.DataFrame, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """:func:`manu_utils.evaluation.summarise` with an interval for each mean, by bootstrap over people.

    The questions about one person are not independent, so people are drawn with replacement, each with all their questions
    and images (percentile bootstrap, ``scipy.stats.bootstrap``). The interval says how the score might change with other
    people, not with another seed of the model. Where all people score alike it has no width, which with few people is no
    proof; of one person there is none (NaN).

    Args:
        frame: of :func:`manu_utils.evaluation.evaluate`, any protocol.
        level: between 0 and 1.

    Returns:
        Columns set, task, modality, metric, value, low, high, n (questions), people.

    Raises:
        ValueError: an empty frame, or a level that is not between 0 and 1.
    """
    import numpy as np
    from scipy.stats import bootstrap

    if len(frame) == 0:
        raise ValueError("the table is empty, so there is nothing to summarise.")
    if not 0 < level < 1:
        raise ValueError(f"level={level} is not between 0 and 1, such as 0.95.")
    keys = ["set", "task", "modality", "metric"]
    people = frame.groupby([*keys, "person_id"], sort=False)["value"].agg(total="sum", n="size").reset_index()
    intervals = {}
    for key, part in people.groupby(keys, sort=False):
        totals, counts = part["total"].to_numpy(float), part["n"].to_numpy(float)
        low = high = float("nan")
        if len(part) > 1:
            low, high = bootstrap(
                (totals, counts), lambda totals, counts, axis: totals.sum(axis) / counts.sum(axis), paired=True,
                vectorized=True, n_resamples=resamples, confidence_level=level, method="percentile",
                rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        intervals[key] = (float(low), float(high), len(part))
    table = summarise(frame)
    found = [intervals[tuple(row)] for row in table[keys].to_numpy()]
    table = table.assign(low=[f[0] for f in found], high=[f[1] for f in found], people=[f[2] for f in found])
    return table[[*keys, "value", "low", "high", "n", "people"]]
