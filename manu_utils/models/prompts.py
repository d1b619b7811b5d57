"""The words around a question.

The prompt templates are those of the official MLLMU-Bench evaluation (``eval.py``), zero-shot.
Derived in notebook 02. LLaVA-1.5 is asked between ``USER:`` and ``ASSISTANT:``, as there; every
other family in the chat template of its processor, on one fixed date. A raw text has no words
around it in any family.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..benchmark.records import Question

LETTER_LINE = "Just give ONE letter representing the answer directly."
BLANK_LINE = "Please **ONLY** provide the correct answer that should replace the [Blank]."
SENTENCE_LINE_IMAGE = (
    "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH."
)
SENTENCE_LINE_TEXT = (
    "Answer the question based on your trained knowledge in one sentence in ENGLISH."
)
CHAT_MARKS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>")
# what a chat template that writes today's date is given, or answers would change at midnight:
# Friday, 26 July 2024
DATE = {
    "%-d": "26", "%-m": "7", "%d": "26", "%e": "26", "%m": "07", "%b": "Jul", "%h": "Jul",
    "%B": "July", "%Y": "2024", "%y": "24", "%a": "Fri", "%A": "Friday", "%j": "208",
    "%F": "2024-07-26", "%D": "07/26/24", "%x": "07/26/24", "%H": "00", "%I": "12", "%M": "00",
    "%S": "00", "%p": "AM", "%f": "000000", "%T": "00:00:00", "%X": "00:00:00",
    "%c": "Fri Jul 26 00:00:00 2024", "%Z": "UTC", "%z": "+0000", "%s": "1721952000", "%%": "%",
}  # fmt: skip


def prompt(question: Question, processor) -> str:
    """The prompt of a question, to ``ASSISTANT:`` (the official generation prompt ends in a space;
    ours does not, so that all answers start alike).

    A processor with a chat template, other than LLaVA-1.5's, puts the same words into a turn of the
    user and ends in the beginning of the assistant's. Of a raw text it is the question as it is.

    Raises:
        ValueError: unknown task, classification without options, a question that holds the image
            placeholder, or see :func:`chat_template`.
    """
    image_token = image_token_of(processor)
    if image_token in question.question:
        raise ValueError(
            f"person {question.person_id}: the question itself contains {image_token}; remove it."
        )
    if question.task == "raw":
        return question.question
    text_only = question.image is None
    body = question.question
    if question.task == "generation":
        body += "\n" + (SENTENCE_LINE_TEXT if text_only else SENTENCE_LINE_IMAGE)
    elif question.task == "cloze":
        body = body.replace("__", "[Blank]") + "\n" + BLANK_LINE
    elif question.task == "classification":
        if not question.options:
            raise ValueError(
                f"person {question.person_id}: a classification question needs options."
            )
        lines = [f"{letter}: {words}" for letter, words in question.options.items()]
        body = "\n".join([body, *lines, LETTER_LINE])
    elif question.task != "training":
        raise ValueError(
            f"task={question.task!r} is unknown; use training, generation, cloze, classification "
            f"or raw."
        )
    if uses_chat(processor):
        picture = [] if text_only else [{"type": "image"}]
        return _chat(processor, [*picture, {"type": "text", "text": body}])
    if not text_only:
        return f"USER: {image_token}\n{body}\nASSISTANT:"
    # as the official templates have it
    gap = "\n" if question.task in ("cloze", "classification") else " "
    return f"USER:{gap}{body}\nASSISTANT:"


def answer_texts(questions: Sequence[Question], processor) -> list[str]:
    """What follows the prompt of each question: `` {answer}`` and the end of sequence, or what the
    chat template has there. Of a raw text it is the answer alone: a part of a text does not end
    where it is cut, and a model taught an end there would learn to stop.

    Args:
        processor: a processor, or a tokenizer of one without a chat template.
    """
    before, after = " ", getattr(processor, "tokenizer", processor).eos_token
    if uses_chat(processor):
        user, assistant = ([{"type": "text", "text": text}] for text in ("Q", "ANSWER"))
        asked, whole = _chat(processor, user), _chat(processor, user, assistant)
        until, _, end = whole.rpartition("ANSWER")
        before = until.removeprefix(asked) if until.startswith(asked) else ""
        # the line break after the end of a turn is not the assistant's
        after = end.rstrip() or after
    return [q.answer if q.task == "raw" else f"{before}{q.answer}{after}" for q in questions]


def chat_template(processor) -> str | None:
    """The template of a processor's prompts: its own or its tokenizer's, of several the default.

    Returns:
        None for LLaVA-1.5, which the official evaluation asks in a form of its own, and for what
        has no image processor.

    Raises:
        ValueError: several templates and none is the default, or none at all for a family other
            than LLaVA-1.5 or for a LLaVA whose tokenizer has the marks of another chat.
    """
    # a tokenizer, or what stands for the processor of a language model
    if not hasattr(processor, "image_processor"):
        return (
            getattr(processor, "chat_template", None) if hasattr(processor, "tokenizer") else None
        )
    template = getattr(processor, "chat_template", None) or getattr(
        processor.tokenizer, "chat_template", None
    )
    if isinstance(template, list):  # as older files have it
        template = {one["name"]: one["template"] for one in template}
    if isinstance(template, dict):
        if "default" not in template and len(template) > 1:
            raise ValueError(
                f"the {type(processor).__name__} has several chat templates "
                f"({', '.join(template)}) and none is named default; set processor.chat_template "
                "to the one to use."
            )
        template = template.get("default") or next(iter(template.values()), None)
    if type(processor).__name__ == "LlavaProcessor" and (
        "ASSISTANT:" in template if template else not _knows_chat(processor.tokenizer)
    ):
        return None
    if not template:
        raise ValueError(
            f"the {type(processor).__name__} has no chat template, so how its model wants to be "
            f"asked is not known; set processor.chat_template, or take the processor of a "
            "checkpoint of this architecture that was tuned to chat: load_model(..., "
            "processor=...)."
        )
    return template


def _knows_chat(tokenizer) -> bool:
    """Whether it has the marks of another chat than LLaVA-1.5's, such as Qwen's or Llama 3's."""
    ids = (tokenizer.convert_tokens_to_ids(mark) for mark in CHAT_MARKS)
    return any(token is not None and token != tokenizer.unk_token_id for token in ids)


