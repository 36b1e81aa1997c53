"""Milvus beside the running service, started when the first of these tests asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from server.jobs.handling import Stores
from server.stores import opened
from tests.conftest import World


@pytest.fixture(scope="session")
async def searching(world: World) -> AsyncIterator[Stores]:
    """What jobs work on, with Milvus running."""
    await world.engines.begin("milvus")
    async with opened(world.settings, "mrm-search-tests") as stores:
        yield stores
