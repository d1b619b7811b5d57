"""From questions about a picture to the same about a name, as MANU makes its text-only half.

MLLMU-Bench has training questions about pictures only. MANU puts the person's name in place of
"this person", in the question and in the answer, and drops the question for the name. Its code
knows a list of phrases; here a few patterns know how people refer to somebody in a picture. Nothing
here knows of datasets: strings in, strings out.
"""

from __future__ import annotations

import re

_SHOWN = (
    r"(?:shown|depicted|featured|pictured|seen|displayed|described|portrayed|presented|captured"
    r"|visible|appearing|stated|listed"
    r"|mentioned|given|indicated|noted|provided)"
)
_PICTURE = r"(?:image|picture|photo|photograph|portrait)"
_SOURCE = (
    rf"(?:(?:the|this)\s+)?(?:(?:provided|given|above|attached|accompanying)\s+)?"
    rf"(?:{_PICTURE}|profile|biography)\b"
)
_THE_SOURCE = rf"(?:the|this)\s+{_SOURCE}"
_IN = r"(?:in|on|from|of|within|by)"
_WHERE = (
    rf"\s+(?:(?:who\s+is\s+|that\s+is\s+|who\s+appears\s+)?{_SHOWN}\s+|who\s+appears\s+)?"
    rf"(?:in|on|from|of|within)\s+{_SOURCE}"
)
_ADJECTIVES = rf"(?:(?:{_SHOWN}|young|old|older|elderly|middle[-\s]aged|same)\s+)?"
_NOUN = r"(?:person|individual|man|woman|boy|girl|lady|gentleman|guy)\b"
# The possessive "?+" keeps the tail with the person: "the person in the image's name" is not "the
# person" and a rest.
_THERE = (
    rf"(?:{_WHERE}|\s+(?:(?:who|that)\s+is\s+)?{_SHOWN}(?:\s+(?:here|above))?\b"
    rf"|\s+(?:in\s+question|above|here)\b)"
)
_OTHERS_OF_IT = (
    rf"(?:this|the)\s+(?:subject|figure|character|human|one){_WHERE}"
    rf"|this\s+(?:subject|figure|character)\b"
    rf"|(?<!\bin\s)(?<!\bdoes\s)this\s+profile\b"
)
_PERSON = rf"(?:(?:this|the)\s+{_ADJECTIVES}{_NOUN}{_THERE}?+|{_OTHERS_OF_IT})"
# An answer may speak of other men and women ("'The Old Man and the Sea'"), so there "the man" has
# to be in the picture.
_FIRST = r"[Tt]h(?:is|e)"
_PERSON_IN_ANSWER = re.compile(
    rf"\b(?:{_FIRST}\s+{_ADJECTIVES}(?:[Pp]erson|[Ii]ndividual)\b{_THERE}?+"
    rf"|[Tt]his\s+{_ADJECTIVES}{_NOUN}{_THERE}?+"
    rf"|{_FIRST}\s+{_ADJECTIVES}{_NOUN}{_THERE}|^The\s+{_NOUN}|{_OTHERS_OF_IT})"
)
_NAMING = re.compile(
    rf"\bwho\s+(?:is|might|could)\s+(?:{_PERSON}|this|{_SHOWN}(?:{_WHERE}|\s+here)|that)"
    rf"(?=\s*(?:be\b\s*)?(?:[?.!,]|$))"
    rf"|\bname\s+(?:of|associated\s+with)\s+{_PERSON}(?!['’]|\s+(?:who|whose|that)\b)"
    rf"|\b{_PERSON}['’]s?\s+(?:full\s+|real\s+|first\s+|last\s+)?name\b"
    rf"|\b{_PERSON}\s+(?:called|named)\b"
    rf"|\bname\s+(?:does|is)\s+{_PERSON}|\b(?:identify|name)\s+{_PERSON}(?=\s*(?:[?.!,]|$))"
    rf"|\bwho\s+(?:{_PERSON}|this)\s+(?:is|might\s+be)(?=\s*(?:[?.!,]|$))",
    re.IGNORECASE,
)
# Without the picture these mean nothing: "Based on the image, ...", "... as shown in the image",
# "... in the image?".
_BY = (
    r"(?:based\s+on|according\s+to|judging\s+(?:by|from)|looking\s+at|going\s+by|given|from|in"
    r"|as\s+per)"
)
_OPENING = re.compile(
    rf"^(?:{_BY}\s+{_THE_SOURCE}|as\s+(?:is\s+)?{_SHOWN}\s+{_IN}\s+{_THE_SOURCE})\s*,\s*(\w)",
    re.IGNORECASE,
)
_TAIL = re.compile(
    rf",?\s+as\s+(?:(?:it|he|she)\s+)?(?:(?:is|was|can\s+be)\s+)?{_SHOWN}"
    rf"(?:\s+(?:here|above)|\s+{_IN}\s+{_THE_SOURCE})\s*,?(?=\W|$)"
    rf"|,\s+{_SHOWN}(?:\s+(?:here|above)|\s+{_IN}\s+{_THE_SOURCE})\s*,"
    rf"|\s*\((?:(?:as\s+)?{_SHOWN}\s+)?{_IN}\s+{_THE_SOURCE}\)"
    rf"|,?\s+as\s+{_SHOWN}(?=\s*[?.!]*$)|,?\s+{_BY}\s+{_THE_SOURCE}(?=\s*[?.!]*$)"
    rf"|(?<!\bis)(?<!\bare)(?<!\bwas)(?<!\bwere)\s+(?:{_SHOWN}\s+)?"
    rf"(?:in|on|from|within)\s+{_THE_SOURCE}"
    r"(?=\s*(?:[?.!,;:]|$|(?:is|was|are|were|of|for|and)\b))",
    re.IGNORECASE,
)
_LEFT = re.compile(
    rf"\b(?:{_PICTURE}s?|shown|depicted|pictured|(?:this|the)\s+{_NOUN}"
    rf"|on\s+the\s+(?:left|right))\b",
    re.IGNORECASE,
)
_LEFT_IN_ANSWER = re.compile(
    rf"\b(?:{_IN}\s+(?:the|this)\s+{_PICTURE}|(?:shown|depicted|pictured)\s+(?:in|here|above)\b"
    rf"|this\s+{_NOUN})",
    re.IGNORECASE,
)
_KIN = (
    r"(?:(?:grand|step)?(?:father|mother|parent|son|daughter|child|children)|dad|mom|mum|wife"
    r"|husband|spouse|partner|brother"
    r"|sister|sibling|family|pet|dog|cat|parrot)s?\b"
)
_THE_KIN = re.compile(rf"\bthe\s+(?={_KIN})(?!\w+\s+of\b)", re.IGNORECASE)
_ABOUT_KIN = re.compile(
    rf"['’]s?\s+(?:[\w-]+\s+){{0,2}}{_KIN}|\b{_KIN}['’s]*(?:\s+\w+)?\s+of\s+{_PERSON}"
    rf"|\bthe\s+{_KIN}",
    re.IGNORECASE,
)
_AT_THE_START = re.compile(
    r"((?:(?:yes|no|currently)\b[,.]?\s+"
    r"|(?:in|on|during|at|for|outside|after|before)\b[^,.;]*,\s+)?)"
    r"(?:(his|her|their)|(he|she)|(they))\b",
    re.IGNORECASE,
)
_ADVERB = re.compile(r"(?:\w+ly|also|often|always|never|still|sometimes|now|once|just|both)$")
_THIRD_PERSON = {
    "are": "is",
    "were": "was",
    "have": "has",
    "do": "does",
    "go": "goes",
    "'re": " is",
    "'ve": " has",
}
_UNCHANGED = set(
    "can could will would may might must should shall cannot had did was is has does "
    "became began bought brought built came gave got grew held kept knew led left lost "
    "made met ran said saw sold spent spoke taught took went won wrote".split()
)


