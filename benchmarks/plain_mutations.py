"""The floor of mutations: the same server, whose mutations run in a transaction and claim, store and record nothing."""

import asyncio
from typing import Any

import uvloop

import server.app
from benchmarks import serve
from server.rpc.call import AuditEntry, Mutation, Principal
from server.rpc.pipeline import Method, Pipeline, Trace
from storage.postgres.database import Transaction


class PlainPipeline(Pipeline):
    """Everything of a call but idempotency and audit."""

    async def _mutate(self, method: Method, request: Any, principal: Principal, trace: Trace) -> Any:
        async def attempt(tx: Transaction) -> Any:
            call = Mutation(method.full_name, trace.request_id, principal, trace.peer, tx=tx, record=_forget)
            return await method.run(request, call)

        return await self._database.run(method.name, attempt)


async def _forget(entry: AuditEntry) -> None:
    pass


if __name__ == "__main__":
    server.app.Pipeline = PlainPipeline  # type: ignore[misc]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve.main())
