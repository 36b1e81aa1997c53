"""Which version of an experiment somebody gets, and what may be said of one version against another.

Intervals are Wilson's for a share (1927) and Newcombe's hybrid score interval for the difference of two (1998, method
10): both keep their confidence with few answers and near 0 and 1, where the textbook's normal ones do not.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from server.intervals import wilson
from storage.postgres.experiments import Counts

Condition = Literal["sample", "control_sample", "acceptance"]


@dataclass(frozen=True, slots=True)
class Share:
    """A share with the interval in which it lies with 95 % confidence; so also a difference of two."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of a promotion.

    Attributes:
        actual: What there is; None if there is nothing to compare yet.
        required: What there has to be at least.
    """

    condition: Condition
    actual: float | None
    required: float

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.actual is not None and self.actual >= self.required


def arm_of(experiment_id: UUID, subject_key: str, weights: Sequence[int]) -> int:
    """The place of the version that a subject gets: always the same, and each as often as its weight says.

    Args:
        experiment_id: Makes each experiment divide the subjects anew.
        subject_key: The subject.
        weights: Of the versions.
    """
    digest = hashlib.sha256(experiment_id.bytes + subject_key.encode()).digest()
    point = int.from_bytes(digest[:8], "big") * sum(weights) >> 64
    for place, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return place
    raise AssertionError("unreachable")


def acceptance(counts: Counts) -> Share | None:
    """The share of accepted answers; None without any."""
    n = counts.total
    if not n:
        return None
    return Share(counts.accepted / n, *wilson(counts.accepted, n))


def difference(counts: Counts, control: Counts) -> Share | None:
    """Acceptance less control's; None if either has no answers."""
    ours, theirs = acceptance(counts), acceptance(control)
    if ours is None or theirs is None:
        return None
    value = ours.value - theirs.value
    down = math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    up = math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return Share(value, value - down, value + up)


def gate(counts: Counts, control: Counts, *, min_sample_count: int, max_acceptance_loss: float) -> list[Check]:
    """The conditions under which a version may be promoted.

    It is a test of non-inferiority: with 97.5 % confidence the version is accepted at most so much less often.

    Args:
        counts: What people made of the version's answers.
        control: The same of control's.
        min_sample_count: Answers that each must have.
        max_acceptance_loss: A share of 1.
    """
    distance = difference(counts, control)
    return [
        Check("sample", counts.total, min_sample_count),
        Check("control_sample", control.total, min_sample_count),
        Check("acceptance", None if distance is None else distance.low, 0.0 - max_acceptance_loss),
    ]
