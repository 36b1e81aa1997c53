"""What is said to whom: every kind of e-mail in both languages, the steps of a plan, alerts, who wants none."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from google.protobuf import json_format

from mrm.operations.v1 import alert_pb2
from mrm.operations.v1 import email_service_pb2 as pb
from mrm.planning.v1 import project_member_pb2
from server.alerts import convert
from server.alerts.raising import raise_alert
from server.mail.letters import REGISTRY, Amount, Letter, language_of, render
from server.mail.unsubscribing import url
from storage.postgres import token_keys
from storage.postgres.alerts import Sighting
from storage.postgres.audit import Cause
from tests.conftest import Caller, Failing, World
from tests.planning import plans

pytestmark = pytest.mark.bar_e

MONEY = Amount(micros=1_234_567_890_000, currency="RUB")
PLAN = {
    "client": "Acme", "project": "Spring", "plan": "Search", "version": 2, "budget": MONEY, "actor": "Anna",
    "comment": "Less <b>TV</b>",
}  # fmt: skip
BUDGET = {
    "reminder": True, "client": "Acme", "project": "Spring", "name": "Brand", "budget": MONEY, "spent": MONEY,
    "threshold_percent": 80, "planned": MONEY, "pacing": "1.2345", "exhaustion_date": "2026-03-01",
    "end_date": "2026-03-05",
}  # fmt: skip
LETTERS = {
    "plan_submitted": [PLAN],
    "plan_approved": [PLAN],
    "plan_rejected": [PLAN],
    "budget_alert": [
        {**BUDGET, "kind": kind}
        for kind in ("budget_threshold", "budget_exhaustion", "overspend", "overpacing", "underpacing")
    ],
    "integration_alert": [
        {"reminder": True, "client": "Acme", "platform": "vk_ads", "account": "shop", "reason": "auth_failed"}
    ],
    "service_alert": [
        {"kind": kind, "reminder": True, "client": "Acme", "subject_line": "cost of 2026-03-01"}
        for kind in ("rollup_drift", "job_failed")
    ],
    "report_ready": [
        {
            "client": "Acme",
            "project": "Spring",
            "type": kind,
            "start_date": "2026-03-01",
            "end_date": "2026-03-31",
            "format": "pdf",
            "report_id": "0198c0de-0000-7000-8000-000000000001",
        }
        for kind in ("performance", "channel_comparison", "analytical_notes")
    ],
}


@pytest.mark.parametrize("language", ["ru", "en"])
@pytest.mark.parametrize("template", sorted(REGISTRY))
def test_every_kind_says_the_same_in_both_forms(template: str, language: str) -> None:
    subjects = set()
    for fields in LETTERS[template]:
        letter: Letter = REGISTRY[template].model_validate(fields)
        rendered = render(letter, language, name="Анна", unsubscribe="https://example.com/?t=1")  # type: ignore[arg-type]
        subjects.add(rendered.subject)
        assert bool(re.search("[а-яё]", rendered.subject)) == (language == "ru")
        assert rendered.subject == rendered.subject.strip() and " :" not in rendered.subject
        assert f'<html lang="{language}">' in rendered.html
        assert "<b>TV" not in rendered.html
        words = re.sub(r"<[^>]+>", " ", rendered.html.partition("<body")[2])
        for value in (*_texts(letter), "https://example.com/?t=1" if "mailto" in words else "Анна"):
            assert value in rendered.text
            assert value.replace("<", "&lt;").replace(">", "&gt;") in words
        assert "{" not in rendered.text and "None" not in rendered.text
    assert len(subjects) == len(LETTERS[template])


def _texts(letter: Letter) -> list[str]:
    names = ("client", "project", "plan", "comment", "account", "subject_line", "name")
    return [value for name in names if isinstance(value := getattr(letter, name, None), str)]


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("ru", ["1\xa0234\xa0567,89\xa0RUB", "123,4\xa0%", "01.03.2026"]),
        ("en", ["1,234,567.89\xa0RUB", "123.4%", "1 Mar 2026"]),
    ],
)
def test_figures_are_written_as_the_language_does(language: str, expected: list[str]) -> None:
    letter = REGISTRY["budget_alert"].model_validate(LETTERS["budget_alert"][0])
    text = render(letter, language).text  # type: ignore[arg-type]
    assert [each for each in expected if each not in text] == []


@pytest.mark.parametrize(
    ("tag", "language"), [(None, "ru"), ("ru", "ru"), ("RU-ru", "ru"), ("en", "en"), ("de-AT", "en")]
)
def test_which_language(tag: str | None, language: str) -> None:
    assert language_of(tag) == language


async def told(world: World, event: str) -> dict[str, tuple[str, str, object]]:
    """Whom e-mails of events like this are for: address to template, language and comment."""
    sql = "SELECT address, template, language, content FROM emails WHERE event_id LIKE $1 || '%' ORDER BY id"
    return {row[0]: (row[1], row[2], row[3].get("comment")) for row in await world.database.fetch(sql, event)}


async def email_of(world: World, caller: Caller) -> str:
    address = await world.database.fetchval("SELECT email FROM users WHERE id = $1", caller.user_id)
    return str(address)


async def test_the_steps_of_a_plan_tell_whoever_is_to_act(world: World) -> None:
    where = await plans.office(world)
    planner, accountable = where.author, where.accountable
    language = """UPDATE clients SET settings = settings || '{"language": "en"}' WHERE id = $1"""
    await world.database.execute(language, where.client_id)
    plan = await plans.create(planner, where.project_id, 1)
    event = f"media_plan:{plan.media_plan_id}"
    await plans.step(planner, "submit", plan.media_plan_id)
    submitted = f"{event}:submit"
    assert await told(world, submitted) == {await email_of(world, accountable): ("plan_submitted", "en", "")}
    await plans.step(accountable, "reject", plan.media_plan_id, comment="too dear")
    assert await told(world, f"{event}:reject") == {await email_of(world, planner): ("plan_rejected", "en", "too dear")}
    # Handed in once more it is a new question, and its answer a new answer.
    await plans.step(planner, "submit", plan.media_plan_id)
    assert await world.database.fetchval("SELECT count(*) FROM emails WHERE event_id LIKE $1", f"{submitted}%") == 2
    await plans.step(accountable, "approve", plan.media_plan_id)
    assert set(await told(world, f"{event}:approve")) == {await email_of(world, planner)}


async def test_an_alert_tells_those_who_work_on_it(world: World) -> None:
    client = await world.client()
    project = await world.project(client.client_id)
    keeper, analyst = [await world.user(role, client.client_id) for role in ("account_manager", "analyst")]
    assert analyst.user_id is not None
    details = alert_pb2.AlertDetails()
    json_format.ParseDict({"budget": {"display_name": "Brand", "budget": {"currency_code": "RUB"}}}, details)
    seen = Sighting(
        client_id=UUID(client.client_id),
        kind="overspend",
        severity="critical",
        dedupe_key=uuid4().hex,
        summary="s",
        details=convert.stored_details(details),
    )

    async def see(sighting: Sighting) -> dict[str, tuple[str, str, object]]:
        async with world.database.transaction("see") as tx:
            at = datetime.now(UTC)
            raised = await raise_alert(tx, sighting, cause=Cause("job"), settings=world.settings.alerts, at=at)
        assert raised is not None
        return await told(world, f"alert:{raised.alert.id}")

    assert set(await see(seen)) == {await email_of(world, keeper)}
    role, raci = project_member_pb2.PROJECT_ROLE_ANALYST, project_member_pb2.RACI_RESPONSIBLE
    await world.member(project.project_id, analyst.user_id, role, raci)
    of_project = replace(seen, project_id=UUID(project.project_id), dedupe_key=uuid4().hex)
    assert set(await see(of_project)) == {"admin@example.com", await email_of(world, analyst)}


async def test_whoever_wants_no_more_gets_none_until_somebody_changes_that(world: World, failing: Failing) -> None:
    address = f"{uuid4().hex}@example.com"
    key = await token_keys.shared_key(world.database)
    token = url(world.settings, key, address).partition("subject=")[2]
    stranger, admin = world.caller(), world.admin
    assert (await failing(stranger.emails.Unsubscribe(pb.UnsubscribeRequest(token=token[:-1] + "_")))).fields == {
        "token": "TOKEN_UNKNOWN"
    }
    for _ in range(2):
        await stranger.emails.Unsubscribe(pb.UnsubscribeRequest(token=token))
    listing = pb.ListEmailSuppressionsRequest(address=address.upper())
    [entry] = (await admin.emails.ListEmailSuppressions(listing, metadata=admin.auth)).email_suppressions
    assert (entry.address, entry.creator_id) == (address, "")
    again = pb.CreateEmailSuppressionRequest(address=address)
    kept = (await admin.emails.CreateEmailSuppression(again, metadata=admin.auth)).email_suppression
    assert kept == entry
    recorded = await world.database.fetch(
        "SELECT action, diff FROM audit_log WHERE resource_type = 'email_suppression' AND resource_id = $1",
        entry.email_suppression_id,
    )
    assert [row[0] for row in recorded] == ["create"] and address not in str(recorded)
    removal = pb.DeleteEmailSuppressionRequest(email_suppression_id=entry.email_suppression_id)
    await admin.emails.DeleteEmailSuppression(removal, metadata=admin.auth)
    assert not (await admin.emails.ListEmailSuppressions(listing, metadata=admin.auth)).email_suppressions
    assert (await failing(admin.emails.DeleteEmailSuppression(removal, metadata=admin.auth))).reason == (
        "RESOURCE_NOT_FOUND"
    )
