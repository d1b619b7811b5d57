"""Ask a model: greedy answers, the likeliest option, or whether the truth is known word for word.

In batches, in eval mode, whatever the model's own generation settings are. Derived in notebook 05.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import processes
from ..benchmark.records import Question, check_list
from ..checks import check_whole
from ..progress import bar
from .encoding import batches, padding_token, plan_batches, predicting
from .passes import check_finite, check_processor, last_hidden, quiet_pass
from .prefix_tree import (
    can_share,
    can_share_texts,
    continue_shared,
    plan_shared_batches,
    read_shared,
    shared_batches,
    worth_sharing,
)

if TYPE_CHECKING:
    import pandas as pd


def answer_logits(model, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the positions that predict an answer token, and nowhere else.

    Args:
        model: a vision-language model with ``model.model`` (hidden states) and an output embedding.
        batch: what :func:`encode` returns with ``with_answer=True``; b rows of t tokens.
            Or a batch of :func:`shared_batches`.

    Returns:
        logits [m, vocabulary], targets int64 [m] and the question of the batch that each belongs
        to, int64 [m], for the m answer tokens of the batch.
    """
    if "reads" in batch:
        hidden, _ = read_shared(model, batch)
        return model.get_output_embeddings()(hidden), batch["targets"], batch["reads"][:, 0]
    rows, positions = predicting(batch).nonzero().T
    read = rows * batch["input_ids"].shape[1] + positions
    hidden = last_hidden(model, batch, read).flatten(0, -2)  # [b · t, hidden]
    return (
        model.get_output_embeddings()(hidden[read]),
        batch["input_ids"][rows, positions + 1],
        rows,
    )


def generate_answers(
    model,
    processor,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 50,
    stop: Sequence[str] = (),
    batch_size: int = 64,
    progress: bool = True,
) -> list[str]:
    """The greedy answer to each question, stripped, without the prompt, in order.

    Of questions that are too long for the model a warning says so, and the answer is ``""``.
    Questions with and without an image may be mixed. A batch is halved when CUDA runs out of
    memory. LLaVA computes what questions share once (:func:`shared_batches`), and so does a Llama
    where many have one prompt; other models go through their own ``generate``.

    Nothing of the model's own generation settings counts but its end and padding tokens.

    Args:
        stop: an answer ends before the first of these texts, such as "\\n\\n" after few shots.

    Raises:
        TypeError: no list of questions, max_new_tokens or batch_size is no whole number, or the
            model is wrapped.
        ValueError: no questions, max_new_tokens or batch_size below 1, an empty ``stop``, a prompt
            without tokens, or logits that are not finite.
    """
    check_list(questions)
    check_processor(processor)
    if isinstance(stop, str) or not all(stop):
        raise ValueError(f"stop={stop!r} must be a list of texts, none of them empty.")
    tokenizer, greedy = processor.tokenizer, greedy_config(model, processor, max_new_tokens)
    answers = [""] * len(questions)

    @torch.no_grad()
    def write(batch: dict[str, Tensor]) -> Tensor:
        if "reads" in batch:
            return continue_shared(model, batch, greedy)
        return model.generate(**batch, generation_config=greedy)[:, batch["input_ids"].shape[1] :]

    for indices, new in in_batches(
        write, model, processor, questions, batch_size, False, progress, "answers"
    ):
        for index, text in zip(
            indices, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            for end in stop:  # before it is stripped: it may begin with one
                text = text.partition(end)[0]
            answers[index] = text.strip()
    return answers


def greedy_config(model, processor, max_new_tokens: int):
    """Greedy decoding that ends at any end-of-sequence token of the model or the tokenizer.

    Raises:
        TypeError: max_new_tokens is no whole number.
        ValueError: max_new_tokens below 1, or a tokenizer without padding token.
    """
    from transformers import GenerationConfig

    check_whole("max_new_tokens", max_new_tokens)
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, use_cache=True,
        eos_token_id=sorted(end_tokens(model, processor)), pad_token_id=padding_token(processor),
    )  # fmt: skip


def end_tokens(model, processor) -> set[int]:
    """The tokens that end an answer: those of the model's generation settings and the tokenizer's.

    Raises:
        ValueError: there are none.
    """
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), processor.tokenizer.eos_token_id} - {
        None
    }
    if not ends:
        raise ValueError(
            "neither model nor tokenizer names an end of sequence; set "
            "processor.tokenizer.eos_token."
        )
    return ends


