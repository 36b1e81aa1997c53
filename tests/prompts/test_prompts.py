"""Prompts, their versions and labels, and what is served."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from uuid import uuid4

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from mrm.accounts.v1 import client_service_pb2
from mrm.ai.v1 import prompt_pb2
from mrm.ai.v1 import prompt_service_pb2 as pb
from mrm.common.v1 import options_pb2
from mrm.operations.v1 import change_service_pb2
from tests.conftest import Caller, Failing, World, failure_of
from tests.prompts import writing
from tests.test_bars import FULL


async def get(caller: Caller, version_id: str) -> prompt_pb2.PromptVersion:
    request = pb.GetPromptVersionRequest(prompt_version_id=version_id)
    return (await caller.prompts.GetPromptVersion(request, metadata=caller.auth)).prompt_version


async def test_versions_are_numbered_at_once_and_stay_as_they_are(world: World, failing: Failing) -> None:
    analyst = await world.user("analyst")
    extra = Struct()
    extra.update({"seed": 7, "nested": {"a": [1, None, "ё"]}, "tiny": 1e-300, "": False})
    given = prompt_pb2.PromptParameters(
        model="gpt-x", temperature=0.0, max_tokens=2**31 - 1, top_p=0.1, stop=["\n"], extra=extra
    )
    first = await writing.create(analyst, template="Hi {{who}}", variables={"who": "TEXT"}, parameters=given)
    assert (first.version, first.author_id) == (1, str(analyst.user_id))
    made = await asyncio.gather(*(writing.version(analyst, first.prompt_id, note=f"n{n}") for n in range(12)))
    assert sorted(each.version for each in made) == list(range(2, 14))
    found = await get(analyst, first.prompt_version_id)
    assert found == first
    assert found.parameters == given

    request = pb.ListPromptVersionsRequest(prompt_id=first.prompt_id, page_size=7)
    page = await analyst.prompts.ListPromptVersions(request, metadata=analyst.auth)
    request.page_token = page.next_page_token
    rest = await analyst.prompts.ListPromptVersions(request, metadata=analyst.auth)
    listed = [*page.prompt_versions, *rest.prompt_versions]
    assert [each.version for each in listed] == list(range(13, 0, -1))
    assert not any(each.template or each.HasField("parameters") for each in listed)

    for draft, field in (
        (writing.draft("{{x}}"), "draft.template"),
        (writing.draft("x", note=""), "draft.change_note"),
        (writing.draft(parameters={"extra": {"model": "y"}}), "draft.parameters.extra"),
        (writing.draft(parameters={"temperature": 3}), "draft.parameters.temperature"),
    ):
        again = pb.CreatePromptVersionRequest(prompt_id=first.prompt_id, draft=draft)
        failure = await failing(analyst.prompts.CreatePromptVersion(again, metadata=analyst.auth))
        assert (failure.code, list(failure.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    failure = await failing(writing.create(analyst, name=first.name))
    assert (failure.code, failure.metadata["field"]) == (grpc.StatusCode.ALREADY_EXISTS, "name")


async def test_a_label_moves_from_where_it_is_believed_to_be_and_goes_back(world: World, failing: Failing) -> None:
    admin, analyst = world.admin, await world.user("analyst")
    one = await writing.create(analyst)
    two, three = [await writing.version(analyst, one.prompt_id) for _ in range(2)]
    await writing.move(analyst, one, "staging")
    failure = await failing(writing.move(analyst, two, "staging"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "PROMPT_LABEL_MOVED")
    assert failure.metadata["current"] == one.prompt_version_id
    assert (failure.metadata["expected"], failure.metadata["current_version"]) == ("", "1")
    failure = await failing(writing.move(analyst, one, "staging", one))
    assert failure.fields == {"prompt_version_id": "SAME_VERSION"}
    await writing.move(analyst, two, "staging", one)
    await writing.move(analyst, three, "staging", two)
    failure = await failing(writing.rollback(analyst, one.prompt_id, "staging", one.prompt_version_id))
    assert failure.reason == "PROMPT_LABEL_MOVED"
    back = [await writing.rollback(analyst, one.prompt_id, "staging") for _ in range(2)]
    assert [each.prompt_label.version for each in back] == [2, 1]
    failure = await failing(writing.rollback(analyst, one.prompt_id, "staging"))
    assert (failure.reason, failure.metadata["state"]) == ("STATE_FORBIDS", "first")
    await writing.move(analyst, three, "staging", one)
    await writing.rollback(analyst, one.prompt_id, "staging", three.prompt_version_id)
    told = await writing.history(analyst, one.prompt_id, "staging")
    assert [(each.number, each.from_version, each.to_version, each.undone_number) for each in told] == [
        (1, 0, 1, 0),
        (2, 1, 2, 0),
        (3, 2, 3, 0),
        (4, 3, 2, 3),
        (5, 2, 1, 2),
        (6, 1, 3, 0),
        (7, 3, 1, 6),
    ]
    assert {each.mover_id for each in told} == {str(analyst.user_id)}
    assert told[-1].reason == "it was worse"

    # What production serves is decided by administrators.
    failure = await failing(writing.move(analyst, one, "production"))
    assert failure.metadata["permission"] == "PROMPTS_PROMOTE"
    assert (await writing.move(admin, one, "production")).prompt_label.protected
    await writing.move(admin, two, "production", one)
    failure = await failing(writing.rollback(analyst, one.prompt_id, "production"))
    assert failure.metadata["permission"] == "PROMPTS_PROMOTE"

    def deprecate(which: writing.Version) -> pb.DeprecatePromptVersionRequest:
        return pb.DeprecatePromptVersionRequest(prompt_version_id=which.prompt_version_id, reason="old")

    failure = await failing(analyst.prompts.DeprecatePromptVersion(deprecate(two), metadata=analyst.auth))
    assert (failure.reason, failure.metadata["label"]) == ("STATE_FORBIDS", "production")
    gone = (await analyst.prompts.DeprecatePromptVersion(deprecate(three), metadata=analyst.auth)).prompt_version
    assert (gone.status, gone.deprecation_reason) == (prompt_pb2.PROMPT_VERSION_STATUS_DEPRECATED, "old")
    failure = await failing(writing.move(analyst, three, "staging", one))
    assert failure.metadata["state"] == "deprecated"
    restore = pb.RestorePromptVersionRequest(prompt_version_id=three.prompt_version_id, etag=three.etag)
    failure = await failing(analyst.prompts.RestorePromptVersion(restore, metadata=analyst.auth))
    assert failure.reason == "ETAG_MISMATCH"
    restore.etag = gone.etag
    again = (await analyst.prompts.RestorePromptVersion(restore, metadata=analyst.auth)).prompt_version
    assert (again.status, again.deprecation_reason) == (prompt_pb2.PROMPT_VERSION_STATUS_ACTIVE, "")
    await writing.move(analyst, three, "staging", one)


async def test_a_clients_own_prompt_stands_in_for_the_agencys(world: World, failing: Failing) -> None:
    client, other = [(await world.client()).client_id for _ in range(2)]
    name = f"brief {uuid4().hex}"
    agencys = await writing.create(world.admin, name=name, template="For {{who}}.", variables={"who": "TEXT"})
    own = await writing.create(
        world.admin, name=name, client_id=client, template="Dear {{who}}!", variables={"who": "TEXT"}
    )
    await writing.move(world.admin, agencys, "production")
    planner, stranger = await world.user("media_planner", client), await world.user("media_planner", other)
    values: dict[str, object] = {"who": "Anna {{who}}"}
    # Not before it has the label.
    assert (await writing.render(planner, name, values, client_id=client)).text == "For Anna {{who}}."
    await writing.move(world.admin, own, "production")
    got = await writing.render(planner, name, values, client_id=client)
    assert (got.text, got.client_id, got.prompt_version_id) == ("Dear Anna {{who}}!", client, own.prompt_version_id)
    assert (got.label, got.version, got.cache_ttl.seconds) == ("production", 1, 60)
    assert (await writing.render(stranger, name, values, client_id=other)).text == "For Anna {{who}}."
    assert (await writing.render(stranger, name, values)).client_id == ""
    failure = await failing(writing.render(stranger, name, values, client_id=client))
    assert failure.metadata["resource_type"] == "client"
    failure = await failing(writing.render(planner, name, {"whom": 1}))
    assert failure.fields == {"variables.who": "VARIABLE_MISSING", "variables.whom": "VARIABLE_UNKNOWN"}
    failure = await failing(writing.render(planner, name, values, label="staging"))
    assert (failure.code, failure.metadata["label"]) == (grpc.StatusCode.NOT_FOUND, "staging")

    async def listed(caller: Caller, **filter: object) -> list[str]:
        request = pb.ListPromptsRequest(filter=pb.PromptFilter(name=name, **filter))  # type: ignore[arg-type]
        return [each.client_id for each in (await caller.prompts.ListPrompts(request, metadata=caller.auth)).prompts]

    assert await listed(planner) == ["", client]
    paged = pb.ListPromptsRequest(page_size=1, filter=pb.PromptFilter(name=name))
    page = await planner.prompts.ListPrompts(paged, metadata=planner.auth)
    paged.page_token = page.next_page_token
    rest = await planner.prompts.ListPrompts(paged, metadata=planner.auth)
    assert [each.client_id for each in (*page.prompts, *rest.prompts)] == ["", client] and not rest.next_page_token
    assert await listed(stranger) == [""]
    assert await listed(planner, agency_wide=True) == [""]
    assert await listed(planner, client_id=client) == [client]
    failure = await failing(writing.version(planner, own.prompt_id))
    assert failure.metadata["permission"] == "PROMPTS_WRITE"

    # A key for one client writes that client's prompts, not what others get.
    rights = [options_pb2.PERMISSION_PROMPTS_READ, options_pb2.PERMISSION_PROMPTS_WRITE]
    key = await world.key([client], *rights)
    assert (await writing.version(key, own.prompt_id)).version == 2
    for attempt in (writing.version(key, agencys.prompt_id), writing.create(key), writing.move(key, agencys, "x")):
        assert (await failing(attempt)).metadata["permission"] == "PROMPTS_WRITE"
    archive = client_service_pb2.ArchiveClientRequest(client_id=client)
    await world.admin.clients.ArchiveClient(archive, metadata=world.admin.auth)
    for attempt in (writing.version(world.admin, own.prompt_id), writing.move(world.admin, own, "staging")):
        assert (await failing(attempt)).metadata["state"] == "archived"


async def test_whoever_keeps_texts_hears_at_once_that_another_is_served(world: World) -> None:
    """The agency's prompts belong to no client, and yet their changes reach everybody who may read prompts."""
    analyst, version = await world.user("analyst"), await writing.create(world.admin)
    other = await writing.version(world.admin, version.prompt_id)
    label = (await writing.move(world.admin, version, "production")).prompt_label
    wanted = change_service_pb2.ChangeFilter(resource_types=["prompt_label"], resource_id=label.prompt_label_id)
    request = change_service_pb2.WatchChangesRequest(filter=wanted)
    stream = analyst.changes.WatchChanges(request, metadata=analyst.auth)
    heard: list[tuple[str, str]] = []
    async with asyncio.timeout(20):
        await stream.read()
        await writing.move(world.admin, other, "production", version)
        while not heard:
            heard = [(each.action, each.client_id) for each in (await stream.read()).batch.changes]
    stream.cancel()
    assert heard == [("move", "")]
    specialist = await world.user("specialist")
    listing = change_service_pb2.ListChangesRequest(filter=wanted)
    told = (await specialist.changes.ListChanges(listing, metadata=specialist.auth)).changes
    assert [each.action for each in told] == ["move", "move"]


