"""The supervisor: start, stop, crashes, orphans, users, and everything that can be wrong."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import clickhouse_connect
import pytest
import redis.asyncio

from server.embedded import Connections, EmbeddedEngines, EngineError
from server.embedded.directory import DataDirectory, port_is_free
from server.embedded.postgres import PostgresEngine
from server.embedded.process import belongs_to
from tests.embedded.conftest import Running

ROOT = Path(__file__).parents[2]
NAMES = ("postgres", "valkey", "clickhouse")


async def write(connections: Connections, key: str) -> None:
    """Puts one row into every engine."""
    connection = await asyncpg.connect(connections.postgres_dsn)
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (key text)")
    await connection.execute("INSERT INTO kept VALUES ($1)", key)
    await connection.close()
    async with redis.asyncio.from_url(connections.redis_dsn) as client:
        await client.rpush("kept", key)
    store = await clickhouse_connect.get_async_client(dsn=connections.clickhouse_dsn)
    await store.command("CREATE TABLE IF NOT EXISTS kept (key String) ENGINE = MergeTree ORDER BY key")
    await store.insert("kept", [[key]], column_names=["key"])
    await store.close()


async def read(connections: Connections) -> list[list[str]]:
    """What every engine holds."""
    connection = await asyncpg.connect(connections.postgres_dsn)
    rows = [row["key"] for row in await connection.fetch("SELECT key FROM kept")]
    await connection.close()
    async with redis.asyncio.from_url(connections.redis_dsn) as client:
        values = [value.decode() for value in await client.lrange("kept", 0, -1)]
    store = await clickhouse_connect.get_async_client(dsn=connections.clickhouse_dsn)
    stored = [row[0] for row in (await store.query("SELECT key FROM kept ORDER BY key")).result_rows]
    await store.close()
    return [rows, values, stored]


def command_lines() -> list[str]:
    lines = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            lines.append((process / "cmdline").read_bytes().decode(errors="replace"))
    return lines


def open_sockets() -> list[str]:
    return [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]


def sleeper(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *arguments])


def plain_interpreter(drop: list[str], packages: str) -> str | None:
    """An interpreter of our version that the user nobody can run with our packages."""
    check = (
        "import os, sys, asyncpg, server.embedded; os.access(sys.executable, os.X_OK) and print(sys.version_info[:2])"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{packages}"}
    for python in (sys.executable, "/usr/bin/python3"):
        probe = [*drop, python, "-c", check]
        found = subprocess.run(probe, env=environment, capture_output=True, text=True, cwd="/", check=False)
        if found.stdout.strip() == str(sys.version_info[:2]):
            return python
    return None


def processes_of(path: Path) -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and belongs_to(int(p.name), path)]


async def gone(path: Path) -> bool:
    for _ in range(1000):
        if not processes_of(path):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_data_ports_and_passwords_survive_a_restart(tmp_path: Path) -> None:
    engines = EmbeddedEngines(tmp_path, behind=False)
    first = await engines.start()
    states = {status.name: status.state for status in engines.status()}
    assert states == {**dict.fromkeys(NAMES, "running"), "milvus": "stopped"}
    await write(first, "a")
    await engines.stop()
    await engines.stop()
    assert await gone(tmp_path)
    assert list((tmp_path / "run").iterdir()) == []
    second = await engines.start()
    assert second == first
    assert await read(second) == [["a"]] * 3
    await engines.stop()


async def test_secrets_stay_secret(running: Running) -> None:
    passwords = [str(urlsplit(dsn).password) for dsn in vars(running.connections).values()]
    assert len(set(passwords)) == 4
    shown = [repr(running.connections), repr(running.engines.status())]
    shown += command_lines()
    shown += [log.read_text(errors="replace") for log in (running.path / "logs").iterdir()]
    assert not [password for password in passwords for text in shown if password in text]
    for name in (
        "engines.json",
        "valkey/valkey.conf",
        "logs/postgres.log",
        "logs/valkey.log",
        "logs/clickhouse.log",
        "logs/milvus.log",
    ):
        assert (running.path / name).stat().st_mode & 0o077 == 0


async def test_loopback_only(running: Running) -> None:
    listening = open_sockets()
    for dsn in vars(running.connections).values():
        port = f"{urlsplit(dsn).port:04X}"
        listeners = [line.split()[1] for line in listening if f":{port} " in line and " 0A " in line]
        # gRPC listens on the same address in its IPv6 form.
        assert [each.removeprefix("0000000000000000FFFF0000") for each in listeners] == [f"0100007F:{port}"]


async def test_engines_are_configured(running: Running) -> None:
    connection = await asyncpg.connect(running.connections.postgres_dsn)
    assert await connection.fetchval("SHOW summarize_wal") == "on"
    assert await connection.fetchval("SELECT datcollate FROM pg_database WHERE datname = 'mrm'") == "C.UTF-8"
    assert await connection.fetchval("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'mrm'") == "mrm"
    assert (await connection.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'mrm'")).startswith("SCRAM")
    await connection.close()
    async with redis.asyncio.from_url(running.connections.redis_dsn) as client:
        found = await client.config_get("maxmemory-policy", "appendonly", "appendfsync")
    assert found == {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}


@pytest.mark.parametrize("name", NAMES)
async def test_killed_engine_comes_back_on_its_port_with_its_data(running: Running, name: str) -> None:
    await write(running.connections, f"before-{name}")
    before = await read(running.connections)
    old = running.engines.pid(name)
    assert old is not None
    os.kill(old, signal.SIGKILL)
    for _ in range(1000):
        status = next(s for s in running.engines.status() if s.name == name)
        if status.state == "running" and status.pid not in (old, None):
            break
        await asyncio.sleep(0.02)
    assert status.restarts == 1
    assert await read(running.connections) == before


async def test_second_supervisor_is_refused(running: Running) -> None:
    with pytest.raises(EngineError, match=f"in use by process {os.getpid()}"):
        await EmbeddedEngines(running.path, behind=False).start()
    assert all(running.engines.pid(name) for name in NAMES)


SUPERVISOR = """
import asyncio, os, sys
from pathlib import Path
from server.embedded import EmbeddedEngines

