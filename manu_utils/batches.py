"""From question records to the tensors that a vision-language model takes.

The prompt templates are those of the official MLLMU-Bench evaluation (``eval.py``), zero-shot. Derived in notebook 02.
LLaVA-1.5 is asked between ``USER:`` and ``ASSISTANT:``, as there; every other family in the chat template of its processor,
on one fixed date.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence

import PIL.Image
import torch
from torch import Tensor

from .benchmark import MODALITIES, Question
from .pictures import Picture, decoded

LETTER_LINE = "Just give ONE letter representing the answer directly."
BLANK_LINE = "Please **ONLY** provide the correct answer that should replace the [Blank]."
SENTENCE_LINE_IMAGE = "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH."
SENTENCE_LINE_TEXT = "Answer the question based on your trained knowledge in one sentence in ENGLISH."
CHAT_MARKS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>")
PICTURES_AT_ONCE = 8  # decoded for a shared batch at a time: large ones are 3 MB and more
TEXTS_AT_ONCE = 512  # a tokenizer's whole answer takes kilobytes a text


def prompt(question: Question, processor) -> str:
    """The prompt of a question, ending in ``ASSISTANT:`` (the image generation prompt of the official code ends in a space;
    ours does not, so that all answers start alike).

    A processor with a chat template, other than LLaVA-1.5's, puts the same words into a turn of the user and ends in the
    beginning of the assistant's.

    Raises:
        ValueError: unknown task, classification without options, a question that holds the image placeholder, or see
            :func:`chat_template`.
    """
    image_token = _image_token(processor)
    if image_token in question.question:
        raise ValueError(f"person {question.person_id}: the question itself contains {image_token}; remove it.")
    text_only = question.image is None
    body = question.question
    if question.task == "generation":
        body += "\n" + (SENTENCE_LINE_TEXT if text_only else SENTENCE_LINE_IMAGE)
    elif question.task == "cloze":
        body = body.replace("__", "[Blank]") + "\n" + BLANK_LINE
    elif question.task == "classification":
        if not question.options:
            raise ValueError(f"person {question.person_id}: a classification question needs options.")
        lines = [f"{letter}: {words}" for letter, words in question.options.items()]
        body = "\n".join([body, *lines, LETTER_LINE])
    elif question.task != "training":
        raise ValueError(f"task={question.task!r} is unknown; use training, generation, cloze or classification.")
    if _chats(processor):
        picture = [] if text_only else [{"type": "image"}]
        return _chat(processor, [*picture, {"type": "text", "text": body}])
    if not text_only:
        return f"USER: {image_token}\n{body}\nASSISTANT:"
    gap = "\n" if question.task in ("cloze", "classification") else " "  # as the official templates have it
    return f"USER:{gap}{body}\nASSISTANT:"


def answer_texts(questions: Sequence[Question], processor) -> list[str]:
    """What follows the prompt of each question: `` {answer}`` and the end of sequence, or what the chat template has there.

    Args:
        processor: a processor, or a tokenizer of one without a chat template.
    """
    before, after = " ", getattr(processor, "tokenizer", processor).eos_token
    if _chats(processor):
        user, assistant = ([{"type": "text", "text": text}] for text in ("Q", "ANSWER"))
        asked, whole = _chat(processor, user), _chat(processor, user, assistant)
        until, _, end = whole.rpartition("ANSWER")
        before = until.removeprefix(asked) if until.startswith(asked) else ""
        after = end.rstrip() or after  # the line break after the end of a turn is not the assistant's
    return [f"{before}{question.answer}{after}" for question in questions]


def encode(
    questions: Sequence[Question], processor, with_answer: bool, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Tokenise b questions of one modality into one left-padded batch of t tokens.

    Args:
        questions: all with an image, or all without.
        with_answer: append the answer and its end to each prompt, see :func:`answer_texts`.

    Returns:
        ``input_ids`` int64 [b, t] and ``attention_mask`` int64 [b, t]; with images ``pixel_values`` float32 [b, 3, h, w];
        ``with_answer``: ``answer_mask`` bool [b, t], true on the tokens of the answer, end of sequence included. What else
        the processor returns is passed through.

    Raises:
        ValueError: no question, mixed modalities, a prompt whose image tokens do not match the image's features, or a
            processor that writes something after the answer.
    """
    if not questions:
        raise ValueError("a batch needs at least one question.")
    if len({question.modality for question in questions}) > 1:
        raise ValueError("a batch holds one modality; encode questions with and without an image separately.")
    tokenizer = processor.tokenizer
    prompts = [prompt(question, processor) for question in questions]
    special = needs_special_tokens(prompts, processor)
    texts = prompts
    if with_answer:
        texts = [f"{p}{answer}" for p, answer in zip(prompts, answer_texts(questions, processor), strict=True)]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt", "return_token_type_ids": False}
    options["add_special_tokens"] = special
    if questions[0].image is None:
        batch = dict((processor if _chats(processor) else tokenizer)(text=texts, **options))
    else:
        images = [[image] if _chats(processor) else image for image in opened(questions)]
        batch = dict(processor(images=images, text=texts, **options))
        _check_image_tokens(batch, processor)
    if with_answer:
        # A tokenizer may merge across the border, so the answer is what follows the longest common beginning.
        parts, wholes = (tokenizer(part, add_special_tokens=special)["input_ids"] for part in (prompts, texts))
        starts = [_common_beginning(part, whole) for part, whole in zip(parts, wholes, strict=True)]
        answers = [whole[start:] for start, whole in zip(starts, wholes, strict=True)]
        if any(ids[-len(answer) :].tolist() != answer for ids, answer in zip(batch["input_ids"], answers, strict=True)):
            raise ValueError(
                f"the batches of a {type(processor).__name__} do not end with the answer, so its tokens cannot be told from "
                "the others; use a processor that takes prompt and answer as one text."
            )
        lengths = torch.tensor([len(answer) for answer in answers])
        t = batch["input_ids"].shape[1]
        batch["answer_mask"] = torch.arange(t)[None, :] >= (t - lengths)[:, None]  # left-padded: the answer is at the end
    return {key: value.to(device) for key, value in batch.items()}