@pytest.mark.bar_g
@pytest.mark.timeout(300)
async def test_no_move_of_a_label_is_lost_however_many_movers(world: World) -> None:
    """Fifty move one label at once; every answer is one step of an unbroken history, and there are no other steps."""
    each_moves = 20 if FULL else 1
    versions = [await writing.create(world.admin)]
    versions += [await writing.version(world.admin, versions[0].prompt_id) for _ in range(4)]
    prompt_id = versions[0].prompt_id
    await writing.move(world.admin, versions[0], "staging")
    by_id = {each.prompt_version_id: each for each in versions}
    channels = [grpc.aio.insecure_channel(world.target) for _ in range(5)]
    # Fewer people than movers: signing in is not what is tested, but costs most of the short form.
    people = [await world.user("analyst") for _ in range(10)]
    movers = [Caller(channels[n % 5], people[n % 10].token) for n in range(50)]

    async def work(mover: Caller, seed: int) -> tuple[list[prompt_pb2.PromptLabelMove], int]:
        chance, done, lost = random.Random(seed), [], 0
        current = versions[0].prompt_version_id
        while len(done) < each_moves:
            try:
                if chance.random() < 0.2:
                    reply = await writing.rollback(mover, prompt_id, "staging", current)
                    done.append(reply.move)
                else:
                    target = chance.choice([each for each in versions if each.prompt_version_id != current])
                    moved = await writing.move(mover, target, "staging", by_id[current])
                    done.append(moved.move)
                current = done[-1].to_prompt_version_id
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
                if failure.reason == "PROMPT_LABEL_MOVED":
                    lost += 1
                    # As callers should, or each move would cost as many calls as there are movers.
                    await asyncio.sleep(chance.uniform(0, 0.3))
                    got = await mover.prompts.GetPrompt(pb.GetPromptRequest(prompt_id=prompt_id), metadata=mover.auth)
                    current = got.prompt.labels[0].prompt_version_id
                else:
                    assert failure.metadata["state"] == "first", failure
        return done, lost

    try:
        results = await asyncio.gather(*(work(mover, seed) for seed, mover in enumerate(movers)))
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    told = await writing.history(world.admin, prompt_id, "staging")
    answered = sorted((move for moves, _ in results for move in moves), key=lambda move: move.number)
    assert told[1:] == answered
    assert [move.number for move in told] == list(range(1, 50 * each_moves + 2))
    for before, after in pairwise(told):
        assert after.from_prompt_version_id == before.to_prompt_version_id
    undone = [move.undone_number for move in told if move.undone_number]
    assert len(undone) == len(set(undone))
    assert {move.mover_id for move in told[1:]} == {str(each.user_id) for each in people}
    standing = [told[0]]
    for move in told[1:]:
        if move.undone_number:
            taken = standing.pop()
            assert (taken.number, taken.from_prompt_version_id) == (move.undone_number, move.to_prompt_version_id)
        else:
            standing.append(move)
    assert sum(lost for _, lost in results) > 0
    request = pb.GetPromptRequest(prompt_id=prompt_id)
    (label,) = (await world.admin.prompts.GetPrompt(request, metadata=world.admin.auth)).prompt.labels
    assert (label.prompt_version_id, label.move_count) == (told[-1].to_prompt_version_id, len(told))