async def main():
    engines = EmbeddedEngines(Path(sys.argv[1]), behind=False)
    await engines.start()
    print("started", *(engines.pid(n) for n in ("postgres", "valkey", "clickhouse")), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def supervisor(
    path: Path, *before: str, python: str = sys.executable, paths: str = ""
) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *before, python, "-W", "ignore", "-c", SUPERVISOR, str(path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{paths}"},
    )  # fmt: skip
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 60)
    assert line.startswith(b"started"), line + await process.stdout.read()
    return process


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
async def test_engines_die_with_their_supervisor(open_path: Path, closed: bool, at_once: bool) -> None:
    os.chmod(open_path, 0o700 if closed else 0o755)
    process = await supervisor(open_path)
    assert len(processes_of(open_path)) == 4
    process.kill()
    await process.communicate()
    # Started at once, what is still shutting down must be waited for.
    assert at_once or await gone(open_path)
    engines = EmbeddedEngines(open_path, behind=False)
    connections = await engines.start()
    await write(connections, "a")
    await engines.stop()
    assert await gone(open_path)


async def test_interrupt_of_the_terminal_does_not_reach_the_engines(running: Running) -> None:
    groups = {os.getpgid(running.engines.pid(name) or 0) for name in NAMES}
    assert os.getpgid(0) not in groups
    assert groups == {running.engines.pid(name) for name in NAMES}