def uses_chat(processor) -> bool:
    """Whether prompts are in the chat template."""
    return bool(chat_template(processor))


def _chat(processor, user: list[dict], assistant: list[dict] | None = None) -> str:
    """A user's turn and the assistant's, or its beginning, in the chat template on :data:`DATE`."""
    turns = [{"role": "user", "content": user}]
    if assistant is not None:
        turns.append({"role": "assistant", "content": assistant})
    template = chat_template(processor)
    # transformers passes no function on, so a macro stands before its own
    if "strftime_now" in template:
        dates = "".join(f"|replace('{name}', '{value}')" for name, value in DATE.items())
        template = (
            "{%- macro strftime_now(format) %}{{ format" + dates + " }}{%- endmacro %}" + template
        )
    # Of the tokenizer: what the processor would do is the same, but SmolVLM's asks for videos
    # first.
    return processor.tokenizer.apply_chat_template(
        turns, chat_template=template, add_generation_prompt=assistant is None, tokenize=False
    )


def needs_special_tokens(prompts: list[str], processor) -> bool:
    """Whether the tokenizer adds its own: not where the chat template begins with that one."""
    begin = processor.tokenizer.bos_token
    return not (begin and prompts and uses_chat(processor) and prompts[0].startswith(begin))


def are_raw(questions: Sequence[Question], processor) -> bool:
    """Whether questions are raw texts, which the tokenizer alone reads.

    Raises:
        ValueError: some are and others are in a chat, of which the processor makes other tokens.
    """
    raw = {question.task == "raw" for question in questions}
    if len(raw) > 1 and uses_chat(processor):
        raise ValueError("raw texts and questions in a chat do not mix in a batch; ask them apart.")
    return raw == {True}


def image_token_of(processor) -> str:
    return getattr(processor, "image_token", None) or "<image>"
