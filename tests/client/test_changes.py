"""Watching changes with the client helper, against the service itself."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc
import pytest

import mrm_client
from mrm.operations.v1 import change_service_pb2
from mrm_client import CallError
from server.app import Application
from tests.conftest import settings_for

if TYPE_CHECKING:
    from tests.conftest import World


async def test_a_watch_goes_on_over_restarts_without_a_gap(world: World) -> None:
    client = await world.client()
    wanted = change_service_pb2.ChangeFilter(client_id=client.client_id)
    settings = settings_for(world.connections)
    server = Application(settings)
    await server.start()
    settings.grpc.port = server.port
    retried: list[CallError] = []
    async with mrm_client.channel(f"127.0.0.1:{server.port}", world.admin.token) as channel:
        watching = mrm_client.watch_changes(
            channel, wanted, on_retry=lambda error, pause: retried.append(error), patience=60
        )
        async with aclosing(watching) as batches, asyncio.timeout(90):
            assert (await anext(batches)).changes == ()
            made, seen = [], []
            for _ in range(2):
                made.append((await world.project(client.client_id)).project_id)
                await server.stop()
                made.append((await world.project(client.client_id)).project_id)
                server = Application(settings)
                await server.start()
                async for batch in batches:
                    seen += [change.resource_id for change in batch.changes]
                    if len(seen) >= len(made):
                        break
    await server.stop()
    assert seen == made
    assert batch.reconnects == len(retried) >= 2


async def test_a_refused_token_is_never_passed_over(world: World) -> None:
    async with mrm_client.channel(world.target, world.admin.token) as channel:
        watching = mrm_client.watch_changes(
            channel, change_service_pb2.ChangeFilter(client_id=str(uuid4())), resume_token="foreign"
        )
        with pytest.raises(CallError) as caught:
            async with aclosing(watching) as batches:
                await anext(batches)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID")
