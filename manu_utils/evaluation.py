"""What a model still knows: the three tasks of MLLMU-Bench on every set and modality, as one tidy table.

Unless another protocol is asked for (:mod:`manu_utils.protocols`) it is that of the official ``eval.py``, zero-shot, with
every image of the test set. Derived in notebook 05.
"""

from __future__ import annotations

import csv
import math
import os
import re
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batches import batches, fitting, plan_batches, prompt, shared_batches
from .benchmark import MODALITIES, TASKS, Question, evaluation_questions
from .checks import check_finite, check_model, check_name, check_names, check_whole, quiet_pass, shown
from .progress import bar
from .resume import fingerprint, read_answers, remembered
from .shared import additive_mask, can_share, read_shared
from .training import answer_logits

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    from .protocols import Prompt

PROTOCOLS = ("zero-shot", "official", "robust")
SETS = ("forget", "test", "retain", "celebrity")  # in the order of the official evaluation
COLUMNS = ("set", "task", "modality", "metric", "person_id", "question", "answer", "truth", "value")
LEADERBOARD = ("scale", "seed", "method", "alpha", "set", "task", "modality", "metric", "value", "n")
METRIC_ORDER = ("accuracy", "likelihood", "rouge1", "rouge2", "rougeL", "bleu", "factuality")
CHUNK = 8  # batches between two writes of a run that may be resumed
LETTER_TOKENS = 5  # enough for a letter and what a tokenizer may put before it; only the first character counts


# ------------------------------------------------------------------------------------------------ asking a model


def generate_answers(
    model,
    processor,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 50,
    batch_size: int = 64,
    progress: bool = True,
    accelerator=None,
) -> list[str]:
    """The greedy answer to each question, stripped, without the prompt; in the order of ``questions``.

    Of questions that are too long for the model a warning says so, and the answer is ``""``.
    Questions with and without an image may be mixed. A batch is halved when CUDA runs out of memory. LLaVA computes what
    questions share once (:func:`manu_utils.batches.shared_batches`); other models go through their own ``generate``.

    Nothing of the model's own generation settings counts but its end and padding tokens.

    Raises:
        TypeError: no list of questions, max_new_tokens or batch_size is no whole number, or the model is wrapped.
        ValueError: no questions, max_new_tokens or batch_size below 1, or logits that are not finite.
    """
    _need(questions)
    tokenizer, greedy = processor.tokenizer, greedy_config(model, processor, max_new_tokens)
    answers = [""] * len(questions)

    @torch.no_grad()
    def write(batch: dict[str, Tensor]) -> Tensor:
        if "reads" in batch:
            return continue_shared(model, batch, greedy)
        return model.generate(**batch, generation_config=greedy)[:, batch["input_ids"].shape[1] :]

    for indices, new in _in_batches(
        write, model, processor, questions, batch_size, False, progress, "answers", accelerator=accelerator
    ):
        for index, text in zip(indices, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[index] = text.strip()
    return answers


def greedy_config(model, processor, max_new_tokens: int):
    """The ``GenerationConfig`` of greedy decoding that ends at any end-of-sequence token of the model or the tokenizer.

    Raises:
        TypeError: max_new_tokens is no whole number.
        ValueError: max_new_tokens below 1, or a tokenizer without padding token.
    """
    from transformers import GenerationConfig

    check_whole("max_new_tokens", max_new_tokens)
    pad = processor.tokenizer.pad_token_id
    if pad is None:
        raise ValueError(
            "the tokenizer has no padding token, which batches need; set processor.tokenizer.pad_token = "
            "processor.tokenizer.eos_token (padding is masked), or take the processor of load_model, which does."
        )
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, use_cache=True,
        eos_token_id=sorted(end_tokens(model, processor)), pad_token_id=pad,
    )  # fmt: skip


def end_tokens(model, processor) -> set[int]:
    """The tokens that end an answer: those of the model's generation settings and the tokenizer's.

    Raises:
        ValueError: there are none.
    """
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), processor.tokenizer.eos_token_id} - {None}
    if not ends:
        raise ValueError("neither model nor tokenizer names an end of sequence; set processor.tokenizer.eos_token.")
    return ends


