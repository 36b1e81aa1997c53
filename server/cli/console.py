"""What every command shares: where it prints, how it ends, how it shows progress."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import typer
import uvloop
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from mrm_client import CallError

T = TypeVar("T")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_LOG_LIMIT_BYTES = 20 * 2**20
_PLAIN_PROGRESS_SECONDS = 2.0
# A pipe has no width of its own; what reads it should find one row per line.
_PIPE_WIDTH = 240


class CommandFailed(Exception):
    """The command cannot do what was asked; the text says why and what to do."""


def run(command: Coroutine[Any, Any, int | None]) -> NoReturn:
    """Runs a command to its end and exits with its code; an error is one line on standard error, exit code 1.

    SIGTERM and Ctrl-C cancel the command, so that it cleans up. ``MRM_DEBUG=1`` shows tracebacks.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_cancelled_by_sigterm(command)) or 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except asyncio.CancelledError:
        code = 128 + signal.SIGTERM
    except Exception as error:
        if os.environ.get("MRM_DEBUG") == "1":
            raise
        err.print(f"[red]error:[/] {explain(error)}", markup=True, soft_wrap=True)
        code = 1
    raise typer.Exit(code)


async def _cancelled_by_sigterm(command: Coroutine[Any, Any, int | None]) -> int | None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await command


def explain(error: Exception) -> str:
    """One line about an error, without values that may be secret."""
    # Imported here because they are slow to load and `mrm --help` needs none of them.
    import grpc
    from pydantic import ValidationError

    from mrm_client import CallError
    from server.embedded import EngineError
    from server.errors import StartError
    from storage.errors import StoreError, StoreUnavailable
    from storage.migrations import MigrationError
    from storage.redis.dsn import MalformedDsn

    if isinstance(error, grpc.aio.AioRpcError):
        error = CallError.of_rpc(error)
    if isinstance(error, ValidationError):
        faults = (f"MRM_{'__'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_input=False))
        return _escaped("; ".join(faults))
    if isinstance(error, OSError) and error.filename:
        return _escaped(f"{error.filename}: {error.strerror}")
    if isinstance(error, StoreUnavailable):
        return _escaped(f"{error}: is `mrm up` running here, or do MRM_POSTGRES__DSN and the others name the engines?")
    ours = (CommandFailed, CallError, StartError, EngineError, StoreError, MigrationError, MalformedDsn)
    if isinstance(error, ours):
        return _escaped(str(error))
    return f"{type(error).__name__} (MRM_DEBUG=1 shows where)"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("[", r"\[")


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Sends standard error, where the logs go, into a file of a data directory: the terminal stays readable."""
    file.parent.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    if file.exists() and file.stat().st_size > _LOG_LIMIT_BYTES:
        file.replace(file.with_suffix(".log.1"))
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "a") as log, redirect_stderr(log):
        yield


class Meter(Protocol):
    """Shows how far a piece of work is."""

    def __call__(self, done: int) -> None:
        """Tells how much is done in all."""


@contextmanager
def progress(label: str, total: int, unit: str = "events") -> Iterator[Meter]:
    """A bar with rate and time left on a terminal, a line every two seconds elsewhere."""
    if not out.is_terminal:
        yield _PlainMeter(label, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(label, total=total, rate="")
        started, first = time.monotonic(), -1

        def meter(done: int) -> None:
            nonlocal first
            first = done if first < 0 else first
            rate = (done - first) / max(time.monotonic() - started, 0.001)
            bar.update(task, completed=done, rate=f"{rate:,.0f} {unit}/s")

        yield meter


class _PlainMeter:
    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._started = self._told = time.monotonic()
        self._first = -1

    def __call__(self, done: int) -> None:
        self._first = done if self._first < 0 else self._first
        now = time.monotonic()
        if now - self._told < _PLAIN_PROGRESS_SECONDS:
            return
        self._told = now
        rate = (done - self._first) / (now - self._started)
        left = f", {(self._total - done) / rate:.0f} s left" if rate else ""
        say(f"{self._label}: {done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s{left}")


def say(text: str, **options: Any) -> None:
    """Prints a line and makes sure a pipe sees it now; names from outside must go through `rich.markup.escape`."""
    out.print(text, soft_wrap=True, **options)
    sys.stdout.flush()


def show_table(shown: RenderableType) -> None:
    """Prints a table, in a pipe one row per line."""
    # rich takes a width for one print only as far as the console's own, which is 80 in a pipe.
    console = out if out.is_terminal else Console(file=sys.stdout, highlight=False, width=_PIPE_WIDTH)
    console.print(shown)


def show_rows(found: Sequence[T], table: Callable[[Sequence[T]], Table], line: Callable[[T], str]) -> None:
    """Prints things as a table on a terminal, as a line each elsewhere."""
    if out.is_terminal:
        out.print(table(found))
        return
    for each in found:
        say(line(each), markup=False)


def tell_retry(error: CallError, pause: float) -> None:
    """Says on standard error that the server is away, as `mrm_client.retries.Retries` wants it said."""
    err.print(f"[yellow]{escape(str(error))}; trying again in {pause:.1f} s[/]", soft_wrap=True)


@asynccontextmanager
async def step(text: str) -> AsyncIterator[None]:
    """Says what is being done, then how long it took."""
    started = time.monotonic()
    with out.status(f"{text} ..."):
        yield
    say(f"[green]✓[/] {text} [dim]{time.monotonic() - started:.1f} s[/]")
