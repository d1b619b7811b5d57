"""Fine-tuning: one loop for the vanilla and the retrained model and all else with gradients.

One arithmetic: what is trained, and the optimiser's state, are float32 whatever the model's dtype
is, since bfloat16 rounds most small steps away. A CPU and MPS compute in float32; a CUDA device in
what :func:`pick_dtype` says, by autocast, with loss scaling where that is float16. Derived in
notebook 02.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import processes
from ..benchmark.records import Question
from ..checks import check_number, check_questions, check_whole, kind_of
from ..progress import bar
from . import precision
from .adapters import new_adapters
from .asking import answer_logits
from .encoding import encode, fitting
from .passes import gradients_of, kept_mode
from .precision import (
    autocast_to,
    check_trainable,
    device_of,
    float32_weights,
    language_weights,
)
from .silent import silent_skipped

_BAD_LOSSES = 3  # in a row; one batch may overflow float16


def answer_loss(model, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over a batch's answer tokens (a scalar), without prompt and padding."""
    logits, targets, _ = answer_logits(model, batch)
    return F.cross_entropy(logits.float(), targets)


def weight_of(batch: dict[str, Tensor]) -> float:
    """What the mean over the answer tokens of a batch counts where processes share it, see
    :func:`processes.weight`.
    """
    return processes.weight(batch["answer_mask"][:, 1:].sum())


