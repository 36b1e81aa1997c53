"""WatchMetrics on real engines, past the pipeline: a fake stream on one side, a leader stepped by hand on the other."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from mrm.common.v1 import platform_pb2
from mrm.statistics.v1 import metrics_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.call import Principal, StreamCall
from server.rpc.errors import DomainError, InvalidRequest, NotFound, ResourceExhausted, Unavailable
from server.rpc.tokens import InvalidToken, TokenCodec
from server.settings import MetricsSettings, WatchSettings
from server.statistics import frames
from server.statistics.aggregator import Leader
from server.statistics.feeds import CAMPAIGNS_CHANGED, WINDOW_MOVED, Choice, Feed, Span
from server.statistics.hub import WatchHub
from server.statistics.tokens import Position, ResumeTokens, binding
from server.statistics.watch import WatchRpcs
from server.statistics.watermark import Progress
from storage.clickhouse.metrics import Figures, LiveTotal
from storage.postgres import clients, users
from storage.postgres.reach import ClientCampaign
from storage.redis.signals import Signals
from storage.scope import EVERYTHING, Scope
from tests.statistics.conftest import Stores

CODEC = TokenCodec(b"k" * 32)
SOMEONE = UUID(int=1)
NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Stream:
    """A caller's side of a watch."""

    draining: asyncio.Event
    principal: Principal
    messages: "asyncio.Queue[pb.WatchMetricsResponse]" = field(default_factory=asyncio.Queue)
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    async def write(self, message: Any) -> None:
        await self.reading.wait()
        self.messages.put_nowait(pb.WatchMetricsResponse.FromString(message))

    async def next(self, *kinds: str) -> pb.WatchMetricsResponse:
        """The next message of one of the kinds; others are passed over, save those that say something new."""
        async with asyncio.timeout(15):
            while True:
                getter = asyncio.ensure_future(self.messages.get())
                assert self.task is not None
                await asyncio.wait({getter, self.task}, return_when=asyncio.FIRST_COMPLETED)
                if not getter.done():
                    getter.cancel()
                    await self.task
                    raise AssertionError("the stream has ended")
                message = getter.result()
                kind = message.WhichOneof("kind")
                if kind in kinds:
                    return message
                assert kind in ("checkpoint", "heartbeat"), f"{kind} instead of {kinds}"

    async def ends(self) -> DomainError:
        """The error with which the stream ends."""
        assert self.task is not None
        with pytest.raises(DomainError) as caught:
            async with asyncio.timeout(15):
                await self.task
        return caught.value


@dataclass
class Watching:
    """A server process: its hub, its RPCs, and a leader."""

    stores: Stores
    hub: WatchHub
    rpcs: WatchRpcs
    leader: Leader
    clock: Clock
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self) -> None:
        """Rebuilds what is marked and moves the watermark."""
        for reader in (self.leader._live, self.leader._late):
            while await self.leader.tick(reader, 2):
                pass
        await self.leader.commit()

    @asynccontextmanager
    async def watch(
        self, request: pb.WatchMetricsRequest, scope: Scope = EVERYTHING, principal_id: UUID = SOMEONE
    ) -> AsyncIterator[Stream]:
        principal = Principal("user", principal_id, frozenset(), scope)
        stream = Stream(self.draining, principal)
        stream.reading.set()
        call: StreamCall[Any, Any] = StreamCall(
            "/x", "test", principal, requests=None, write=stream.write, draining=self.draining
        )  # type: ignore[arg-type]
        stream.task = asyncio.create_task(self.rpcs.WatchMetrics(request, call))
        try:
            yield stream
        finally:
            stream.task.cancel()
            with suppress(asyncio.CancelledError, DomainError):
                await stream.task


MakeWatching = Callable[..., Watching]


