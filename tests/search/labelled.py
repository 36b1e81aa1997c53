"""The labelled briefs and questions of `briefs.txt` and `queries.txt`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Brief:
    """A brief.

    Attributes:
        key: What answers name it by.
    """

    key: str
    industry: str
    name: str
    text: str


@dataclass(frozen=True)
class Question:
    """What somebody asks, and what answers it.

    Attributes:
        languages: Of the question and of its answers, such as ``ru>en``.
        answers: Keys of briefs, any of which will do.
    """

    number: int
    languages: str
    text: str
    answers: frozenset[str]

    @property
    def held_out(self) -> bool:
        """Whether nothing may be tuned by it."""
        return self.number % 2 == 0


def briefs() -> list[Brief]:
    """All briefs."""
    found, industry = [], ""
    for line in (_HERE / "briefs.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("="):
            industry = line[1:].strip()
        elif line and not line.startswith("#"):
            key, name, text = line.split("|")
            found.append(Brief(key, industry, name, text))
    return found


def questions() -> list[Question]:
    """All questions."""
    found = []
    for line in (_HERE / "queries.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            number, languages, text, answers = (part.strip() for part in line.split("|"))
            found.append(Question(int(number), languages, text, frozenset(answers.split())))
    return found
