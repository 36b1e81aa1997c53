"""Encrypts credentials at rest: AES-256-GCM under a ring of keys, each ciphertext bound to the row it belongs to.

The ring is configuration and never stored beside what it seals, so a dump of the database alone opens nothing.
"""

import base64
import binascii
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from server.settings import SecretsSettings

ALGORITHM: Final = "AES-256-GCM"
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_KEY_ID: Final = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


class KeyRingError(Exception):
    """The configured ring is not usable. The text holds no key."""


class Unsealable(Exception):
    """An envelope cannot be opened: its key is not in the ring, or it was made for another row or damaged."""


class KeyRing:
    """The keys that seal and open credentials.

    Args:
        keys: Keys of 32 bytes by id. The first one seals; all of them open. None at all: nothing can be sealed.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self.primary = next(iter(self._ciphers), None)

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._ciphers)})"

    @property
    def key_ids(self) -> list[str]:
        """Ids of the keys, the one that seals first."""
        return list(self._ciphers)

    @classmethod
    def parse(cls, text: str) -> "KeyRing":
        """A ring from its text: ``id:key`` with the key in base64, separated by commas or line breaks.

        Raises:
            KeyRingError: The text is no ring.
        """
        keys: dict[str, bytes] = {}
        for entry in filter(None, (part.strip() for part in re.split(r"[,\n]", text))):
            key_id, _, encoded = entry.partition(":")
            try:
                key = base64.b64decode(encoded, altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if not _KEY_ID.match(key_id) or len(key) != KEY_BYTES:
                raise KeyRingError(
                    "an entry of the key ring is not `id:key` with 32 bytes in base64; see `mrm keys new`"
                )
            if key_id in keys:
                raise KeyRingError(f"the key ring has two keys {key_id}")
            keys[key_id] = key
        return cls(keys)

    @classmethod
    def of(cls, settings: SecretsSettings) -> "KeyRing":
        """The configured ring: the text itself, else the file, else an empty one.

        Raises:
            KeyRingError: It cannot be read, or others could read it.
        """
        if settings.keyring is not None:
            return cls.parse(settings.keyring.get_secret_value())
        if settings.keyring_file is None:
            return cls({})
        try:
            if settings.keyring_file.stat().st_mode & 0o077:
                raise KeyRingError(f"{settings.keyring_file} can be read by others: chmod 600 it")
            return cls.parse(settings.keyring_file.read_text())
        except (OSError, UnicodeDecodeError):
            raise KeyRingError(f"the key ring {settings.keyring_file} cannot be read") from None

    def seal(self, plaintext: bytes, bound_to: bytes) -> dict[str, str]:
        """An envelope ``{alg, key_id, nonce, ciphertext}`` that opens only with the same `bound_to`.

        Raises:
            KeyRingError: The ring is empty.
        """
        if self.primary is None:
            raise KeyRingError("no key ring is configured: set MRM_SECRETS__KEYRING")
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = self._ciphers[self.primary].encrypt(nonce, plaintext, _bound(self.primary, bound_to))
        return {
            "alg": ALGORITHM,
            "key_id": self.primary,
            "nonce": base64.b64encode(nonce).decode(),
            "ciphertext": base64.b64encode(ciphertext).decode(),
        }

    def open(self, envelope: Mapping[str, str], bound_to: bytes) -> bytes:
        """What an envelope holds.

        Raises:
            Unsealable: It cannot be opened.
        """
        cipher = self._ciphers.get(envelope.get("key_id", ""))
        if cipher is None or envelope.get("alg") != ALGORITHM:
            raise Unsealable("sealed under a key that is not in the ring")
        try:
            nonce, ciphertext = base64.b64decode(envelope["nonce"]), base64.b64decode(envelope["ciphertext"])
            return cipher.decrypt(nonce, ciphertext, _bound(envelope["key_id"], bound_to))
        except (InvalidTag, ValueError, KeyError):
            raise Unsealable("not sealed for this row, or damaged") from None


def new_entry(key_id: str) -> str:
    """A fresh key as an entry of a ring.

    Raises:
        KeyRingError: The id will not do.
    """
    if not _KEY_ID.match(key_id):
        raise KeyRingError("a key id has 1 to 64 letters, digits, dots, hyphens or underscores")
    return f"{key_id}:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"


def prepend(file: Path, entry: str) -> None:
    """Puts an entry at the head of a ring's file, for its owner's eyes only; makes the file when there is none.

    Raises:
        KeyRingError: The ring has a key of this id, or the file cannot be used.
    """
    try:
        before = file.read_text() if file.exists() else ""
        text = f"{entry}\n{before}"
        KeyRing.parse(text)
        fresh = file.with_name(f".{file.name}.new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
    except OSError as error:
        raise KeyRingError(f"{file} cannot be written: {error.strerror or type(error).__name__}") from None


def _bound(key_id: str, bound_to: bytes) -> bytes:
    return f"mrm.sealed\0{key_id}\0".encode() + bound_to
