"""Redis: a snapshot of everything it holds, taken as a replica takes it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from server.backups.vault import BackupFailed, Part, Vault
from storage.redis.dsn import Address, parse_dsn

_FILE = "dump.rdb"
_SILENCE_SECONDS = 300.0
_PIECE_BYTES = 1 << 20


async def save(vault: Vault, dsn: str, backup_id: str) -> Part:
    """Takes a snapshot: the server's own RDB file, over its replication protocol, wherever the server is."""
    began = datetime.now(UTC)
    snapshot = vault.spool / f"{backup_id}-{_FILE}"
    try:
        await _download(parse_dsn(dsn), snapshot)
        stored = await vault.put(f"backups/{backup_id}/redis/{_FILE}", snapshot)
    finally:
        snapshot.unlink(missing_ok=True)
    return Part(store="redis", began=began, ended=datetime.now(UTC), files={_FILE: stored})


async def restore(vault: Vault, part: Part, directory: Path) -> None:
    """Puts a snapshot where a server that keeps an append-only file begins with it; it must not run yet."""
    files = directory / "appendonlydir"
    directory.mkdir(mode=0o700, exist_ok=True)
    files.mkdir(mode=0o700)
    await vault.fetch(part.files[_FILE].key, files / "appendonly.aof.1.base.rdb")
    (files / "appendonly.aof.manifest").write_text("file appendonly.aof.1.base.rdb seq 1 type b\n")


async def _download(address: Address, target: Path) -> None:
    if address.sentinels:
        raise BackupFailed("Redis is reached through sentinels: name one server of it for backups, best a replica")
    try:
        async with asyncio.timeout(_SILENCE_SECONDS):
            if address.path:
                reader, writer = await asyncio.open_unix_connection(address.path)
            else:
                reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
    except (OSError, TimeoutError) as error:
        raise BackupFailed(f"Redis cannot be reached: {type(error).__name__}") from None
    try:
        if address.password:
            words = ("AUTH", *filter(None, (address.username, address.password)))
            writer.write(
                b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in map(str.encode, words))
            )
            if await reader.readline() != b"+OK\r\n":
                raise BackupFailed("Redis refuses our credentials")
        writer.write(b"SYNC\r\n")
        with target.open("wb") as out:
            left = await _announced(reader)
            while left:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    piece = await reader.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise BackupFailed("Redis broke off in the middle of its snapshot")
                out.write(piece)
                left -= len(piece)
    except (OSError, TimeoutError) as error:
        raise BackupFailed(f"Redis stopped answering: {type(error).__name__}") from None
    finally:
        writer.close()


async def _announced(reader: asyncio.StreamReader) -> int:
    """Size of the snapshot that comes; until it is ready the server sends empty lines."""
    while True:
        async with asyncio.timeout(_SILENCE_SECONDS):
            line = (await reader.readline()).strip()
        if line.startswith(b"$"):
            return int(line[1:])
        if line or reader.at_eof():
            raise BackupFailed("Redis gives no snapshot to this account")
