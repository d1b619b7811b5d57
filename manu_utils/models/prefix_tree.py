"""Optional reading: what questions begin with alike, an image above all, is read once.

A row of a shared batch is a tree of tokens (a prefix tree). Without it everything gives the same
answers, only slower.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..benchmark.records import MODALITIES, Question
from .encoding import (
    check_image_tokens,
    check_prompts,
    fitting,
    image_tokens,
    opened,
    padding_token,
    with_answers,
)
from .prompts import answer_texts, are_raw, image_token_of, needs_special_tokens
from .silent import last_layer_at

PICTURES_AT_ONCE = 8  # decoded for a shared batch at a time: large ones are 3 MB and more
TEXTS_AT_ONCE = 512  # a tokenizer's whole answer takes kilobytes a text


def shared_batches(
    questions: Sequence[Question],
    processor,
    batch_size: int,
    with_answer: bool,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """As :func:`batches`, but what questions begin with alike is there once: to read, not to train.

    The questions about one image (one object) share a row, and so do the text questions with one
    prompt, such as the options of a question. A row is a tree of tokens, each of which attends to
    what precedes it in its own question, so that a causal language model computes the same hidden
    states as for every question by itself. A batch of r rows takes no more tokens than
    ``batch_size`` of its longest question would. For processors of LLaVA, that repeat the image
    token once per feature.

    Returns:
        Pairs of (indices into ``questions``, batch): ``input_ids`` and ``position_ids`` int64 [r,
        t]; ``attention_mask`` bool [r, 1, t, t], true where the token of the row may attend to that
        of the column; with images ``pixel_values`` float32 [r, 3, h, w]; ``reads`` int64 [m, 3],
        the question of the batch (ascending), row and position of every prediction that is asked
        for: the first token after the prompt, or ``with_answer`` all tokens of the answer, end of
        sequence included, which are in ``targets`` int64 [m].

    Raises:
        ValueError: batch_size below 1, or see :func:`encode`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive.")
    plan, tokens_of, n_after = _plan_shared(questions, processor, batch_size, with_answer)
    pad = padding_token(processor)

    def pack(rows: list[list[int]]) -> dict[str, Tensor]:
        batch = pack_read(rows, tokens_of, n_after, pad)
        asked = [questions[row[0]] for row in rows]
        if asked[0].image is not None:
            parts = [
                asked[start : start + PICTURES_AT_ONCE]
                for start in range(0, len(asked), PICTURES_AT_ONCE)
            ]
            pixels = [
                processor.image_processor(opened(part), return_tensors="pt")["pixel_values"]
                for part in parts
            ]
            batch["pixel_values"] = torch.cat(pixels)
            check_image_tokens(batch, processor)
        return {key: value.to(device) for key, value in batch.items()}

    return (([index for row in rows for index in row], pack(rows)) for rows in plan)


def pack_read(
    rows: list[list[int]],
    tokens_of: Callable[[int], list[int]],
    n_after: Mapping[int, int] | Sequence[int],
    pad: int,
) -> dict[str, Tensor]:
    """A batch of rows of indices, and where it is read, as :func:`shared_batches` has it, on the
    CPU and without images.

    Args:
        tokens_of: the tokens of what an index is of.
        n_after: how many of them are the answer's: where there is none, what follows the last token
            is asked for.
    """
    sequences = [[tokens_of(index) for index in row] for row in rows]
    batch, places = pack_rows(sequences, pad)
    reads: list[tuple[int, int, int]] = []
    targets: list[int] = []
    indices = [index for row in rows for index in row]
    own = [sequence for row in sequences for sequence in row]
    for number, (index, sequence, (row, path)) in enumerate(
        zip(indices, own, places, strict=True)
    ):
        border = len(sequence) - n_after[index]
        read = path[border - 1 : -1] if n_after[index] else path[-1:]
        reads += [(number, row, node) for node in read]
        targets += sequence[border:]
    batch["reads"] = torch.tensor(reads)
    if targets:
        batch["targets"] = torch.tensor(targets)
    return batch


def pack_rows(
    rows: list[list[list[int]]], pad: int
) -> tuple[dict[str, Tensor], list[tuple[int, list[int]]]]:
    """A batch whose rows are trees of token sequences, and where each is: its row and nodes.

    Returns:
        ``input_ids``, ``position_ids`` and ``attention_mask`` as :func:`shared_batches` has them;
        (row, nodes) of every sequence, row after row.
    """
    trees = [_tree(row) for row in rows]
    size = (len(rows), max(len(tokens) for tokens, _ in trees))
    ids, positions = torch.full(size, pad), torch.zeros(size, dtype=torch.int64)
    # padding sees itself: no row of the mask is empty
    mask = torch.eye(size[1], dtype=torch.bool).repeat(len(rows), 1, 1)
    earlier = torch.ones(size[1], size[1], dtype=torch.bool).tril()
    for row, (tokens, paths) in enumerate(trees):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        for path in paths:
            nodes, t = torch.tensor(path), len(path)
            positions[row, nodes] = torch.arange(t)
            mask[row, nodes[:, None], nodes] = earlier[:t, :t]
    batch = {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}
    return batch, [(row, path) for row, (_, paths) in enumerate(trees) for path in paths]


