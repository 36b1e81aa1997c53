"""Where backups lie: an object storage of their own, in which every file is compressed and encrypted.

A file is a line that names its format, a line with its own key sealed under the ring of backup keys, and frames of
AES-256-GCM, each bound to its place and to whether it is the last one: a file that was cut, reordered or put under
another name does not open.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel

from server.errors import StartError
from server.sealing import KeyRing, KeyRingError, Unsealable
from server.settings import ObjectsSettings, SecretsSettings, Settings
from server.stores import object_storage
from storage.objects.store import Objects

_FORMAT = b"MRM backup 1\n"
_PIECE_BYTES = 1 << 20
_PAGE = 1000
_MANIFEST = "manifest.json"

Store = Literal["postgresql", "clickhouse", "redis", "objects"]


class BackupFailed(Exception):
    """A backup cannot be taken, read or restored; the text says why and holds no secret."""


class File(BaseModel):
    """A stored file.

    Attributes:
        key: Where it lies.
        size: Bytes as stored.
        sha256: Checksum of the stored bytes.
    """

    key: str
    size: int
    sha256: str


class Part(BaseModel):
    """What a backup holds of one store.

    Attributes:
        store: Which one.
        base: Id of the full backup that this one only adds to; empty if it stands alone.
        began: Nothing older is missing.
        ended: Nothing later is in it.
        files: Its files by name.
        details: What restoring it needs to know besides.
    """

    store: Store
    base: str = ""
    began: datetime
    ended: datetime
    files: dict[str, File]
    details: dict[str, str] = {}


class Manifest(BaseModel):
    """A whole backup; written last, so a backup without one never was.

    Attributes:
        id: Its name, which sorts by time.
        parts: What it holds.
        left_out: What it does not hold, by store, and why.
    """

    id: str
    parts: list[Part]
    left_out: dict[str, str]

    def part(self, store: Store) -> Part | None:
        """What it holds of a store."""
        return next((part for part in self.parts if part.store == store), None)

    @property
    def size(self) -> int:
        """Bytes of its own files."""
        return sum(file.size for part in self.parts for file in part.files.values())


class Vault:
    """The place of backups, opened.

    Args:
        objects: Storage of their own.
        ring: Keys under which they are encrypted.
        spool: Directory of this machine for files on their way.
    """

    def __init__(self, objects: Objects, ring: KeyRing, spool: Path) -> None:
        self.objects = objects
        self.spool = spool
        self._ring = ring

    async def put(self, key: str, source: Path) -> File:
        """Stores a file compressed and encrypted."""
        with tempfile.NamedTemporaryFile(dir=self.spool) as sealed:
            await asyncio.to_thread(_seal, self._ring, key, source, Path(sealed.name))
            digest = await self.objects.put(key, Path(sealed.name))
            return File(key=key, size=Path(sealed.name).stat().st_size, sha256=digest)

    async def fetch(self, key: str, target: Path) -> None:
        """Reads a file back.

        Raises:
            BackupFailed: It is damaged, another one, or sealed under a key that is not in the ring.
            storage.errors.NotFound: There is none.
        """
        with tempfile.NamedTemporaryFile(dir=self.spool) as sealed:
            async for piece in self.objects.get(key):
                sealed.write(piece)
            sealed.flush()
            await asyncio.to_thread(_open, self._ring, key, Path(sealed.name), target)

    async def check(self, file: File) -> None:
        """Returns if a file is what was stored, read from its first byte to its last.

        Raises:
            BackupFailed: It is not.
            storage.errors.NotFound: It is gone.
        """
        digest = hashlib.sha256()
        async for piece in self.objects.get(file.key):
            digest.update(piece)
        if digest.hexdigest() != file.sha256:
            raise BackupFailed(f"{file.key} is damaged: its checksum is another one")

    @asynccontextmanager
    async def alone(self, what: str) -> AsyncIterator[None]:
        """Waits until nobody else on this machine does this with this spool, for the length of a block."""
        with (self.spool / f"{what}.lock").open("w") as lock:
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            yield

    async def keys(self, prefix: str) -> list[str]:
        """Keys of everything under a prefix, in order."""
        found: list[str] = []
        while page := await self.objects.list(prefix, after=found[-1] if found else "", limit=_PAGE):
            found += [stored.key for stored in page]
        return found

    async def manifests(self) -> list[Manifest]:
        """All whole backups, the oldest first."""
        named = [key for key in await self.keys("backups/") if key.endswith("/" + _MANIFEST)]
        return [Manifest.model_validate_json(await self.read(key)) for key in named]

    async def write_manifest(self, manifest: Manifest) -> None:
        """Makes a backup whole."""
        await self.objects.put(f"backups/{manifest.id}/{_MANIFEST}", manifest.model_dump_json(indent=1).encode())

    async def forget_manifest(self, backup_id: str) -> None:
        """Makes a backup one that never was."""
        await self.objects.delete(f"backups/{backup_id}/{_MANIFEST}")

    async def read(self, key: str) -> bytes:
        """A small object as it is stored."""
        return b"".join([piece async for piece in self.objects.get(key)])


@asynccontextmanager
async def opened_vault(settings: Settings) -> AsyncIterator[Vault]:
    """The place of backups that the settings name, for the length of a block.

    Raises:
        BackupFailed: None is configured, or no key to encrypt under.
    """
    backup = settings.backup
    if backup.url is None:
        raise BackupFailed("no place for backups is configured: set MRM_BACKUP__URL")
    try:
        ring = KeyRing.of(SecretsSettings(keyring=backup.keyring, keyring_file=backup.keyring_file))
        objects = object_storage(
            ObjectsSettings(
                url=backup.url,
                endpoint=backup.endpoint,
                region=backup.region,
                access_key_id=backup.access_key_id,
                secret_access_key=backup.secret_access_key,
            )
        )
    except KeyRingError as error:
        raise BackupFailed(f"backup key: {error}") from None
    except StartError as error:
        raise BackupFailed(str(error).replace("OBJECTS", "BACKUP")) from None
    if ring.primary is None or objects is None:
        raise BackupFailed("no backup key is configured: set MRM_BACKUP__KEYRING or MRM_BACKUP__KEYRING_FILE")
    backup.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield Vault(objects, ring, backup.spool.resolve())
    finally:
        await objects.close()


def _seal(ring: KeyRing, key: str, source: Path, target: Path) -> None:
    secret = os.urandom(32)
    cipher, packer = AESGCM(secret), zlib.compressobj(1)
    with source.open("rb") as plain, target.open("wb") as out:
        out.write(_FORMAT + json.dumps(ring.seal(secret, _bound(key))).encode() + b"\n")
        number = 0
        while piece := plain.read(_PIECE_BYTES):
            if packed := packer.compress(piece):
                _write_frame(out, cipher, number, packed, last=False)
                number += 1
        _write_frame(out, cipher, number, packer.flush(), last=True)


def _write_frame(out: BinaryIO, cipher: AESGCM, number: int, packed: bytes, *, last: bool) -> None:
    frame = cipher.encrypt(_nonce(number, last), packed, None)
    out.write(len(frame).to_bytes(4, "big") + frame)


def _open(ring: KeyRing, key: str, source: Path, target: Path) -> None:
    with source.open("rb") as sealed, target.open("wb") as out:
        try:
            if sealed.readline(100) != _FORMAT:
                raise BackupFailed(f"{key} is no file of a backup")
            cipher = AESGCM(ring.open(json.loads(sealed.readline(10_000)), _bound(key)))
            unpacker, number, length = zlib.decompressobj(), 0, sealed.read(4)
            while length:
                frame, following = sealed.read(int.from_bytes(length, "big")), sealed.read(4)
                out.write(unpacker.decompress(cipher.decrypt(_nonce(number, not following), frame, None)))
                length, number = following, number + 1
            if not unpacker.eof:
                raise BackupFailed(f"{key} is not whole")
        except (InvalidTag, ValueError, zlib.error):
            raise BackupFailed(f"{key} is damaged") from None
        except Unsealable as error:
            raise BackupFailed(f"{key}: {error}") from None


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _bound(key: str) -> bytes:
    return b"mrm.backup\0" + key.encode()