def asks_for_the_name(question: str) -> bool:
    """Whether a question asks who the person in the picture is."""
    return _NAMING.search(question) is not None


def to_text_only(question: str, name: str) -> str | None:
    """Replace the reference to the image by a name: "this person's job" becomes "Anna Berg's job".

    "The father's occupation" becomes "Anna Berg's father's occupation", and what says where to look
    ("in the image", "as depicted in the biography") is left out. A question that says a part of the
    name already is kept.

    Returns:
        The text-only question; None if it asks for the name itself or does not refer to a person in
        the image.
    """
    if asks_for_the_name(question):
        return None
    rewritten, n = re.subn(rf"\b{_PERSON}", lambda match: name, question, flags=re.IGNORECASE)
    if not n:
        rewritten, n = _THE_KIN.subn(lambda match: f"{name}'s ", question, count=1)
    if not n and not _says(question, name):
        return None
    return _without_source(rewritten)


def answer_to_text_only(question: str, answer: str, name: str) -> str:
    """The answer to a rewritten question: "This person is a nurse." becomes "Anna Berg is a nurse."

    A pronoun at the start is replaced too where the question is about the person themselves: what
    "He" is, asked about somebody's father, is the father. An answer without any reference stays as
    it is.

    Args:
        question: as it was before :func:`to_text_only`.
    """
    rewritten, n = _PERSON_IN_ANSWER.subn(lambda match: name, answer)
    rewritten = _without_source(rewritten)
    if n or name in rewritten:
        return rewritten
    about_kin = _ABOUT_KIN.search(question) is not None
    if about_kin and (
        start := re.match(
            rf"(?:the|his|her|their)\s+(?={_KIN})(?!\w+\s+of\b)", rewritten, re.IGNORECASE
        )
    ):
        return f"{name}'s {rewritten[start.end() :]}"
    return rewritten if about_kin else _named_at_the_start(rewritten, name)


