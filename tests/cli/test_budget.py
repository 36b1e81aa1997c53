"""`mrm budget`, `mrm alerts` and `mrm mail`, as processes, and what they print."""

from __future__ import annotations

import asyncio
import signal
import smtplib
from email.message import EmailMessage
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from mrm.campaigns.v1 import budget_pb2
from mrm.common.v1 import money_pb2
from server.alerts.raising import raise_alert
from server.cli.budget import bar
from server.cli.mail import beside
from server.settings import Settings
from storage.postgres.alerts import Sighting
from storage.postgres.audit import Cause

from .conftest import Mrm

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import World

pytestmark = pytest.mark.bar_e


def rub(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="RUB", micros=micros)


@pytest.mark.parametrize(
    ("budget", "spent", "planned", "expected"),
    [
        (100, 50, 25, "█████│████░░░░░░░░░░"),
        (100, 0, None, "░" * 20),
        (100, 100, 100, "█" * 19 + "│"),
        (100, 150, None, "█" * 20 + "!"),
        (0, 5, None, ""),
    ],
)
def test_the_bar_of_a_budget(budget: int, spent: int, planned: int | None, expected: str) -> None:
    status = budget_pb2.BudgetStatus(budget=rub(budget), spent=rub(spent))
    if planned is not None:
        status.planned_to_date.CopyFrom(rub(planned))
    assert bar(status) == expected


async def test_somebody_looks_at_budgets_and_takes_care(mrm: Mrm, world: World) -> None:
    client = await world.client()
    project = await world.project(client.client_id, display_name="Spring [x]", total_budget=rub(1_000_000_000))
    await world.campaign(project.project_id, display_name="Brand", total_budget=rub(10_000_000))
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": world.admin.token}

    shown = await mrm("budget", "show", "--project", project.project_id, **server)
    assert shown.code == 0, shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[1:3] == [
        f"project Spring [x] 1,000.00 RUB 0.00 RUB {'░' * 20}",
        f"campaign Brand 10.00 RUB 0.00 RUB {'░' * 20}",
    ]
    assert lines[3].endswith("days of Europe/Moscow")
    refused = await mrm("budget", "show", **server)
    assert (refused.code, "--project" in refused.err) == (1, True)

    async with world.database.transaction("raise") as tx:
        seen = Sighting(
            client_id=UUID(client.client_id), kind="overspend", severity="critical", dedupe_key="cli",
            summary="Brand [x]: more is spent than the budget", details={},
        )  # fmt: skip
        raised = await raise_alert(tx, seen, cause=Cause("job"), settings=world.settings.alerts)
    assert raised is not None
    listed = await mrm("alerts", "list", "--client", client.client_id, **server)
    assert "critical open overspend Brand [x]: more is spent than the budget 1 x" in " ".join(listed.out.split())
    known = await mrm("alerts", "ack", raised.alert.id, "--comment", "on it", **server)
    assert known.out.strip() == "acknowledged: Brand [x]: more is spent than the budget"


def mail(port: int) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.com", "Привет"
    message.set_content("x")
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.send_message(message)


async def test_the_sink_lists_and_keeps_what_comes(mrm: Mrm) -> None:
    process = await mrm.start("mail", "sink", "--port", 0, "--directory", "kept")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode()
            port = int(line.partition("127.0.0.1:")[2].partition(",")[0])
            await asyncio.to_thread(mail, port)
            assert (await process.stdout.readline()).decode().strip() == "b@example.com: Привет  kept/00001.eml"
        assert b"b@example.com" in (mrm.directory / "kept" / "00001.eml").read_bytes()
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def test_a_demonstration_gets_its_mail(tmp_path: Path) -> None:
    settings = Settings()
    async with beside(settings, tmp_path / "mail") as mails:
        assert (settings.email.host, settings.email.security) == ("127.0.0.1", "none")
        await asyncio.to_thread(mail, settings.email.port)
        assert [kept.message["Subject"] for kept in mails.to("b@example.com")] == ["Привет"]
