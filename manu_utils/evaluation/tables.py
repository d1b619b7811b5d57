"""What a model still knows: MLLMU-Bench's three tasks on every set and modality, in one tidy table.

Asked in the words of the official ``eval.py``, zero-shot, about every image of the test set.
Derived in notebook 05.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import processes
from ..benchmark.questions import evaluation_questions
from ..benchmark.records import MODALITIES, TASKS, Question
from ..checks import check_names, check_whole, shown
from ..models.asking import generate_answers, likeliest_options, truth_of
from ..models.encoding import fitting
from ..models.fingerprints import fingerprint
from ..models.passes import check_model
from .answers_file import key_of, read_answers, remembered
from .judging import judge
from .shots import MAX_NEW_TOKENS, Prompt, check_lengths, respond

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

SETS = ("forget", "test", "retain", "celebrity")  # in the order of the official evaluation
COLUMNS = ("set", "task", "modality", "metric", "person_id", "question", "answer", "truth", "value")
METRIC_ORDER = ("accuracy", "likelihood", "rouge1", "rouge2", "rougeL", "bleu", "factuality")
CHUNK = 8  # batches between two writes of a run that may be resumed
# enough for a letter and what a tokenizer may put before it; only the first character counts
LETTER_TOKENS = 5


def evaluate(
    model,
    processor,
    sets: dict[str, Dataset],
    *,
    tasks: Sequence[str] = TASKS,
    modalities: Sequence[str] = MODALITIES,
    resume: str | Path | None = None,
    model_key: str | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask every question of some sets and judge the answers: one row per question and metric.

    The official prompts without shots, every test image. ``accuracy`` of classification reads the
    first character of the answer, ``likelihood`` takes the likeliest option
    (:func:`likeliest_options`); cloze asks whether the response contains the truth; generation
    compares the whole statement (``accuracy``) and by ``rougeL``. Two other ways to ask and to
    judge: :func:`evaluate_official` for numbers to compare with published ones, and
    :func:`evaluate_robust`.

    Args:
        sets: name -> dataset, such as :meth:`Benchmark.sets`.
        resume: a file that answers are added to as they come; a run that was killed takes from it
            what was answered and gives the same table. Answers of other weights, protocols or
            questions in it are left alone.
        model_key: what tells the model from others in that file, in place of a hash of its weights
            (which takes half a minute for 7B); for a model that hooks change it must be given.

    Returns:
        Columns :data:`COLUMNS`: set, task, modality, metric, person_id, question, answer (the
        model's), truth, value (0 to 1); in the order of ``sets``, tasks and modalities. Questions
        that are longer than the model has positions are named in a warning and not in the table.

    Raises:
        OSError: ``resume`` cannot be written, and nothing is asked.
        TypeError: sets that are no dict of datasets, tasks or modalities that are no sequence of
            names, a batch_size that is no whole number, or a model that is wrapped.
        ValueError: no sets, tasks or modalities, an unknown one, a set without questions of a task
            and modality (unless its benchmark has none, see :func:`evaluation_questions`), several
            processes with resume, a ``resume`` that is another file (which is left as it is), or
            logits that are not finite.
    """
    check_request(
        model, sets, tasks, modalities, batch_size=batch_size, resume=resume, model_key=model_key
    )
    return ask_and_judge(
        model, processor, sets, protocol="zero-shot", letter_tokens=LETTER_TOKENS, judge=judge,
        tasks=tasks, modalities=modalities, resume=resume, model_key=model_key,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip


def ask_and_judge(
    model, processor, sets: dict[str, Dataset], *, protocol: str, letter_tokens: int,
    judge: Callable, with_shots: Callable[[list[Question]], list] | None = None,
    tasks: Sequence[str], modalities: Sequence[str], resume: str | Path | None,
    model_key: str | None, batch_size: int, progress: bool,
) -> pd.DataFrame:  # fmt: skip
    """The table of :func:`evaluate` and :func:`evaluate_robust`, which explain the arguments.

    Args:
        protocol: its name in a file of answers.
        letter_tokens: new tokens for the answer to a classification question; other tasks have
            :data:`MAX_NEW_TOKENS`.
        judge: called as :func:`judge`.
        with_shots: makes prompts of questions, see :func:`robust_prompts`.
    """
    from rouge_score import rouge_scorer

    remember = remembering(resume, model, processor, model_key, batch_size)
    options = {"batch_size": batch_size, "progress": progress}
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    rows = []
    asked = questions_by_task(sets, tasks, modalities)
    every = [question for pairs in asked.values() for _, question in pairs]
    readable = {id(every[index]) for index in fitting(every, processor, with_answer=False)[0]}
    asked = {
        task: [pair for pair in pairs if id(pair[1]) in readable] for task, pairs in asked.items()
    }
    prompts: dict[str, list[Prompt]] = {}
    if with_shots:
        prompts = {
            task: with_shots([question for _, question in pairs]) for task, pairs in asked.items()
        }
        check_lengths(model, processor, [one for of_task in prompts.values() for one in of_task])
    for task, pairs in asked.items():
        if not pairs:
            continue
        length = letter_tokens if task == "classification" else MAX_NEW_TOKENS
        questions = [question for _, question in pairs]
        items, ask = (prompts[task], respond) if with_shots else (questions, generate_answers)
        what = partial(key_of, processor, protocol=protocol, max_new_tokens=length)
        responses = remember(
            items, what, partial(ask, model, processor, max_new_tokens=length, **options)
        )
        letters = [""] * len(questions)
        if task == "classification":
            what = partial(key_of, processor, protocol=protocol, answer="likeliest option")
            letters = remember(
                questions, what, partial(likeliest_options, model, processor, **options)
            )
        for (name, question), response, letter in zip(pairs, responses, letters, strict=True):
            for metric, (answer, value) in judge(question, response, letter, scorer).items():
                rows.append((
                    name, task, question.modality, metric, question.person_id, question.question,
                    answer, truth_of(question), value,
                ))  # fmt: skip
    return as_table(rows, sets)


def check_request(
    model,
    sets,
    tasks,
    modalities,
    *,
    batch_size,
    resume=None,
    model_key=None,
    seed=None,
    shots=None,
) -> None:
    """Check what an evaluation is asked for.

    Raises:
        TypeError, ValueError: see :func:`evaluate`.
    """
    check_model(model)
    if not isinstance(sets, dict) or not all(
        hasattr(dataset, "column_names") for dataset in sets.values()
    ):
        raise TypeError(
            "sets must be a dict of name -> dataset, such as benchmark.sets() or {'forget': "
            "benchmark.forget}."
        )
    if not sets:
        raise ValueError("sets is empty; name at least one.")
    check_names("tasks", tasks, TASKS)
    check_names("modalities", modalities, MODALITIES)
    check_whole("batch_size", batch_size)
    if seed is not None:
        check_whole("seed", seed, least=0)
    for name, text in (("model_key", model_key), ("resume", resume)):
        if not isinstance(text, str | None) and not (
            name == "resume" and isinstance(text, os.PathLike)
        ):
            raise TypeError(
                f"{name}={shown(text)} must be a text{' or a path' if name == 'resume' else ''}."
            )
    if processes.count() > 1 and (resume is not None or shots is not None):
        raise ValueError(
            "several processes share neither an evaluation with shots nor one that is resumed; use "
            "one process."
        )
    if resume is not None:
        read_answers(resume)  # raises where it is another file, before anything is asked


def remembering(
    resume: str | Path | None, model, processor, model_key: str | None, batch_size: int
) -> Callable:
    """:func:`remembered` for one model and one file."""
    run = "" if resume is None else model_key or fingerprint(model, processor)
    return partial(remembered, resume, run, chunk_size=CHUNK * batch_size)


def as_table(rows: list[tuple], sets: dict[str, Dataset]) -> pd.DataFrame:
    """Rows of :data:`COLUMNS`, those of one set together, in the order of ``sets``."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=COLUMNS)
    order = {name: index for index, name in enumerate(sets)}
    return frame.sort_values(
        "set", key=lambda names: names.map(order), kind="stable", ignore_index=True
    )


def questions_by_task(
    sets: dict[str, Dataset], tasks: Sequence[str], modalities: Sequence[str]
) -> dict[str, list[tuple[str, Question]]]:
    """task -> (set, question), with every image of a person.

    Raises:
        ValueError: a set without questions of a task and modality, or an empty truth.
    """
    asked: dict[str, list[tuple[str, Question]]] = {task: [] for task in tasks}
    for name, dataset in sets.items():
        for task in tasks:
            for modality in modalities:
                try:
                    questions = evaluation_questions(dataset, task, modality)
                except ValueError as error:
                    raise ValueError(f"set {name!r}: {error}") from error
                if blank := next((q for q in questions if not q.answer.strip()), None):
                    raise ValueError(
                        f"set {name!r}: person {blank.person_id} has an empty truth for "
                        f"{blank.question!r}."
                    )
                asked[task] += [(name, question) for question in questions]
    # TOFU and CLEAR have no cloze questions
    asked = {task: pairs for task, pairs in asked.items() if pairs}
    if not asked:
        raise ValueError(
            f"these sets have no question for {', '.join(tasks)} in {' or '.join(modalities)}."
        )
    return asked


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean of each set, task, modality and metric, and the number n of questions it is over.

    Returns:
        Columns set, task, modality, metric, value, n; in the official order of sets and tasks,
        other sets after them.
    """
    keys = ["set", "task", "modality", "metric"]
    table = frame.groupby(keys, sort=False)["value"].agg(value="mean", n="size").reset_index()
    order = {"set": SETS, "task": TASKS, "modality": MODALITIES, "metric": METRIC_ORDER}

    def rank(column):
        known = {name: index for index, name in enumerate(order[column.name])}
        return column.map(lambda name: known.get(name, len(known)))

    return table.sort_values(keys, key=rank, kind="stable", ignore_index=True)


def merit(accuracy: pd.Series, vanilla: pd.Series, target: pd.Series) -> dict[str, float]:
    """One number per method: 0 for vanilla and for a model that knows nothing, 1 for the target.

    With accuracy a of the method, v of vanilla and t of the target on a set that is to be
    forgotten, φ = (v − a) / (v − t) is the share of the way that the method has gone: 0 at vanilla,
    1 at the target, more where it answers less than a model that never met the people.

    Args:
        accuracy, vanilla, target: accuracy (0..1) indexed by (set, modality), all three alike.
            ``forget`` and ``test`` are to be forgotten, all other sets to be kept. The target is
            the retrained model, or one that never met the people.

    Returns:
        ``forget_quality``: 1 − |1 − φ|, mean over forgotten sets and modalities, each at least 0.
        ``utility``: accuracy over vanilla's, mean over kept sets and modalities, each at most 1.
        ``balance``: 1 − the distance between the φ of the two modalities, at least 0; 1 for one
        modality alone. ``merit``: the harmonic mean of the three.

    Raises:
        ValueError: no set to forget or none to keep, or a target that knows the people no less than
            vanilla does.
    """
    forgotten = [key for key in vanilla.index if key[0] in ("forget", "test")]
    kept = [key for key in vanilla.index if key not in forgotten]
    if not forgotten or not kept:
        raise ValueError("merit needs a set to forget (forget, test) and one to keep.")
    if not (vanilla[forgotten] > target[forgotten]).all():
        raise ValueError(
            "the target answers as many questions about the people to forget as vanilla does."
        )
    gone = ((vanilla - accuracy) / (vanilla - target))[forgotten]
    by_modality = gone.groupby(level=1).mean()
    parts = {
        "forget_quality": float((1 - (1 - gone).abs()).clip(lower=0).mean()),
        "utility": float((accuracy / vanilla)[kept].clip(upper=1).mean()),
        "balance": float(max(0.0, 1 - (by_modality.max() - by_modality.min()))),
    }
    harmonic = (
        len(parts) / sum(1 / part for part in parts.values()) if min(parts.values()) > 0 else 0.0
    )
    return parts | {"merit": harmonic}