@torch.no_grad()
def known(
    model, processor, questions: Sequence[Question], *, batch_size: int = 64, progress: bool = True
) -> Tensor:
    """Whether the greedy answer is the truth, word for word, without generating it.

    Greedy decoding writes the truth exactly if the arg-max at every token of it is that token, and
    then any token that ends an answer, so one forward pass decides. For classification the truth is
    the letter; a raw text has no end, and the greedy answer begins with the truth.

    Returns:
        bool [n_questions], on the CPU; false where the truth is too long for the model, which a
        warning says.

    Raises:
        TypeError: no list of questions, batch_size is no whole number, or the model is wrapped.
        ValueError: no questions, batch_size below 1, or logits that are not finite.
    """
    check_list(questions)
    check_processor(processor)
    questions = [replace(question, answer=truth_of(question)) for question in questions]
    right = torch.zeros(len(questions), dtype=torch.bool)
    ends = torch.tensor(sorted(end_tokens(model, processor)))

    def share_right(batch: dict[str, Tensor]) -> Tensor:
        logits, targets, rows = answer_logits(model, batch)
        written, all_ends = logits.argmax(-1), ends.to(targets.device)
        same = (written == targets) | torch.isin(written, all_ends) & torch.isin(targets, all_ends)
        return _mean_per_question(same.float(), rows)

    for indices, share in in_batches(
        share_right, model, processor, questions, batch_size, True, progress, "known"
    ):
        right[indices] = (share == 1).cpu()
    return right


def exact_answers(
    model,
    processor,
    panels: Mapping[tuple[str, str], Sequence[Question]],
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> pd.DataFrame:
    """The share of questions that are answered exactly (:func:`known`), of the model as it is now.

    Args:
        panels: (set, modality) -> questions, such as :func:`manu_utils.benchmark.open_questions`.

    Returns:
        Columns set, modality, value (0 to 1) and n (questions), in the order of ``panels``.

    Raises:
        TypeError, ValueError: see :func:`known`.
    """
    import pandas as pd

    options = {"batch_size": batch_size, "progress": progress}
    shares = [
        known(model, processor, asked, **options).double().mean().item()
        for asked in panels.values()
    ]
    rows = [
        (*key, share, len(asked))
        for (key, asked), share in zip(panels.items(), shares, strict=True)
    ]
    return pd.DataFrame(rows, columns=["set", "modality", "value", "n"])


def truth_of(question: Question) -> str:
    """What the model should write: the right letter for classification, else the answer.

    Raises:
        ValueError: a classification question whose answer is none of its options.
    """
    if question.task != "classification":
        return question.answer
    letter = next(
        (letter for letter, words in (question.options or {}).items() if words == question.answer),
        None,
    )
    if letter is None:
        raise ValueError(
            f"person {question.person_id}: {question.answer!r} is no option of "
            f"{question.question!r}."
        )
    return letter


@torch.no_grad()
def likeliest_options(
    model, processor, questions: Sequence[Question], *, batch_size: int = 64, progress: bool = True
) -> list[str]:
    """The letter of the option whose words the model finds likeliest; it is shown no options.

    Each option is scored as the short answer to the question, in the cloze template with the blank
    after the question: mean log-likelihood per token, end of sequence included. Unlike the
    generated letter this asks for the knowledge alone, not for the skill of finding it among
    lettered options.

    Returns:
        One letter per question; ``""`` if all of its options are too long for the model, which a
        warning says.

    Raises:
        TypeError: no list of questions, batch_size is no whole number, or the model is wrapped.
        ValueError: no questions, one without options, batch_size below 1, or logits that are not
            finite.
    """
    check_list(questions)
    check_processor(processor)
    if missing := next((question for question in questions if not question.options), None):
        raise ValueError(
            f"person {missing.person_id}: {missing.question!r} has no options to compare."
        )
    asked = [
        replace(
            question, question=f"{question.question} __", answer=words, task="cloze", options=None
        )
        for question in questions
        for words in question.options.values()
    ]
    likelihood = torch.full((len(asked),), -math.inf)

    def mean_log_likelihood(batch: dict[str, Tensor]) -> Tensor:
        logits, targets, rows = answer_logits(model, batch)
        return _mean_per_question(
            logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0], rows
        )

    for indices, means in in_batches(
        mean_log_likelihood, model, processor, asked, batch_size, True, progress, "options"
    ):
        likelihood[indices] = means.cpu()
    parts = likelihood.split([len(question.options) for question in questions])
    letters = [
        list(question.options)[part.argmax()]
        for question, part in zip(questions, parts, strict=True)
    ]
    return [
        "" if part.isinf().all() else letter for letter, part in zip(letters, parts, strict=True)
    ]