@pytest.fixture
async def process(stores: Stores) -> AsyncIterator[MakeWatching]:
    """Starts what a server process runs."""
    made: list[tuple[asyncio.Task[None], Signals]] = []

    def make(**settings: float) -> Watching:
        signals = Signals(stores.redis_dsn)
        clock = Clock(NOON)
        chosen = WatchSettings(**{"tick": 0.05, "poll": 0.3, **settings})  # type: ignore[arg-type]
        hub = WatchHub(stores.database, stores.clickhouse, signals, chosen, clock=clock)
        rpcs = WatchRpcs(stores.database, hub, CODEC, chosen)
        leader = Leader(stores.database, stores.clickhouse, signals, MetricsSettings(), 1, Progress())
        made.append((asyncio.create_task(hub.run()), signals))
        return Watching(stores, hub, rpcs, leader, clock)

    yield make
    for task, signals in made:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await signals.close()


@pytest.fixture
async def watching(process: MakeWatching) -> Watching:
    return process()


def shown(campaigns: Any) -> dict[str, int]:
    return {each.campaign_id: each.metrics.impressions for each in campaigns}


def asked(client_id: UUID, **fields: Any) -> pb.WatchMetricsRequest:
    return pb.WatchMetricsRequest(client_id=str(client_id), **fields)


async def test_snapshot_then_changes_then_nothing(stores: Stores, watching: Watching) -> None:
    client_id, [first, second] = await stores.tenant(2)
    await stores.events(first, NOON, count=3)
    await watching.work()
    request = asked(client_id)
    request.heartbeat_interval.FromSeconds(2)
    async with watching.watch(request) as stream:
        opening = await stream.next("snapshot")
        snapshot = opening.snapshot
        assert snapshot.complete
        assert shown(snapshot.campaigns) == {str(first.id): 3, str(second.id): 0}
        present = {each.campaign_id: each.data_present for each in snapshot.campaigns}
        assert present == {str(first.id): True, str(second.id): False}
        midnight = NOON.replace(hour=0)
        assert snapshot.window_start_time.ToDatetime(UTC) == midnight
        assert snapshot.window_end_time.ToDatetime(UTC) == midnight + timedelta(days=1)
        await stores.events(second, NOON, count=5)
        await watching.work()
        changed = await stream.next("update")
        assert shown(changed.update.campaigns) == {str(second.id): 5}
        assert changed.update.skipped_count == 0
        # A rebuild that changes nothing is no news; that the watermark moved is.
        await stores.events(second, NOON - timedelta(days=40))
        await watching.work()
        quiet = await stream.next("checkpoint")
        assert quiet.watermark_time.ToDatetime() > changed.watermark_time.ToDatetime()
        alive = await stream.next("heartbeat")
        assert alive.watermark_time == quiet.watermark_time


async def test_versions_grow_and_vanished_campaigns_become_zero(stores: Stores, watching: Watching) -> None:
    client_id, [campaign] = await stores.tenant()
    versions: list[int] = []
    async with watching.watch(asked(client_id)) as stream:
        await stream.next("snapshot")
        for count in (1, 2):
            await stores.events(campaign, NOON, count=count)
            await watching.work()
            [state] = (await stream.next("update")).update.campaigns
            versions.append(state.state_version)
        await stores.forget(campaign, NOON)
        await watching.work()
        [state] = (await stream.next("update")).update.campaigns
        versions.append(state.state_version)
    assert (state.metrics.impressions, state.data_present) == (0, True)
    assert versions == sorted(set(versions))
    assert versions[0] > 1 << 40


async def test_only_the_chosen_campaigns(stores: Stores, watching: Watching) -> None:
    client_id, [first, second] = await stores.tenant(2)
    async with (
        watching.watch(asked(client_id, campaign_ids=[str(first.id)])) as one,
        watching.watch(asked(client_id)) as both,
    ):
        assert shown((await one.next("snapshot")).snapshot.campaigns) == {str(first.id): 0}
        await both.next("snapshot")
        await stores.events(first, NOON, count=1)
        await stores.events(second, NOON, count=2)
        await watching.work()
        assert shown((await one.next("update")).update.campaigns) == {str(first.id): 1}
        assert shown((await both.next("update")).update.campaigns) == {str(first.id): 1, str(second.id): 2}