@torch.no_grad()
def known(model, processor, questions: Sequence[Question], *, batch_size: int = 64, progress: bool = True) -> Tensor:
    """Whether the greedy answer is the truth, word for word, without generating it.

    Greedy decoding writes the truth exactly if the arg-max at every token of it is that token, and then any token that ends
    an answer, so one forward pass decides. For classification the truth is the letter.

    Returns:
        bool [n_questions], on the CPU; false where the truth is too long for the model, which a warning says.

    Raises:
        TypeError: no list of questions, batch_size is no whole number, or the model is wrapped.
        ValueError: no questions, batch_size below 1, or logits that are not finite.
    """
    _need(questions)
    questions = [replace(question, answer=truth_of(question)) for question in questions]
    right = torch.zeros(len(questions), dtype=torch.bool)
    ends = torch.tensor(sorted(end_tokens(model, processor)))

    def share_right(batch: dict[str, Tensor]) -> Tensor:
        logits, targets, rows = _answer_logits(model, batch)
        written, all_ends = logits.argmax(-1), ends.to(targets.device)
        same = (written == targets) | torch.isin(written, all_ends) & torch.isin(targets, all_ends)
        return _mean_per_question(same.float(), rows)

    for indices, share in _in_batches(share_right, model, processor, questions, batch_size, True, progress, "known"):
        right[indices] = (share == 1).cpu()
    return right


def truth_of(question: Question) -> str:
    """What the model should write: the right letter for classification, else the answer.

    Raises:
        ValueError: a classification question whose answer is none of its options.
    """
    if question.task != "classification":
        return question.answer
    letter = next((letter for letter, words in (question.options or {}).items() if words == question.answer), None)
    if letter is None:
        raise ValueError(f"person {question.person_id}: {question.answer!r} is no option of {question.question!r}.")
    return letter


@torch.no_grad()
def likeliest_options(
    model, processor, questions: Sequence[Question], *, batch_size: int = 64, progress: bool = True, accelerator=None
) -> list[str]:
    """The letter of the option whose words the model finds likeliest, without showing it the options.

    Each option is scored as the short answer to the question, in the cloze template with the blank after the question: mean
    log-likelihood per token, end of sequence included. Unlike the generated letter this asks for the knowledge alone, not
    for the skill of finding it among lettered options.

    Returns:
        One letter per question; ``""`` if all of its options are too long for the model, which a warning says.

    Raises:
        TypeError: no list of questions, batch_size is no whole number, or the model is wrapped.
        ValueError: no questions, one without options, batch_size below 1, or logits that are not finite.
    """
    _need(questions)
    if missing := next((question for question in questions if not question.options), None):
        raise ValueError(f"person {missing.person_id}: {missing.question!r} has no options to compare.")
    asked = [
        replace(question, question=f"{question.question} __", answer=words, task="cloze", options=None)
        for question in questions
        for words in question.options.values()
    ]
    likelihood = torch.full((len(asked),), -math.inf)

    def mean_log_likelihood(batch: dict[str, Tensor]) -> Tensor:
        logits, targets, rows = _answer_logits(model, batch)
        return _mean_per_question(logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0], rows)

    for indices, means in _in_batches(
        mean_log_likelihood, model, processor, asked, batch_size, True, progress, "options", accelerator=accelerator
    ):
        likelihood[indices] = means.cpu()
    parts = likelihood.split([len(question.options) for question in questions])
    letters = [list(question.options)[part.argmax()] for question, part in zip(questions, parts, strict=True)]
    return ["" if part.isinf().all() else letter for letter, part in zip(letters, parts, strict=True)]


