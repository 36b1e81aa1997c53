"""Opaque tokens that callers keep for us: page and resume tokens.

A token is authenticated, not encrypted: it may hold positions and instants, never anything the caller must not see.
"""

import base64
import binascii
import hashlib
import hmac

_VERSION = b"\x01"
_MAC_BYTES = 20
_LEAST_KEY_BYTES = 16


class InvalidToken(Exception):
    """The text is no token of this key, purpose and binding. Which of them is wrong is not told."""


class TokenCodec:
    """Seals payloads under a key.

    Args:
        key: Secret shared by all processes that must understand each other's tokens, at least 16 bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < _LEAST_KEY_BYTES:
            raise ValueError("a token key has at least 16 bytes")
        self._key = key

    def seal(self, purpose: str, bound_to: bytes, payload: bytes) -> str:
        """Makes a token.

        Args:
            purpose: Kind of token, so that one kind never passes for another.
            bound_to: Whatever must be the same when the token comes back, such as a hash of query and caller.
            payload: What the token holds.
        """
        body = _VERSION + payload
        return base64.urlsafe_b64encode(body + self._mac(purpose, bound_to, body)).rstrip(b"=").decode()

    def open(self, purpose: str, bound_to: bytes, token: str) -> bytes:
        """The payload of a token that `seal` made with the same purpose and binding.

        Raises:
            InvalidToken: It is damaged, or was made for something else.
        """
        try:
            # The last character may carry unused bits, so only the exact text that `seal` made passes.
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            exact = base64.urlsafe_b64encode(data).rstrip(b"=").decode() == token
        except (binascii.Error, ValueError):
            raise InvalidToken from None
        body, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if not exact or not hmac.compare_digest(mac, self._mac(purpose, bound_to, body)) or body[:1] != _VERSION:
            raise InvalidToken
        return body[1:]

    def _mac(self, purpose: str, bound_to: bytes, body: bytes) -> bytes:
        text = b"mrm.token\0" + _framed(purpose.encode()) + _framed(bound_to) + body
        return hmac.digest(self._key, text, hashlib.sha256)[:_MAC_BYTES]


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part