async def test_windows_of_several_days_and_of_fixed_times(stores: Stores, watching: Watching) -> None:
    client_id, [campaign] = await stores.tenant()
    for days, count in ((0, 1), (6, 10), (29, 100), (30, 1000)):
        await stores.events(campaign, NOON - timedelta(days=days), count=count)
    await watching.work()
    fixed = asked(client_id)
    fixed.times.start_time.FromDatetime(NOON - timedelta(days=6))
    fixed.times.end_time.FromDatetime(NOON - timedelta(days=6) + timedelta(hours=1))
    for request, expected in (
        (asked(client_id), 1),
        (asked(client_id, window=pb.WATCH_WINDOW_LAST_7_DAYS), 11),
        (asked(client_id, window=pb.WATCH_WINDOW_LAST_30_DAYS), 111),
        (fixed, 10),
    ):
        async with watching.watch(request) as stream:
            assert shown((await stream.next("snapshot")).snapshot.campaigns) == {str(campaign.id): expected}


async def test_the_window_moves_at_the_clients_midnight(stores: Stores, watching: Watching) -> None:
    client_id, [campaign] = await stores.tenant(zone="Asia/Vladivostok")
    await stores.events(campaign, NOON, count=3)
    await watching.work()
    async with watching.watch(asked(client_id)) as stream:
        opening = await stream.next("snapshot")
        assert shown(opening.snapshot.campaigns) == {str(campaign.id): 3}
        assert opening.snapshot.window_end_time.ToDatetime(UTC) == NOON.replace(hour=14)
        watching.clock.now = NOON.replace(hour=14)
        assert (await stream.next("reset")).reset.reason == WINDOW_MOVED
        snapshot = (await stream.next("snapshot")).snapshot
        assert snapshot.window_start_time.ToDatetime(UTC) == NOON.replace(hour=14)
        assert [(each.metrics.impressions, each.data_present) for each in snapshot.campaigns] == [(0, False)]


async def test_later_campaigns_join(stores: Stores, watching: Watching) -> None:
    client_id, [first] = await stores.tenant()
    async with watching.watch(asked(client_id)) as stream:
        await stream.next("snapshot")
        second = await stores.campaign(client_id)
        assert (await stream.next("reset")).reset.reason == CAMPAIGNS_CHANGED
        assert shown((await stream.next("snapshot")).snapshot.campaigns) == {str(first.id): 0, str(second.id): 0}


async def test_a_slow_reader_skips_and_gets_the_newest_state(stores: Stores, watching: Watching) -> None:
    client_id, [campaign] = await stores.tenant()
    async with watching.watch(asked(client_id)) as stream, watching.watch(asked(client_id)) as quick:
        await stream.next("snapshot")
        await quick.next("snapshot")
        stream.reading.clear()
        for round_number in range(1, 6):
            await stores.events(campaign, NOON)
            await watching.work()
            assert shown((await quick.next("update")).update.campaigns) == {str(campaign.id): round_number}
        stream.reading.set()
        # One message was under way when the reader stopped; the next one has the newest state.
        first = await stream.next("update")
        assert shown(first.update.campaigns) == {str(campaign.id): 1}
        last = await stream.next("update")
        assert shown(last.update.campaigns) == {str(campaign.id): 5}
        assert last.update.skipped_count == 3
        assert stream.messages.empty()


async def test_a_reader_that_stops_is_cut_off(stores: Stores, process: MakeWatching) -> None:
    watching = process(write_timeout=0.3)
    client_id, [_] = await stores.tenant()
    request = asked(client_id)
    request.heartbeat_interval.FromSeconds(1)
    async with watching.watch(request) as stream:
        await stream.next("snapshot")
        stream.reading.clear()
        assert isinstance(await stream.ends(), ResourceExhausted)


