"""What a model still knows: the three tasks of MLLMU-Bench on every set and modality, as one tidy table.

The protocol is that of the official ``eval.py``, zero-shot, with every image of the test set. Derived in notebook 05.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.questions import evaluation_questions
from ..benchmark.records import MODALITIES, TASKS, Question
from ..checks import check_name, check_names, check_whole, shown
from ..models.asking import generate_answers, likeliest_options, truth_of
from ..models.encoding import fitting
from ..models.passes import check_model
from .answers_file import fingerprint, identity, read_answers, remembered
from .judging import judge

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    from .shots import Prompt

PROTOCOLS = ("zero-shot", "official", "robust")
SETS = ("forget", "test", "retain", "celebrity")  # in the order of the official evaluation
COLUMNS = ("set", "task", "modality", "metric", "person_id", "question", "answer", "truth", "value")
METRIC_ORDER = ("accuracy", "likelihood", "rouge1", "rouge2", "rougeL", "bleu", "factuality")
CHUNK = 8  # batches between two writes of a run that may be resumed
LETTER_TOKENS = 5  # enough for a letter and what a tokenizer may put before it; only the first character counts


def evaluate(
    model,
    processor,
    sets: dict[str, Dataset],
    *,
    protocol: str = "zero-shot",
    tasks: Sequence[str] = TASKS,
    modalities: Sequence[str] = MODALITIES,
    shots: Dataset | None = None,
    seed: int | None = None,
    resume: str | Path | None = None,
    model_key: str | None = None,
    batch_size: int = 64,
    progress: bool = True,
    accelerator=None,
) -> pd.DataFrame:
    """Ask every question of some sets and judge the answers: one row per question and metric.

    ``protocol="zero-shot"``: the official prompts without shots, every test image. ``accuracy`` of classification reads the
    first character of the answer, ``likelihood`` takes the likeliest option (:func:`likeliest_options`); cloze asks whether
    the response contains the truth; generation compares the whole statement (``accuracy``) and by ``rougeL``.

    ``protocol="official"``: MLLMU-Bench's own evaluation to the letter. Classification and cloze follow solved questions of
    people of the set itself, who are not scored; one random image of each test person and task; ``rouge1``, ``rouge2``,
    ``rougeL`` and ``bleu`` for generation. For numbers to compare with published ones;
    :data:`PITFALLS` says what is wrong with them.

    ``protocol="robust"``: as zero-shot, with up to 50 tokens for a letter that may stand anywhere
    (:func:`find_letter`), cloze truths as whole words, and ``bleu``. Zero-shot unless ``shots`` are
    given: shots cost a model context and say more about its skill with the format than about what it knows. Intervals:
    :func:`summarise_with_intervals`.

    Args:
        sets: name -> dataset, such as :meth:`Benchmark.sets`.
        shots: official: Full_Set, such as ``load_config("tiny", "Full_Set")``. Robust: people of the retain set of whom one
            who is in none of the scored sets is drawn, or None.
        seed: of the draws of shots and test images. Official: None draws anew each time, as the official code does.
            Robust: None is 0.
        resume: a file that answers are added to as they come; a run that was killed takes from it what was answered and
            gives the same table. Answers of other weights, protocols or questions in it are left alone.
        model_key: what tells the model from others in that file, in place of a hash of its weights (which takes half a
            minute for 7B); for a model that hooks change it must be given.
        accelerator: share the questions between its processes, see :func:`evaluate`.

    Returns:
        Columns :data:`COLUMNS`: set, task, modality, metric, person_id, question, answer (the model's), truth, value (0 to 1);
        in the order of ``sets``, tasks and modalities. Questions that are longer than the model has positions are named in a
        warning and not in the table; only prompts with shots are asked all the same, as the official code does, after one
        warning that counts them (:func:`check_lengths`).

    Raises:
        TypeError: sets that are no dict of datasets, tasks or modalities that are no sequence of names, a seed or batch_size
            that is no whole number, or a model that is wrapped.
        ValueError: an unknown protocol, no sets, tasks or modalities, an unknown one, a set without questions of a task and
            modality (unless its benchmark has none, see :func:`evaluation_questions`), shots where there
            are none to take or none that are needed, a resumed draw without a seed, several processes with shots or resume,
            a ``resume`` that is another file (which is left as it is), prompts with shots that a model with a table of
            positions cannot read, or logits that are not finite.
    """
    from rouge_score import rouge_scorer

    check_model(model)
    check_name("protocol", protocol, PROTOCOLS)
    if not isinstance(sets, dict) or not all(hasattr(dataset, "column_names") for dataset in sets.values()):
        raise TypeError("sets must be a dict of name -> dataset, such as benchmark.sets() or {'forget': benchmark.forget}.")
    if not sets:
        raise ValueError("sets is empty; name at least one.")
    check_names("tasks", tasks, TASKS)
    check_names("modalities", modalities, MODALITIES)
    check_whole("batch_size", batch_size)
    if seed is not None:
        check_whole("seed", seed, least=0)
    for name, text in (("model_key", model_key), ("resume", resume)):
        if not isinstance(text, str | None) and not (name == "resume" and isinstance(text, os.PathLike)):
            raise TypeError(f"{name}={shown(text)} must be a text{' or a path' if name == 'resume' else ''}.")
    if protocol == "zero-shot" and shots is not None:
        raise ValueError("protocol='zero-shot' takes no shots; leave them out, or use protocol='official' or 'robust'.")
    if protocol == "official" and shots is None:
        raise ValueError("protocol='official' takes its shots from Full_Set; give shots=load_config(source, 'Full_Set').")
    if protocol == "official" and resume is not None and seed is None:
        raise ValueError("a run that may go on later has to draw the same shots again; give a seed with resume.")
    if accelerator is not None and accelerator.num_processes > 1 and (resume is not None or shots is not None):
        raise ValueError("several processes share neither an evaluation with shots nor one that is resumed; use one process.")
    if resume is not None:
        read_answers(resume)  # raises where it is another file, before anything is asked
    run = "" if resume is None else model_key or fingerprint(model, processor)
    remember = partial(remembered, resume, run, chunk_size=CHUNK * batch_size)
    options = {"batch_size": batch_size, "progress": progress}
    if protocol == "official":
        from .official import evaluate_official

        return evaluate_official(
            model, processor, sets, shots, seed=seed, tasks=tasks, modalities=modalities, remember=remember, **options
        )
    judged = judge
    if protocol == "robust":
        from .robust import judge_robustly, robust_prompts
        from .shots import respond

        judged = judge_robustly
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    rows = []
    asked = questions_by_task(sets, tasks, modalities)
    every = [question for pairs in asked.values() for _, question in pairs]
    readable = {id(every[index]) for index in fitting(every, processor, with_answer=False)[0]}
    asked = {task: [pair for pair in pairs if id(pair[1]) in readable] for task, pairs in asked.items()}
    prompts: dict[str, list[Prompt]] = {}
    if shots is not None:
        prompts = {t: robust_prompts([q for _, q in pairs], shots, sets, processor, seed or 0) for t, pairs in asked.items()}
        check_positions(model, processor, [one for of_task in prompts.values() for one in of_task])
    for task, pairs in asked.items():
        if not pairs:
            continue
        letters_only = task == "classification"
        length = LETTER_TOKENS if letters_only and protocol == "zero-shot" else 50
        items = questions = [question for _, question in pairs]
        ask, likeliest = (partial(f, accelerator=accelerator) for f in (generate_answers, likeliest_options))
        if shots is not None:
            items, ask = prompts[task], respond
        what = partial(identity, processor, protocol=protocol, max_new_tokens=length)
        responses = remember(items, what, partial(ask, model, processor, max_new_tokens=length, **options))
        letters = [""] * len(questions)
        if letters_only:
            what = partial(identity, processor, protocol=protocol, answer="likeliest option")
            letters = remember(questions, what, partial(likeliest, model, processor, **options))
        for (name, question), response, letter in zip(pairs, responses, letters, strict=True):
            for metric, (answer, value) in judged(question, response, letter, scorer).items():
                rows.append((name, task, question.modality, metric, question.person_id, question.question,
                             answer, truth_of(question), value))  # fmt: skip
    return as_table(rows, sets)


def as_table(rows: list[tuple], sets: dict[str, Dataset]) -> pd.DataFrame:
    """Rows of :data:`COLUMNS`, those of one set together, in the order of ``sets``."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=COLUMNS)
    order = {name: index for index, name in enumerate(sets)}
    return frame.sort_values("set", key=lambda names: names.map(order), kind="stable", ignore_index=True)


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
                    raise ValueError(f"set {name!r}: person {blank.person_id} has an empty truth for {blank.question!r}.")
                asked[task] += [(name, question) for question in questions]
    asked = {task: pairs for task, pairs in asked.items() if pairs}  # TOFU and CLEAR have no cloze questions
    if not asked:
        raise ValueError(f"these sets have no question for {', '.join(tasks)} in {' or '.join(modalities)}.")
    return asked


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean of each set, task, modality and metric, and the number n of questions it is over.

    Returns:
        Columns set, task, modality, metric, value, n; in the official order of sets and tasks, other sets after them.
    """
    keys = ["set", "task", "modality", "metric"]
    table = frame.groupby(keys, sort=False)["value"].agg(value="mean", n="size").reset_index()
    order = {"set": SETS, "task": TASKS, "modality": MODALITIES, "metric": METRIC_ORDER}

    def rank(column):
        known = {name: index for index, name in enumerate(order[column.name])}
        return column.map(lambda name: known.get(name, len(known)))

    return table.sort_values(keys, key=rank, kind="stable", ignore_index=True)


def merit(accuracy: pd.Series, vanilla: pd.Series, target: pd.Series) -> dict[str, float]:
    """One number per method: 0 for vanilla itself and for a model that knows nothing, 1 for the target.

    With accuracy a of the method, v of vanilla and t of the target on a set that is to be forgotten, φ = (v − a) / (v − t) is
    the share of the way that the method has gone: 0 at vanilla, 1 at the target, more where it answers less than a model
    that never met the people.

    Args:
        accuracy, vanilla, target: accuracy (0..1) indexed by (set, modality), all three alike. ``forget`` and ``test`` are
            to be forgotten, all other sets to be kept. The target is the retrained model, or one that never met the people.

    Returns:
        ``forget_quality``: 1 − |1 − φ|, mean over forgotten sets and modalities, each at least 0. ``utility``: accuracy over
        vanilla's, mean over kept sets and modalities, each at most 1. ``balance``: 1 − the distance between the φ of the two
        modalities, at least 0; 1 for one modality alone. ``merit``: the harmonic mean of the three.

    Raises:
        ValueError: no set to forget or none to keep, or a target that knows the people no less than vanilla does.
    """
    forgotten = [key for key in vanilla.index if key[0] in ("forget", "test")]
    kept = [key for key in vanilla.index if key not in forgotten]
    if not forgotten or not kept:
        raise ValueError("merit needs a set to forget (forget, test) and one to keep.")
    if not (vanilla[forgotten] > target[forgotten]).all():
        raise ValueError("the target answers as many questions about the people to forget as vanilla does.")
    gone = ((vanilla - accuracy) / (vanilla - target))[forgotten]
    by_modality = gone.groupby(level=1).mean()
    parts = {
        "forget_quality": float((1 - (1 - gone).abs()).clip(lower=0).mean()),
        "utility": float((accuracy / vanilla)[kept].clip(upper=1).mean()),
        "balance": float(max(0.0, 1 - (by_modality.max() - by_modality.min()))),
    }
    harmonic = len(parts) / sum(1 / part for part in parts.values()) if min(parts.values()) > 0 else 0.0
    return parts | {"merit": harmonic}