def optimise(
    parameters: Iterable[nn.Parameter],
    loss_of_step: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    warmup: int = 50,
    hold: float = 0.0,
    watch: Callable[[], dict] | None = None,
    every: int = 50,
    log: Callable[[dict], None] | None = None,
    scaler: torch.amp.GradScaler | None = None,
    description: str = "training",
    progress: bool = True,
) -> list[dict]:
    """AdamW with warm-up, cosine decay to a tenth and gradient clipping at 1.

    Args:
        loss_of_step: returns the scalar loss of step 0, 1, ...
        steps, warmup, every: whole numbers from 1 on.
        lr: the learning rate after the warm-up, above 0.
        hold: fraction of the steps before the decay begins; 1 for no decay.
        watch: called before the first step, every ``every`` steps and after the last; its dict is
            kept with the step.
        log: given each row of the history as soon as it is there: ``rows.append``, ``print``, or
            what a logger offers, such as ``wandb.log``.
        scaler: of the loss, for float16. Where its scale is too large for the gradients, it is
            halved and the backward pass done again, so that no step is lost; a single loss that is
            not finite is passed over.

    Returns:
        One dict per visit of ``watch``: ``step``, ``loss`` and what ``watch`` returned; none
        without ``watch`` and ``log``.

    Raises:
        TypeError, ValueError: a number of the wrong type or out of range, before the first step; or
            ``watch`` returned no dict.
        FloatingPointError: "loss is nan at step ..." as soon as the loss, or its gradient, is not
            finite; with a scaler, if the loss stays so for three steps or at the last one, or the
            gradient is so at every scale. Also if a weight is not finite after the last step, which
            no later loss shows.
    """
    check_schedule(steps=steps, lr=lr, warmup=warmup, hold=hold, every=every)
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    optimizer.zero_grad(set_to_none=True)  # what an earlier backward pass of the caller left
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    history: list[dict] = []
    bad = 0

    def look(step: int, loss: float) -> None:
        if watch is not None or log is not None:
            seen = {} if watch is None else watch()
            if not isinstance(seen, Mapping):
                raise TypeError(f"watch returned {kind_of(seen)}; it must return a dict.")
            history.append({"step": step, "loss": loss, **seen})
        if log is not None and processes.number() == 0:
            log(dict(history[-1]))

    look(0, math.nan)
    for step in bar(range(steps), desc=description, shown=progress):
        decayed = max(0.0, step / steps - hold) / (1 - hold) if hold < 1 else 0.0
        rate = lr * min(1.0, (step + 1) / warmup) * (0.1 + 0.45 * (1 + math.cos(math.pi * decayed)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        own_loss = loss_of_step(step)
        loss = own_loss.detach().clone()
        processes.average([loss])  # all decide by the same number
        if torch.isfinite(loss):
            bad = 0
            _step(own_loss, parameters, optimizer, scaler, step)
            del own_loss  # else its graph, which a scaler keeps, would live on during the next step
        else:
            bad += 1
            if not scaler.is_enabled() or bad == _BAD_LOSSES or step == steps - 1:
                raise FloatingPointError(
                    f"loss is {loss.item()} at step {step}; lower lr or check the data for empty "
                    f"answers."
                )
        if step == steps - 1 and not all(parameter.isfinite().all() for parameter in parameters):
            # no loss shows it
            raise FloatingPointError(
                "a trained weight is no longer finite after the last step; lower lr."
            )
        if (step + 1) % every == 0 or step == steps - 1:
            look(step + 1, loss.item())
    return history


def check_schedule(
    *, steps: int, lr: float, warmup: int = 50, hold: float = 0.0, every: int = 50
) -> None:
    """What :func:`optimise` refuses, for those who want to know before they begin.

    Raises:
        TypeError, ValueError: a number of the wrong type or out of range.
    """
    for name, value in {"steps": steps, "warmup": warmup, "every": every}.items():
        check_whole(name, value)
    check_number("lr", lr, above=0)
    check_number("hold", hold, least=0, most=1)


def _step(
    loss: Tensor, parameters: list[nn.Parameter], optimizer, scaler: torch.amp.GradScaler, step: int
) -> None:
    """One step of the optimiser. A scaler halves its scale until the gradients are finite."""
    while True:
        scale = scaler.get_scale()
        scaler.scale(loss).backward(retain_graph=scaler.is_enabled())
        scaler.unscale_(optimizer)
        processes.average(parameter.grad for parameter in parameters if parameter.grad is not None)
        finite = torch.isfinite(nn.utils.clip_grad_norm_(parameters, 1.0))
        if finite or scaler.is_enabled():
            scaler.step(optimizer)  # which a scaler leaves out if a gradient is not finite
            scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if finite:
            return
        if scaler.get_scale() >= scale or scaler.get_scale() < 1:
            raise FloatingPointError(
                f"loss is {loss.item()} at step {step}, but its gradient is not finite; lower lr."
            )


def sample_forever(items: list, size: int, seed: int) -> Iterator[list]:
    """Batches of ``size`` items in random order, each item once before any comes again."""
    rng = random.Random(seed)
    queue: list = []
    while True:
        while len(queue) < size:
            # popped from the end: what is left goes first
            queue = rng.sample(items, len(items)) + queue
        yield [queue.pop() for _ in range(size)]


@contextmanager
def _language_model_only(model, lora_rank: int | None, seed: int) -> Iterator[list[nn.Parameter]]:
    """The parameters to train, all others frozen, in training mode. On leaving, adapters are merged
    into the weights, and every ``requires_grad``, dtype and mode is as it was; after an error or
    interrupt the weights are, too.
    """
    trained = language_weights(model)
    whole = trained if lora_rank is None else []
    try:
        with (
            kept_mode(model), gradients_of(model, whole), float32_weights(model, whole),
            new_adapters(model, lora_rank, seed) as adapters, silent_skipped(model),
        ):  # fmt: skip
            model.train()
            yield adapters or [
                parameter for parameter in model.parameters() if parameter.requires_grad
            ]
    finally:
        for parameter in trained:
            parameter.grad = None


def train_language_model(
    model,
    loss_of_step: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    lora_rank: int | None = None,
    seed: int = 0,
    watch: Callable[[], dict] | None = None,
    progress: bool = True,
    **options,
) -> list[dict]:
    """Take gradient steps on the language model; vision tower and projector stay frozen.

    Args:
        model: changed in place; mode, dtypes and ``requires_grad`` are as before afterwards, and
            after an error or interrupt so are the weights (a copy of what is trained is kept on the
            CPU for that).
        loss_of_step: returns the scalar loss of step 0, 1, ...; it is called in train mode and, on
            a CUDA device, under autocast to bfloat16, or float16 where bfloat16 is only emulated.
        lora_rank: train adapters of this rank beside the linear layers and merge them at the end
            (LoRA); None trains all weights. What is trained is float32 whatever the model's dtype.
        seed: of the adapters.
        watch: see :func:`optimise`; called in eval mode, outside autocast.
        options: the others of :func:`optimise`.

    Returns:
        The history of :func:`optimise`.

    Raises:
        TypeError, ValueError: a number of the wrong type or out of range, a wrapped model, or
            weights that are quantised, offloaded or of inference mode; the model is untouched.
        RuntimeError: a GPU has no room for all weights, their gradients and moments in float32; the
            model is untouched.
        FloatingPointError: see :func:`optimise` and :func:`float32_weights`; the model is as it
            was.
    """
    schedule = {
        name: value for name, value in options.items() if name in ("warmup", "hold", "every")
    }
    check_schedule(steps=steps, lr=lr, **schedule)
    if lora_rank is not None:
        check_whole("lora_rank", lora_rank)
    check_whole("seed", seed, least=0)
    check_trainable(model, lora_rank)
    device = device_of(model)
    dtype = precision.pick_dtype(device)
    scaler = torch.amp.GradScaler(device.type, enabled=True) if dtype == torch.float16 else None

    def loss_in_its_precision(step: int) -> Tensor:
        with autocast_to(device, dtype):
            return loss_of_step(step)

    def watch_in_eval_mode() -> dict:
        model.eval()
        seen = watch() if watch is not None else {}
        model.train()
        return seen

    with _language_model_only(model, lora_rank, seed) as parameters:
        return optimise(
            parameters, loss_in_its_precision, steps=steps, lr=lr, watch=watch_in_eval_mode,
            scaler=scaler, progress=progress, **options,
        )  # fmt: skip


def answer_batches(
    questions: dict[str, list[Question]],
    processor,
    batch_size: int,
    seed: int,
    device: str | torch.device,
) -> Iterator[list[dict[str, Tensor]]]:
    """Forever a batch of questions and answers for every modality, see :func:`sample_forever`.

    Questions that are too long for the model are in none (:func:`fitting`). Several processes draw
    the same batch, and each has its share of it.

    Raises:
        ValueError: a batch with fewer questions than there are processes.
    """
    if batch_size < processes.count():
        n = processes.count()
        raise ValueError(f"batch_size={batch_size} is less than {n} processes; make it larger.")
    kept = [
        [items[index] for index in fitting(items, processor, with_answer=True)[0]]
        for items in questions.values()
    ]
    streams = [sample_forever(items, batch_size, seed + i) for i, items in enumerate(kept)]
    while True:
        drawn = [processes.own(next(stream)) for stream in streams]
        yield [encode(own, processor, with_answer=True, device=device) for own in drawn]


def fine_tune(
    model,
    processor,
    questions: dict[str, list[Question]],
    *,
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 1e-3,
    lora_rank: int | None = None,
    seed: int = 0,
    watch: Callable[[], dict] | None = None,
    every: int = 50,
    log: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> list[dict]:
    """Fine-tune the language model on questions and answers; tower and projector stay frozen.

    Each step takes one batch of every modality in ``questions``. This is how the vanilla model of
    MLLMU-Bench is made (there with LoRA on the language model).

    Args:
        model: changed in place; mode, dtypes and ``requires_grad`` are as before afterwards, and
            after an error or interrupt so are the weights.
        questions: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        steps, batch_size, every: whole numbers from 1 on.
        lora_rank: see :func:`train_language_model`.
        seed: of the order of the questions, and of the adapters.
        watch, every, log: see :func:`optimise`.

    Returns:
        The history of :func:`optimise`.

    Raises:
        TypeError: questions that are no dict of lists.
        ValueError: if a modality has no questions, or an empty answer; also what
            :func:`train_language_model` raises.
    """
    check_whole("batch_size", batch_size)
    check_whole("seed", seed, least=0)
    check_questions("questions", questions)
    empty = [modality for modality, items in questions.items() if not items]
    if empty or not questions:
        raise ValueError(
            f"no training questions for {empty or 'any modality'}; pass at least one question per "
            f"modality."
        )
    lessons = answer_batches(questions, processor, batch_size, seed, device_of(model))
    return train_language_model(
        model, lambda step: sum(answer_loss(model, b) * weight_of(b) for b in next(lessons)),
        steps=steps, lr=lr, lora_rank=lora_rank, seed=seed, watch=watch, every=every, log=log,
        progress=progress,
    )  # fmt: skip
