"""MLLMU-Bench evaluated to the letter, to compare with published numbers; and what is wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.questions import evaluation_questions
from ..benchmark.records import MODALITIES, TASKS, Question
from ..models.asking import truth_of
from ..models.prompts import BLANK_LINE, image_token_of, prompt
from .answers_file import key_of
from .judging import bleu
from .shots import MAX_NEW_TOKENS, Prompt, check_lengths, draw_of, respond
from .tables import as_table, check_request, remembering, summarise

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

PITFALLS = (
    ("P1", "Nothing is seeded: the shots and the test image change with every run, and with 24 "
           "people left to score one of them is worth four points.",
     "Seeded; all test images; an interval over people says how far a score may be trusted."),
    ("P2", "The shots of the forget set are people to forget, with their answers in the prompt; "
           "and who is a shot is not scored.",
     "Zero-shot, or shots who are in none of the scored sets: everybody is scored and no answer "
     "leaks."),
    ("P3", "For celebrities the classification shots are left out of the prompt but their images "
           "are still passed, which breaks as soon as a celebrity has the ID of a fictitious "
           "person.",
     "Prompt and images are built together, so they always match (in our official protocol, too)."),
    ("P4", "Six images of 576 tokens leave 640 of LLaVA's 4,096 positions; an earlier version "
           "with eleven images scored 0.",
     "One image a prompt; a warning says what is longer than the model's positions."),
    ("P5", "Only the first character counts: 'Answer: B' is read as A, 'Both' as B, 'The answer "
           "is B' as nothing.",
     "The one letter that stands by itself."),
    ("P6", "The response is what follows the first 'ASSISTANT:' of prompt and answer together, so "
           "a question or a shot that holds these words becomes the response.",
     "New tokens only."),
    ("P7", "Cloze asks for a substring: an empty truth is in every response, 'US' is in "
           "'because', a list of all options is always right.",
     "Records without a truth are left out by name, truths are whole words; lists of options "
     "still pass."),
    ("P8", "Switches are parsed by type=bool, so that '--pretrain False' means True.",
     "Python arguments, no command line."),
    ("P9", "Folders of the authors' own machine; the processor must come from elsewhere than the "
           "weights.",
     "load_model(source, processor=...)."),
    ("P10", "The judge's reply goes through int(), so that '8/10' and '7.5' are dropped.",
     "judge_factuality reads both and fails on what is no score."),
    ("P11", "Idefics2 fails under some releases of transformers.",
     "The tested versions are pinned."),
    ("P12", "Newer processors expand an image to all its tokens, so truncating to a length cuts "
            "the image.",
     "Nothing is truncated."),
    ("P13", "MANU's copy of the evaluator does not parse.",
     "Not used."),
    ("P14", "Image prompts of generation say 'accurately' and end in a space, text prompts do "
            "not, so the two ROUGE columns are of different prompts; and a tokenizer that joins "
            "space and word meets a space it never saw before an answer.",
     "The space is gone; the word stays, for comparison: read differences between modalities with "
     "care."),
    ("P15", "The kind of model is read from how its name begins.",
     "Read from the model's config."),
    ("P16", "BLEU counts up to four words in a row, so that a right answer of three words gets "
            "less than 1.",
     "As many in a row as the answer has words."),
)  # fmt: skip
"""(number, what the official evaluator does, what the robust protocol or this package does)."""


def official_shot(question: Question, processor) -> str:
    """One solved example in the official words: no instruction for a letter, no ASSISTANT turn.

    Args:
        question: for classification or cloze, with or without an image.
    """
    image_token = image_token_of(processor) if question.image is not None else ""
    if question.task == "classification":
        gap = " " if image_token else ""
        options = "".join(f"{letter}: {words}\n" for letter, words in question.options.items())
        letter = truth_of(question)
        return (
            f"USER:{gap}{image_token}\nQuestion: {question.question}\n{options}Correct Answer: "
            f"{letter}\n"
        )
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

    The shots are people of the set itself: one for classification, two for cloze (one for
    Idefics2), none for generation and for the classification of celebrities. All their questions of
    the task and modality, looked up by ID in ``shots``, precede each query, and the questions at
    the same places among a shot's own are not asked. People whom ``shots`` does not know (the
    celebrities) are no shots: their set is asked zero-shot. A person with several images is asked
    with one of them.

    Args:
        dataset: the set.
        shots: Full_Set.
        set_name: ``"celebrity"`` for the set of real people.
        modality: with one seed the shots are the same people in both.
        seed: of the draws, which differ by set and task but not by what else is asked; None draws
            anew each time.
        idefics: as for Idefics2 rather than LLaVA.

    Raises:
        ValueError: see :func:`evaluation_questions`; fewer people than shots, or none left to
            score.
    """
    if task == "generation" or (task == "classification" and set_name == "celebrity"):
        drawn: list[str] = []
    else:
        ids = list(dict.fromkeys(dataset["ID"]))
        n = 2 if task == "cloze" and not idefics else 1
        if len(ids) < n:
            raise ValueError(
                f"it has {len(ids)} person, but the official shots for {task} are {n}."
            )
        drawn = draw_of(seed, set_name, task, "shots").sample(ids, n)
    rows = (
        [index for index, person_id in enumerate(shots["ID"]) if person_id in drawn]
        if drawn
        else []
    )
    examples = evaluation_questions(shots.select(rows), task, modality) if rows else []
    prefix = "".join(official_shot(example, processor) for example in examples)
    images = tuple(example.image for example in examples if example.image is not None)
    solved: dict[str, int] = {}  # person -> questions that are shots
    for example in examples:
        solved[example.person_id] = solved.get(example.person_id, 0) + 1
    draw = draw_of(seed, set_name, task, "images")
    asked = []
    for person in _by_person(evaluation_questions(dataset, task, modality)):
        views = list({id(question.image): question.image for question in person}.values())
        view = views[int(draw.random() * len(views))]
        for question in [q for q in person if q.image is view][
            solved.get(person[0].person_id, 0) :
        ]:
            query = prompt(question, processor)
            if view is not None and task == "generation":
                query += " "
            own = () if view is None else (view,)
            asked.append(Prompt(question, prefix + query, (*images, *own), prefix))
    if not asked:
        raise ValueError(
            f"everybody is a shot for {task}, so nobody is left to score; use more people."
        )
    return asked


