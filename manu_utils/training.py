"""Fine-tuning: one loop for the vanilla model, the retrained reference and everything else that takes gradient steps.

Derived in notebook 02.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import encode, fitting
from .benchmark import Question
from .progress import bar


def answer_logits(model, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the positions that predict an answer token, and nowhere else.

    Args:
        model: a vision-language model with ``model.model`` (hidden states) and an output embedding.
        batch: what :func:`manu_utils.batches.encode` returns with ``with_answer=True``; b rows of t tokens.

    Returns:
        logits [m, vocabulary], targets int64 [m] and the row of the batch that each belongs to, int64 [m], for the m answer
        tokens of the batch.
    """
    inputs = {key: value for key, value in batch.items() if key != "answer_mask"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state  # [b, t, hidden]
    predicts = batch["answer_mask"][:, 1:]  # position p predicts token p + 1
    rows = predicts.nonzero()[:, 0]
    return model.get_output_embeddings()(hidden[:, :-1][predicts]), batch["input_ids"][:, 1:][predicts], rows


def answer_loss(model, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the answer tokens of a batch (a scalar); prompt and padding do not count."""
    logits, targets, _ = answer_logits(model, batch)
    return F.cross_entropy(logits.float(), targets)


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
    description: str = "training",
    progress: bool = True,
) -> list[dict]:
    """AdamW with warm-up, cosine decay to a tenth and gradient clipping at 1.

    Args:
        loss_of_step: returns the scalar loss of step 0, 1, ...
        hold: fraction of the steps before the decay begins; 1 for no decay.
        watch: called before the first step, every ``every`` steps and after the last; its dict is kept with the step.

    Returns:
        One dict per visit of ``watch``: ``step``, ``loss`` and what ``watch`` returned.

    Raises:
        FloatingPointError: "loss is nan at step ..." as soon as the loss is not finite.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    history: list[dict] = []
    if watch is not None:
        history.append({"step": 0, "loss": math.nan} | watch())
    for step in bar(range(steps), desc=description, shown=progress):
        decayed = max(0.0, step / steps - hold) / (1 - hold) if hold < 1 else 0.0
        rate = lr * min(1.0, (step + 1) / warmup) * (0.1 + 0.45 * (1 + math.cos(math.pi * decayed)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of_step(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {step}; lower lr or check the data for empty answers.")
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if watch is not None and ((step + 1) % every == 0 or step == steps - 1):
            history.append({"step": step + 1, "loss": loss.item()} | watch())
    return history


def sample_forever(items: list, size: int, seed: int) -> Iterator[list]:
    """Batches of ``size`` items in random order, each item once before any comes again."""
    rng = random.Random(seed)
    queue: list = []
    while True:
        while len(queue) < size:
            queue = rng.sample(items, len(items)) + queue  # popped from the end: what is left goes first
        yield [queue.pop() for _ in range(size)]


@contextmanager
def gradients_of(model, parameters: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Gradients flow into ``parameters`` and into no other of the model; on leaving, every ``requires_grad`` is as it was."""
    wanted = {id(parameter) for parameter in parameters}
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)


@contextmanager
def _language_model_only(model, lora_rank: int | None, seed: int) -> Iterator[list[nn.Parameter]]:
    """The parameters to train, all others frozen, in training mode. On leaving, adapters are merged into the weights, every
    ``requires_grad`` is as it was and the model is in eval mode."""
    parts = (model.get_decoder(), model.get_output_embeddings())
    wrapped = None
    with gradients_of(model, (parameter for part in parts for parameter in part.parameters())):
        try:
            if lora_rank is not None:
                wrapped = _add_lora(model, lora_rank, seed)
            model.train()
            yield [parameter for parameter in model.parameters() if parameter.requires_grad]
        finally:
            if wrapped is not None:
                wrapped.merge_and_unload()
                vars(model).pop("peft_config", None)  # an older peft leaves it, and the next save would look for an adapter
            model.eval()


def _add_lora(model, rank: int, seed: int):
    """Low-rank adapters (LoRA) beside every linear layer of the language model; peft freezes everything else.

    Rank and scale are equal, as in the official fine-tuning. The layers are named by their whole path, since a vision tower
    may use the same short names.
    """
    from peft import LoraConfig, LoraModel

    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    linear = [f"{path}.{name}" for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LoraModel(model, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=linear), "default")


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
        model: changed in place; left in eval mode, every parameter's ``requires_grad`` as it was.
        loss_of_step: returns the scalar loss of step 0, 1, ...; it is called under bfloat16 autocast.
        lora_rank: train adapters of this rank beside the linear layers and merge them at the end (LoRA); None trains all
            weights.
        seed: of the adapters.
        watch: see :func:`optimise`; called in eval mode.
        options: the others of :func:`optimise`.

    Returns:
        The history of :func:`optimise`.

    Raises:
        ValueError: steps below 1, lr not positive, or lora_rank below 1; the model is untouched.
    """
    if steps < 1 or not lr > 0:
        raise ValueError(f"steps={steps} must be at least 1 and lr={lr} positive.")
    if lora_rank is not None and lora_rank < 1:
        raise ValueError(f"lora_rank={lora_rank} must be at least 1, or None to train all weights.")
    device = next(model.parameters()).device

    def loss_in_bfloat16(step: int) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "cpu"):
            return loss_of_step(step)

    def watch_in_eval_mode() -> dict:
        model.eval()
        seen = watch() if watch is not None else {}
        model.train()
        return seen

    with _language_model_only(model, lora_rank, seed) as parameters:
        return optimise(
            parameters, loss_in_bfloat16, steps=steps, lr=lr, watch=watch_in_eval_mode, progress=progress, **options
        )  # fmt: skip


def answer_batches(
    questions: dict[str, list[Question]], processor, batch_size: int, seed: int, device: str | torch.device
) -> Iterator[list[dict[str, Tensor]]]:
    """Forever: one batch of questions with answers for every modality in ``questions``, see :func:`sample_forever`.

    Questions that are too long for the model are in none (:func:`manu_utils.batches.fitting`).
    """
    kept = [[items[index] for index in fitting(items, processor, with_answer=True)] for items in questions.values()]
    streams = [sample_forever(items, batch_size, seed + i) for i, items in enumerate(kept)]
    while True:
        yield [encode(next(stream), processor, with_answer=True, device=device) for stream in streams]


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
    progress: bool = True,
) -> list[dict]:
    """Fine-tune the language model on questions with answers; vision tower and projector stay frozen.

    Each step takes one batch of every modality in ``questions``. This is how the vanilla model of MLLMU-Bench is made
    (there with LoRA on the language model).

    Args:
        model: changed in place; left in eval mode, every parameter's ``requires_grad`` as it was.
        questions: modality (``"multimodal"``, ``"text"``) -> questions with answers.
        lora_rank: see :func:`train_language_model`.
        watch, every: see :func:`optimise`.

    Returns:
        The history of :func:`optimise`.

    Raises:
        ValueError: if a modality has no questions; also what :func:`train_language_model` raises.
    """
    empty = [modality for modality, items in questions.items() if not items]
    if empty or not questions:
        raise ValueError(f"no training questions for {empty or 'any modality'}; pass at least one question per modality.")
    lessons = answer_batches(questions, processor, batch_size, seed, next(model.parameters()).device)
    return train_language_model(
        model, lambda step: sum(answer_loss(model, batch) for batch in next(lessons)),
        steps=steps, lr=lr, lora_rank=lora_rank, seed=seed, watch=watch, every=every, progress=progress,
    )  # fmt: skip
