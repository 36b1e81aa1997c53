"""Counts calls: plain numbers of one event loop, found at registration, so that a call looks nothing up by a label."""

from bisect import bisect_left
from collections.abc import Mapping

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper ends of the buckets of durations, in seconds; one more bucket has no end."""


class MethodMeter:
    """What became of the calls of one RPC. One thread writes; others may read.

    Attributes:
        service: Full name of its service.
        name: Its name.
        streaming: Whether it streams in any direction; the length of a stream says nothing about its speed.
        started: Calls begun.
        codes: Calls ended, by status code.
        buckets: Unary calls ended, by how long they took.
        seconds: How long these took together.
    """

    __slots__ = ("buckets", "codes", "name", "seconds", "service", "started", "streaming")

    def __init__(self, service: str, name: str, streaming: bool) -> None:
        self.service = service
        self.name = name
        self.streaming = streaming
        self.started = 0
        self.codes: dict[str, int] = {"OK": 0}
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def begin(self) -> None:
        """Counts a call."""
        self.started += 1

    def end(self, code: str, seconds: float) -> None:
        """Counts its end."""
        codes = self.codes
        codes[code] = codes.get(code, 0) + 1
        if not self.streaming:
            self.seconds += seconds
            self.buckets[bisect_left(BOUNDS, seconds)] += 1


class CallMeters:
    """The meters of all RPCs of a server."""

    def __init__(self) -> None:
        self._meters: dict[str, MethodMeter] = {}

    @property
    def meters(self) -> Mapping[str, MethodMeter]:
        """By full name of the RPC."""
        return self._meters

    def meter(self, service: str, name: str, streaming: bool) -> MethodMeter:
        """The meter of an RPC; made once, at registration."""
        return self._meters.setdefault(f"{service}/{name}", MethodMeter(service, name, streaming))