async def test_resume_is_never_older_and_works_in_another_process(stores: Stores, process: MakeWatching) -> None:
    one, two = process(), process()
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, NOON, count=2)
    await one.work()
    async with one.watch(asked(client_id)) as stream:
        token = (await stream.next("snapshot")).resume_token
    await stores.events(campaign, NOON, count=2)
    await one.work()
    async with two.watch(asked(client_id, resume_token=token)) as stream:
        resumed = await stream.next("snapshot")
        assert shown(resumed.snapshot.campaigns) == {str(campaign.id): 4}
    ahead = (await one.leader._database.fetchval("SELECT position FROM metric_cursors"))["live"] + 60_000

    class Caller:
        principal = Principal("user", SOMEONE, frozenset(), EVERYTHING)

    watch = binding(asked(client_id), Caller())  # type: ignore[arg-type]
    sealed = ResumeTokens(CODEC, watch).seal(Position(ahead, 0))
    async with two.watch(asked(client_id, resume_token=sealed)) as stream:
        await asyncio.sleep(1.0)
        assert stream.messages.empty()
        await stores.database.execute(
            "UPDATE metric_cursors SET position = jsonb_build_object('live', $1::bigint, 'late', $1::bigint)", ahead
        )
        resumed = await stream.next("snapshot")
        assert resumed.watermark_time.ToMilliseconds() >= ahead


async def test_tokens_of_other_watches_and_callers_are_refused(stores: Stores, watching: Watching) -> None:
    client_id, [campaign] = await stores.tenant()
    async with watching.watch(asked(client_id)) as stream:
        token = (await stream.next("snapshot")).resume_token
    for request, principal_id in (
        (asked(client_id, resume_token=token), uuid4()),
        (asked(client_id, resume_token=token, campaign_ids=[str(campaign.id)]), SOMEONE),
        (asked(client_id, resume_token=token, window=pb.WATCH_WINDOW_LAST_7_DAYS), SOMEONE),
        (asked(client_id, resume_token=token[:-1]), SOMEONE),
        (asked(client_id, resume_token="not a token"), SOMEONE),
    ):
        async with watching.watch(request, principal_id=principal_id) as stream:
            error = await stream.ends()
            assert isinstance(error, InvalidRequest)
            assert error.reason == "RESUME_TOKEN_INVALID"
    async with watching.watch(asked(client_id, resume_token=token, window=pb.WATCH_WINDOW_TODAY)) as stream:
        await stream.next("snapshot")


async def test_unknown_and_foreign_ids_are_not_found(stores: Stores, watching: Watching) -> None:
    client_id, [campaign] = await stores.tenant()
    other, [foreign] = await stores.tenant()
    scope = Scope(client_ids=(client_id,))
    for request in (asked(other), asked(uuid4()), asked(client_id, campaign_ids=[str(campaign.id), str(foreign.id)])):
        async with watching.watch(request, scope) as stream:
            assert isinstance(await stream.ends(), NotFound)


async def test_a_watch_ends_with_the_right_to_it(stores: Stores, watching: Watching) -> None:
    client_id, [_] = await stores.tenant()
    user = await users.create(stores.database, email="w@example.com", password_hash="!", role="specialist")
    await clients.add_membership(stores.database, user_id=user.id, client_id=client_id)
    async with watching.watch(asked(client_id), Scope(user_id=user.id)) as stream:
        await stream.next("snapshot")
        await stores.database.execute("DELETE FROM client_memberships")
        assert isinstance(await stream.ends(), NotFound)


async def test_draining_ends_with_a_token(stores: Stores, watching: Watching) -> None:
    client_id, [campaign] = await stores.tenant()
    async with watching.watch(asked(client_id)) as stream:
        await stream.next("snapshot")
        watching.draining.set()
        token = (await stream.next("checkpoint")).resume_token
        error = await stream.ends()
        assert isinstance(error, Unavailable)
        assert error.reason == "SHUTTING_DOWN"
    watching.draining.clear()
    async with watching.watch(asked(client_id, resume_token=token)) as stream:
        assert shown((await stream.next("snapshot")).snapshot.campaigns) == {str(campaign.id): 0}


async def test_a_lost_signal_costs_one_poll(
    stores: Stores, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: object) -> None:
        return None

    monkeypatch.setattr(Signals, "publish", lost)
    client_id, [campaign] = await stores.tenant()
    async with watching.watch(asked(client_id)) as stream:
        await stream.next("snapshot")
        await stores.events(campaign, NOON)
        await watching.work()
        assert shown((await stream.next("update")).update.campaigns) == {str(campaign.id): 1}


