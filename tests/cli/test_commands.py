"""Commands as processes: what they print, how they end, what they leave."""

import asyncio
import json
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Mrm, Result

PASSWORD = "correct horse battery staple"


def one_line_error(result: Result) -> str:
    assert result.code == 1
    assert "Traceback" not in result.err
    (line,) = result.err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["up"],
        ["serve"],
        ["migrate"],
        ["admin", "create"],
        ["keys", "rotate"],
        ["ingest"],
        ["watch"],
        ["changes"],
        ["demo"],
    ],
)
async def test_every_command_explains_itself(mrm: Mrm, command: list[str]) -> None:
    result = await mrm(*command, "--help")
    assert result.code == 0
    assert "Usage" in result.out


async def test_up_serves_tells_others_and_drains(mrm: Mrm, tmp_path: Path) -> None:
    data = tmp_path / "data"
    process = await mrm.start("up", "--data-dir", data, "--port", "0")
    assert process.stdout is not None
    async with asyncio.timeout(90):
        while b"serving on" not in (line := await process.stdout.readline()):
            assert line, (await process.communicate())[1].decode()
    run_file = data / "run.json"
    assert stat.S_IMODE(run_file.stat().st_mode) == 0o600
    assert json.loads(run_file.read_text())["pid"] == process.pid

    made = await mrm("admin", "create", "--email", "anna@example.com", "--data-dir", data, MRM_ADMIN_PASSWORD=PASSWORD)
    assert made.code == 0, made.err
    assert PASSWORD not in made.out + made.err
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD + "\n")
    again = await mrm(
        "admin", "create", "--email", "ANNA@example.com", "--data-dir", data, "--password-file", password_file
    )
    assert "there is a user" in one_line_error(again)

    assert stat.S_IMODE((data / "keyring").stat().st_mode) == 0o600
    ring = await mrm("keys", "list", "--data-dir", data)
    assert ring.code == 0, ring.err
    assert "first" in ring.out and "seals" in ring.out
    for options, whose in (((), "everybody"), (("--user", "ANNA@example.com"), "ANNA@example.com")):
        ended = await mrm("sessions", "revoke-all", "--data-dir", data, *options)
        assert (ended.code, ended.out) == (0, f"all sessions of {whose} have ended\n")
    nobody = await mrm("sessions", "revoke-all", "--data-dir", data, "--user", "nobody@example.com")
    assert "there is no user nobody@example.com" in one_line_error(nobody)

    status = await mrm("migrate", "status", "--data-dir", data)
    assert status.code == 0
    assert "applied" in status.out
    assert "pending" not in status.out
    assert (await mrm("migrate", "--data-dir", data)).out == "nothing to do\n"

    second = await mrm("up", "--data-dir", data)
    assert "in use by process" in one_line_error(second) or second.err.count("error:") == 1

    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        await process.communicate()
    assert process.returncode == 0
    assert not run_file.exists()
    pids = [int(text) for file in (data / "run").glob("*.pid") if (text := file.read_text().strip())]
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_errors_are_one_line(mrm: Mrm, tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text("event_time,campaign_id,event_type\n")
    client = "0198f000-0000-7000-8000-000000000001"
    assert "no token" in one_line_error(await mrm("watch", "--client", client))
    assert "no events" in one_line_error(await mrm("ingest", events, "--client", client, MRM_TOKEN="t"))
    refused = await mrm("watch", "--client", client, "--target", "example.test:1", "--no-tls", MRM_TOKEN="sekret")
    assert "in the clear" in one_line_error(refused)
    gone = await mrm("watch", "--client", client, "--target", "127.0.0.1:9", "--patience", "0", MRM_TOKEN="sekret")
    assert "UNAVAILABLE" in gone.err
    short = await mrm("admin", "create", "--email", "anna@example.com", MRM_ADMIN_PASSWORD="short")
    assert "password must have" in one_line_error(short)
    wrong = await mrm("serve", MRM_GRPC__PORT="many", MRM_POSTGRES__DSN="postgresql://u:sekret@127.0.0.1:9/x")
    assert "MRM_GRPC__PORT" in one_line_error(wrong)
    down = await mrm("migrate", MRM_POSTGRES__DSN="postgresql://u:sekret@127.0.0.1:9/x")
    assert "postgresql is unavailable" in one_line_error(down)
    assert "sekret" not in refused.err + gone.err + wrong.err + down.err


@pytest.fixture
def short_path() -> Iterator[str]:
    """A temporary directory outside pytest's own: the path of PostgreSQL's socket must stay short."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        yield directory


@pytest.mark.bar_a
async def test_the_demo_agrees_and_leaves_nothing(mrm: Mrm, short_path: str) -> None:
    speed = [] if os.environ.get("MRM_BARS") == "full" else ["--seconds", "4"]
    result = await mrm("demo", *speed, TMPDIR=short_path)
    assert result.code == 0, result.out + result.err
    assert "40,000" in result.out
    assert "195" in result.out
    assert result.out.count("agree") == 4
    assert "1,000 -> 940: in the live table, in QueryStatistics and in the daily figures" in result.out
    assert "e-mail to keeper@example.com: " in result.out
    assert "grpcurl" in result.out
    assert os.listdir(short_path) == []


async def test_a_demo_cut_short_leaves_nothing(mrm: Mrm, short_path: str) -> None:
    process = await mrm.start("demo", TMPDIR=short_path)
    assert process.stdout is not None
    async with asyncio.timeout(90):
        while b"live" not in (line := await process.stdout.readline()):
            assert line
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(60):
        _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert os.listdir(short_path) == []