def leftover(question: str, answer: str) -> str | None:
    """Why a text-only pair still needs the picture (``"still refers to a picture"``), or None."""
    if _LEFT.search(question):
        return "still refers to a picture"
    return "the answer still refers to a picture" if _LEFT_IN_ANSWER.search(answer) else None


def _says(question: str, name: str) -> bool:
    """Whether a part of the name is a word of the question."""
    parts = [part for part in re.findall(r"[^\W\d_]{3,}", name) if part != part.lower()]
    return any(re.search(rf"\b{re.escape(part)}\b", question) for part in parts)


def _without_source(text: str) -> str:
    """Without openings and tails that say where to look."""
    return _TAIL.sub("", _OPENING.sub(lambda match: match[1].upper(), text))


def _named_at_the_start(answer: str, name: str) -> str:
    """The answer with the name in place of he, she, they, his, her or their at its start."""
    match = _AT_THE_START.match(answer)
    if match is None:
        return answer
    before, possessive, _, they = match.groups()
    rest = answer[match.end() :]
    if possessive:
        return f"{before}{name}'s{rest}"
    return f"{before}{name}{_in_third_person(rest) if they else rest}"


def _in_third_person(rest: str) -> str:
    """What follows "they" as it follows a name: " work as a nurse." -> " works as a nurse."."""
    rest = rest.replace("’", "'", 1) if rest.startswith("’") else rest
    for verb in ("'re", "'ve"):
        if rest.startswith(verb):
            return _THIRD_PERSON[verb] + rest[len(verb) :]
    words = re.split(r"(\s+)", rest)
    for place, word in enumerate(words):
        if not word.strip() or _ADVERB.match(word):
            continue
        words[place] = _third_person(word)
        break
    return re.sub(
        r"\band (are|were|have|do)\b",
        lambda match: f"and {_THIRD_PERSON[match[1]]}",
        "".join(words),
    )


def _third_person(verb: str) -> str:
    stem, negation = re.fullmatch(r"(.*?)(n['’]t)?", verb).groups()
    if stem in _THIRD_PERSON:
        return _THIRD_PERSON[stem] + (negation or "")
    past = stem.endswith("ed") and not stem.endswith("eed")
    if negation or past or stem in _UNCHANGED or not stem.isalpha():
        return verb
    if re.search(r"(?:s|x|z|ch|sh|o)$", stem):
        return stem + "es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", stem) + "s"