def _by_person(questions: list[Question]) -> list[list[Question]]:
    people: dict[str, list[Question]] = {}
    for question in questions:
        people.setdefault(question.person_id, []).append(question)
    return list(people.values())


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
    rouge = {
        name: score.fmeasure for name, score in scorer.score(question.answer, response).items()
    }
    return rouge | {"bleu": bleu(question.answer, response)}


def evaluate_official(
    model,
    processor,
    sets: dict[str, Dataset],
    full_set: Dataset,
    *,
    seed: int | None = None,
    tasks: Sequence[str] = TASKS,
    modalities: Sequence[str] = MODALITIES,
    resume: str | Path | None = None,
    model_key: str | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """MLLMU-Bench's own evaluation to the letter, for numbers to compare with published ones.

    Classification and cloze follow solved questions of people of the set itself, who are not
    scored; one random image of each test person and task; ``rouge1``, ``rouge2``, ``rougeL`` and
    ``bleu`` for generation. :data:`PITFALLS` says what is wrong with them. Prompts that are longer
    than the model has positions are asked all the same, as the official code does, after one
    warning that counts them (:func:`check_lengths`).

    Args:
        full_set: where the shots come from, such as ``load_config("tiny", "Full_Set")``.
        seed: of the draws of shots and test images. None draws anew each time, as the official code
            does.
        sets, tasks, modalities, resume, model_key: see :func:`evaluate`, also for what is returned.

    Raises:
        TypeError, ValueError: as :func:`evaluate`; no shots, a resumed draw without a seed, or
            several processes.
    """
    from rouge_score import rouge_scorer

    if not hasattr(full_set, "column_names"):
        raise TypeError(
            "the shots are taken from Full_Set; pass load_config(source, 'Full_Set') after the "
            "sets."
        )
    kept = {"resume": resume, "model_key": model_key}
    more = {"batch_size": batch_size, "seed": seed, "shots": full_set}
    check_request(model, sets, tasks, modalities, **more, **kept)
    if resume is not None and seed is None:
        raise ValueError(
            "a run that may go on later has to draw the same shots again; give a seed with resume."
        )
    if seed is None:
        # one draw for both modalities, as in the official code
        seed = random.SystemRandom().getrandbits(64)
    remember = remembering(resume, model, processor, model_key, batch_size)
    idefics = model.config.model_type.startswith("idefics")
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows, asked_of = [], {}
    for task in tasks:
        for modality in modalities:
            names, prompts = asked_of[task, modality] = [], []
            draw = {"seed": seed, "idefics": idefics}
            for name, dataset in sets.items():
                of = (dataset, full_set, name, task, modality, processor)
                try:
                    asked = official_prompts(*of, **draw)
                except ValueError as error:
                    raise ValueError(f"set {name!r}: {error}") from error
                names += [name] * len(asked)
                prompts += asked
    check_lengths(model, processor, [one for _, prompts in asked_of.values() for one in prompts])
    for (task, modality), (names, prompts) in asked_of.items():
        short = idefics and (task, modality) == ("classification", "text")
        length = 5 if short else MAX_NEW_TOKENS
        what = partial(key_of, processor, protocol="official", max_new_tokens=length)
        options = {"max_new_tokens": length, "batch_size": batch_size, "progress": progress}
        decoded = remember(prompts, what, partial(respond, model, processor, echo=True, **options))
        for name, one, text in zip(names, prompts, decoded, strict=True):
            question, response = one.question, official_response(text, task)
            for metric, value in judge_officially(question, response, scorer).items():
                rows.append((name, task, modality, metric, question.person_id, question.question,
                             response, truth_of(question), value))  # fmt: skip
    return as_table(rows, sets)


def official_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """:func:`summarise` in official units: accuracies in percent, ROUGE and BLEU from 0 to 1."""
    table = summarise(frame)
    return table.assign(
        value=table["value"].where(table["metric"] != "accuracy", table["value"] * 100)
    )
