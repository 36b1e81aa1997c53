"""`mrm jobs`, as a process against the running service, and what it prints."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from rich.console import Console

from mrm.operations.v1 import job_pb2
from server.cli.jobs import line, queue_table, table
from storage.postgres import jobs

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World

LEASE = timedelta(seconds=30)


async def test_a_job_is_listed_followed_retried_and_cancelled(mrm: Mrm, world: World) -> None:
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": world.admin.token}
    client = await world.client()
    async with world.database.transaction("make_job") as tx:
        job = await jobs.enqueue_internal(
            tx, type="sync_campaign", queue="sync", payload={"n": 1}, client_id=UUID(client.client_id)
        )
    await jobs.claim_internal(world.database, [job.id], "a worker", LEASE)
    following = await mrm.start("jobs", "watch", job.id, **server)
    assert following.stdout is not None
    async with asyncio.timeout(60):
        assert b"sync_campaign processing 1/3" in await following.stdout.readline()
        await jobs.heartbeat_internal(world.database, job.id, 1, LEASE, {"done": 1, "total": 4, "note": "pages"})
        assert "╌ 1/4 pages" in (await following.stdout.readline()).decode()
        await jobs.fail_internal(world.database, job.id, 1, "refused [b]", final=True)
        rest, _ = await following.communicate()
    assert (following.returncode, rest.decode().strip()) == (1, f"{job.id} sync_campaign failed 1/3: refused [b]")
    dead = ("jobs", "list", "--client", client.client_id, "--status", "failed")
    listed, unknown, shown = await asyncio.gather(
        mrm(*dead, **server),
        mrm(*dead, "--type", "nonsense", **server),
        mrm("jobs", "show", job.id, **server),
    )
    assert listed.out.strip() == rest.decode().strip()
    assert "--type is one of sync_campaign, " in unknown.err
    assert 'payload: {"n": 1.0}' in shown.out
    assert "by a worker, failed: refused [b]" in shown.out
    assert (await mrm("jobs", "retry", job.id, **server)).out == "waits to be tried again\n"
    assert (await mrm("jobs", "cancel", job.id, **server)).out == "cancelled\n"


async def test_queues_are_shown_paused_limited_and_resumed(mrm: Mrm, world: World) -> None:
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": world.admin.token}
    try:
        paused, limited = await asyncio.gather(
            mrm("jobs", "pause", "sync", "--reason", "moving [b]house", **server),
            mrm("jobs", "limit", "sync", "7", **server),
        )
        assert (paused.out, limited.out) == ("sync is paused\n", "sync: at most 7 at a time\n")
        shown = await mrm("jobs", "queues", **server)
        [row] = [each for each in shown.out.splitlines() if each.startswith("sync")]
        assert row.endswith("paused: moving [b]house")
        assert " 7 " in row
        assert (await mrm("jobs", "resume", "sync", **server)).out == "sync goes on\n"
    finally:
        async with world.database.transaction("reset") as tx:
            await jobs.update_queue_internal(tx, "sync", concurrency=None, paused_because=None)


def test_tables_tell_what_matters() -> None:
    now = datetime.now(UTC)
    job = job_pb2.Job(job_id=str(uuid4()), type=job_pb2.JOB_TYPE_SEND_EMAIL, attempts=1, max_attempts=3)
    job.status = job_pb2.JOB_STATUS_PENDING
    job.held_because = "the platform refuses the account"
    assert line(job).endswith("send_email pending 1/3: the platform refuses the account")
    job.cancel_request_time.FromDatetime(now)
    assert line(job).endswith("asked to stop")
    queue = job_pb2.Queue(name=job_pb2.QUEUE_NAME_EMAIL, due=1234, running=2, failed=3)
    queue.oldest_due_time.FromDatetime(now - timedelta(seconds=90))
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table([job]))
        console.print(queue_table([queue], now))
    for text in ("send_email", "1/3", "1,234", "90 s"):
        assert text in capture.get()