def _answer_logits(model, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`manu_utils.training.answer_logits`, for shared batches as well."""
    if "reads" not in batch:
        return answer_logits(model, batch)
    hidden, _ = read_shared(model, batch)
    return model.get_output_embeddings()(hidden), batch["targets"], batch["reads"][:, 0]


def _mean_per_question(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of ``values`` float [m] by the question ``rows`` int64 [m] that each belongs to: float [n_questions]."""
    counts = rows.bincount()
    return values.new_zeros(len(counts)).index_add_(0, rows, values) / counts


def continue_shared(model, batch: dict[str, Tensor], greedy) -> Tensor:
    """What ``generate`` would write after each question of a shared batch: int64 [n_questions, up to max_new_tokens].

    The questions of a row go on side by side, blind to each other; a row is dropped when all of them have ended.

    Args:
        greedy: the ``GenerationConfig``, of which ``max_new_tokens``, ``eos_token_id`` and ``pad_token_id`` are read.
    """
    hidden, cache = read_shared(model, batch, use_cache=True)
    head, pad = model.get_output_embeddings(), greedy.pad_token_id
    ends = torch.tensor(greedy.eos_token_id, device=hidden.device)
    _, row, position = batch["reads"].T
    counts = row.bincount()
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]  # of the question in its row
    r, q = len(counts), int(counts.max())

    def side_by_side(of_question: Tensor, fill: int) -> Tensor:
        table = of_question.new_full((r, q, *of_question.shape[1:]), fill)  # rows have fewer than q questions, too
        table[row, place] = of_question
        return table

    tokens = side_by_side(head(hidden).argmax(-1), pad)
    positions = side_by_side(batch["position_ids"][row, position], 0)
    seen = side_by_side(batch["attention_mask"][row, 0, position], 0)  # [r, q, t]
    running = side_by_side(torch.ones_like(row, dtype=torch.bool), 0)
    rows = torch.arange(r, device=row.device)  # that are left
    written = tokens.new_full((r, q, greedy.max_new_tokens), pad)
    for step in range(greedy.max_new_tokens):
        written[rows, :, step] = tokens.where(running, pad)
        running = running & ~torch.isin(tokens, ends)
        left = running.any(1)
        if step + 1 == greedy.max_new_tokens or not left.any():
            break
        if not left.all():
            cache.batch_select_indices(left.nonzero()[:, 0])
            tokens, positions, seen, running, rows = (x[left] for x in (tokens, positions, seen, running, rows))
        itself = torch.eye(q, dtype=torch.bool, device=seen.device).expand(len(rows), q, q)
        seen, positions = torch.cat([seen, itself], dim=-1), positions + 1
        mask = additive_mask(seen[:, None], model.dtype)
        output = model.model(input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=cache)
        tokens = head(output.last_hidden_state.flatten(0, 1)).argmax(-1).view_as(tokens)
    return written[row, place]


def _in_batches(
    work: Callable[[dict[str, Tensor]], object], model, processor, questions: Sequence, batch_size: int,
    with_answer: bool, progress: bool, name: str, make: Callable | None = None, accelerator=None,
) -> Iterator[tuple[list[int], object]]:  # fmt: skip
    """Yield (indices, work(batch)), each under :func:`_as_asked`; when CUDA is out of memory, go on with half the batch size.

    Args:
        questions: what ``make`` takes: Questions, unless it is given.
        make: gives the batches, called as :func:`manu_utils.batches.batches`.
        accelerator: its processes share the batches that one would compute, and each is given the results of all; without
            ``make``.
    """
    check_whole("batch_size", batch_size)
    make = make or (shared_batches if can_share(model) else batches)
    todo = list(range(len(questions)))
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        plan = plan_batches(questions, processor, batch_size, with_answer, shared=make is shared_batches)
        todo = sorted(index for part in plan[accelerator.process_index :: accelerator.num_processes] for index in part)
        shown = progress and accelerator.is_main_process
        own = _in_batches(work, model, processor, [questions[i] for i in todo], batch_size, with_answer, shown, name)
        yield from gather_object([([todo[i] for i in indices], result.cpu()) for indices, result in own])
        return
    with bar(total=len(questions), desc=name, shown=progress) as shown:
        while todo:
            done: set[int] = set()
            try:
                chosen = [questions[index] for index in todo]
                for positions, batch in make(chosen, processor, batch_size, with_answer, model.device):
                    with _as_asked(model):
                        result = work(batch)
                    indices = [todo[position] for position in positions]
                    done.update(indices)
                    shown.update(len(indices))
                    yield indices, result
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                print(f"out of memory; going on with batches of {batch_size}")
            else:
                return
            torch.cuda.empty_cache()  # not in the handler, where the traceback still holds the tensors
            todo = [index for index in todo if index not in done]


