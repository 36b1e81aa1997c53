"""Figures as callers see them: ratios of sums, exact where a decimal can be.

They are written as the bytes of their message: integers all the way, without an object per value. `columns` does the
same for many rows at once.
"""

import math

from mrm.statistics.v1 import metrics_pb2
from mrm_client.batches import varint
from storage.clickhouse.metrics import Figures

MICROS = 1_000_000
_PERCENT = 100 * MICROS
_DIGITS = 6

# A denominator below 2^64 that has no other prime factors than 2 and 5 divides this.
_SMALL, _POWER = 2**64, 10**64
_LEAST, _BEYOND, _MASK = -(2**63), 2**63, 2**64 - 1


def quotient(numerator: int, denominator: int) -> str | None:
    """A quotient in plain decimal notation.

    Returns:
        All digits if the decimal ends ("0.4875", "12"), else six of them, half to even; None if the denominator is 0.
    """
    return _decimal(numerator * MICROS, denominator).decode() if denominator else None


def to_message(figures: Figures, currency: str) -> metrics_pb2.Metrics:
    """The message for sums in one currency.

    Raises:
        OverflowError: A figure does not fit the message.
    """
    return metrics_pb2.Metrics.FromString(_sums_field(figures) + _ratios_field(figures) + currency_field(currency))


def currency_field(currency: str) -> bytes:
    """The currency of a serialized Metrics."""
    return metrics_pb2.Metrics(currency_code=currency).SerializeToString()


def _sums_field(figures: Figures) -> bytes:
    shown, clicks, conversions, cost, revenue = figures
    return b"\x08%b\x10%b\x1a%b\x20%b\x28%b" % (
        _int64(shown), _int64(clicks), sized(conversions, 1), _int64(cost), _int64(revenue),
    )  # fmt: skip


def _ratios_field(figures: Figures) -> bytes:
    shown, clicks, conversions, cost, revenue = figures
    parts: list[bytes] = []
    if shown:
        parts += b"\x3a", sized(clicks * _PERCENT, shown)
    if clicks:
        parts += b"\x42", sized(cost, clicks)
    if shown:
        parts += b"\x4a", sized(cost * 1000, shown)
    if clicks:
        parts += b"\x52", sized(conversions * 100, clicks)
    if conversions:
        parts += b"\x5a", sized(cost * MICROS, conversions)
    if cost:
        parts += b"\x62", sized((revenue - cost) * _PERCENT, cost), b"\x6a", sized(revenue * MICROS, cost)
    return b"".join(parts)


def _int64(value: int) -> bytes:
    if not _LEAST <= value < _BEYOND:
        raise OverflowError
    return varint(value & _MASK)


def sized(micros: int, denominator: int) -> bytes:
    """Millionths by a denominator other than 0 in plain decimal notation, as `quotient`, with its length before it."""
    if micros > 0 and 0 < denominator < _SMALL:
        scaled, left = divmod(micros, denominator)
        # What mostly comes: a decimal that does not end.
        if left * _POWER % denominator:
            text = b"%d.%06d" % divmod(scaled + (left + left > denominator), MICROS)
            return varint(len(text)) + text
    text = _decimal(micros, denominator)
    return varint(len(text)) + text


def _decimal(micros: int, denominator: int) -> bytes:
    """Millionths by a denominator other than 0, see `quotient`."""
    if denominator < 0:
        micros, denominator = -micros, -denominator
    scaled, left = divmod(micros, denominator)
    if left:
        if denominator >= _SMALL or not left * _POWER % denominator:
            # Rare: it ends, but not within six digits, or looking that up takes longer.
            digits = _finite_digits(denominator, left)
            if digits is not None:
                return _plain(micros * 10**digits // denominator, digits + _DIGITS)
        # A tie would be a decimal that ends, so there is nothing to round to even.
        if left + left > denominator:
            scaled += 1
        return b"%d.%06d" % divmod(scaled, MICROS) if scaled >= 0 else b"-%d.%06d" % divmod(-scaled, MICROS)
    if scaled % MICROS == 0:
        return b"%d" % (scaled // MICROS)
    return _plain(scaled, _DIGITS)


def _finite_digits(denominator: int, numerator: int) -> int | None:
    """Decimals of a quotient if it ends: reduced, its denominator has no other prime factors than 2 and 5."""
    denominator //= math.gcd(denominator, numerator)
    twos = (denominator & -denominator).bit_length() - 1
    denominator >>= twos
    fives = 0
    while denominator % 5 == 0:
        denominator //= 5
        fives += 1
    return max(twos, fives) if denominator == 1 else None


def _plain(scaled: int, digits: int) -> bytes:
    """A decimal without the zeros at its end, of which it has digits before."""
    sign, text = b"-" if scaled < 0 else b"", (b"%d" % abs(scaled)).rjust(digits + 1, b"0")
    return sign + (text[:-digits] + b"." + text[-digits:]).rstrip(b"0")