def test_large_snapshots_come_in_several_messages() -> None:
    ids = [uuid4() for _ in range(20_000)]
    entries = [frames.campaign_entry(each, Figures(3, 1, 1, 7, 9), "RUB", 5, True) for each in ids]
    trailing = frames.trailer("token", 1500)
    encoded = [each + trailing for each in frames.snapshot(entries, (1, 2))]
    assert len(encoded) > 1
    assert max(map(len, encoded)) <= 2**20
    messages = [pb.WatchMetricsResponse.FromString(each) for each in encoded]
    assert [message.snapshot.complete for message in messages] == [False] * (len(messages) - 1) + [True]
    assert all(message.resume_token == "token" for message in messages)
    assert messages[0].watermark_time.ToMilliseconds() == 1500
    found = [each for message in messages for each in message.snapshot.campaigns]
    assert [each.campaign_id for each in found] == [str(each) for each in ids]
    assert found[0].metrics == metrics_pb2.Metrics(
        impressions=3, clicks=1, conversions="0.000001", cost_micros=7, revenue_micros=9, currency_code="RUB",
        ctr="33.333333", cpc="0.000007", cpm="0.002333", cr="0.0001", cpa="7", romi="28.571429", roas="1.285714",
    )  # fmt: skip


def test_tokens_hold_for_one_purpose_binding_and_key() -> None:
    token = CODEC.seal("page", b"query", b"payload")
    assert CODEC.open("page", b"query", token) == b"payload"
    flipped = ("A" if token[5] != "A" else "B").join((token[:5], token[6:]))
    for codec, purpose, bound_to, text in (
        (CODEC, "watch", b"query", token),
        (CODEC, "page", b"other", token),
        (TokenCodec(b"x" * 32), "page", b"query", token),
        (CODEC, "page", b"query", flipped),
        (CODEC, "page", b"query", token + "="),
        (CODEC, "page", b"query", ""),
        (CODEC, "page", b"query", "ä" * 50),
    ):
        with pytest.raises(InvalidToken):
            codec.open(purpose, bound_to, text)


def made_up(client_id: UUID, *campaign_ids: UUID, project_id: UUID = SOMEONE) -> dict[UUID, ClientCampaign]:
    return {each: ClientCampaign(client_id, each, "RUB", project_id, "other") for each in campaign_ids}


def total(client_id: UUID, campaign_id: UUID, impressions: int, version: int = 1) -> LiveTotal:
    return LiveTotal(0, client_id, campaign_id, "RUB", Figures(impressions, 0, 0, 0, 0), version)


def test_a_watcher_that_joins_during_a_question_waits_for_the_next() -> None:
    client_id, first, second = uuid4(), uuid4(), uuid4()
    feed = Feed(client_id, Span(days=1))
    feed.adopt(ZoneInfo("UTC"), made_up(client_id, first, second))
    feed.roll(NOON)
    feed.join(Choice(frozenset({first})), EVERYTHING, asyncio.Event())
    asked_for = feed.selection()
    late = feed.join(Choice(frozenset({second})), EVERYTHING, asyncio.Event())
    rows = [total(client_id, each, 7) for each in (first, second)]
    feed.apply(rows[:1], asked_for, 5)
    assert not feed.ready
    feed.apply(rows, feed.selection(), 6)
    assert feed.ready
    [message] = late.take_snapshot()
    [state] = pb.WatchMetricsResponse.FromString(message).snapshot.campaigns
    assert state.metrics.impressions == 7


def test_those_who_watch_the_same_are_sent_the_same_bytes() -> None:
    client_id, first, second = uuid4(), uuid4(), uuid4()
    feed = Feed(client_id, Span(days=1))
    feed.adopt(ZoneInfo("UTC"), made_up(client_id, first, second))
    feed.roll(NOON)
    one, two, other, slow = (
        feed.join(choice, EVERYTHING, asyncio.Event())
        for choice in (Choice(), Choice(), Choice(frozenset({second})), Choice())
    )
    feed.apply([total(client_id, first, 1)], None, 5)
    assert one.take_snapshot()[0] is two.take_snapshot()[0] is slow.take_snapshot()[0]
    other.take_snapshot()
    for count in (2, 3):
        feed.apply([total(client_id, first, count)], None, 5 + count)
        [message] = one.take_update()
        assert two.take_update()[0] is message
        assert not other.changed
    feed.apply([total(client_id, first, 3), total(client_id, second, 9)], None, 9)
    assert other.changed
    # The slow one gets the newest state of each campaign, and is told that it missed one.
    update = pb.WatchMetricsResponse.FromString(slow.take_update()[0]).update
    assert shown(update.campaigns) == {str(first): 3, str(second): 9}
    assert update.skipped_count == 1
    assert not slow.changed


