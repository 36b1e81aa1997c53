"""Who gets which version, and what may be said of one against another."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest

from server.prompts import deciding
from storage.postgres.experiments import Counts

EXPERIMENT = UUID("01a20b06-ada7-7769-ac1c-60d74a448161")


def test_the_same_subject_gets_the_same_version_and_each_as_often_as_it_weighs() -> None:
    weights, subjects = [1, 2, 7], [f"subject {n}" for n in range(20_000)]
    got = [deciding.arm_of(EXPERIMENT, subject, weights) for subject in subjects]
    assert got == [deciding.arm_of(EXPERIMENT, subject, weights) for subject in subjects]
    shares = Counter(got)
    for place, share in enumerate((0.1, 0.2, 0.7)):
        # Four standard deviations.
        assert abs(shares[place] / len(subjects) - share) < 4 * (share * (1 - share) / len(subjects)) ** 0.5
    # Whatever process, version or machine: these must never change.
    assert [deciding.arm_of(EXPERIMENT, key, [1, 1]) for key in ("", "a", "b", "ё", "x" * 200)] == [1, 1, 1, 0, 1]
    other = [deciding.arm_of(UUID(int=7), subject, weights) for subject in subjects]
    agreeing = sum(a == b for a, b in zip(got, other, strict=True)) / len(subjects)
    assert abs(agreeing - (0.01 + 0.04 + 0.49)) < 0.02


@pytest.mark.parametrize(
    ("accepted", "total", "low", "high"),
    [
        # Newcombe 1998a, table I, Wilson's score method without continuity correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_the_interval_of_a_share_is_wilsons(accepted: int, total: int, low: float, high: float) -> None:
    share = deciding.acceptance(Counts(accepted, 0, total - accepted))
    assert share is not None
    assert (share.value, round(share.low, 4), round(share.high, 4)) == (accepted / total, low, high)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        # Newcombe 1998b, table II, method 10.
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_the_interval_of_a_difference_is_newcombes(
    ours: tuple[int, int], theirs: tuple[int, int], low: float, high: float
) -> None:
    found = deciding.difference(*(Counts(good, total - good, 0) for good, total in (ours, theirs)))
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@pytest.mark.parametrize(
    ("ours", "theirs", "failing"),
    [
        ((0, 0), (0, 0), ["sample", "control_sample", "acceptance"]),
        ((99, 99), (50, 100), ["sample"]),
        ((100, 100), (50, 99), ["control_sample"]),
        # As good as control, but too few to know that it is not worse by a twentieth.
        ((70, 100), (70, 100), ["acceptance"]),
        ((700, 1000), (700, 1000), []),
        ((690, 1000), (700, 1000), ["acceptance"]),
        ((80, 100), (70, 100), []),
    ],
)
def test_the_gate_says_what_fails(ours: tuple[int, int], theirs: tuple[int, int], failing: list[str]) -> None:
    counts = [Counts(good, 0, total - good) for good, total in (ours, theirs)]
    checks = deciding.gate(*counts, min_sample_count=100, max_acceptance_loss=0.05)
    assert [check.condition for check in checks if not check.met] == failing
