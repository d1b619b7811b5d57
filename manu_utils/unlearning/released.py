"""What the code released with the MANU paper prunes: rows of linear layers, not neurons.

Its score is that of ``"released_score"``, but it looks elsewhere, and so chooses others (notebook
07). Written from a reading of ``prune/prune_incremental.py`` and what it calls (franciscoliu/MANU);
none of its code is here. Of what it does,

- it looks at the outputs of the linear layers: ``gate_proj``, ``up_proj`` and ``fc1`` before the
  non-linearity, and the channels of the residual stream that ``down_proj`` and ``fc2`` write;
- vision layers are scored by image + text and language layers by text alone, on prompt, answer and
  padding alike, and with the class token;
- the layers of a tower are pooled: a row has one score, and is zeroed in each of the last three
  layers;
- the spread is taken over layers and questions at each position, then averaged over positions,
  batches of four, and chunks of ten batches; each chunk shuffles anew, so that some questions are
  read twice and others never;
- of the retain set as many batches are read as the forget set has;
- the pool of each tower is the rows of its last three layers, and α % of each go.

Left out are its float16 and the chance that it ends early when memory runs out. For families that
it does not know, the layers of the MLPs and the chat template are taken in the same way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..benchmark.records import Question
from ..checks import check_real, check_whole
from ..models.encoding import fitting, opened
from ..models.neurons import check_alpha, find_neurons, towers
from ..models.passes import check_finite, exact_device, hooked, quiet_pass
from ..models.prompts import answer_texts, prompt
from ..progress import bar

BATCH, CHUNK, LAST_LAYERS, LIMIT, EPS = 4, 10, 3, 1e3, 1e-5
READS = {"vision": "multimodal", "language": "text"}  # the modality that scores each tower


def choose_rows(
    model,
    processor,
    forget: dict[str, list[Question]],
    retain: dict[str, list[Question]],
    *,
    alpha: float,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Rows that the authors' code zeroes: the highest scores of each tower's last three layers.

    Questions that are longer than the model has positions are named in a warning and left out.

    Args:
        forget, retain: ``"multimodal"`` and ``"text"`` -> questions with answers.
        alpha: percentage of the rows of a tower's last three layers.
        seed: of the order in which questions are read.

    Returns:
        Path of a linear layer -> bool [out_features], for :func:`prune_rows`. At least max(1, int(α
        / 100 · rows)) of each tower; more where rows have equal scores, as the copies of a row in
        three layers do.

    Raises:
        TypeError: α or seed of another type.
        ValueError: a missing modality, raw texts, MLPs of a tower that differ, outputs that are
            not [questions, positions, rows], or scores or last hidden states that are not finite.
    """
    check_real("alpha", alpha)
    check_alpha(alpha, allow_small=True)
    check_whole("seed", seed, least=0)
    find_neurons(model)  # refuses what cannot be pruned

    def readable(questions: Sequence[Question]) -> list[Question]:
        return [questions[index] for index in fitting(questions, processor, with_answer=True)[0]]

    rows: dict[str, Tensor] = {}
    for tower, members in towers(model).items():
        if not members:
            continue
        modality = READS[tower]
        if not forget.get(modality) or not retain.get(modality):
            raise ValueError(
                f"the {tower} tower is scored by {modality} questions; pass some of both sets."
            )
        kept = [readable(questions[modality]) for questions in (forget, retain)]
        n_batches = math.ceil(len(kept[0]) / BATCH)
        options = {"n_batches": n_batches, "seed": seed, "progress": progress}
        of_forget, of_retain = (
            _measure(model, processor, tower, items, **options) for items in kept
        )
        scores = {
            name: sum(
                2 * (f / (r + EPS) - 1)
                for f, r in zip(of_forget[name], of_retain[name], strict=True)
            )
            for name in of_forget
        }
        last = members[-LAST_LAYERS:]
        pool = torch.cat(list(scores.values())).repeat(len(last))
        check_finite(f"the scores of the {tower} tower are", pool)
        threshold = pool.topk(max(1, int(alpha / 100 * len(pool)))).values[-1]
        rows |= {
            f"{path}.{name}": scores[name] >= threshold for path, _, _ in last for name in scores
        }
    return rows