def test_equal_watches_share_the_trailer() -> None:
    tokens = ResumeTokens(CODEC, b"watch")
    assert tokens.trailer(Position(1, 2)) is tokens.trailer(Position(1, 2))
    other = pb.WatchMetricsResponse.FromString(tokens.trailer(Position(2, 2)))
    assert tokens.open(other.resume_token) == Position(2, 2)
    assert other.watermark_time.ToMilliseconds() == 2


async def test_projects_and_platforms_choose_campaigns_also_later_ones(stores: Stores, watching: Watching) -> None:
    client_id = await stores.client()
    project, other_project = await stores.project(client_id), await stores.project(client_id)
    first = await stores.campaign(client_id, project, platform="vk_ads")
    second = await stores.campaign(client_id, project, platform="other")
    third = await stores.campaign(client_id, other_project, platform="vk_ads")
    vk = platform_pb2.PLATFORM_VK_ADS
    async with (
        watching.watch(asked(client_id, project_ids=[str(project)])) as of_project,
        watching.watch(asked(client_id, platforms=[vk])) as of_platform,
        watching.watch(asked(client_id, project_ids=[str(project)], platforms=[vk])) as of_both,
        watching.watch(asked(client_id, campaign_ids=[str(third.id)], project_ids=[str(project)])) as of_none,
    ):
        assert shown((await of_project.next("snapshot")).snapshot.campaigns) == {str(first.id): 0, str(second.id): 0}
        assert shown((await of_platform.next("snapshot")).snapshot.campaigns) == {str(first.id): 0, str(third.id): 0}
        assert shown((await of_both.next("snapshot")).snapshot.campaigns) == {str(first.id): 0}
        assert shown((await of_none.next("snapshot")).snapshot.campaigns) == {}
        await stores.events(third, NOON, count=2)
        await watching.work()
        assert shown((await of_platform.next("update")).update.campaigns) == {str(third.id): 2}
        # One that joins later is seen by those whose choice it passes, and by no one else.
        later = await stores.campaign(client_id, project, platform="other")
        assert (await of_project.next("reset")).reset.reason == CAMPAIGNS_CHANGED
        everything = (await of_project.next("snapshot")).snapshot.campaigns
        assert shown(everything) == {str(each.id): 0 for each in (first, second, later)}
        await stores.events(first, NOON, count=1)
        await watching.work()
        assert shown((await of_both.next("update")).update.campaigns) == {str(first.id): 1}
        assert shown((await of_platform.next("update")).update.campaigns) == {str(first.id): 1}
        assert of_none.messages.empty() or (await of_none.next("checkpoint", "heartbeat"))


async def test_projects_are_checked_and_bind_tokens(stores: Stores, watching: Watching) -> None:
    client_id = await stores.client()
    project = await stores.project(client_id)
    foreign = await stores.project(await stores.client())
    for scope in (EVERYTHING, Scope(client_ids=(client_id,))):
        for wrong in (foreign, uuid4()):
            async with watching.watch(asked(client_id, project_ids=[str(project), str(wrong)]), scope) as stream:
                assert isinstance(await stream.ends(), NotFound)
    async with watching.watch(asked(client_id, project_ids=[str(project)])) as stream:
        token = (await stream.next("snapshot")).resume_token
    for fields in ({}, {"project_ids": [str(project)], "platforms": [platform_pb2.PLATFORM_OTHER]}):
        async with watching.watch(asked(client_id, resume_token=token, **fields)) as stream:
            assert isinstance(await stream.ends(), InvalidRequest)
    async with watching.watch(asked(client_id, resume_token=token, project_ids=[str(project).upper()])) as stream:
        await stream.next("snapshot")
