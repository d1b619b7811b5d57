"""The values in answers: what is left of "Works as a nurse." beside "Works as a tailor."."""

from __future__ import annotations

import re
from collections.abc import Sequence


def differing_parts(answers: Sequence[str]) -> list[str]:
    """What is left of each of several answers without the words that all begin and end with.

    >>> differing_parts(["Lives in York.", "Lives in New York."])
    ['York', 'New York']
    """
    split = [re.findall(r"\w+|\W", answer) for answer in answers]
    shortest = min(map(len, split))
    start = next((i for i in range(shortest) if len({words[i] for words in split}) > 1), shortest)
    end = next(
        (i for i in range(shortest) if len({words[-1 - i] for words in split}) > 1), shortest
    )
    while start + end >= shortest and end:  # nobody is left without a value
        end -= 1
    start = min(start, shortest - 1)
    return ["".join(words[start : len(words) - end]).strip() for words in split]