def opened(questions: Sequence[Question]) -> list[PIL.Image.Image]:
    """The images of questions, RGB and with their pixels; one that several questions are about is decoded once.

    Raises:
        ValueError: an image whose black and white are not known, with the person (:func:`manu_utils.pictures.as_rgb`).
    """
    once: dict[object, PIL.Image.Image] = {}
    keys = [question.image.key if isinstance(question.image, Picture) else id(question.image) for question in questions]
    for key, question in zip(keys, questions, strict=True):
        if key in once:
            continue
        try:
            once[key] = decoded(question.image)
        except ValueError as error:
            raise ValueError(f"person {question.person_id}: the image cannot be used: {error}.") from error
    return [once[key] for key in keys]


def batches(
    questions: Sequence[Question],
    processor,
    batch_size: int,
    with_answer: bool,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Pairs of (indices into ``questions``, batch), longest first: little padding, and too large a batch fails at once.

    Ties keep their order, so the batches are the same in every run. Image and text questions never share a batch. Questions
    that are too long for the model are in none (:func:`fitting`).

    Raises:
        ValueError: batch_size below 1; see also :func:`encode`.
    """
    groups = plan_batches(questions, processor, batch_size, with_answer)
    return ((group, encode([questions[i] for i in group], processor, with_answer, device)) for group in groups)


def plan_batches(
    questions: Sequence[Question], processor, batch_size: int, with_answer: bool, shared: bool = False
) -> list[list[int]]:
    """The indices into ``questions`` of each batch of :func:`batches` or, if ``shared``, of :func:`shared_batches`, in order.

    The questions of some of these batches, taken in the order of ``questions``, fall into the same batches again (with
    ``shared``, unless more than ``batch_size`` of them share an image or a prompt). So whole batches can be handed out to
    several processes, and each computes what one process would have computed.

    Raises:
        ValueError: batch_size below 1; see also :func:`encode`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive.")
    if shared:
        plan, *_ = _plan_shared(questions, processor, batch_size, with_answer)
        return [[index for row in rows for index in row] for rows in plan]
    kept, prompts = fitting(questions, processor, with_answer)
    own = [questions[index] for index in kept]
    length_of: dict[int, int] = {}
    for start in range(0, len(own), batch_size):  # in parts, so that only the lengths are kept
        part = slice(start, start + batch_size)
        texts = [f"{text} {q.answer if with_answer else ''}" for text, q in zip(prompts[part], own[part], strict=True)]
        length_of |= zip(kept[part], map(len, processor.tokenizer(texts)["input_ids"]), strict=True)
    groups = []
    for modality in MODALITIES:
        indices = [index for index in kept if questions[index].modality == modality]
        indices.sort(key=lambda index: -length_of[index])
        groups += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return groups


def fitting(questions: Sequence[Question], processor, with_answer: bool) -> tuple[list[int], list[str]]:
    """The indices of the questions that a model has positions for, and their prompts; one warning names the others.

    What is longer would be read at positions that the model never saw, and mean nothing. The number of positions is
    ``processor.tokenizer.model_max_length``, which :func:`manu_utils.models.load_model` takes from the model's config.

    Args:
        with_answer: count the answer and its end, too; else one position is left for the first token of an answer.

    Raises:
        ValueError: none of them fits.
    """
    positions = processor.tokenizer.model_max_length
    room = positions - (0 if with_answer else 1)
    prompts = texts = [prompt(question, processor) for question in questions]
    if with_answer:
        texts = [f"{text}{answer}" for text, answer in zip(texts, answer_texts(questions, processor), strict=True)]
    images = [question for question in questions if question.image is not None]
    largest = max(images, key=lambda question: question.image.width * question.image.height, default=None)
    # A token is at least a byte. Twice, since an image of another shape may take more tokens than a larger one.
    most = 8 + (2 * image_tokens(largest.image, processor) if largest else 0)
    doubtful = [index for index, text in enumerate(texts) if len(text.encode()) + most > room]
    if not doubtful:
        return list(range(len(questions))), prompts
    of_size: dict[tuple[int, int], int] = {}
    special = needs_special_tokens([texts[doubtful[0]]], processor)
    too_long: dict[int, int] = {}
    for index in doubtful:
        ids = processor.tokenizer(texts[index], add_special_tokens=special, verbose=False)["input_ids"]
        length, image = len(ids), questions[index].image
        if image is not None:
            if image.size not in of_size:
                of_size[image.size] = image_tokens(image, processor)
            length += of_size[image.size]
        if length > room:
            too_long[index] = length
    if not too_long:
        return list(range(len(questions))), prompts
    named = ", ".join(
        f"person {questions[index].person_id} {questions[index].question[:60]!r} ({length} tokens)"
        for index, length in list(too_long.items())[:5]
    )
    said = (
        f"{len(too_long)} of {len(questions)} questions have more tokens than the model has positions ({positions})"
        f"{', the answer included' if with_answer else ''}: {named}{', ...' if len(too_long) > 5 else ''}"
    )
    if len(too_long) == len(questions):
        raise ValueError(f"{said}; nothing is left to ask: shorten them, or take a model with more positions.")
    warnings.warn(f"{said}; they are left out.", stacklevel=3)
    kept = [index for index in range(len(questions)) if index not in too_long]
    return kept, [prompts[index] for index in kept]


def image_tokens(image: PIL.Image.Image, processor) -> int:
    """How many tokens longer an image of this size makes a prompt, when its placeholder is replaced."""
    short = Question("nobody", "Q", "A", image, "training")
    text = prompt(short, processor)
    alone = processor.tokenizer(text, add_special_tokens=needs_special_tokens([text], processor))["input_ids"]
    return encode([short], processor, with_answer=False)["input_ids"].shape[1] - len(alone)


def shared_batches(
    questions: Sequence[Question],
    processor,
    batch_size: int,
    with_answer: bool,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """As :func:`batches`, but what questions begin with alike is in the batch once: for reading, not for training.

    The questions about one image (one object) share a row, and so do the text questions with one prompt, such as the options
    of a question. A row is a tree of tokens, each of which attends to what precedes it in its own question, so that a causal
    language model computes the same hidden states as for every question by itself. A batch of r rows takes no more tokens
    than ``batch_size`` of its longest question would. For processors of LLaVA, that repeat the image token once per feature.

    Returns:
        Pairs of (indices into ``questions``, batch): ``input_ids`` and ``position_ids`` int64 [r, t]; ``attention_mask`` bool
        [r, 1, t, t], true where the token of the row may attend to that of the column; with images ``pixel_values`` float32
        [r, 3, h, w]; ``reads`` int64 [m, 3], the question of the batch (ascending), row and position of every prediction
        that is asked for: the first token after the prompt, or ``with_answer`` all tokens of the answer, end of sequence
        included, which are in ``targets`` int64 [m].

    Raises:
        ValueError: batch_size below 1, or a prompt whose image tokens do not match the image's features.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive.")
    plan, tokens_of, n_after = _plan_shared(questions, processor, batch_size, with_answer)

    def pack(rows: list[list[int]]) -> dict[str, Tensor]:
        sequences = [[tokens_of(index) for index in row] for row in rows]
        batch, places = pack_rows(sequences, processor.tokenizer.pad_token_id)
        reads: list[tuple[int, int, int]] = []
        targets: list[int] = []
        indices, own = [index for row in rows for index in row], [sequence for row in sequences for sequence in row]
        for number, (index, sequence, (row, path)) in enumerate(zip(indices, own, places, strict=True)):
            border = len(sequence) - n_after[index]
            read = path[border - 1 : -1] if with_answer else path[-1:]
            reads += [(number, row, node) for node in read]
            targets += sequence[border:]
        batch["reads"] = torch.tensor(reads)
        if with_answer:
            batch["targets"] = torch.tensor(targets)
        asked = [questions[row[0]] for row in rows]
        if asked[0].image is not None:
            parts = [asked[start : start + PICTURES_AT_ONCE] for start in range(0, len(asked), PICTURES_AT_ONCE)]
            pixels = [processor.image_processor(opened(part), return_tensors="pt")["pixel_values"] for part in parts]
            batch["pixel_values"] = torch.cat(pixels)
            _check_image_tokens(batch, processor)
        return {key: value.to(device) for key, value in batch.items()}

    return (([index for row in rows for index in row], pack(rows)) for rows in plan)


def pack_rows(rows: list[list[list[int]]], pad: int) -> tuple[dict[str, Tensor], list[tuple[int, list[int]]]]:
    """A batch whose rows are the trees of some sequences of tokens each, and where each sequence is: its row and its nodes.

    Returns:
        ``input_ids``, ``position_ids`` and ``attention_mask`` as :func:`shared_batches` has them; (row, nodes) of every
        sequence, row after row.
    """
    trees = [_tree(row) for row in rows]
    size = (len(rows), max(len(tokens) for tokens, _ in trees))
    ids, positions = torch.full(size, pad), torch.zeros(size, dtype=torch.int64)
    mask = torch.eye(size[1], dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself: no row of the mask is empty
    earlier = torch.ones(size[1], size[1], dtype=torch.bool).tril()
    for row, (tokens, paths) in enumerate(trees):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        for path in paths:
            nodes, t = torch.tensor(path), len(path)
            positions[row, nodes] = torch.arange(t)
            mask[row, nodes[:, None], nodes] = earlier[:t, :t]
    batch = {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}
    return batch, [(row, path) for row, (_, paths) in enumerate(trees) for path in paths]


def _plan_shared(
    questions: Sequence[Question], processor, batch_size: int, with_answer: bool
) -> tuple[list[list[list[int]]], Callable[[int], list[int]], dict[int, int]]:
    """The batches of :func:`shared_batches`, as rows of indices that share an image or a prompt, the widest rows first.

    Returns:
        The batches, what gives the tokens of a question by its index, and how many of these are the answer's.
    """
    tokenizer = processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids(_image_token(processor))
    kept, prompts = fitting(questions, processor, with_answer)
    groups: dict[object, list[int]] = {}
    tokens: dict[int, array] = {}  # of all questions: four bytes each, and an image is one token
    n_after: dict[int, int] = {}
    for start in range(0, len(kept), TEXTS_AT_ONCE):
        indices = kept[start : start + TEXTS_AT_ONCE]
        part, texts = [questions[index] for index in indices], prompts[start : start + TEXTS_AT_ONCE]
        sequences, borders = _sequences(part, texts, processor, with_answer)
        for index, text, ids, border in zip(indices, texts, sequences, borders, strict=True):
            image = questions[index].image
            groups.setdefault(text if image is None else id(image), []).append(index)
            tokens[index], n_after[index] = array("i", ids), len(ids) - border
    first = next((questions[index] for index in kept if questions[index].image is not None), None)
    features = 1 + image_tokens(first.image, processor) if first else 0  # LLaVA's images have one size

    def tokens_of(index: int) -> list[int]:
        return _repeated(tokens[index], image_id, 1 if questions[index].image is None else features)

    plan = []
    for modality in MODALITIES:
        own = [group for group in groups.values() if questions[group[0]].modality == modality]
        plan += plan_rows(own, tokens_of, batch_size)
    return plan, tokens_of, n_after


def plan_rows(
    groups: Sequence[list[int]], tokens_of: Callable[[int], list[int]], batch_size: int, before: int = 0
) -> list[list[list[int]]]:
    """Batches of rows of indices, the widest rows first; each row is of one of the groups.

    Args:
        tokens_of: the tokens of what an index is of; those of one row are asked for at a time.
        before: tokens that precede every row of a batch. With them, too, a batch takes no more tokens than ``batch_size`` of
            its longest sequence would.
    """
    rows = [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]
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
    """The tokens of each question, one for its image, and where its answer begins (``with_answer``; else its end)."""
    special = needs_special_tokens(prompts, processor)
    sequences = processor.tokenizer(prompts, add_special_tokens=special)["input_ids"]
    if not with_answer:
        return sequences, [len(ids) for ids in sequences]
    texts = [f"{p}{answer}" for p, answer in zip(prompts, answer_texts(questions, processor), strict=True)]
    whole = processor.tokenizer(texts, add_special_tokens=special)["input_ids"]
    return whole, [_common_beginning(ids, longer) for ids, longer in zip(sequences, whole, strict=True)]


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


DATE = {  # what a chat template that writes today's date is given, or answers would change at midnight: Friday, 26 July 2024
    "%-d": "26", "%-m": "7", "%d": "26", "%e": "26", "%m": "07", "%b": "Jul", "%h": "Jul", "%B": "July", "%Y": "2024",
    "%y": "24", "%a": "Fri", "%A": "Friday", "%j": "208", "%F": "2024-07-26", "%D": "07/26/24", "%x": "07/26/24",
    "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%f": "000000", "%T": "00:00:00", "%X": "00:00:00",
    "%c": "Fri Jul 26 00:00:00 2024", "%Z": "UTC", "%z": "+0000", "%s": "1721952000", "%%": "%",
}  # fmt: skip


def chat_template(processor) -> str | None:
    """The template that a processor's prompts are in: its own or its tokenizer's, of several the one named default.

    Returns:
        None for LLaVA-1.5, which the official evaluation asks in a form of its own, and for what has no image processor.

    Raises:
        ValueError: several templates and none is the default, or none at all for a family other than LLaVA-1.5 or for a
            LLaVA whose tokenizer has the marks of another chat.
    """
    if not hasattr(processor, "image_processor"):  # a tokenizer, or what stands for the processor of a language model
        return getattr(processor, "chat_template", None) if hasattr(processor, "tokenizer") else None
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(template, list):  # as older files have it
        template = {one["name"]: one["template"] for one in template}
    if isinstance(template, dict):
        if "default" not in template and len(template) > 1:
            raise ValueError(
                f"the {type(processor).__name__} has several chat templates ({', '.join(template)}) and none is named "
                "default; set processor.chat_template to the one to use."
            )
        template = template.get("default") or next(iter(template.values()), None)
    if type(processor).__name__ == "LlavaProcessor" and (
        "ASSISTANT:" in template if template else not _knows_chat(processor.tokenizer)
    ):
        return None
    if not template:
        raise ValueError(
            f"the {type(processor).__name__} has no chat template, so how its model wants to be asked is not known; set "
            "processor.chat_template, or take the processor of a checkpoint of this architecture that was tuned to chat: "
            "load_model(..., processor=...)."
        )
    return template


def _knows_chat(tokenizer) -> bool:
    """Whether it has the marks of another chat than LLaVA-1.5's, such as Qwen's or Llama 3's."""
    ids = (tokenizer.convert_tokens_to_ids(mark) for mark in CHAT_MARKS)
    return any(token is not None and token != tokenizer.unk_token_id for token in ids)


def _chats(processor) -> bool:
    """Whether prompts are in the chat template."""
    return bool(chat_template(processor))


def _chat(processor, user: list[dict], assistant: list[dict] | None = None) -> str:
    """A turn of the user, and either one of the assistant or the beginning of it, in the chat template, on :data:`DATE`."""
    turns = [{"role": "user", "content": user}]
    if assistant is not None:
        turns.append({"role": "assistant", "content": assistant})
    template = chat_template(processor)
    if "strftime_now" in template:  # transformers passes no function on, so a macro stands before its own
        dates = "".join(f"|replace('{name}', '{value}')" for name, value in DATE.items())
        template = "{%- macro strftime_now(format) %}{{ format" + dates + " }}{%- endmacro %}" + template
    # Of the tokenizer: what the processor would do is the same, but SmolVLM's asks for videos first.
    return processor.tokenizer.apply_chat_template(
        turns, chat_template=template, add_generation_prompt=assistant is None, tokenize=False
    )


def needs_special_tokens(prompts: list[str], processor) -> bool:
    """Whether the tokenizer adds its own: not where the chat template begins with the one that it would put there."""
    begin = processor.tokenizer.bos_token
    return not (begin and prompts and _chats(processor) and prompts[0].startswith(begin))


def _image_token(processor) -> str:
    return getattr(processor, "image_token", None) or "<image>"


def _common_beginning(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _check_image_tokens(batch: dict[str, Tensor], processor) -> None:
    """Compare the image tokens of each row with the features that its image gives (processors of the LLaVA family)."""
    patch = getattr(processor, "patch_size", None)
    if not patch or batch["pixel_values"].dim() != 4:
        return
    height, width = batch["pixel_values"].shape[-2:]
    expected = (height // patch) * (width // patch) + getattr(processor, "num_additional_image_tokens", 0)
    if getattr(processor, "vision_feature_select_strategy", None) == "default":
        expected -= 1  # the class token is dropped
    image_id = processor.tokenizer.convert_tokens_to_ids(_image_token(processor))
    found = (batch["input_ids"] == image_id).sum(dim=1)
    if (found != expected).any():
        raise ValueError(
            f"a prompt has {found[found != expected][0].item()} image tokens but its image gives {expected} features; "
            "check the processor's patch_size, its image size and that nothing truncates the prompt."
        )
