"""Idempotency, leases, streams, cursors, outbox, audit, keys and users."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from storage.errors import Conflict, FencedOut, IdempotencyMismatch, Invalid
from storage.postgres import api_keys, audit, idempotency, leases, metrics_state, outbox, streams, users
from storage.postgres.database import Database, Transaction
from storage.postgres.ids import new_id
from storage.scope import EVERYTHING, Scope

METHOD = "/mrm.campaigns.v1.CampaignService/PauseCampaign"


def mutation(
    principal: UUID, request: UUID, request_hash: bytes, effects: list[str], name: str, pause: float = 0.0
) -> Callable[[Transaction], Awaitable[bytes]]:
    async def run(tx: Transaction) -> bytes:
        stored = await idempotency.claim(tx, principal, METHOD, request, request_hash)
        if stored is not None:
            return stored
        await asyncio.sleep(pause)
        effects.append(name)
        await idempotency.store(tx, principal, METHOD, request, name.encode())
        return name.encode()

    return run


class TestIdempotency:
    async def test_concurrent_repeats_have_one_effect(self, db: Database) -> None:
        principal, request, effects = new_id(), new_id(), list[str]()
        replies = await asyncio.gather(
            *[db.run("m", mutation(principal, request, b"h", effects, f"r{n}", 0.05)) for n in range(8)]
        )
        assert len(effects) == 1
        assert set(replies) == {effects[0].encode()}

    async def test_a_repeat_after_a_rollback_has_the_effect(self, db: Database) -> None:
        principal, request, effects = new_id(), new_id(), list[str]()

        async def fails(tx: Transaction) -> None:
            assert await idempotency.claim(tx, principal, METHOD, request, b"h") is None
            await asyncio.sleep(0.1)
            raise KeyError

        async def second() -> bytes:
            await asyncio.sleep(0.05)
            return await db.run("m", mutation(principal, request, b"h", effects, "second"))

        failed, reply = await asyncio.gather(db.run("m", fails), second(), return_exceptions=True)
        assert isinstance(failed, KeyError)
        assert (reply, effects) == (b"second", ["second"])

    async def test_an_id_is_for_one_request(self, db: Database) -> None:
        principal, request, effects = new_id(), new_id(), list[str]()
        await db.run("m", mutation(principal, request, b"h", effects, "first"))
        with pytest.raises(IdempotencyMismatch):
            await db.run("m", mutation(principal, request, b"other", effects, "second"))
        for other in (
            mutation(new_id(), request, b"h", effects, "third"),
            mutation(principal, new_id(), b"h", effects, "4"),
        ):
            await db.run("m", other)
        assert effects == ["first", "third", "4"]

    async def test_an_empty_reply_is_a_reply(self, db: Database) -> None:
        principal, request = new_id(), new_id()

        async def empty(tx: Transaction) -> bytes | None:
            stored = await idempotency.claim(tx, principal, METHOD, request, b"h")
            if stored is None:
                await idempotency.store(tx, principal, METHOD, request, b"")
            return stored

        assert await db.run("m", empty) is None
        assert await db.run("m", empty) == b""

    async def test_a_claim_without_a_reply_is_never_run_again(self, db: Database) -> None:
        async def forgets(tx: Transaction) -> bytes | None:
            return await idempotency.claim(tx, UUID(int=1), METHOD, UUID(int=2), b"h")

        assert await db.run("m", forgets) is None
        with pytest.raises(Conflict):
            await db.run("m", forgets)

    async def test_replies_expire(self, db: Database) -> None:
        principal, request, effects = new_id(), new_id(), list[str]()
        await db.run("m", mutation(principal, request, b"h", effects, "first"))
        assert await idempotency.purge_expired(db) == 0
        await db.execute("UPDATE idempotency_keys SET expires_at = now() - interval '1 second'")
        assert await db.run("m", mutation(principal, request, b"other", effects, "second")) == b"second"
        await db.execute("UPDATE idempotency_keys SET expires_at = now() - interval '1 second'")
        assert await idempotency.purge_expired(db) == 1


TTL = timedelta(seconds=30)


async def expire(db: Database) -> None:
    await db.execute("UPDATE leases SET expires_at = now() - interval '1 second'")


class TestLeases:
    async def test_one_holds_it(self, db: Database) -> None:
        epochs = await asyncio.gather(*[leases.acquire(db, "aggregator", f"p{n}", TTL) for n in range(6)])
        assert sorted(epochs, key=str) == [1, None, None, None, None, None]

    async def test_a_takeover_fences_the_holder_before(self, db: Database) -> None:
        first = await leases.acquire(db, "l", "a", TTL)
        assert first == 1
        assert await leases.acquire(db, "l", "a", TTL) == 1
        assert await leases.renew(db, "l", "a", first, TTL)
        await expire(db)
        assert not await leases.renew(db, "l", "a", first, TTL)
        second = await leases.acquire(db, "l", "b", TTL)
        assert second == 2
        assert not await leases.renew(db, "l", "a", first, TTL)
        await leases.release(db, "l", "a", first)
        assert await leases.renew(db, "l", "b", second, TTL)
        await expire(db)
        assert await leases.acquire(db, "l", "b", TTL) == 3

    async def test_a_released_one_is_free_at_once(self, db: Database) -> None:
        epoch = await leases.acquire(db, "l", "a", TTL)
        assert epoch is not None
        await leases.release(db, "l", "a", epoch)
        assert await leases.acquire(db, "l", "b", TTL) == 2


class TestStreams:
    async def test_a_second_writer_fences_the_first(self, db: Database, world: Any) -> None:
        scope, client = Scope(everything=True), world.advertiser.id
        first = await streams.open_stream(db, scope, client, "s", new_id())
        assert first == streams.Opened(next_offset=0, writer_epoch=1)
        assert await streams.advance(db, [streams.Move(client, "s", 1, 0, 500)]) == {(client, "s")}
        assert not await streams.advance(db, [streams.Move(client, "s", 1, 0, 500)])
        writer = new_id()
        assert await streams.open_stream(db, scope, client, "s", writer) == streams.Opened(500, 2)
        assert not await streams.advance(db, [streams.Move(client, "s", 1, 500, 600)])
        assert await streams.advance(db, [streams.Move(client, "s", 2, 500, 600)])
        stream = await streams.get(db, scope, client, "s")
        assert stream is not None
        assert (stream.next_offset, stream.writer, stream.writer_epoch) == (600, writer, 2)

    async def test_clients_streams_are_apart(self, db: Database, world: Any) -> None:
        scope = Scope(everything=True)
        for client in (world.advertiser.id, world.other.id):
            assert await streams.open_stream(db, scope, client, "s", new_id()) == streams.Opened(0, 1)

    @pytest.mark.parametrize("name", ["", "x" * 201])
    async def test_names_are_bounded(self, db: Database, world: Any, name: str) -> None:
        with pytest.raises(Invalid):
            await streams.open_stream(db, Scope(everything=True), world.advertiser.id, name, new_id())

    async def test_concurrent_opens_all_differ(self, db: Database, world: Any) -> None:
        opened = await asyncio.gather(
            *[streams.open_stream(db, Scope(everything=True), world.other.id, "s", new_id()) for _ in range(6)]
        )
        assert sorted(o.writer_epoch for o in opened if o is not None) == [1, 2, 3, 4, 5, 6]


class TestMetricsState:
    async def test_versions_rise_within_and_across_epochs(self, db: Database) -> None:
        versions = [await metrics_state.next_version(db, epoch) for epoch in (1, 1, 2, 2, 3)]
        assert versions == sorted(set(versions))
        assert versions[0] >> 40 == 1
        largest = await metrics_state.next_version(db, (1 << 23) - 1)
        assert largest < 1 << 63
        for epoch in (0, -1, 1 << 23):
            with pytest.raises(ValueError, match="epoch"):
                await metrics_state.next_version(db, epoch)

    async def test_a_stale_leader_cannot_move_the_cursor(self, db: Database) -> None:
        assert await metrics_state.get_cursor(db, "marks") is None
        await metrics_state.move_cursor(db, "marks", {"at": 1}, 4)
        await metrics_state.move_cursor(db, "marks", {"at": 2}, 4)
        await metrics_state.move_cursor(db, "marks", {"at": 3}, 5)
        with pytest.raises(FencedOut):
            await metrics_state.move_cursor(db, "marks", {"at": 4}, 4)
        assert await metrics_state.get_cursor(db, "marks") == metrics_state.Cursor({"at": 3}, 5)

    async def test_the_raw_floor_only_rises(self, db: Database) -> None:
        assert await metrics_state.get_raw_floor(db) == datetime(1970, 1, 1, tzinfo=UTC)
        high, low = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
        assert await metrics_state.raise_raw_floor(db, high) == high
        assert await metrics_state.raise_raw_floor(db, low) == high
        assert await metrics_state.get_raw_floor(db) == high


class TestOutbox:
    async def test_takers_share_nothing_and_failures_come_again(self, db: Database) -> None:
        ids = [await outbox.append(db, "campaign", str(n), {"n": n}) for n in range(4)]
        await outbox.append(db, "other", "x")
        async with db.transaction("a") as a, db.transaction("b") as b:
            first, second = await outbox.take_batch(a, "campaign", 2), await outbox.take_batch(b, "campaign", 9)
            assert [m.id for m in first] == ids[:2]
            assert [m.id for m in second] == ids[2:]
            assert first[0].payload == {"n": 0}
            await outbox.mark_processed(a, [m.id for m in first])
        async with db.transaction("c") as c:
            assert [m.id for m in await outbox.take_batch(c, "campaign", 9)] == ids[2:]

    async def test_old_ones_are_purged(self, db: Database) -> None:
        done, _waiting = await outbox.append(db, "t", "a"), await outbox.append(db, "t", "b")
        async with db.transaction("t") as tx:
            await outbox.mark_processed(tx, [done])
        assert await outbox.purge_processed(db, timedelta(hours=1)) == 0
        assert await outbox.purge_processed(db, timedelta(0)) == 1
        assert await db.fetchval("SELECT count(*) FROM outbox") == 1


async def test_audit_records_are_appended_in_order(db: Database) -> None:
    async with db.transaction("change") as tx:
        for n in range(2):
            await audit.append(
                tx,
                audit.Record(
                    actor_kind="user",
                    actor_id=new_id(),
                    action="pause",
                    resource_type="campaign",
                    resource_id=new_id(),
                    diff={"status": ["active", n]},
                ),
            )
    cause = audit.Cause("job", "7", "the budget is spent")
    await audit.append(
        db,
        audit.Record(
            actor_kind="system", actor_id=None, action="stop", resource_type="campaign", resource_id="x", cause=cause
        ),
    )
    rows = await db.fetch("SELECT diff, cause_kind, cause_id, cause FROM audit_log ORDER BY seq")
    assert tuple(rows[0])[1:] == tuple(rows[1])[1:] == ("user", "", "")
    assert tuple(rows[2])[1:] == ("job", "7", "the budget is spent")
    assert rows[1]["diff"] == {"status": ["active", 1]}
    with pytest.raises(Invalid):
        await audit.append(
            db, audit.Record(actor_kind="user", actor_id=None, action="x", resource_type="x", resource_id="x")
        )


class TestApiKeys:
    async def make(self, db: Database, n: int = 1, **values: Any) -> api_keys.ApiKey:
        return await api_keys.create(
            db, name=f"k{n}", key_hash=bytes([n]) * 32, prefix="mrm_abc", permissions=["campaigns.read"], **values
        )

    async def test_only_working_keys_are_found(self, db: Database) -> None:
        now = datetime.now(UTC)
        good = await self.make(db, 1, expires_at=now + timedelta(hours=1), client_ids=[new_id()])
        expired = await self.make(db, 2, expires_at=now - timedelta(seconds=1))
        revoked = await self.make(db, 3, all_clients=True)
        ended = await api_keys.revoke(db, EVERYTHING, revoked.id)
        assert ended is not None
        assert await api_keys.revoke(db, EVERYTHING, revoked.id) == ended
        assert await api_keys.revoke(db, EVERYTHING, new_id()) is None
        assert [await api_keys.by_hash(db, bytes([n]) * 32) for n in range(4)] == [None, good, None, None]
        assert await api_keys.active_ids(db, [good.id, expired.id, revoked.id, new_id()]) == {good.id}
        assert await api_keys.list_page(db, EVERYTHING, limit=9) == [good, expired]
        listed = await api_keys.list_page(db, EVERYTHING, limit=9, after=good.id, include_revoked=True)
        assert listed == [expired, ended]

    async def test_use_is_noted_by_the_minute(self, db: Database) -> None:
        key = await self.make(db)

        async def used() -> datetime:
            found = await api_keys.by_hash(db, bytes([1]) * 32)
            assert found is not None
            assert found.last_used_at is not None
            return found.last_used_at

        await api_keys.touch_last_used(db, key)
        first = await used()
        await api_keys.touch_last_used(db, key)
        await api_keys.touch_last_used(db, replace(key, last_used_at=first))
        assert await used() == first
        await db.execute("UPDATE api_keys SET last_used_at = now() - interval '2 minutes'")
        await api_keys.touch_last_used(db, replace(key, last_used_at=first - timedelta(minutes=2)))
        assert await used() > first

    async def test_reach_is_one_or_the_other(self, db: Database) -> None:
        with pytest.raises(Invalid) as caught:
            await self.make(db, client_ids=[new_id()], all_clients=True)
        assert caught.value.constraint == "api_keys_one_reach"
        await self.make(db)
        with pytest.raises(Conflict):
            await self.make(db)


class TestUsers:
    async def test_found_by_email_in_any_case_until_deleted(self, db: Database) -> None:
        user = await users.create(
            db, email=" Anna@Example.RU ", password_hash="$argon2id$x", role="admin", first_name="Anna"
        )
        assert user.email == "anna@example.ru"
        assert await users.by_email(db, "ANNA@example.ru") == user
        assert await users.get(db, user.id) == user
        assert await users.count_admins(db) == 1
        await db.execute("UPDATE users SET status = 'deleted'")
        assert await users.by_email(db, "anna@example.ru") is None
        assert await users.count_admins(db) == 0

    async def test_signing_in_is_no_edit(self, db: Database) -> None:
        old, new = "$argon2id$v=19$old", "$argon2id$v=19$new"
        user = await users.create(db, email="a@x.ru", password_hash=old, role="pm")
        seen = await users.sign_in(db, user.id, verified=old, rehashed=new)
        assert seen is not None
        assert seen.last_login_at is not None
        assert (seen.password_hash, seen.revision) == (new, user.revision)
        assert await users.sign_in(db, user.id, verified=old) is None, "the password was changed meanwhile"
        await db.execute("UPDATE users SET status = 'suspended'")
        assert await users.sign_in(db, user.id, verified=new) is None

    async def test_ended_sessions_began_before_the_end(self, db: Database) -> None:
        user = await users.create(db, email="a@x.ru", password_hash="!", role="pm")
        ended = await users.end_sessions(db, user.id)
        assert ended is not None
        assert ended.sessions_not_before > user.sessions_not_before
        assert ended.revision == user.revision
        assert await users.end_sessions(db, new_id()) is None

    async def test_no_hash_in_a_representation(self, db: Database) -> None:
        user = await users.create(db, email="a@x.ru", password_hash="$argon2id$secret", role="pm")
        assert "secret" not in repr(user)
