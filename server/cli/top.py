"""`mrm top`: how the running service does, from what its processes tell Prometheus."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Annotated

import httpx2
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.cli import runfile
from server.cli.console import CommandFailed, err, out, run, say
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir

_SECONDS = 5.0
_METHODS = 12
_FAILURES = frozenset({"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS"})
_HANDLED = "grpc_server_handled_total"
_BUCKET = "grpc_server_handling_seconds_bucket"

Labels = frozenset[tuple[str, str]]


@dataclass(slots=True)
class Reading:
    """What all processes told at one time.

    Attributes:
        at: Monotonic seconds.
        counts: Sums over the processes, of what each counts for itself.
        states: The largest that any process told, of what is one for all of them.
    """

    at: float
    counts: dict[tuple[str, Labels], float] = field(default_factory=lambda: defaultdict(float))
    states: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def take(self, text: str) -> None:
        """Adds what one process told."""
        # Loaded here: it takes longer than the rest of the command.
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                self.counts[key] += sample.value
                self.states[key] = max(sample.value, self.states.get(key, sample.value))

    def state(self, name: str, **labels: str) -> float | None:
        """One number that is the same for all processes; None if nobody told it."""
        wanted = labels.items()
        found = [value for (each, has), value in self.states.items() if each == name and wanted <= has]
        return max(found, default=None)

    def total(self, name: str) -> float:
        """Sum of a number over processes and labels."""
        return sum(value for (each, _), value in self.counts.items() if each == name)


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls between two readings.

    Attributes:
        rate: Calls a second.
        failed: Of these, those in which the service failed, a second.
        p50: Median duration of unary ones in seconds; None if there were none.
        p99: What all but one in a hundred stayed below.
    """

    rate: float
    failed: float
    p50: float | None
    p99: float | None


class Overview:
    """How the service did between two readings."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self.after = after
        self._seconds = max(after.at - before.at, 0.001)
        self._grown = {
            # A process that was started anew counts from nothing.
            key: value if value < before.counts.get(key, 0.0) else value - before.counts.get(key, 0.0)
            for key, value in after.counts.items()
        }

    def rate(self, name: str, **labels: str) -> float:
        """Growth of a counter a second."""
        return self._sum(lambda each, has: each == name and labels.items() <= has) / self._seconds

    def calls(self, method: tuple[str, str] | None = None) -> Calls:
        """Calls of one RPC, given by service and name, or of all."""
        own = frozenset({("grpc_service", method[0]), ("grpc_method", method[1])}) if method else frozenset()
        codes: dict[str, float] = defaultdict(float)
        buckets: dict[float, float] = defaultdict(float)
        for (name, labels), grown in self._grown.items():
            if name == _HANDLED and own <= labels:
                codes[dict(labels)["grpc_code"]] += grown
            elif name == _BUCKET and own <= labels:
                buckets[float(dict(labels)["le"])] += grown
        failed = sum(count for code, count in codes.items() if code in _FAILURES)
        return Calls(
            sum(codes.values()) / self._seconds,
            failed / self._seconds,
            quantile(buckets, 0.5),
            quantile(buckets, 0.99),
        )

    def busiest(self) -> list[tuple[str, Calls]]:
        """The RPCs that were called most, by name."""
        counts: dict[tuple[str, str], float] = defaultdict(float)
        for (name, labels), grown in self._grown.items():
            if name == _HANDLED and grown:
                named = dict(labels)
                counts[named["grpc_service"], named["grpc_method"]] += grown
        ordered = sorted(counts, key=lambda method: -counts[method])[:_METHODS]
        return [(f"{service.rpartition('.')[2]}/{name}", self.calls((service, name))) for service, name in ordered]

    def queues(self) -> list[tuple[str, Mapping[str, float], float]]:
        """Name of each queue, its jobs by state, and how long the oldest due one has waited."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for (name, labels), value in self.after.states.items():
            if name == "mrm_queue_jobs":
                named = dict(labels)
                found[named["queue"]][named["state"]] = value
        return [
            (queue, states, self.after.state("mrm_queue_age_seconds", queue=queue) or 0.0)
            for queue, states in sorted(found.items())
        ]

    def stores_down(self) -> list[str]:
        """Stores that some process does not reach."""
        down = {
            dict(labels)["store"]
            for (name, labels), value in self.after.counts.items()
            if name == "mrm_store_up" and not self.after.states[name, labels]
        }
        return sorted(down)

    def lags(self) -> list[tuple[str, float | None]]:
        """How far behind things are, in seconds."""
        names = {
            "rebuild": "mrm_rebuild_lag_seconds",
            "watch": "mrm_watch_lag_seconds",
            "relay": "mrm_relay_lag_seconds",
            "event loop": "mrm_event_loop_lag_seconds",
        }
        return [(shown, self.after.state(name)) for shown, name in names.items()]

    def _sum(self, wanted: Callable[[str, Labels], bool]) -> float:
        return sum(grown for (name, labels), grown in self._grown.items() if wanted(name, labels))


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """A quantile of a histogram's buckets (upper end to count up to it), as Prometheus reckons it; None of nothing."""
    ordered = sorted(buckets.items())
    if not ordered or not ordered[-1][1]:
        return None
    rank = share * ordered[-1][1]
    for (low, below), (high, upto) in pairwise([(0.0, 0.0), *ordered]):
        if upto >= rank:
            return low if high == float("inf") else low + (high - low) * (rank - below) / max(upto - below, 1e-9)
    raise AssertionError("the last bucket holds all")


