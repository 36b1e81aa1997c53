"""What all benchmarks share: engines, servers in processes of their own, interleaved rounds, results."""

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import SecretStr
from rich.console import Console

from server.embedded import Connections, EmbeddedEngines
from server.settings import Settings
from server.stores import migrate

console = Console(stderr=True)


# Below this scale a benchmark only shows that everything works: its figures mean nothing.
_MEASURING_SCALE = 0.2
_SHORT_SHARE = 20


@dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
        name: What was measured.
        value: The service's figure.
        unit: Unit of `value` and `floor`.
        floor: The same work done without the service, in the same run; None for latencies.
        ratio: Median over the rounds of the service's figure by the floor's.
        bar: What `ratio` (or `value`, without a floor) must reach.
        ok: Whether it does.
        scale: Size of the measurement, 1 for the real one.
    """

    name: str
    value: float
    unit: str
    floor: float | None
    ratio: float | None
    bar: float
    ok: bool
    scale: float = 1.0

    def as_dict(self) -> dict[str, object]:
        """For results.json."""
        return asdict(self)


@dataclass(frozen=True)
class Bench:
    """Running engines, and the server if there is one.

    Attributes:
        engines: The engines; Milvus among them is not started before a benchmark begins it.
        scale: Size of each round, 1 for the real measurement.
        folder: Where engines and server keep what they write.
        output: Where a benchmark leaves what it draws.
    """

    engines: EmbeddedEngines
    connections: Connections
    settings: Settings
    target: str
    scale: float
    folder: Path
    output: Path = Path(__file__).parent

    @property
    def rounds(self) -> int:
        """How many pairs to measure."""
        return 1 if is_short(self.scale) else 7

    @property
    def settle(self) -> float:
        """Seconds of rest before each measurement that leaves background work behind."""
        return 0.1 if is_short(self.scale) else 2.0

    def count(self, whole: int, least: int = 1) -> int:
        """How many of something to make or send at a time: a twentieth of it in a short form."""
        return max(least, whole // _SHORT_SHARE) if is_short(self.scale) else whole

    @property
    def environment(self) -> dict[str, str]:
        """What tells a server where the engines are."""
        return {
            "MRM_POSTGRES__DSN": self.connections.postgres_dsn,
            "MRM_CLICKHOUSE__DSN": self.connections.clickhouse_dsn,
            "MRM_REDIS__DURABLE_DSN": self.connections.redis_dsn,
            "MRM_MILVUS__DSN": self.connections.milvus_dsn,
        }


def is_short(scale: float) -> bool:
    """Whether a benchmark of this scale only shows that everything works."""
    return scale < _MEASURING_SCALE


@asynccontextmanager
async def service(scale: float) -> AsyncIterator[Bench]:
    """Engines in a fresh directory and one server process on them, as `mrm serve` starts it."""
    async with engines(scale) as bench, server(bench) as target:
        yield replace(bench, target=target)


@asynccontextmanager
async def server(bench: Bench, **environment: str) -> AsyncIterator[str]:
    """A server process on the engines, as `mrm serve` starts it; its address."""
    log = bench.folder / "server.log"
    async with process(["benchmarks.serve"], {**bench.environment, **environment}, log=log) as port:
        yield f"127.0.0.1:{port}"


@asynccontextmanager
async def engines(scale: float) -> AsyncIterator[Bench]:
    """Engines in a fresh directory, with schemas and without a server."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mrm-bench-", ignore_cleanup_errors=True))
        # PostgreSQL runs as another user when this is root, and must reach its directory.
        os.chmod(folder, 0o755)
        running = EmbeddedEngines(Path(folder, "data"), behind=False)
        stack.push_async_callback(running.stop)
        connections = await running.start()
        settings = Settings()
        settings.postgres.dsn = SecretStr(connections.postgres_dsn)
        settings.clickhouse.dsn = SecretStr(connections.clickhouse_dsn)
        settings.redis.durable_dsn = SecretStr(connections.redis_dsn)
        settings.milvus.dsn = SecretStr(connections.milvus_dsn)
        await migrate(settings)
        yield Bench(running, connections, settings, "", scale, Path(folder))


@asynccontextmanager
async def process(module: list[str], environment: dict[str, str], log: Path) -> AsyncIterator[int]:
    """A server in a process of its own, which prints the port it listens on."""
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *module,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            env={**os.environ, **environment},
        )
    assert child.stdout is not None
    try:
        line = await asyncio.wait_for(child.stdout.readline(), 120)
        if not line.strip().isdigit():
            raise RuntimeError(f"{module[0]} did not start:\n{log.read_text()[-2000:]}")
        yield int(line)
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()


async def interleaved(
    rounds: int,
    measured: Callable[[], Awaitable[float]],
    floor: Callable[[], Awaitable[float]],
    settle: float = 0.0,
) -> tuple[float, float, float]:
    """Measures both in turn; each round's order is the reverse of the one before.

    Args:
        rounds: Pairs that count. One pair before them does not, unless there is one alone.
        measured: One measurement of the service.
        floor: One measurement of the floor.
        settle: Seconds before each measurement, so that background work of the one before does not fall on it.

    Returns:
        Median of the measured, median of the floor, median of the ratios round by round.
    """
    pairs: list[tuple[float, float]] = []
    warmups = 1 if rounds > 1 else 0
    for number in range(warmups + rounds):
        figures = {}
        for side in (measured, floor) if number % 2 else (floor, measured):
            await asyncio.sleep(settle)
            figures[side] = await side()
        high, low = figures[measured], figures[floor]
        if number >= warmups:
            pairs.append((high, low))
            console.print(f"  round {number - warmups + 1}/{rounds}: {high:,.0f} / {low:,.0f} = {high / low:.3f}")
    return (
        statistics.median(high for high, _ in pairs),
        statistics.median(low for _, low in pairs),
        statistics.median(high / low for high, low in pairs),
    )


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