def plan_shared_batches(
    questions: Sequence[Question], processor, batch_size: int, with_answer: bool
) -> list[list[int]]:
    """The indices into ``questions`` of each batch of :func:`shared_batches`, in order.

    As :func:`plan_batches`, unless more than ``batch_size`` questions share an image or a prompt.
    """
    plan, *_ = _plan_shared(questions, processor, batch_size, with_answer)
    return [[index for row in rows for index in row] for rows in plan]


def _plan_shared(
    questions: Sequence[Question], processor, batch_size: int, with_answer: bool
) -> tuple[list[list[list[int]]], Callable[[int], list[int]], dict[int, int]]:
    """The batches of :func:`shared_batches`: rows of indices that share a prompt, widest first.

    Returns:
        The batches, what gives the tokens of a question by its index, and how many of these are the
        answer's.
    """
    tokenizer = processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids(image_token_of(processor))
    kept, prompts = fitting(questions, processor, with_answer)
    groups: dict[object, list[int]] = {}
    tokens: dict[int, array] = {}  # of all questions: four bytes each, and an image is one token
    n_after: dict[int, int] = {}
    for start in range(0, len(kept), TEXTS_AT_ONCE):
        indices = kept[start : start + TEXTS_AT_ONCE]
        part = [questions[index] for index in indices]
        texts = prompts[start : start + TEXTS_AT_ONCE]
        sequences, borders = _sequences(part, texts, processor, with_answer)
        for index, text, ids, border in zip(indices, texts, sequences, borders, strict=True):
            image = questions[index].image
            groups.setdefault(text if image is None else id(image), []).append(index)
            tokens[index], n_after[index] = array("i", ids), len(ids) - border
    first = next((questions[index] for index in kept if questions[index].image is not None), None)
    # LLaVA's images have one size
    features = 1 + image_tokens(first.image, processor) if first else 0

    def tokens_of(index: int) -> list[int]:
        return _repeated(tokens[index], image_id, 1 if questions[index].image is None else features)

    plan = []
    for modality in MODALITIES:
        own = [group for group in groups.values() if questions[group[0]].modality == modality]
        plan += plan_rows(own, tokens_of, batch_size)
    return plan, tokens_of, n_after


