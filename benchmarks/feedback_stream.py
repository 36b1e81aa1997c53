"""feedback.stream: durable feedback a second through gRPC, over one bare COPY of the same rows into the same table."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import grpc

from benchmarks.harness import Bench, Result, interleaved
from mrm.ai.v1 import feedback_pb2
from mrm.ai.v1 import feedback_service_pb2 as pb
from server.feedback import edits, rules
from server.rpc.auth import KEY_PREFIX, digest, new_secret
from server.rpc.call import Principal
from storage.postgres import api_keys, clients, projects
from storage.postgres.database import Database
from storage.postgres.feedback import COLUMNS
from storage.postgres.ids import new_id
from storage.scope import Scope

RECORDS = 20_000
BATCH = 500
STREAMS = 4
BAR = 0.3
STREAM = "/mrm.ai.v1.FeedbackService/RecordFeedbackStream"

# What answers are made of.
_WORDS = (
    *("кампания", "продажи", "осень", "бюджет", "охват", "аудитория", "рост", "спрос"),
    *("brand", "media", "reach", "budget", "launch", "autumn"),
)


@dataclass(frozen=True)
class Desk:
    """Who gives feedback, and on what."""

    client_id: UUID
    project_id: UUID
    version_id: UUID
    secret: str


async def run(bench: Bench) -> list[Result]:
    """Measures records of about a kilobyte, six of ten accepted, three edited and one rejected; all with new keys."""
    desk = await _prepare(bench)
    chance = random.Random(8)
    count = max(STREAMS * 100, int(RECORDS * bench.scale))
    connection = await asyncpg.connect(bench.connections.postgres_dsn)
    try:
        async with grpc.aio.insecure_channel(bench.target) as channel:
            value, floor, ratio = await interleaved(
                bench.rounds,
                lambda: _streamed(channel, desk, _records(desk, count, chance)),
                lambda: _copied(connection, desk, _records(desk, count, chance)),
                settle=bench.settle / 4,
            )
    finally:
        await connection.close()
    return [Result("feedback.stream", value, "records/s", floor, ratio, BAR, ratio >= BAR)]


async def _prepare(bench: Bench) -> Desk:
    """A client with a project, a version of a prompt, and a key."""
    database = await Database.open(bench.connections.postgres_dsn, min_size=1, max_size=2)
    try:
        client = await clients.create(database, name="bench", type="direct_advertiser")
        project = await projects.create(database, client_id=client.id, name="bench")
        prompt_id, version_id = new_id(), new_id()
        await database.execute(
            "INSERT INTO prompt_lineages (id, name, category, latest_version) VALUES ($1, 'bench', 'brief', 1)",
            prompt_id,
        )
        await database.execute(
            """INSERT INTO ai_prompts (id, lineage_id, name, category, prompt_template, version)
               VALUES ($1, $2, 'bench', 'brief', 'Be brief.', 1)""",
            version_id,
            prompt_id,
        )
        secret = new_secret(KEY_PREFIX)
        await api_keys.create(
            database,
            name="bench",
            key_hash=bytes.fromhex(digest(secret)),
            prefix=secret[:11],
            permissions=["FEEDBACK_WRITE"],
            client_ids=[client.id],
        )
        return Desk(client.id, project.id, version_id, secret)
    finally:
        await database.close()


def _records(desk: Desk, count: int, chance: random.Random) -> list[feedback_pb2.FeedbackRecord]:
    """Records with new keys; an edit is a sentence in the middle of the answer."""
    records = []
    for _ in range(count):
        action = chance.choices((1, 2, 3), (6, 3, 1))[0]
        words = chance.choices(_WORDS, k=60)
        record = feedback_pb2.FeedbackRecord(
            key=uuid4().hex,
            client_id=str(desk.client_id),
            project_id=str(desk.project_id),
            prompt_version_id=str(desk.version_id),
            label="production",
            action=action,  # type: ignore[arg-type]
            output_text=" ".join(words),
        )
        if action == feedback_pb2.FEEDBACK_ACTION_EDITED:
            record.edited_text = " ".join([*words[:30], *chance.choices(_WORDS, k=8), *words[36:]])
        records.append(record)
    return records


async def _streamed(channel: grpc.aio.Channel, desk: Desk, records: list[feedback_pb2.FeedbackRecord]) -> float:
    requests = [
        pb.RecordFeedbackStreamRequest(records=records[begin : begin + BATCH]).SerializeToString()
        for begin in range(0, len(records), BATCH)
    ]

    async def send(mine: list[bytes]) -> int:
        async def sent() -> AsyncIterator[bytes]:
            for request in mine:
                yield request

        call = channel.stream_stream(STREAM, response_deserializer=pb.RecordFeedbackStreamResponse.FromString)(
            sent(), metadata=(("authorization", f"Bearer {desk.secret}"),)
        )
        return sum([reply.success_count async for reply in call])

    begun = time.perf_counter()
    stored = sum(await asyncio.gather(*(send(requests[number::STREAMS]) for number in range(STREAMS))))
    taken = time.perf_counter() - begun
    if stored != len(records):
        raise RuntimeError(f"{stored} of {len(records)} records stored")
    return len(records) / taken


async def _copied(connection: asyncpg.Connection, desk: Desk, records: list[feedback_pb2.FeedbackRecord]) -> float:
    """The rows that the service makes of the records, made beforehand."""
    key = Principal("api_key", new_id(), frozenset(), Scope())
    now = datetime.now(UTC)
    rows = []
    for record in records:
        draft = rules.read(record, "record", key)
        row = draft.row._replace(acted_at=now)
        if draft.texts is not None:
            [percent] = await edits.percents([draft.texts], asyncio.Semaphore())
            row = row._replace(edit_percent=percent)
        rows.append(row)
    begun = time.perf_counter()
    await connection.copy_records_to_table("ai_feedback", records=rows, columns=COLUMNS)
    return len(records) / (time.perf_counter() - begun)