Urls = Annotated[
    list[str] | None,
    typer.Option("--url", help="Where a process answers Prometheus; several are added up. Default: that of `mrm up`."),
]


def top(
    url: Urls = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show how the service does: calls, failures, streams, queues and lags; a line each time off a terminal.

    Reads /metrics of servers and workers (MRM_MONITORING__PORT); needs no token. Ctrl-C ends it.
    """
    run(show(url or [_default(runfile.read(data_dir))], every, once))


def _default(found: runfile.RunFile | None) -> str:
    port = os.environ.get("MRM_MONITORING__PORT", "0")
    if port != "0":
        return f"http://127.0.0.1:{port}/metrics"
    if found is None:
        raise CommandFailed("which process? pass --url, or set MRM_MONITORING__PORT; no `mrm up` runs here")
    return found.metrics_url


async def show(urls: list[str], every: float, once: bool) -> None:
    """Looks at the processes at these URLs once, or again and again."""
    async with httpx2.AsyncClient(timeout=_SECONDS, trust_env=False) as http:
        before = await _read(http, urls)
        if once:
            await asyncio.sleep(every)
            overview = Overview(before, await _read(http, urls))
            if out.is_terminal:
                out.print(_table(overview))
            else:
                _tell(overview)
            return
        await _follow(http, urls, every, before)


async def _follow(http: httpx2.AsyncClient, urls: list[str], every: float, before: Reading) -> None:
    with Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext() as shown:
        while True:
            await asyncio.sleep(every)
            try:
                after = await _read(http, urls)
            except CommandFailed as error:
                err.print(Text(str(error), "yellow"), soft_wrap=True)
                continue
            overview, before = Overview(before, after), after
            if shown is not None:
                shown.update(_table(overview), refresh=True)
            else:
                _tell(overview)


async def _read(http: httpx2.AsyncClient, urls: list[str]) -> Reading:
    """Asks all processes.

    Raises:
        CommandFailed: One of them does not answer.
    """
    reading = Reading(time.monotonic())
    for address in urls:
        try:
            reply = await http.get(address)
            reply.raise_for_status()
        except httpx2.HTTPError as error:
            raise CommandFailed(f"{address} does not answer: {type(error).__name__}") from None
        reading.take(reply.text)
    return reading


def _tell(overview: Overview) -> None:
    calls, after = overview.calls(), overview.after
    facts = [
        f"{calls.rate:,.1f} calls/s",
        f"p50 {_millis(calls.p50)}",
        f"p99 {_millis(calls.p99)}",
        f"{calls.failed:,.1f} failures/s",
        f"{after.total('mrm_streams_open'):.0f} streams",
        f"{overview.rate('mrm_ingest_events_total'):,.0f} events/s",
        *(f"{queue} {states.get('due', 0):.0f} due" for queue, states, _ in overview.queues()),
        *(f"{name} lag {seconds:.1f} s" for name, seconds in overview.lags() if seconds is not None),
        *(f"{store} DOWN" for store in overview.stores_down()),
    ]
    say(f"{datetime.now().astimezone():%H:%M:%S} {', '.join(facts)}", markup=False)


def _table(overview: Overview) -> Group:
    calls, after = overview.calls(), overview.after
    head = Text.assemble(
        (f"{calls.rate:,.1f} calls/s", "bold"),
        f"   p50 {_millis(calls.p50)}   p99 {_millis(calls.p99)}   ",
        (f"{calls.failed:,.1f} failures/s", "red" if calls.failed else ""),
        f"   {after.total('mrm_streams_open'):.0f} streams   {after.total('mrm_watchers'):.0f} watchers",
        f"   {overview.rate('mrm_ingest_events_total'):,.0f} events/s",
    )
    down = overview.stores_down()
    lags = Text.assemble(
        "behind: ",
        ", ".join(f"{name} {seconds:.1f} s" for name, seconds in overview.lags() if seconds is not None),
        (f"   down: {', '.join(down)}" if down else "", "bold red"),
    )
    return Group(head, lags, "", _methods(overview.busiest()), "", _queues(overview.queues()))


def _methods(found: Iterable[tuple[str, Calls]]) -> Table:
    table = Table("method", box=None, pad_edge=False)
    for heading in ("calls/s", "p50", "p99", "failures/s"):
        table.add_column(heading, justify="right")
    for name, calls in found:
        table.add_row(name, f"{calls.rate:,.1f}", _millis(calls.p50), _millis(calls.p99), f"{calls.failed:,.1f}")
    return table


def _queues(found: Iterable[tuple[str, Mapping[str, float], float]]) -> Table:
    table = Table("queue", box=None, pad_edge=False)
    for heading in ("due", "later", "running", "failed", "oldest"):
        table.add_column(heading, justify="right")
    for queue, states, age in found:
        counts = (f"{states.get(state, 0):.0f}" for state in ("due", "later", "running", "failed"))
        table.add_row(queue, *counts, f"{age:.0f} s")
    return table


def _millis(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.1f} ms"
