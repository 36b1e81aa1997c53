"""gRPC health per service: each serves while the stores it needs answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from server.rpc import logs

Probe = Callable[[], Awaitable[None]]

PROCESS = "mrm"
"""The service that serves until the process drains, whatever store is down.

Balancers should ask for it: a server that they take away because of ClickHouse could do all the rest.
"""

PROBE_SECONDS = 2.0
INTERVAL_SECONDS = 1.0


class HealthMonitor:
    """Probes the stores again and again and keeps the standard health service up to date.

    Args:
        probes: Store name to a coroutine that raises if the store does not answer.
        needs: Full service name to the stores without which it cannot serve.
        spared: Stores without which the server as a whole still serves.
    """

    def __init__(
        self, probes: Mapping[str, Probe], needs: Mapping[str, frozenset[str]], spared: frozenset[str] = frozenset()
    ) -> None:
        self.servicer = HealthServicer()
        self._probes = probes
        self._needs = {**needs, "": frozenset(probes) - spared, PROCESS: frozenset()}
        self._down: frozenset[str] | None = None
        self._log = logs.get("health")

    @property
    def answering(self) -> dict[str, bool]:
        """Whether each store answered when it was probed last."""
        down = self._down or frozenset()
        return {name: name not in down for name in self._probes}

    async def run(self) -> None:
        """Probes for ever."""
        while True:
            await self.check()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def check(self) -> None:
        """Probes once."""
        names = list(self._probes)
        answers = await asyncio.gather(*(self._answers(name) for name in names))
        down = frozenset(name for name, answers_now in zip(names, answers, strict=True) if not answers_now)
        if down == self._down:
            return
        self._down = down
        if down:
            self._log.warning("stores_down", stores=sorted(down))
        else:
            self._log.info("stores_up")
        for service, needed in self._needs.items():
            await self.servicer.set(service, _status(not needed & down))

    async def drain(self) -> None:
        """Tells balancers to send nothing more."""
        await self.servicer.enter_graceful_shutdown()

    async def _answers(self, name: str) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._probes[name]()
        except Exception:
            return False
        return True


def _status(serving: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    return health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
