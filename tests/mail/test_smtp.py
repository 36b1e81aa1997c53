"""Sending e-mails over a real socket: what passes, is tried again, given up, and never sent twice."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from server.embedded.smtp_sink import SmtpSink
from server.jobs.handling import JobContext, JobFailed, LeaseLost, Stores
from server.mail import letters, post, send_job, smtp
from server.mail.letters import Amount, PlanApproved
from server.settings import EmailSettings
from storage.postgres import emails, jobs
from storage.postgres.emails import Recipient
from storage.postgres.jobs import Job
from tests.certificates import issue
from tests.conftest import World

pytestmark = pytest.mark.bar_e

ANSWERS, UNUSABLE = "the mail server answers", "the mail server cannot be used"
LEASE = timedelta(seconds=30)
LETTER = PlanApproved(
    client="Acme",
    project="Spring",
    plan="Search",
    version=2,
    budget=Amount(micros=1_500_000_000, currency="RUB"),
    actor="Anna",
    comment="",
)


@pytest.fixture(scope="module")
async def sink(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SmtpSink]:
    async with SmtpSink(tmp_path_factory.mktemp("mail")).running() as sink:
        yield sink


def configured(stores: Stores, sink: SmtpSink, **fields: object) -> Stores:
    email = EmailSettings(
        host="127.0.0.1", port=sink.port, security="none", sender="MRM <mrm@example.com>", timeout=0.5, **fields
    )  # type: ignore[arg-type]
    return replace(stores, settings=stores.settings.model_copy(update={"email": email}))


def address(tag: str = "") -> str:
    return f"{uuid4().hex}{'+' if tag else ''}{tag}@example.com"


async def queued(world: World, to: Recipient, language: str = "en", event_id: str = "") -> Job | None:
    """An e-mail that is to be sent, and the first try of its job; None if the recipient is told already."""
    async with world.database.transaction("tell") as tx:
        told = await post.tell(tx, LETTER, [to], event_id=event_id or uuid4().hex, language=language)
    if not told:
        return None
    sql = """SELECT id FROM jobs WHERE payload->>'email_id' = (
      SELECT id::text FROM emails WHERE address = $1 ORDER BY id DESC LIMIT 1)"""
    return await claimed(world, await world.database.fetchval(sql, to.address.lower()))


async def claimed(world: World, job_id: UUID) -> Job:
    await world.database.execute("UPDATE jobs SET scheduled_at = now() WHERE id = $1 AND status = 'pending'", job_id)
    [job] = await jobs.claim_internal(world.database, [job_id], "test", LEASE)
    return job


async def tried(world: World, stores: Stores, job: Job) -> str:
    """Does a try of a job as the worker does: its outcome, or the status the failure gives it."""
    try:
        result = await send_job.handle(job, JobContext(stores, job, LEASE))
    except JobFailed as error:
        status = await jobs.fail_internal(world.database, job.id, job.fence, error.message, final=error.final)
        return f"{status}: {error.message}"
    await jobs.complete_internal(world.database, [(job.id, job.fence, result)])
    return str(result["outcome"])


async def test_what_arrives(world: World, stores: Stores, sink: SmtpSink) -> None:
    to = address()
    job = await queued(world, Recipient(to), "ru")
    assert job is not None and set(job.payload) == {"email_id"}
    assert await tried(world, configured(stores, sink), job) == "sent"
    [mail] = sink.to(to)
    assert mail.file is not None and mail.file.read_bytes().isascii()
    message = mail.message
    assert (mail.sender, message["From"], message["To"]) == ("mrm@example.com", "MRM <mrm@example.com>", to)
    assert message["Subject"] == "Медиаплан согласован: «Search», версия 2"
    assert message["Message-ID"] == f"<{job.payload['email_id']}@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    text, html = (message.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None and html is not None
    for part in (text, html):
        said = part.get_content()
        assert "Медиаплан согласован и может быть запущен." in said
        assert "1\N{NO-BREAK SPACE}500,00\N{NO-BREAK SPACE}RUB" in said
        assert message["List-Unsubscribe"].strip("<>") in said
    row = await world.database.fetchrow(
        "SELECT actor_kind, action, diff, cause_id FROM audit_log WHERE resource_type = 'email' AND resource_id = $1",
        job.payload["email_id"],
    )
    assert row is not None and tuple(row[:2]) == ("system", "send") and row[3] == str(job.id)
    assert row[2]["template"] == [None, "plan_approved"] and to not in str(row[2])


@pytest.mark.parametrize(
    ("tag", "outcomes", "kept"),
    [
        pytest.param("450x2", [f"pending: {ANSWERS} 450", f"pending: {ANSWERS} 450", "sent"], 1, id="transient"),
        pytest.param("data-452x1", [f"pending: {ANSWERS} 452", "sent"], 1, id="transient-in-data"),
        pytest.param("550", ["failed: the mail server refuses it (550)"], 0, id="final"),
        pytest.param("data-554", ["failed: the mail server refuses it (554)"], 0, id="final-in-data"),
        pytest.param("slow", [f"pending: {UNUSABLE} (SMTPReadTimeoutError)"], 0, id="slow"),
        pytest.param("dropx1", [f"pending: {UNUSABLE} (SMTPServerDisconnected)", "sent"], 1, id="disconnects"),
        pytest.param("lostx1", [f"pending: {UNUSABLE} (SMTPServerDisconnected)", "sent"], 2, id="disconnects-after"),
    ],
)
async def test_how_a_mail_server_fails(
    world: World, stores: Stores, sink: SmtpSink, tag: str, outcomes: list[str], kept: int
) -> None:
    to = address(tag)
    job = await queued(world, Recipient(to))
    assert job is not None
    for expected in outcomes:
        assert await tried(world, configured(stores, sink), job) == expected
        if expected.startswith("pending"):
            job = await claimed(world, job.id)
    assert len(sink.to(to)) == kept
    # Whoever gets it twice, because the answer was lost, can tell.
    assert len({mail.message["Message-ID"] for mail in sink.to(to)}) == min(kept, 1)


async def test_tries_are_bounded_and_a_refusal_can_be_replayed(world: World, stores: Stores, sink: SmtpSink) -> None:
    job = await queued(world, Recipient(address("550x1")))
    assert job is not None and job.max_attempts == 10
    assert (await tried(world, configured(stores, sink), job)).startswith("failed")
    await jobs.retry_internal(world.database, job.id)
    assert await tried(world, configured(stores, sink), await claimed(world, job.id)) == "sent"


async def test_nobody_is_told_twice_of_one_event(world: World, stores: Stores, sink: SmtpSink) -> None:
    to, event = address(), uuid4().hex
    first = await queued(world, Recipient(to), event_id=event)
    assert first is not None
    assert await queued(world, Recipient(to.upper()), event_id=event) is None
    assert await tried(world, configured(stores, sink), first) == "sent"
    await world.database.execute("UPDATE jobs SET status = 'failed' WHERE id = $1", first.id)
    await jobs.retry_internal(world.database, first.id)
    assert await tried(world, configured(stores, sink), await claimed(world, first.id)) == "sent"
    assert len(sink.to(to)) == 1


async def test_a_worker_that_is_lost_before_it_sends_sends_nothing_and_one_lost_after_repeats_itself(
    world: World, stores: Stores, sink: SmtpSink
) -> None:
    """Between the mail server's answer and the commit there is nothing SMTP offers; the Message-ID tells."""
    to = address()
    stale = await queued(world, Recipient(to))
    assert stale is not None
    await world.database.execute("UPDATE jobs SET lease_expires_at = now() WHERE id = $1", stale.id)
    await jobs.sweep_internal(world.database)
    with pytest.raises(LeaseLost):
        await send_job.handle(stale, JobContext(configured(stores, sink), stale, LEASE))
    fresh = await claimed(world, stale.id)
    assert await tried(world, configured(stores, sink), fresh) == "sent"
    first, second = (mail.message for mail in sink.to(to))
    assert (first["Message-ID"], first["Date"], first["Subject"]) == (
        second["Message-ID"], second["Date"], second["Subject"],
    )  # fmt: skip
    # Once it is noted, no try sends it again.
    assert await send_job.handle(fresh, JobContext(configured(stores, sink), fresh, LEASE)) == {"outcome": "sent"}
    assert len(sink.to(to)) == 2