async def test_orphan_is_ended_and_a_stranger_is_not(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    orphan = sleeper(f"{tmp_path}/valkey/valkey.conf")
    stranger = sleeper()
    neighbour = sleeper(f"{tmp_path}-other")
    try:
        for name, process in (("valkey", orphan), ("postgres", stranger), ("clickhouse", neighbour)):
            (tmp_path / "run" / f"{name}.pid").write_text(f"{process.pid}\n")
        reaping = asyncio.to_thread(orphan.wait)
        engines = EmbeddedEngines(tmp_path, behind=False)
        await asyncio.gather(engines.start(), reaping)
        assert orphan.returncode == -signal.SIGTERM
        assert stranger.poll() is None
        assert neighbour.poll() is None
        await engines.stop()
    finally:
        for process in (orphan, stranger, neighbour):
            process.kill()
            process.wait()


def uid_of(pid: int | None) -> int:
    return os.stat(f"/proc/{pid}").st_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_root_with_a_closed_directory_runs_postgres_in_a_user_namespace(running: Running) -> None:
    assert any(parent.stat().st_mode & 0o001 == 0 for parent in running.path.parents)
    assert uid_of(running.engines.pid("postgres")) == 0
    assert os.readlink(f"/proc/{running.engines.pid('postgres')}/ns/user") != os.readlink("/proc/self/ns/user")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_root_with_an_open_directory_runs_postgres_as_nobody(open_path: Path) -> None:
    engines = EmbeddedEngines(open_path / "data", behind=False)
    connections = await engines.start()
    assert uid_of(engines.pid("postgres")) == shutil._get_uid("nobody")  # type: ignore[attr-defined]
    await write(connections, "a")
    await engines.stop()
    # Moved behind a closed directory, the same data goes on under the other identity.
    (open_path / "data").rename(open_path / "moved")
    os.chmod(open_path, 0o700)
    engines = EmbeddedEngines(open_path / "moved", behind=False)
    connections = await engines.start()
    assert uid_of(engines.pid("postgres")) == 0
    assert await read(connections) == [["a"]] * 3
    await engines.stop()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
async def test_plain_user(open_path: Path) -> None:
    drop = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    packages = str(Path(asyncpg.__file__).parents[1])
    python = plain_interpreter(drop, packages)
    if python is None:
        pytest.skip("no interpreter and packages that a plain user can read")
    os.chmod(open_path, 0o777)
    process = await supervisor(open_path / "data", *drop, python=python, paths=packages)
    pids = processes_of(open_path / "data")
    assert {uid_of(pid) for pid in pids} == {shutil._get_uid("nobody")}  # type: ignore[attr-defined]
    process.kill()
    await process.communicate()
    assert await gone(open_path / "data")


async def test_running_query_ends_before_the_engine_does(tmp_path: Path) -> None:
    engines = EmbeddedEngines(tmp_path, behind=False)
    connections = await engines.start()
    client = await clickhouse_connect.get_async_client(dsn=connections.clickhouse_dsn)
    query = asyncio.create_task(client.query("SELECT sleep(1) + 1"))
    await asyncio.sleep(0.3)
    await engines.stop()
    assert (await query).result_rows == [(1,)]
    await client.close()


async def test_taken_port_is_replaced(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.open()
    old = directory.port("postgres")
    with socket.create_server(("127.0.0.1", old)):
        assert not port_is_free(old)
        assert directory.port("postgres") != old
    directory.close()


async def test_engine_that_cannot_start_stops_the_others(tmp_path: Path) -> None:
    (tmp_path / "clickhouse").mkdir()
    (tmp_path / "clickhouse" / "data").write_text("not a directory")
    engines = EmbeddedEngines(tmp_path, behind=False)
    with pytest.raises(EngineError, match=r"clickhouse did not start, it .*: see .*/logs/clickhouse\.log") as caught:
        await engines.start()
    assert "\n" not in str(caught.value)
    assert await gone(tmp_path)
    (tmp_path / "clickhouse" / "data").unlink()
    await engines.start()
    await engines.stop()


async def test_cluster_of_another_major_version(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    (tmp_path / "postgres" / "data" / "PG_VERSION").write_text("15\n")
    with pytest.raises(EngineError, match="made by PostgreSQL 15, installed is 18"):
        await EmbeddedEngines(tmp_path, behind=False).start()


async def test_lost_password_file_is_named(tmp_path: Path) -> None:
    engines = EmbeddedEngines(tmp_path, behind=False)
    await engines.start()
    await engines.stop()
    (tmp_path / "engines.json").unlink()
    with pytest.raises(EngineError, match=r"does not accept the password kept in .*engines\.json"):
        await engines.start()
    (tmp_path / "engines.json").write_text("{")
    with pytest.raises(EngineError, match=r"engines\.json cannot be read"):
        await engines.start()


async def test_unusable_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="is not usable: "):
        await EmbeddedEngines(tmp_path / "file", behind=False).start()
    with pytest.raises(EngineError, match="cannot be used"):
        await EmbeddedEngines(tmp_path / "a?b", behind=False).start()


async def test_missing_and_foreign_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.embedded.postgres._binary", lambda name: tmp_path / name)
    with pytest.raises(EngineError, match="install the `embedded` extra"):
        await EmbeddedEngines(tmp_path / "data", behind=False).start()
    header = b"\x7fELF\x02\x01" + bytes(12) + b"\xff\xff"
    (tmp_path / "postgres").write_bytes(header)
    with pytest.raises(EngineError, match="another architecture"):
        await EmbeddedEngines(tmp_path / "data", behind=False).start()


async def test_stale_postmaster_pid_of_a_stranger(tmp_path: Path) -> None:
    engines = EmbeddedEngines(tmp_path, behind=False)
    await engines.start()
    pid = engines.pid("postgres")
    file = tmp_path / "postgres" / "data" / "postmaster.pid"
    lines = file.read_text().split("\n")
    assert lines[0] == str(pid)
    await engines.stop()
    stranger = sleeper()
    try:
        file.write_text("\n".join([str(stranger.pid), *lines[1:]]))
        await engines.start()
        await engines.stop()
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("name", ["long" * 40, "с пробелом, \"кавычкой' и & знаком%20"])
async def test_unusual_path(tmp_path: Path, name: str) -> None:
    engines = EmbeddedEngines(tmp_path / name, behind=False)
    connections = await engines.start()
    await write(connections, "a")
    connection = await asyncpg.connect(connections.postgres_dsn)
    sockets = Path((await connection.fetchval("SHOW unix_socket_directories")).strip('"').replace('""', '"'))
    await connection.close()
    assert os.stat(sockets).st_mode & 0o077 == 0
    await engines.stop()
    shutil.rmtree(sockets)


async def test_big_log_is_set_aside(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.open()
    log = tmp_path / "logs" / "valkey.log"
    with log.open("wb") as out:
        out.truncate(21 * 1024 * 1024)
    assert directory.log_file("valkey") == log
    assert not log.exists()
    assert log.with_name("valkey.log.1").stat().st_size == 21 * 1024 * 1024
    directory.close()


async def test_identity_is_same_for_a_plain_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = DataDirectory(tmp_path)
    directory.open()
    engine = PostgresEngine(directory)
    assert engine.identity == "same"
    directory.close()