_PARTICLE = (
    r"(?:van|von|vom|zu|zum|zur|der|den|dem|de|del|della|dei|degli|di|da|do|dos|das|du|des|la|le"
    r"|las|los|el|al|bin|ibn|bint|ben|af|av"
    r"|ter|ten|te|op|'t|y|e|i|san|st|und)"
)
_TITLE = r"(?:Dr|Mr|Mrs|Ms|Prof|St|Sr|Jr|Rev|Hon|[^\W\d_])"  # that end in a full stop inside a name
_VERB = re.compile(
    r"(?:\b(?:is|are|was|am|be)\b|(?<=[Ii]t)['’]s|(?<=[Hh]e)['’]s|(?<=[Tt]hat)['’]s)"
    r"(?:\s+(?:most\s+likely|probably|indeed))?"
    r"(?:\s+(?:named|called|known\s+as|identified\s+as))?"
    r"|\b(?:named|called|known\s+as|goes\s+by(?:\s+the\s+name(?:\s+of)?)?"
    r"|(?:has|bears)\s+the\s+name(?:\s+of)?)\b|:",
)
_REFERENCE = re.compile(
    r"(?:This|That|The|It|He|She|They|His|Her|Their|My|Your|Its|I|You|Name|Answer|Yes|No|Person"
    r"|Individual|Here|There|Full\s+Name"
    r"|Picture|Photo|Photograph|Image|Portrait"
    r"|(?:This|The|That)\s+(?:Person|Individual|Man|Woman|Name|Subject))(?:['’]s)?",
)
_NOBODY = re.compile(
    r"(?:unknown|n/?\.?a\.?|none|null|nan|nil|nobody|no\s+name(?:\s+\w+)?"
    r"|not\s+(?:given|available|known|applicable|specified|provided)"
    r"|unnamed|anonymous|unspecified|undisclosed|unidentified|redacted|withheld|confidential"
    r"|hidden|private|error|true|false|tbd"
    r"|name|unknown\s+\w+|(?:an?\s+)?(?:man|woman|male|female|boy|girl))\.?",
    re.IGNORECASE,
)
# What comes before a name, however it is capitalised: "This Person Is Anna Berg", "Hello, this is
# ...", "Meet Anna Berg".
_BEFORE_A_NAME = re.compile(
    rf"^\s*(?:(?:yes|no|sure|certainly|of\s+course|hello|hi|sorry|okay|ok|well)\s*[,.!]\s*)*"
    rf"(?P<said>meet\s+|(?:(?:this|that|it|(?:this|that|the)\s+{_NOUN}{_THERE}?+)"
    rf"(?:['’]s\s+(?:full\s+)?name)?|(?:the|his|her|their)\s+"
    rf"(?:full\s+)?name(?:\s+of\s+{_PERSON})?)\s+is\s+(?:(?:named|called)\s+)?)?",
    re.IGNORECASE,
)
_QUOTES = "\"'“”„‘’«»`*_()[] "


def person_name(metadata: list[dict]) -> str:
    """The name of a person, read from the answer to the naming question.

    Read are names with particles ("Anna van der Berg"), initials and suffixes ("J. R. Smith, Jr."),
    other scripts, and what begins like a pronoun or an article ("He Ping", "The Weeknd"); quotation
    marks around a name are left out, and "Unknown", "N/A" and the like are no names. Nothing is
    read where the name cannot be told: of "Berg, Anna", and of a sentence in a script without
    capitals ("这是李小龙。"), while "This is 李小龙." says where it begins.

    Args:
        metadata: the parsed ``metadata`` of an ft_Data row, such as
            ``[{"ID": "001", "Question": "Who is this person?", "Answer": "This is Anna Berg."}]``.

    Raises:
        ValueError: if no question asks for the name, or no such answer holds one.
    """
    unread = None
    for record in metadata:
        question, answer = (
            (record.get(key) for key in ("Question", "Answer"))
            if isinstance(record, dict)
            else (None, None)
        )
        if not isinstance(question, str) or not asks_for_the_name(question):
            continue
        answer = answer.strip() if isinstance(answer, str) else answer
        if isinstance(answer, str) and (name := _name_in(answer)):
            return name
        unread = repr(answer)
    if unread is not None:
        raise ValueError(
            f"the naming question is answered {unread}, which holds no name, so there is no "
            f"text-only form."
        )
    raise ValueError(
        "no question asks for the name ('Who is this person?', 'What is the name of ...?'), so "
        "there is no text-only form; use modality='multimodal' or add the naming question."
    )


