"""ListQuarantinedEvents: pages, filters, rights."""

import time
from uuid import UUID, uuid4

import pytest

from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest, NotFound
from server.rpc.tokens import TokenCodec
from server.statistics.quarantine import QuarantineRpcs
from storage.clickhouse.pseudonyms import pseudonym
from storage.scope import EVERYTHING, Scope
from tests.statistics.ingest.support import IngestWorld, Tenant, event, principal

TOO_OLD, IN_FUTURE = pb.QUARANTINE_REASON_TOO_OLD, pb.QUARANTINE_REASON_IN_FUTURE


class _Lister:
    """One caller of the list."""

    def __init__(self, world: IngestWorld, scope: Scope = EVERYTHING) -> None:
        self._rpcs = QuarantineRpcs(world.database, world.clickhouse, TokenCodec(b"k" * 32))
        self._call = Call("ListQuarantinedEvents", "request-id", principal(scope))

    async def page(self, client_id: UUID, **fields: object) -> pb.ListQuarantinedEventsResponse:
        request = pb.ListQuarantinedEventsRequest(client_id=str(client_id), **fields)  # type: ignore[arg-type]
        return await self._rpcs.ListQuarantinedEvents(request, self._call)

    async def all(self, client_id: UUID, **fields: object) -> list[pb.QuarantinedEvent]:
        """Every page to the last."""
        found: list[pb.QuarantinedEvent] = []
        token = ""
        while True:
            reply = await self.page(client_id, page_token=token, **fields)
            found += reply.events
            token = reply.next_page_token
            if not token:
                return found
            assert reply.events


async def _put_aside(world: IngestWorld, tenant: Tenant, count: int) -> list[event_pb2.Event]:
    """Events out of bounds, every other one too old, in a few batches."""
    made = []
    for number in range(count):
        campaign = tenant.campaign_ids[number % len(tenant.campaign_ids)]
        moment = time.time() + 86400 if number % 2 else 1000.0 + number
        made.append(event(campaign, moment, cost_micros=number, user_id="someone"))
    for start in range(0, count, 10):
        await world.ingest(tenant, made[start : start + 10])
    return made


async def test_every_event_is_listed_once_oldest_first(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant(2)
    made = await _put_aside(ingest_world, tenant, 25)
    alias = pseudonym(await ingest_world.salt(tenant), "someone")
    for each in made:
        each.user_id = alias
    for size in (1, 7, 25, 0, 10_000):
        found = await _Lister(ingest_world).all(tenant.client_id, page_size=size)
        assert sorted(each.event.cost_micros for each in found) == list(range(25))
        assert all(each.event == made[each.event.cost_micros] for each in found)
        assert all(each.reason == (IN_FUTURE if each.event.cost_micros % 2 else TOO_OLD) for each in found)
        times = [each.quarantine_time.ToNanoseconds() for each in found]
        assert times == sorted(times)
        assert abs(times[-1] / 1e9 - time.time()) < 60


async def test_a_repeat_is_listed_once_at_its_last_time(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    campaign = tenant.campaign_ids[0]
    first, second = event(campaign, 1000.0), event(campaign, 2000.0)
    for each in (first, second, first):
        await ingest_world.ingest(tenant, [each])
    found = await _Lister(ingest_world).all(tenant.client_id, page_size=1)
    assert [each.event.event_id for each in found] == [second.event_id, first.event_id]


async def test_filters(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant(2)
    await _put_aside(ingest_world, tenant, 12)
    lister = _Lister(ingest_world)
    assert {each.event.cost_micros for each in await lister.all(tenant.client_id, reason=TOO_OLD, page_size=4)} == {
        *range(0, 12, 2)
    }
    campaign = str(tenant.campaign_ids[1])
    found = await lister.all(tenant.client_id, campaign_id=campaign.upper(), page_size=4)
    assert {each.event.campaign_id for each in found} == {campaign}
    assert len(found) == 6
    assert not await lister.all(tenant.client_id, campaign_id=campaign, reason=TOO_OLD)
    assert not await lister.all(tenant.client_id, campaign_id=str(uuid4()))


async def test_a_page_stays_below_what_a_message_may_hold(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    wide = {f"{number:02}": "x" * 512 for number in range(32)}
    for _ in range(3):
        made = [event(tenant.campaign_ids[0], 1000.0, attributes=wide) for _ in range(70)]
        await ingest_world.ingest(tenant, made)
    page = await _Lister(ingest_world).page(tenant.client_id, page_size=500)
    assert 2**20 < page.ByteSize() < 3 * 2**20
    assert page.next_page_token
    assert len(await _Lister(ingest_world).all(tenant.client_id, page_size=500)) == 210


async def test_clients_out_of_scope_do_not_exist(ingest_world: IngestWorld) -> None:
    tenant, other = await ingest_world.tenant(), await ingest_world.tenant()
    await _put_aside(ingest_world, tenant, 2)
    for scope in (Scope(), Scope(client_ids=(other.client_id,))):
        with pytest.raises(NotFound):
            await _Lister(ingest_world, scope).page(tenant.client_id)
    assert len((await _Lister(ingest_world, Scope(client_ids=(tenant.client_id,))).page(tenant.client_id)).events) == 2
    assert not (await _Lister(ingest_world).page(other.client_id)).events


async def test_tokens_pass_only_for_their_own_list(ingest_world: IngestWorld) -> None:
    tenant, other = await ingest_world.tenant(), await ingest_world.tenant()
    await _put_aside(ingest_world, tenant, 3)
    lister = _Lister(ingest_world)
    token = (await lister.page(tenant.client_id, page_size=1)).next_page_token
    assert (await lister.page(tenant.client_id, page_size=2, page_token=token)).events
    wrong = [
        lister.page(other.client_id, page_token=token),
        lister.page(tenant.client_id, page_token=token, reason=TOO_OLD),
        lister.page(tenant.client_id, page_token=token[:-1]),
        lister.page(tenant.client_id, page_token="x"),
        _Lister(ingest_world).page(tenant.client_id, page_token=token),
    ]
    for asking in wrong:
        with pytest.raises(InvalidRequest) as caught:
            await asking
        assert caught.value.reason == "PAGE_TOKEN_INVALID"
