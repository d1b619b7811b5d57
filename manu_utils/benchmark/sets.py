"""The sets of one unlearning task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..checks import shown
from .questions import training_questions
from .records import Question, written_id
from .rows import ids_of, people_of

if TYPE_CHECKING:
    from datasets import Dataset



@dataclass(frozen=True)
class Benchmark:
    """The sets of an unlearning task: ``datasets.Dataset``, a row a person (CLEAR: a picture).

    Attributes:
        forget: the people to forget.
        retain: all other fictitious people.
        test: Test_Set of the forget people: new portraits and new wordings.
        celebrity: real people (public figures in the miniature), known from pre-training.
        training: ft_Data, the training questions of all fictitious people.
        forget_ratio: percent of the fictitious people in ``forget``.
        source: where the sets come from.
    """

    forget: Dataset
    retain: Dataset
    test: Dataset
    celebrity: Dataset
    training: Dataset
    forget_ratio: int
    source: str

    @property
    def forget_ids(self) -> list[str]:
        """IDs of the people to forget, in the order of the file."""
        return people_of(self.forget)

    @property
    def retain_ids(self) -> list[str]:
        """IDs of the other fictitious people, in the order of the file."""
        return people_of(self.retain)

    def sets(self) -> dict[str, Dataset]:
        """The four sets that are evaluated, in the order of the official evaluation."""
        return {
            "forget": self.forget,
            "test": self.test,
            "retain": self.retain,
            "celebrity": self.celebrity,
        }

    def training_questions(
        self,
        people: str | Iterable[str],
        modality: str,
        *,
        rewrite: str = "both",
        strict: bool = False,
        unreadable: str = "skip",
    ) -> list[Question]:
        """Training questions of some people, joined by ID (forget and retain files have none).

        Args:
            people: ``"forget"``, ``"retain"``, ``"all"`` or a list of IDs.
            modality: ``"multimodal"`` or ``"text"``.
            rewrite, strict, unreadable: see :func:`training_questions`.

        Raises:
            TypeError: neither a group nor IDs.
            ValueError: unknown ID or group; see also :func:`training_questions`.
        """
        known = ids_of(self.training)
        if isinstance(people, str):
            groups = {"forget": self.forget_ids, "retain": self.retain_ids, "all": known}
            if people not in groups:
                raise ValueError(
                    f"people={people!r} is unknown; use one of {list(groups)} or a list of IDs."
                )
            people = groups[people]
        if not isinstance(people, Iterable):
            raise TypeError(f"people={shown(people)} must be a group or a list of IDs.")
        wanted = {written_id(person) for person in people}
        if missing := sorted(wanted - set(known)):
            raise ValueError(
                f"ft_Data of {self.source} has no person with ID {', '.join(missing[:5])}."
            )
        rows = [index for index, person_id in enumerate(known) if person_id in wanted]
        options = {"rewrite": rewrite, "strict": strict, "unreadable": unreadable}
        return training_questions(self.training.select(rows), modality, **options)