def _name_in(answer: str) -> str | None:
    """The name in "This is Anna Berg.", "Anna Berg is the name of this person." and the like."""
    before = _BEFORE_A_NAME.match(answer)
    sentence, place = _first_sentence(answer[before.end() :]), 0
    for match in [*_VERB.finditer(sentence), None]:
        part = sentence[place : match.start() if match else len(sentence)]
        name, whole = _leading_name(part)
        # What comes before the first verb is a name only as a whole: "Anna Berg is", but not "Her
        # sister is".
        if name and (
            before["said"] or place or whole and (match or not _may_be_a_sentence(answer))
        ):
            return name
        place = match.end() if match else place
    # "This person, Anna Berg, is a nurse."
    aside = re.match(rf"\s*{_PERSON}\s*,\s*([^,]+),", sentence, re.IGNORECASE)
    name, whole = _leading_name(aside[1]) if aside else (None, False)
    return name if whole else None


def _may_be_a_sentence(text: str) -> bool:
    """Whether a text without capitals ends in a stop or has many letters without a space."""
    return text.lower() == text.upper() and bool(
        re.search(r"[.!?。．！？।؟۔]\W*$|[\u3040-\u30ff\u3400-\u9fff]{5}", text)
    )


def _first_sentence(text: str) -> str:
    for match in re.finditer(
        r"[.!?](?=\s+\S)|。|\n(?=\s*(?:He|She|They|It|This|That|The|His|Her|Their)\b)", text
    ):
        word = re.search(r"[^\s.]+$", text[: match.start()])
        if match[0] == "." and word and re.fullmatch(_TITLE, word[0]):
            continue
        return text[: match.start()]
    return text


def _leading_name(part: str) -> tuple[str | None, bool]:
    """The name that a part of a sentence begins with, and whether it is the whole part."""
    part = part.strip()
    if part[:1] in _QUOTES:
        part = part.strip(f"{_QUOTES}.!?。")
    suffix = re.match(r"([^,]*),\s*((?:Jr|Sr)\.?|I{2,3}|IV|Ph\.?D\.?|M\.?D\.?)(?!\w)", part)
    head = suffix[1] if suffix else re.split(r"[,;()—]", part)[0]
    if (
        not suffix
        and part[len(head) :].startswith(",")
        and all(_leading_name(part[len(head) + 1 :]))
    ):
        return None, False  # "Berg, Anna", which is not told from "Anna Berg, Oslo"
    words = head.split()
    taken: list[str] = []
    for word in words:
        bare = word.strip(_QUOTES)
        if not bare or not (
            _is_capital(bare) or re.fullmatch(_PARTICLE, bare, re.IGNORECASE) or bare.isdigit()
        ):
            break
        taken.append(word)
    whole = len(taken) == len(words)
    # a particle or a number ends no name
    while taken and not _is_capital(taken[-1].strip(_QUOTES)):
        taken.pop()
    name = " ".join(taken)
    if name.count('"') % 2 or name[:1] in _QUOTES:
        name = name.strip(_QUOTES)
    name = re.sub(r"['’]s$", "", name) if not whole else name
    name = (
        name if re.search(r"\b(?:Jr|Sr)\.$|(?:^|[\s.])[^\W\d_]\.$", name) else name.rstrip(".!?。")
    )
    if not re.search(r"[^\W\d_]", name) or _REFERENCE.fullmatch(name) or _NOBODY.fullmatch(name):
        return None, whole
    return (f"{name}, {suffix[2]}" if suffix else name), whole


def _is_capital(word: str) -> bool:
    """Whether a word may be part of a name: its first letter is no small one (or has no case)."""
    first = re.search(r"[^\W\d_]", word)
    if first is not None and first[0].lower() == first[0].upper():
        return word.lower() == word.upper()  # "这是Anna" is no word
    return first is not None and (
        first[0] == first[0].title() or re.match(r"(?:d|l|o|al|el|mc|mac)['’-]\w", word) is not None
    )