def plan_rows(
    groups: Sequence[list[int]],
    tokens_of: Callable[[int], list[int]],
    batch_size: int,
    before: int = 0,
) -> list[list[list[int]]]:
    """Batches of rows of indices, the widest rows first; each row is of one of the groups.

    Args:
        tokens_of: the tokens of what an index is of; those of one row are asked for at a time.
        before: tokens that precede every row of a batch. With them, too, a batch takes no more
            tokens than ``batch_size`` of its longest sequence would.
    """
    rows = [
        group[start : start + batch_size]
        for group in groups
        for start in range(0, len(group), batch_size)
    ]
    widths: dict[int, int] = {}
    longest: dict[int, int] = {}
    for row in rows:
        sequences = [tokens_of(index) for index in row]
        widths[row[0]], longest[row[0]] = len(_tree(sequences)[0]), max(map(len, sequences))
    rows.sort(key=lambda row: -widths[row[0]])
    plan = []
    while rows:
        first = rows[0][0]
        fit = max(1, batch_size * (before + longest[first]) // (before + widths[first]))
        plan.append(rows[:fit])
        del rows[:fit]
    return plan


def _sequences(
    questions: Sequence[Question], prompts: list[str], processor, with_answer: bool
) -> tuple[list[list[int]], list[int]]:
    """The tokens of each question, one for its image, and where its answer begins (or its end)."""
    are_raw(questions, processor)  # refuses what cannot be in one batch
    special = needs_special_tokens(prompts, processor)
    if not with_answer:
        sequences = processor.tokenizer(prompts, add_special_tokens=special)["input_ids"]
        borders = [len(ids) for ids in sequences]
        check_prompts(borders)
        return sequences, borders
    texts = [
        f"{p}{answer}"
        for p, answer in zip(prompts, answer_texts(questions, processor), strict=True)
    ]
    return with_answers(prompts, texts, processor.tokenizer, special)


def _repeated(tokens: array, token: int, times: int) -> list[int]:
    """The tokens with the first of one kind so many times."""
    ids = tokens.tolist()
    if times != 1:
        place = ids.index(token)
        ids[place : place + 1] = [token] * times
    return ids


def _tree(sequences: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """The tokens of the tree of some sequences, parents first, and the nodes of each sequence."""
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    paths = []
    for sequence in sequences:
        node, path = -1, []
        for token in sequence:
            node = nodes.setdefault((node, token), len(nodes))
            path.append(node)
        paths.append(path)
    return [token for _, token in nodes], paths


def can_share(model) -> bool:
    """Whether :func:`shared_batches` is known to give the same answers.

    LLaVA on a Llama, whose attention takes any mask.
    """
    from transformers import LlavaForConditionalGeneration

    return isinstance(model, LlavaForConditionalGeneration) and _takes_any_mask(model)


def can_share_texts(model) -> bool:
    """The same of a language model without eyes: a Llama."""
    from transformers import LlamaForCausalLM

    return isinstance(model, LlamaForCausalLM) and _takes_any_mask(model)


def _takes_any_mask(model) -> bool:
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return False
    text = model.config.get_text_config()
    return text.model_type == "llama" and text._attn_implementation in ("sdpa", "eager")


def worth_sharing(prompts: Sequence[object]) -> bool:
    """Whether texts without images share enough: half of the prompts are there twice."""
    return 2 * len(set(prompts)) <= len(prompts)


def read_shared(model, batch: dict[str, Tensor], use_cache: bool = False) -> tuple[Tensor, object]:
    """The last hidden states [m, hidden] where a shared batch is read, and the key-value cache.

    What the rows of few shots begin with alike (``beginning``, see :func:`shared_prompts`) is read
    once, before them.
    """
    _, row, position = batch["reads"].T
    names = ("input_ids", "position_ids", "pixel_values")
    inputs = {name: batch[name] for name in names if name in batch}
    if "beginning" in batch:
        inputs = {"position_ids": batch["position_ids"], **_begin(model, batch)}

    with last_layer_at(model, row * batch["input_ids"].shape[1] + position):
        output = model.model(
            **inputs,
            attention_mask=additive_mask(batch["attention_mask"], model),
            use_cache=use_cache,
        )
    return output.last_hidden_state[row, position], output.past_key_values


def _begin(model, batch: dict[str, Tensor]) -> dict[str, object]:
    """``inputs_embeds`` of the rows and ``past_key_values`` of all; each image is seen once.

    Raises:
        ValueError: an image has more or fewer features than tokens.
    """
    ids = torch.cat([batch["beginning"], batch["input_ids"].flatten()])
    embedded = model.get_input_embeddings()(ids)
    if "pixel_values" in batch:
        features = torch.stack(
            tuple(model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output)
        )
        image, number = batch["features"].T
        if (tokens := int(number.max()) + 1) != features.shape[1]:
            raise ValueError(
                f"an image has {tokens} tokens in a prompt but {features.shape[1]} features; check "
                f"the processor's patch_size and its image size."
            )
        embedded[ids == model.config.image_token_id] = features[image, number].to(embedded.dtype)
    beginning, rows = embedded.split([len(batch["beginning"]), batch["input_ids"].numel()])
    inputs: dict[str, object] = {"inputs_embeds": rows.view(*batch["input_ids"].shape, -1)}
    if len(beginning):
        inputs["past_key_values"] = model.model(
            inputs_embeds=beginning[None], use_cache=True
        ).past_key_values
        inputs["past_key_values"].batch_repeat_interleave(len(batch["input_ids"]))
    return inputs


def additive_mask(allowed: Tensor, model) -> Tensor:
    """A mask to add to the attention scores: 0 where allowed, else the lowest number. It is of the
    language model's dtype: in training that is float32, whatever the vision tower is in.
    """
    dtype = model.get_input_embeddings().weight.dtype
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )


def continue_shared(model, batch: dict[str, Tensor], greedy) -> Tensor:
    """What ``generate`` would write after each question: int64 [n_questions, at most
    max_new_tokens].

    The questions of a row go on side by side, blind to each other; a row is dropped when all of
    them have ended.

    Args:
        greedy: the ``GenerationConfig``, of which ``max_new_tokens``, ``eos_token_id`` and
            ``pad_token_id`` are read.
    """
    hidden, cache = read_shared(model, batch, use_cache=True)
    head, pad = model.get_output_embeddings(), greedy.pad_token_id
    ends = torch.tensor(greedy.eos_token_id, device=hidden.device)
    _, row, position = batch["reads"].T
    counts = row.bincount()
    # of the question in its row
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    r, q = len(counts), int(counts.max())

    def side_by_side(of_question: Tensor, fill: int) -> Tensor:
        # rows have fewer than q questions, too
        table = of_question.new_full((r, q, *of_question.shape[1:]), fill)
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
            tokens, positions, seen, running, rows = (
                x[left] for x in (tokens, positions, seen, running, rows)
            )
        itself = torch.eye(q, dtype=torch.bool, device=seen.device).expand(len(rows), q, q)
        seen, positions = torch.cat([seen, itself], dim=-1), positions + 1
        mask = additive_mask(seen[:, None], model)
        output = model.model(
            input_ids=tokens, position_ids=positions, attention_mask=mask, past_key_values=cache
        )
        tokens = head(output.last_hidden_state.flatten(0, 1)).argmax(-1).view_as(tokens)
    return written[row, place]