@contextmanager
def _as_asked(model) -> Iterator[None]:
    """What every pass that asks runs in: :func:`manu_utils.checks.quiet_pass`, with generation settings that are all defaults,
    since ``generate`` fills what it is not told from the model's own, and logits that must be finite.
    """
    from transformers import GenerationConfig

    def look(module, _, logits: Tensor) -> None:  # [m, vocabulary], or of generate [b, t, vocabulary] with padding first
        check_finite("the model's logits are", logits if logits.dim() == 2 else logits[:, -1])

    with quiet_pass(model):
        own, hook = model.generation_config, model.get_output_embeddings().register_forward_hook(look)
        model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            model.generation_config = own
            hook.remove()


def _need(questions: Sequence[Question]) -> None:
    if isinstance(questions, str | dict | Question) or not all(isinstance(question, Question) for question in questions):
        raise TypeError("questions must be a list of Question, such as benchmark.training_questions('forget', 'text').")
    if not questions:
        raise ValueError("there is no question to ask; pass at least one.")


# ------------------------------------------------------------------------------------------------ judging an answer


def parse_letter(response: str) -> str | None:
    """The official parser: the first character, upper-cased, if it is A, B, C or D, else None.

    >>> parse_letter("b"), parse_letter("Answer: B"), parse_letter("The answer is B"), parse_letter("Both")
    ('B', 'A', None, 'B')
    """
    first = response.strip()[:1].upper()
    return first if first in tuple("ABCD") else None


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces: what two statements of one fact have in common.

    >>> normalise(" Works as a  Nurse.")
    'works as a nurse'
    """
    return " ".join(re.sub(f"[{re.escape(string.punctuation)}]", " ", text.lower()).split())


def judge(question: Question, response: str, likeliest: str, scorer) -> dict[str, tuple[str, float]]:
    """metric -> (answer, value in 0..1) for one response.

    Args:
        likeliest: the likeliest option letter (classification).
        scorer: a ``rouge_score`` scorer of ``rougeL`` (generation).
    """
    if question.task == "classification":
        letter = parse_letter(response)
        return {
            "accuracy": (response, float(question.options.get(letter) == question.answer)),
            "likelihood": (likeliest, float(question.options[likeliest] == question.answer)),
        }
    if question.task == "cloze":
        return {"accuracy": (response, float(question.answer.lower() in response.lower()))}
    same = normalise(response) == normalise(question.answer)
    rouge = scorer.score(question.answer, response)["rougeL"].fmeasure
    return {"accuracy": (response, float(same)), "rougeL": (response, rouge)}


# ------------------------------------------------------------------------------------------------ tables


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
    :data:`manu_utils.protocols.PITFALLS` says what is wrong with them.

    ``protocol="robust"``: as zero-shot, with up to 50 tokens for a letter that may stand anywhere
    (:func:`manu_utils.protocols.find_letter`), cloze truths as whole words, and ``bleu``. Zero-shot unless ``shots`` are
    given: shots cost a model context and say more about its skill with the format than about what it knows. Intervals:
    :func:`manu_utils.protocols.summarise_with_intervals`.

    Args:
        sets: name -> dataset, such as :meth:`manu_utils.benchmark.Benchmark.sets`.
        shots: official: Full_Set, such as ``load_config("tiny", "Full_Set")``. Robust: people of the retain set of whom one
            who is in none of the scored sets is drawn, or None.
        seed: of the draws of shots and test images. Official: None draws anew each time, as the official code does.
            Robust: None is 0.
        resume: a file that answers are added to as they come; a run that was killed takes from it what was answered and
            gives the same table. Answers of other weights, protocols or questions in it are left alone.
        model_key: what tells the model from others in that file, in place of a hash of its weights (which takes half a
            minute for 7B); for a model that hooks change it must be given.
        accelerator: share the questions between its processes, see :func:`manu_utils.parallel.evaluate`.

    Returns:
        Columns :data:`COLUMNS`: set, task, modality, metric, person_id, question, answer (the model's), truth, value (0 to 1);
        in the order of ``sets``, tasks and modalities. Questions that are longer than the model has positions are named in a
        warning and not in the table; only prompts with shots are asked all the same, as the official code does, after one
        warning that counts them (:func:`manu_utils.protocols.check_positions`).

    Raises:
        TypeError: sets that are no dict of datasets, tasks or modalities that are no sequence of names, a seed or batch_size
            that is no whole number, or a model that is wrapped.
        ValueError: an unknown protocol, no sets, tasks or modalities, an unknown one, a set without questions of a task and
            modality (unless its benchmark has none, see :func:`manu_utils.benchmark.evaluation_questions`), shots where there
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
        from .protocols import evaluate_official

        return evaluate_official(
            model, processor, sets, shots, seed=seed, tasks=tasks, modalities=modalities, remember=remember, **options
        )
    judged = judge
    if protocol == "robust":
        from .protocols import check_positions, judge_robustly, respond, robust_prompts

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


def identity(processor, asked: Question | Prompt, **more) -> dict:
    """What tells a question or prompt from others in a file of answers (:func:`manu_utils.resume.remembered`)."""
    question = asked if isinstance(asked, Question) else asked.question
    if isinstance(asked, Question):
        text, images = prompt(asked, processor), [image for image in (asked.image,) if image is not None]
    else:
        text, images = asked.text, list(asked.images)
    own = {"person_id": question.person_id, "question": question.question, "prompt": text, "images": images}
    return own | {"options": question.options} | more


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


def append_leaderboard(
    path: str | Path, summary: pd.DataFrame, *, scale: str, seed: int, method: str, alpha: float | None
) -> None:
    """Write a summary to the leaderboard CSV, in place of any rows of the same scale, seed, method and alpha.

    The file is replaced as a whole and two notebooks that write at once wait for each other. A spreadsheet may have saved it
    in between, with a byte order mark or alpha 5.0 as 5; of a link the file that it points to is written.

    Args:
        path: made if it is not there, with its folder.
        alpha: percentage of neurons pruned; None for what prunes none (the vanilla model, baselines).

    Raises:
        ValueError: the file there is not a leaderboard, or the summary lacks a column; the file is left as it is.
    """
    from filelock import FileLock

    if missing := [name for name in LEADERBOARD[4:] if name not in summary]:
        raise ValueError(f"the summary has no column {', '.join(missing)}; pass summarise(evaluate(...)).")
    path = Path(path).expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    key = [str(scale), str(int(seed)), str(method), "" if alpha is None or math.isnan(alpha) else str(float(alpha))]
    measured = summary[list(LEADERBOARD[4:])].astype(object).values.tolist()
    with FileLock(path.with_name(f".{path.name}.lock")):  # hidden, so that it is nobody's file
        kept = _leaderboard_rows(path) if path.exists() else []
        rows = [row for row in kept if _run_of(row) != _run_of(key)] + [[*key, *values] for values in measured]
        part = path.with_name(f".{path.name}.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([LEADERBOARD, *rows])
        os.replace(part, path)


def _leaderboard_rows(path: Path) -> list[list[str]]:
    """The rows below the header.

    Raises:
        ValueError: it is something else.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
        if tuple(header) != LEADERBOARD or any(len(row) != len(LEADERBOARD) for row in rows):
            raise ValueError("other columns")
        for row in rows:
            _run_of(row)
    except (ValueError, IsADirectoryError, csv.Error) as error:  # bytes that are no text are a ValueError, too
        raise ValueError(
            f"{path} is not a leaderboard (CSV in UTF-8 with columns {', '.join(LEADERBOARD)}) and is left as it is; move it "
            "away, or name another file."
        ) from error
    return rows


def _run_of(row: list[str]) -> tuple:
    """The run that a row of the leaderboard is of, however a spreadsheet wrote its numbers."""
    scale, seed, method, alpha = row[:4]
    return scale, float(seed), method, float(alpha) if alpha else None