@pytest.mark.parametrize(
    ("to", "outcome"),
    [
        pytest.param("no-at-sign", "undeliverable", id="no-address"),
        pytest.param("a@b.example\r\nrcpt to:<x@y.example>", "undeliverable", id="commands"),
        pytest.param("почта@пример.рф", "undeliverable", id="not-ascii"),
        pytest.param("a..b@example.com", "undeliverable", id="dots"),
    ],
)
async def test_addresses_that_are_none(world: World, stores: Stores, sink: SmtpSink, to: str, outcome: str) -> None:
    before = len(sink.kept)
    job = await queued(world, Recipient(to))
    assert job is not None
    assert await tried(world, configured(stores, sink), job) == outcome
    assert len(sink.kept) == before


async def test_people_are_sent_to_their_present_address_while_they_have_an_account(
    world: World, stores: Stores, sink: SmtpSink
) -> None:
    caller = await world.user("analyst")
    moved = address()
    job = await queued(world, Recipient(address(), caller.user_id))
    await world.database.execute(
        "UPDATE users SET email = $2, first_name = 'Анна' WHERE id = $1", caller.user_id, moved
    )
    assert job is not None
    assert await tried(world, configured(stores, sink), job) == "sent"
    [mail] = sink.to(moved)
    body = mail.message.get_body(("plain",))
    assert body is not None and body.get_content().startswith("Hello Анна,")
    job = await queued(world, Recipient(address(), caller.user_id))
    await world.database.execute("UPDATE users SET status = 'suspended' WHERE id = $1", caller.user_id)
    assert job is not None
    assert await tried(world, configured(stores, sink), job) == "skipped"