def _mean_per_question(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of ``values`` float [m] by the question in ``rows`` int64 [m]: float [n_questions]."""
    counts = rows.bincount()
    return values.new_zeros(len(counts)).index_add_(0, rows, values) / counts


def in_batches(
    work: Callable[[dict[str, Tensor]], object], model, processor, questions: Sequence,
    batch_size: int, with_answer: bool, progress: bool, name: str, make: Callable | None = None,
) -> Iterator[tuple[list[int], object]]:  # fmt: skip
    """Yield (indices, work(batch)), each under :func:`_as_asked`; when CUDA is out of memory, go on
    with half the batch size.

    Args:
        questions: what ``make`` takes: Questions, unless it is given.
        make: gives the batches, called as :func:`batches`. Without it several processes share those
            that one would compute, and each is given the results of all.
    """
    check_whole("batch_size", batch_size)
    split = make is None and processes.count() > 1
    if make is None:
        shared = can_share(model) or (
            can_share_texts(model) and worth_sharing([one.question for one in questions])
        )
        make, plan = (
            (shared_batches, plan_shared_batches) if shared else (batches, plan_batches)
        )
    if split:
        mine = processes.own_indices(
            len(questions), lambda: plan(questions, processor, batch_size, with_answer)
        )
        own, shows = [questions[index] for index in mine], progress and processes.number() == 0
        found = in_batches(work, model, processor, own, batch_size, with_answer, shows, name, make)
        yield from processes.gathered(
            [([mine[index] for index in indices], result.cpu()) for indices, result in found]
        )
        return

    def asked(batch: dict[str, Tensor]) -> object:
        with _as_asked(model):
            return work(batch)

    with bar(total=len(questions), desc=name, shown=progress) as shown:
        for indices, result in as_memory_allows(
            asked, make, processor, questions, batch_size, with_answer, model.device
        ):
            shown.update(len(indices))
            yield indices, result


def as_memory_allows(
    work: Callable[[dict[str, Tensor]], object], make: Callable, processor, questions: Sequence,
    batch_size: int, with_answer: bool, device: str | torch.device,
) -> Iterator[tuple[list[int], object]]:  # fmt: skip
    """Yield (indices, work(batch)) for the batches of ``make``, which is called as :func:`batches`;
    when CUDA is out of memory, go on with half the batch size.

    Args:
        work: where it fails it has changed nothing, since it is called again with fewer questions.
    """
    todo = list(range(len(questions)))
    while todo:
        done: set[int] = set()
        try:
            chosen = [questions[index] for index in todo]
            for positions, batch in make(chosen, processor, batch_size, with_answer, device):
                result = work(batch)
                indices = [todo[position] for position in positions]
                done.update(indices)
                yield indices, result
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            print(f"out of memory; going on with batches of {batch_size}")
        else:
            return
        # not in the handler, where the traceback still holds the tensors
        torch.cuda.empty_cache()
        todo = [index for index in todo if index not in done]


@contextmanager
def _as_asked(model) -> Iterator[None]:
    """What every pass that asks runs in: :func:`quiet_pass`, with generation settings that are all
    defaults, since ``generate`` fills what it is not told from the model's own, and logits that
    must be finite.
    """
    from transformers import GenerationConfig

    # [m, vocabulary], or of generate [b, t, vocabulary] with padding first
    def look(module, _, logits: Tensor) -> None:
        check_finite("the model's logits are", logits if logits.dim() == 2 else logits[:, -1])

    with quiet_pass(model):
        own = model.generation_config
        hook = model.get_output_embeddings().register_forward_hook(look)
        model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            model.generation_config = own
            hook.remove()
