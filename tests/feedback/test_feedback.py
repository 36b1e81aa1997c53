"""FeedbackService on the running service: what is recorded once stays, by whichever way it came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from mrm.accounts.v1 import client_pb2, client_service_pb2, user_service_pb2
from mrm.ai.v1 import feedback_pb2
from mrm.ai.v1 import feedback_service_pb2 as pb
from mrm.ai.v1 import prompt_experiment_service_pb2 as experiment_pb
from mrm.common.v1 import options_pb2
from mrm.planning.v1 import project_member_pb2
from server.feedback import edits
from server.feedback.feedback_service import FeedbackService
from server.feedback.writing import FeedbackWriter, Recorded
from server.rpc.call import Call, Principal, StreamCall
from server.rpc.errors import Unavailable
from server.rpc.paging import Pager
from server.rpc.tokens import TokenCodec
from storage.postgres import clients, feedback
from storage.scope import EVERYTHING, Scope
from tests.conftest import Caller, Failing, World, failure_of
from tests.feedback.asking import ACCEPTED, EDITED, REJECTED, Desk, batch, desk, got, said
from tests.prompts import writing

pytestmark = pytest.mark.bar_g

TEXT = "Цель кампании: рост продаж осенней коллекции. Goal: more sales in autumn."
WRITE = options_pb2.PERMISSION_FEEDBACK_WRITE
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


@pytest.fixture(scope="module")
async def place(world: World) -> Desk:
    return await desk(world, versions=2)


def told(result: feedback_pb2.RecordFeedbackResult) -> tuple[str, str]:
    """The code by which a record was refused, and its broken fields or else the reason."""
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in result.status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    fields = [f"{each.field} {each.reason}" for each in bad.field_violations]
    return _CODES[result.status.code], ", ".join(fields) or info.metadata["resource_type"] or info.reason


async def streamed(caller: Caller, *requests: pb.RecordFeedbackStreamRequest) -> list[pb.RecordFeedbackStreamResponse]:
    """The answers to the requests of one stream."""

    async def sent() -> AsyncIterator[pb.RecordFeedbackStreamRequest]:
        for request in requests:
            yield request

    return [each async for each in caller.feedback.RecordFeedbackStream(sent(), metadata=caller.auth)]


async def listed(caller: Caller, page_size: int = 0, **conditions: Any) -> list[feedback_pb2.Feedback]:
    """All feedback that a filter finds, page by page."""
    found: list[feedback_pb2.Feedback] = []
    token = ""
    while True:
        request = pb.ListFeedbackRequest(
            page_size=page_size, page_token=token, filter=feedback_pb2.FeedbackFilter(**conditions)
        )
        reply = await caller.feedback.ListFeedback(request, metadata=caller.auth)
        found += reply.feedback
        token = reply.next_page_token
        if not token:
            return found


async def test_what_is_recorded_is_read_back(world: World, place: Desk) -> None:
    planner = await world.user("media_planner", place.client_id)
    artifact = feedback_pb2.Artifact(type=feedback_pb2.ARTIFACT_TYPE_BRIEF, artifact_id=str(uuid4()))
    decided = datetime.now(UTC) - timedelta(days=3)
    record = place.record(
        action=EDITED,
        project_id=place.project_id,
        artifact=artifact,
        prompt_version_id=place.versions[1],
        label="production",
        input_text="Сделай бриф",
        output_text=TEXT,
        edited_text=TEXT.replace("осенней", "зимней"),
        comment="Сезон другой",
    )
    record.action_time.FromDatetime(decided)
    reply = await said(planner, record)
    stored = await got(planner, reply.feedback.feedback_id)
    assert reply.feedback == stored
    assert not reply.duplicate
    # Four changes make one season of the other, of 73 characters.
    assert (stored.edit_percent, stored.prompt_version, stored.prompt_id) == ("5.48", 2, place.prompt_id)
    assert (stored.user_id, stored.api_key_id) == (str(planner.user_id), "")
    for name in ("key", "client_id", "project_id", "artifact", "label", "action", "input_text", "output_text",
                 "edited_text", "comment", "prompt_version_id", "action_time"):  # fmt: skip
        assert getattr(stored, name) == getattr(record, name), name
    again = await said(planner, record)
    assert (again.duplicate, again.feedback) == (True, stored)
    [short] = await listed(planner, artifact_id=artifact.artifact_id)
    assert (short.input_text, short.output_text, short.edited_text) == ("", "", "")
    assert (short.comment, short.edit_percent) == (record.comment, stored.edit_percent)


async def test_a_key_stands_for_one_record(world: World, place: Desk, failing: Failing) -> None:
    record = place.record(output_text=TEXT)
    stored = await said(world.admin, record)
    record.comment = "on second thoughts"
    failure = await failing(said(world.admin, record))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FEEDBACK_KEY_REUSED")
    assert failure.fields == {"record.key": "KEY_REUSED"}
    # Another client has keys of its own, and the same batch may hold a record twice.
    elsewhere = await desk(world)
    mine = elsewhere.record(key=record.key)
    first, second = await batch(world.admin, mine, mine)
    assert first.feedback_id == second.feedback_id != stored.feedback.feedback_id
    assert (first.duplicate, second.duplicate) == (False, True)
    # However many come at once.
    raced = place.record()
    replies = await asyncio.gather(*(said(world.admin, raced) for _ in range(8)))
    assert len({reply.feedback.feedback_id for reply in replies}) == 1
    assert sorted(reply.duplicate for reply in replies) == [False] + [True] * 7


# What is wrong, the code, and the broken field with its reason, or the kind of thing that is not there.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"key": "ключ"}, "INVALID_ARGUMENT", "key STRING_PATTERN"),
    ({"client_id": "x"}, "INVALID_ARGUMENT", "client_id STRING_UUID"),
    ({"action": 0}, "INVALID_ARGUMENT", "action ENUM_NOT_IN"),
    ({"output_text": "x" * 65537}, "INVALID_ARGUMENT", "output_text STRING_MAX_LEN"),
    ({"comment": "a\0b"}, "INVALID_ARGUMENT", "comment TEXT_NUL"),
    ({"edited_text": "x", "output_text": "y"}, "INVALID_ARGUMENT", "edited_text NOT_EDITED"),
    ({"edited_text": "x", "action": EDITED}, "INVALID_ARGUMENT", "output_text REQUIRED"),
    (
        # Only in Unicode form and line ends: nothing that a person did.
        {"edited_text": "и\u0306\r\n", "output_text": "й\n", "action": EDITED},
        "INVALID_ARGUMENT",
        "edited_text NOT_EDITED",
    ),
    (
        {"edited_text": "x", "output_text": "y", "action": EDITED, "edit_percent": "5"},
        "INVALID_ARGUMENT",
        "edit_percent EDIT_PERCENT_CONTRADICTS",
    ),
    ({"edit_percent": "5"}, "INVALID_ARGUMENT", "edit_percent EDIT_PERCENT_CONTRADICTS"),
    ({"edit_percent": "0", "action": EDITED}, "INVALID_ARGUMENT", "edit_percent EDIT_PERCENT_CONTRADICTS"),
    ({"edit_percent": "0", "action": REJECTED}, "INVALID_ARGUMENT", "edit_percent EDIT_PERCENT_CONTRADICTS"),
    ({"edit_percent": "100.01", "action": EDITED}, "INVALID_ARGUMENT", "edit_percent STRING_PATTERN"),
    ({"edit_percent": "-1", "action": EDITED}, "INVALID_ARGUMENT", "edit_percent STRING_PATTERN"),
    ({"action_time": {"seconds": 32503680000}}, "INVALID_ARGUMENT", "action_time IN_FUTURE"),
    ({"user_id": str(uuid4())}, "INVALID_ARGUMENT", "user_id NOT_CALLER"),
    ({"client_id": str(uuid4())}, "NOT_FOUND", "client"),
    ({"project_id": str(uuid4())}, "NOT_FOUND", "project"),
    ({"prompt_version_id": str(uuid4())}, "NOT_FOUND", "prompt_version"),
    ({"prompt_experiment_id": str(uuid4())}, "NOT_FOUND", "prompt_experiment"),
]


async def test_each_record_is_answered_at_its_place(world: World, place: Desk) -> None:
    good = [place.record() for _ in REFUSED]
    bad = [place.record(**fields) for fields, _, _ in REFUSED]
    mixed = [record for pair in zip(good, bad, strict=True) for record in pair]
    results = await batch(world.admin, *mixed)
    for index, (_, code, what) in enumerate(REFUSED):
        field = f"records[{2 * index + 1}]."
        assert told(results[2 * index + 1]) == (code, what if code == "NOT_FOUND" else field + what)
    assert all(result.feedback_id and not result.HasField("status") for result in results[::2])
    keys = {each.feedback_id: each.key for each in await listed(world.admin, 30, client_ids=[place.client_id])}
    assert [keys[result.feedback_id] for result in results[::2]] == [record.key for record in good]
    assert not {record.key for record in bad} & set(keys.values())


@pytest.mark.parametrize(
    ("fields", "percent"),
    [
        ({"edit_percent": "0"}, "0"),
        ({"edit_percent": "37.5", "action": EDITED}, "37.5"),
        ({"edit_percent": "100", "action": EDITED}, "100"),
        ({"action": EDITED}, None),
        ({"action": REJECTED}, None),
        ({"action": EDITED, "output_text": "kitten", "edited_text": "sitting"}, "42.86"),
        ({"action": EDITED, "output_text": "a" * 65_536, "edited_text": "b" * 65_536}, "100"),
        ({"action": EDITED, "output_text": "a" * 65_536, "edited_text": "a" * 65_535 + "b"}, "0.01"),
    ],
    ids=["told-0", "told", "told-all", "not-told", "rejected", "kitten", "all", "least"],
)
async def test_how_much_was_changed(world: World, place: Desk, fields: dict[str, Any], percent: str | None) -> None:
    [result] = await batch(world.admin, place.record(**fields))
    assert (result.edit_percent if result.HasField("edit_percent") else None) == percent


def distance(before: str, after: str) -> int:
    """The least number of characters to insert, delete or replace, the slow way."""
    row = list(range(len(after) + 1))
    for i, left in enumerate(before, 1):
        last, row = row, [i]
        for j, right in enumerate(after, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (left != right)))
    return row[-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text("абc\n", max_size=12), st.text("абc\n", max_size=12)), max_size=5))
async def test_the_changed_share_is_the_least_number_of_changes(pairs: list[tuple[str, str]]) -> None:
    found = await edits.percents(pairs, asyncio.Semaphore())
    for (before, after), percent in zip(pairs, found, strict=True):
        exact = Decimal(100 * distance(before, after)) / (max(len(before), len(after)) or 1)
        assert abs(percent - exact) <= Decimal("0.005")
        assert (percent == 0) == (before == after)


async def test_a_stream_answers_each_request_once_it_is_durable(world: World, place: Desk) -> None:
    key = await world.key([place.client_id], WRITE)
    sent = [[place.record() for _ in range(3)] for _ in range(6)]
    sent[2][1].client_id = str(uuid4())
    requests = [
        pb.RecordFeedbackStreamRequest(sequence=10 + number, records=records) for number, records in enumerate(sent)
    ]
    # The caller loses the connection before it has read all.
    stream = key.feedback.RecordFeedbackStream(metadata=key.auth)
    for request in requests[:4]:
        await stream.write(request)
    first: Any = await stream.read()
    durable = [each.id for each in await _rows(world, place, sent[0])]
    stream.cancel()
    assert [result.feedback_id for result in first.results] == [str(each) for each in durable]
    replies = await streamed(key, *requests)
    assert [reply.sequence for reply in replies] == list(range(10, 16))
    assert [reply.success_count for reply in replies] == [3, 3, 2, 3, 3, 3]
    assert told(replies[2].results[1]) == ("NOT_FOUND", "client")
    assert [result.duplicate for result in replies[0].results] == [True] * 3
    assert [result.duplicate for result in replies[5].results] == [False] * 3
    ids = [result.feedback_id for reply in replies for result in reply.results if result.feedback_id]
    assert ids[:3] == [result.feedback_id for result in first.results]
    assert len(await _rows(world, place, [record for records in sent for record in records])) == len(set(ids)) == 17


async def _rows(world: World, place: Desk, records: list[feedback_pb2.FeedbackRecord]) -> list[feedback.Feedback]:
    """What is stored of some records, in their order."""
    wanted = {record.key: number for number, record in enumerate(records)}
    selection = feedback.Selection(client_ids=[UUID(place.client_id)])
    rows = await feedback.list_page(world.database, EVERYTHING, selection, limit=1000)
    return sorted((row for row in rows if row.key in wanted), key=lambda row: wanted[row.key])


async def test_streams_that_run_together_keep_apart(world: World) -> None:
    desks = [await desk(world) for _ in range(3)]
    callers = [await world.key([each.client_id], WRITE) for each in desks]
    sent = [[[each.record() for _ in range(20)] for _ in range(8)] for each in desks]
    answers = await asyncio.gather(
        *(
            streamed(caller, *(pb.RecordFeedbackStreamRequest(records=records) for records in requests))
            for caller, requests in zip(callers, sent, strict=True)
        )
    )
    assert all(reply.success_count == 20 for replies in answers for reply in replies)
    for each, requests, replies in zip(desks, sent, answers, strict=True):
        stored = await _rows(world, each, [record for records in requests for record in records])
        assert [str(row.id) for row in stored] == [result.feedback_id for r in replies for result in r.results]
        assert all(row.api_key_id is not None and row.user_id is None for row in stored)


async def test_what_comes_meanwhile_shares_a_transaction(world: World, place: Desk) -> None:
    writer = FeedbackWriter(world.database)
    call = Call("test", "test", Principal("user", world.admin.user_id, frozenset(), EVERYTHING))
    held, others = place.record(), [place.record() for _ in range(5)]
    async with world.database.transaction("hold") as tx:
        await tx.execute(
            """INSERT INTO ai_feedback (id, key, client_id, prompt_id, user_action, edit_distance)
               VALUES ($1, $2, $3, $4, 'accepted', 0)""",
            uuid4(), held.key, UUID(place.client_id), UUID(place.versions[0]),
        )  # fmt: skip
        first = asyncio.create_task(writer.record(call, [held], "x"))
        while not await tx.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"):
            await asyncio.sleep(0.01)
        meanwhile = [asyncio.create_task(writer.record(call, [record], "x")) for record in others]
        while len(writer._add._waiting) < len(others):
            await asyncio.sleep(0.01)
    await first
    ids = [outcome.id for [outcome] in await asyncio.gather(*meanwhile) if isinstance(outcome, Recorded)]
    assert len(ids) == len(others)
    sql = "SELECT count(DISTINCT xmin::text) FROM ai_feedback WHERE id = ANY ($1)"
    assert await world.database.fetchval(sql, ids) == 1


class Held:
    """A call whose caller sends as much as is read from it, and takes answers when the test lets it."""

    def __init__(self, world: World, place: Desk) -> None:
        self.read = 0
        self.taken: list[int] = []
        self.takes, self.draining = asyncio.Semaphore(0), asyncio.Event()
        self._place = place
        self.call: StreamCall[Any, Any] = StreamCall(
            "test",
            "test",
            Principal("user", world.admin.user_id, frozenset(), EVERYTHING),
            requests=self._requests(),
            write=self._write,
            draining=self.draining,
        )

    async def _requests(self) -> AsyncIterator[pb.RecordFeedbackStreamRequest]:
        while self.read < 100:
            self.read += 1
            yield pb.RecordFeedbackStreamRequest(sequence=self.read, records=[self._place.record()])
        await asyncio.Event().wait()

    async def _write(self, reply: Any) -> None:
        await self.takes.acquire()
        self.taken.append(reply.sequence)


async def test_whoever_takes_no_answers_is_not_read_from(world: World, place: Desk) -> None:
    held = Held(world, place)
    service = FeedbackService(world.database, Pager(TokenCodec(b"k" * 32)))
    serving = asyncio.create_task(service.RecordFeedbackStream(held.call))
    for taken in range(4):
        async with asyncio.timeout(10):
            while (held.read, len(held.taken)) < (4 + taken, taken):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert (held.read, len(held.taken)) == (4 + taken, taken)
        held.takes.release()
    serving.cancel()
    await asyncio.wait((serving,))
    assert serving.cancelled()


async def test_a_server_that_ends_answers_what_it_has_read(world: World, place: Desk) -> None:
    held = Held(world, place)
    service = FeedbackService(world.database, Pager(TokenCodec(b"k" * 32)))
    serving = asyncio.create_task(service.RecordFeedbackStream(held.call))
    while held.read < 3:
        await asyncio.sleep(0.01)
    held.draining.set()
    for _ in range(100):
        held.takes.release()
    with pytest.raises(Unavailable) as ended:
        await asyncio.wait_for(serving, 10)
    assert ended.value.reason == "SHUTTING_DOWN"
    assert held.taken == list(range(1, held.read + 1))


async def test_too_many_records_end_a_stream_behind_those_before(world: World, place: Desk) -> None:
    stream: Any = world.admin.feedback.RecordFeedbackStream(metadata=world.admin.auth)
    await stream.write(pb.RecordFeedbackStreamRequest(sequence=1, records=[place.record()]))
    await stream.write(pb.RecordFeedbackStreamRequest(sequence=2, records=[place.record()] * 1001))
    assert (await stream.read()).sequence == 1
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    assert failure_of(ended.value).fields == {"records": "REPEATED_MAX_ITEMS"}


async def test_who_may_record_and_for_whom(world: World, place: Desk, failing: Failing) -> None:
    colleague, stranger = await world.user("pm", place.client_id), await world.user("pm")
    mate, looker = await world.user("specialist"), await world.user("specialist")
    role, raci = project_member_pb2.PROJECT_ROLE_SPECIALIST, project_member_pb2.RACI_RESPONSIBLE
    await world.member(place.project_id, mate.user_id, role, raci)  # type: ignore[arg-type]
    await world.member(place.project_id, looker.user_id, role, project_member_pb2.RACI_CONSULTED)  # type: ignore[arg-type]
    key = await world.key([place.client_id], WRITE)
    own = {"project_id": place.project_id}
    results = await batch(
        key,
        place.record(user_id=str(colleague.user_id)),
        place.record(user_id=str(stranger.user_id)),
        place.record(user_id=str(mate.user_id)),
        place.record(user_id=str(mate.user_id), **own),
        place.record(user_id=str(world.admin.user_id)),
    )
    assert [told(each) if each.HasField("status") else "" for each in results] == [
        "", ("NOT_FOUND", "user"), ("NOT_FOUND", "user"), "", "",
    ]  # fmt: skip
    # Whoever is on the team of a project sees its feedback and no other of the client.
    mine, other = await batch(mate, place.record(**own), place.record())
    assert (mine.HasField("status"), told(other)) == (False, ("NOT_FOUND", "client"))
    assert {each.project_id for each in await listed(looker, client_ids=[place.client_id])} == {place.project_id}
    refused = await failing(said(looker, place.record(**own)))
    assert (refused.code, refused.metadata["permission"]) == (grpc.StatusCode.PERMISSION_DENIED, "FEEDBACK_WRITE")
    assert not await listed(stranger, client_ids=[place.client_id])
    assert (await failing(got(stranger, mine.feedback_id))).code == grpc.StatusCode.NOT_FOUND


async def test_prompts_of_another_client_are_not_there(world: World, place: Desk) -> None:
    agency = await world.client(type=client_pb2.CLIENT_TYPE_AGENCY)
    child = await desk(world, parent_client_id=agency.client_id)
    above = await writing.create(world.admin, client_id=agency.client_id)
    own = await writing.create(world.admin, client_id=child.client_id)
    foreign = await writing.create(world.admin, client_id=place.client_id)
    results = await batch(
        world.admin, *(child.record(prompt_version_id=each.prompt_version_id) for each in (above, own, foreign))
    )
    assert [told(each) if each.HasField("status") else "" for each in results] == [
        "", "", ("NOT_FOUND", "prompt_version"),
    ]  # fmt: skip


async def test_an_archived_client_takes_none_and_a_purged_one_keeps_no_word(world: World) -> None:
    place = await desk(world)
    record = place.record(action=EDITED, output_text=TEXT, edited_text="Секрет!", comment="Секрет?", input_text="Ну")
    stored = (await said(world.admin, record)).feedback
    admin = world.admin.clients
    archive = client_service_pb2.ArchiveClientRequest(client_id=place.client_id)
    await admin.ArchiveClient(archive, metadata=world.admin.auth)
    old, new = await batch(world.admin, record, place.record())
    assert old.duplicate
    assert told(new) == ("FAILED_PRECONDITION", "client")
    request = client_service_pb2.RequestClientPurgeRequest(client_id=place.client_id)
    await admin.RequestClientPurge(request, metadata=world.admin.auth)
    await world.database.execute(
        "UPDATE clients SET purge_allowed_at = now() - interval '1 s' WHERE id = $1", UUID(place.client_id)
    )
    async with world.database.transaction("purge") as tx:
        row = await clients.get_for_update(tx, EVERYTHING, UUID(place.client_id))
        assert row is not None
        await clients.purge(tx, EVERYTHING, row)
    left = await world.database.fetchval("SELECT f::text FROM ai_feedback f WHERE id = $1", UUID(stored.feedback_id))
    assert not any(word in left for word in (TEXT, "Секрет", "Ну", record.key))
    assert not await listed(world.admin, client_ids=[place.client_id])
    assert not await feedback.examples_internal(world.database, [UUID(stored.feedback_id)])


async def test_a_deleted_person_becomes_another_nobody_for_each_client(world: World, place: Desk) -> None:
    other = await desk(world)
    person = await world.user("pm", place.client_id, other.client_id)
    mine = [await said(person, each.record(comment="Я, Анна", output_text=TEXT)) for each in (place, place, other)]
    request = user_service_pb2.DeleteUserRequest(user_id=str(person.user_id))
    await world.admin.users.DeleteUser(request, metadata=world.admin.auth)
    left = [await got(world.admin, reply.feedback.feedback_id) for reply in mine]
    assert {(each.user_id, each.comment, each.output_text) for each in left} == {("", "", TEXT)}
    first, second, third = (each.user_pseudonym for each in left)
    assert first == second != third
    assert str(person.user_id) not in (first, third)


async def test_no_text_is_logged_or_recorded(world: World, place: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    marker = uuid4().hex
    texts = {name: marker for name in ("input_text", "output_text", "comment")}
    await said(world.admin, place.record(**texts))
    await batch(world.admin, place.record(**texts), place.record(**texts, client_id=str(uuid4())))
    for request in ({**texts, "action": 9}, {**texts, "edited_text": marker, "action": EDITED}):
        assert told((await batch(world.admin, place.record(**request)))[0])[0] == "INVALID_ARGUMENT"
    logged = "".join(capsys.readouterr())
    assert "BatchRecordFeedback" in logged
    assert marker not in logged
    assert not await world.database.fetchval("SELECT count(*) FROM audit_log WHERE diff::text LIKE $1", f"%{marker}%")


async def test_answers_that_people_took_are_examples(world: World) -> None:
    place = await desk(world, category="report")
    results = await batch(
        world.admin,
        place.record(output_text="taken"),
        place.record(action=EDITED, output_text="before", edited_text="after", project_id=place.project_id),
        place.record(action=REJECTED, output_text="no"),
        place.record(),
        place.record(action=EDITED, output_text="before"),
        place.record(output_text="taken too"),
    )
    ids = [UUID(result.feedback_id) for result in results]
    found = await feedback.examples_after_internal(world.database, UUID(int=ids[0].int - 1), 2)
    found += await feedback.examples_after_internal(world.database, found[-1].id, 2)
    assert [(each.id, each.text, each.category) for each in found] == [
        (ids[0], "taken", "report"), (ids[1], "after", "report"), (ids[5], "taken too", "report"),
    ]  # fmt: skip
    assert sorted(await feedback.examples_internal(world.database, ids), key=lambda each: each.id) == found
    assert {each.id for each in await feedback.examples(world.database, EVERYTHING, ids)} == {ids[0], ids[1], ids[5]}
    assert not await feedback.examples(world.database, Scope(user_id=uuid4()), ids)


async def test_what_an_experiment_serves_is_judged_and_counted(world: World, place: Desk) -> None:
    name = f"loop {uuid4().hex}"
    control = await writing.create(world.admin, name=name)
    other = await writing.version(world.admin, control.prompt_id)
    await writing.move(world.admin, control, "staging")
    running = await writing.start(world.admin, "staging", control, other)
    shown = [await writing.render(world.admin, name, label="staging", subject_key=str(n)) for n in range(12)]
    served = [
        place.record(
            prompt_version_id=each.prompt_version_id,
            label=each.label,
            prompt_experiment_id=each.prompt_experiment_id,
            action=ACCEPTED if number % 3 else REJECTED,
        )
        for number, each in enumerate(shown)
    ]
    stray = place.record(prompt_experiment_id=running.prompt_experiment_id)
    results = await batch(world.admin, *served, stray)
    assert [told(each) for each in results if each.HasField("status")] == [("NOT_FOUND", "prompt_experiment")]
    request = experiment_pb.GetPromptExperimentResultRequest(prompt_experiment_id=running.prompt_experiment_id)
    arms = (await world.admin.experiments.GetPromptExperimentResult(request, metadata=world.admin.auth)).results
    counted = {arm.arm.prompt_version_id: (arm.feedback_count, arm.accepted_count) for arm in arms}
    statistics = pb.GetFeedbackStatisticsRequest(
        filter={"prompt_experiment_id": running.prompt_experiment_id},  # type: ignore[arg-type]
        dimensions=[feedback_pb2.FEEDBACK_DIMENSION_PROMPT_VERSION, feedback_pb2.FEEDBACK_DIMENSION_EXPERIMENT],
    )
    groups = (await world.admin.feedback.GetFeedbackStatistics(statistics, metadata=world.admin.auth)).groups
    figures = {each.prompt_version_id: (each.figures.count, each.figures.accepted_count) for each in groups}
    assert figures == {version: counts for version, counts in counted.items() if counts[0]}
    assert sum(count for count, _ in figures.values()) == 12
    assert {each.prompt_experiment_id for each in groups} == {running.prompt_experiment_id}