async def test_a_suppressed_address_gets_nothing(world: World, stores: Stores, sink: SmtpSink) -> None:
    to = address()
    await emails.suppress(world.database, address=to, reason="manual", comment="", created_by=None)
    job = await queued(world, Recipient(to))
    assert job is not None
    assert await tried(world, configured(stores, sink), job) == "suppressed"
    assert not sink.to(to)


async def test_without_a_mail_server_nothing_is_sent(world: World, stores: Stores) -> None:
    job = await queued(world, Recipient(address()))
    assert job is not None
    assert await tried(world, stores, job) == "skipped"


async def test_tls_and_a_password(world: World, stores: Stores, tmp_path: Path) -> None:
    authority = issue(tmp_path, "authority")
    pair = issue(tmp_path, "mail", authority, "127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    async with SmtpSink(login=("mrm", "hunter2"), tls=context).running() as sink:
        for password, outcome in (("wrong", "pending: the mail server answers 535"), ("hunter2", "sent")):
            job = await queued(world, Recipient(address()))
            assert job is not None
            fields = {"user": "mrm", "password": SecretStr(password), "ca_file": authority.certificate}
            opened = configured(stores, sink, **fields)
            opened.settings.email.security, opened.settings.email.timeout = "starttls", 5.0
            assert await tried(world, opened, job) == outcome
        job = await queued(world, Recipient(address()))
        opened = configured(stores, sink)
        opened.settings.email.security, opened.settings.email.timeout = "starttls", 5.0
        assert job is not None
        # A certificate of an authority that nobody trusts.
        assert (await tried(world, opened, job)).startswith("pending: the mail server cannot be used")


def test_a_password_is_not_sent_in_the_clear() -> None:
    with pytest.raises(ValidationError, match="encrypted"):
        EmailSettings(host="mail.example.com", security="none", user="mrm", password=SecretStr("hunter2"))


NASTY = st.text(alphabet=st.sampled_from("ab \r\n\t\x00\x0b\x0c\x85\u2028:<>,;\"'Bcя"), max_size=40)


@given(NASTY, NASTY, NASTY)
def test_no_name_gets_into_the_headers(plan: str, client: str, comment: str) -> None:
    letter = LETTER.model_copy(update={"plan": plan + "\r\nBcc: x@y.example", "client": client, "comment": comment})
    for language in ("ru", "en"):
        rendered = letters.render(letter, language, name=client, unsubscribe="mailto:x@example.com")  # type: ignore[arg-type]
        made = smtp.message(
            rendered,
            EmailSettings(),
            email_id=UUID(int=1),
            address="a@example.com",
            date=datetime(2026, 1, 1, tzinfo=UTC),
            unsubscribe="mailto:x@example.com",
        )
        head = made.as_bytes().split(b"\r\n\r\n")[0].split(b"\r\n")
        names = [line.split(b":")[0] for line in head if not line.startswith((b" ", b"\t"))]
        assert names == [
            b"From", b"To", b"Subject", b"Date", b"Message-ID", b"Auto-Submitted", b"List-Unsubscribe",
            b"MIME-Version", b"Content-Type",
        ]  # fmt: skip


@pytest.mark.parametrize("sender", ["MRM", "a@b\r\nBcc: c@d", "A <a@b>\nx"])
def test_a_sender_is_an_address(sender: str) -> None:
    with pytest.raises(ValidationError):
        EmailSettings(sender=sender)


async def test_what_was_said_is_forgotten_and_that_it_was_said_is_not(
    world: World, stores: Stores, sink: SmtpSink
) -> None:
    to, event = address(), uuid4().hex
    job = await queued(world, Recipient(to), event_id=event)
    assert job is not None and await tried(world, configured(stores, sink), job) == "sent"
    await world.database.execute("UPDATE emails SET ended_at = now() - interval '31 days' WHERE address = $1", to)
    assert await emails.forget_internal(world.database, timedelta(days=30), 1000) == 1
    assert await world.database.fetchval("SELECT content FROM emails WHERE address = $1", to) == {}
    assert await queued(world, Recipient(to), event_id=event) is None


async def test_many_at_once(world: World, stores: Stores, sink: SmtpSink) -> None:
    made = [await queued(world, Recipient(address())) for _ in range(12)]
    outcomes = await asyncio.gather(*(tried(world, configured(stores, sink), job) for job in made if job))
    assert outcomes == ["sent"] * 12
