"""Pseudonyms of user ids: a keyed hash, so that the same user is the same pseudonym and nobody can go back.

The hash is SipHash-2-4 with 128 bits, in ClickHouse and here the same: events that are stored are hashed by the INSERT
itself, the few that are put aside are hashed in Python.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_WORD = (1 << 64) - 1
_KEY = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True, repr=False)
class Salt:
    """The secret key of a client's pseudonyms, as the two halves that SipHash takes."""

    first: int
    second: int

    @classmethod
    def of(cls, salt: bytes) -> Salt:
        """The key made of 16 bytes."""
        return cls(*_KEY.unpack(salt))


def expression(first: str, second: str) -> str:
    """SQL of the pseudonym of the column ``user_id``; an absent one stays absent and an empty one empty.

    Args:
        first: SQL of the first half of the salt, a UInt64.
        second: SQL of the second.
    """
    return (
        "if(ifNull(user_id, '') = '', user_id,"
        f" lower(hex(sipHash128ReferenceKeyed(({first}, {second}), assumeNotNull(user_id)))))"
    )


def pseudonym(salt: Salt, user_id: str) -> str:
    """The pseudonym of a user id, as `expression` gives it."""
    return _siphash128(salt, user_id.encode()).hex() if user_id else ""


def _siphash128(salt: Salt, data: bytes) -> bytes:
    a, b = salt.first ^ 0x736F6D6570736575, salt.second ^ 0x646F72616E646F6D ^ 0xEE
    c, d = salt.first ^ 0x6C7967656E657261, salt.second ^ 0x7465646279746573
    whole = len(data) // 8 * 8
    tail = data[whole:].ljust(7, b"\0") + bytes((len(data) & 0xFF,))
    for (word,) in struct.iter_unpack("<Q", data[:whole] + tail):
        a, b, c, d = _rounds(a, b, c, d ^ word, 2)
        a ^= word
    a, b, c, d = _rounds(a, b, c ^ 0xEE, d, 4)
    low = a ^ b ^ c ^ d
    a, b, c, d = _rounds(a, b ^ 0xDD, c, d, 4)
    return _KEY.pack(low, a ^ b ^ c ^ d)


def _rounds(a: int, b: int, c: int, d: int, count: int) -> tuple[int, int, int, int]:
    for _ in range(count):
        a = (a + b) & _WORD
        b = _turned(b, 13) ^ a
        a = _turned(a, 32)
        c = (c + d) & _WORD
        d = _turned(d, 16) ^ c
        a = (a + d) & _WORD
        d = _turned(d, 21) ^ a
        c = (c + b) & _WORD
        b = _turned(b, 17) ^ c
        c = _turned(c, 32)
    return a, b, c, d


def _turned(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & _WORD