@torch.no_grad()
def _measure(
    model,
    processor,
    tower: str,
    questions: Sequence[Question],
    *,
    n_batches: int,
    seed: int,
    progress: bool,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Linear layer -> mean |x|, deviation and root mean square of its outputs, float64 [rows]."""
    members = towers(model)[tower]
    names = members[0][2]
    if model.config.model_type == "idefics2" and tower == "vision":
        names = names[:1]  # fc2 is commented out there
    modules = {name: [getattr(module, name) for _, module, _ in members] for name in names}
    if any(len({linear.out_features for linear in layers}) > 1 for layers in modules.values()):
        raise ValueError(
            f"the layers of the {tower} tower differ in size; rows of equal number cannot be "
            f"pooled."
        )
    sums: dict[str, list[Tensor]] = {}  # of the current batch: n, Σ|x|, Σx and Σx² at each position
    chunks: dict[str, list[Tensor]] = {name: [] for name in names}

    def count(name: str):
        def hook(module, arguments, output: Tensor) -> None:
            if output.dim() != 3:
                raise ValueError(
                    f"{name} of the {tower} tower has no [questions, positions, rows]; the "
                    f"released code cannot."
                )
            x = output.to(exact_device(output.device)).double().clamp(-LIMIT, LIMIT)
            parts = [x.new_tensor(len(x)), x.abs().sum(0), x.sum(0), (x * x).sum(0)]
            sums[name] = [
                one + other for one, other in zip(sums.get(name, [0] * 4), parts, strict=True)
            ]

        return hook

    order = list(_order(len(questions), n_batches, seed))
    counts = (
        (linear.register_forward_hook, count(name)) for name in names for linear in modules[name]
    )
    n_read = sum(map(len, order))
    with (
        quiet_pass(model),
        hooked(counts),
        bar(total=n_read, desc=f"released, {tower}", shown=progress) as shown,
    ):
        for chunk in order:
            positions: dict[str, list[Tensor]] = {name: [] for name in names}
            for indices in chunk:
                sums.clear()
                batch = _encode([questions[index] for index in indices], processor)
                batch = {key: value.to(model.device) for key, value in batch.items()}
                hidden = model.model(**batch, use_cache=False).last_hidden_state
                check_finite("the last hidden states are", hidden[batch["attention_mask"].bool()])
                for name, (n, absolute, total, squares) in sums.items():
                    spread = ((squares - total**2 / n).clamp(min=0) / (n - 1)).sqrt()
                    positions[name].append(
                        torch.stack([absolute / n, spread, (squares / n).sqrt()])
                    )
                shown.update()
            for name, parts in positions.items():
                chunks[name].append(torch.cat(parts, dim=1).mean(1).cpu())
    return {name: tuple(torch.stack(parts).mean(0)) for name, parts in chunks.items()}


def _order(n_questions: int, n_batches: int, seed: int) -> Iterator[list[list[int]]]:
    """The batches of each chunk: every chunk shuffles anew and takes those of its number."""
    rng = random.Random(seed)
    n_batches = min(n_batches, math.ceil(n_questions / BATCH))
    for start in range(0, n_batches, CHUNK):
        indices = rng.sample(range(n_questions), n_questions)
        whole = [indices[i : i + BATCH] for i in range(0, n_questions, BATCH)]
        yield whole[start : min(start + CHUNK, n_batches)]


def _encode(questions: Sequence[Question], processor) -> dict[str, Tensor]:
    """Prompt and answer, right-padded; LLaVA-1.5 in the authors' words, no end of sequence.

    Raises:
        ValueError: a raw text, for which the authors have no words.
    """
    if raw := next((q for q in questions if q.task == "raw"), None):
        raise ValueError(f"{raw.person_id}: the released code asks questions, no raw texts.")
    if type(processor).__name__ == "LlavaProcessor":
        image = f" {getattr(processor, 'image_token', None) or '<image>'}\n"
        texts = [
            f"USER:{'' if q.image is None else image}{q.question}\nASSISTANT: {q.answer}"
            for q in questions
        ]
    else:
        answers = answer_texts(questions, processor)
        texts = [
            f"{prompt(q, processor)}{answer}".strip()
            for q, answer in zip(questions, answers, strict=True)
        ]
    options = {
        "padding": True,
        "padding_side": "right",
        "return_tensors": "pt",
        "return_token_type_ids": False,
    }
    if questions[0].image is None:
        return dict(processor.tokenizer(texts, **options))
    return dict(processor(text=texts, images=[[image] for image in opened(questions)], **options))
