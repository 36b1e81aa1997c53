"""Bytes of messages for many rows at once.

A reply has thousands of rows, each with three dozen numbers, and one at a time they cost more than all else together.
Here a column of numbers becomes a table of bytes, a line for each row, and a mask that says which of them count. The
tables side by side, read line by line through their masks, are the messages.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.statistics import figures

Numbers: TypeAlias = "NDArray[np.int64]"
Flags: TypeAlias = "NDArray[np.bool_]"
Octets: TypeAlias = "NDArray[np.uint8]"
Words: TypeAlias = "NDArray[np.uint32]"

# Numbers below this can be multiplied by a step of a division, and quotients below the other by all steps.
_LARGEST, _LARGEST_QUOTIENT = 2**62 // 10**4, 2**62 // 10**8
_THOUSAND = 1000
# Every power of five below 2^63 is a product of some of these.
_FIVES = (5**16, 5**8, 5**4, 5**2, 5)


class Cells(NamedTuple):
    """A column.

    Attributes:
        data: Bytes, a line for each row.
        shown: Which of them count.
        sizes: How many of each line count.
    """

    data: Octets
    shown: Flags
    sizes: Numbers


def constant(value: bytes, shown: Flags) -> Cells:
    """The same bytes in each row that is shown, none in the others."""
    data = np.broadcast_to(np.frombuffer(value, np.uint8), (len(shown), len(value)))
    return Cells(data, np.broadcast_to(shown[:, None], data.shape), shown * np.int64(len(value)))


def chosen(texts: Sequence[bytes], rows: Numbers) -> Cells:
    """For each row one of some texts, by its place among them."""
    lengths = np.array([len(text) for text in texts], np.int64)
    width = int(lengths.max())
    table = np.frombuffer(b"".join(text.ljust(width) for text in texts), np.uint8).reshape(len(texts), width)
    data, sizes = table.take(rows, axis=0), lengths.take(rows)
    return Cells(data, np.arange(width) < sizes[:, None], sizes)


def varints(tag: bytes, values: Numbers) -> Cells:
    """A field of numbers as protobuf writes int64."""
    left = values.view(np.uint64)
    before = len(tag)
    width = before + -(-max(1, int(left.max(initial=0)).bit_length()) // 7)
    sizes = np.full(len(values), before + 1)
    data = np.empty((len(values), width), np.uint8)
    data[:, :before] = np.frombuffer(tag, np.uint8)
    for place in range(before, width):
        more = left >> np.uint64(7)
        going_on = more > 0
        data[:, place] = left.astype(np.uint8) & 127 | going_on.view(np.uint8) << 7
        sizes += going_on
        left = more
    return Cells(data, np.arange(width) < sizes[:, None], sizes)


def only(cells: Cells, shown: Flags) -> Cells:
    """The column in some rows, nothing in the others."""
    return Cells(cells.data, cells.shown & shown[:, None], cells.sizes * shown)


class Divisor:
    """A column to divide by; rows where it is 0 have no quotients.

    Args:
        values: The divisors.
    """

    def __init__(self, values: Numbers) -> None:
        self.exact: Callable[[int], int] = values.item
        self.present = values != 0
        self.usual = (values > 0) & (values < _LARGEST)
        self.values = np.where(self.usual, values, 1)
        self._odd: Numbers | None = None

    @property
    def odd(self) -> Numbers:
        """The divisors without their factors 2 and 5."""
        if self._odd is None:
            rest = self.values // (self.values & -self.values)
            for power in _FIVES:
                whole = rest // power
                rest = np.where(whole * power == rest, whole, rest)
            self._odd = rest
        return self._odd


def quotients(
    tag: int, numerator: Numbers, divisor: Divisor, steps: Sequence[int], exact: Callable[[int], int] | None = None
) -> list[Cells]:
    """A field of quotients in decimal notation, the same digits as `figures.quotient` gives.

    Rows where a decimal ends late or a number is huge are left to `figures`, one by one.

    Args:
        tag: The field's tag.
        numerator: What to divide.
        divisor: By what.
        steps: Their product is the millionths in a unit of the plain quotient. Each is at most 10^4, so that whole
            columns of 64-bit integers are divided digit group by digit group, and nothing is rounded on the way.
        exact: The numerator of a row, where it may not fit its column.
    """
    usual = divisor.usual & (numerator > -_LARGEST) & (numerator < _LARGEST)
    size = np.where(usual, np.abs(numerator), 0)
    by = divisor.values
    scaled = size // by
    left = size - scaled * by
    small = scaled < _LARGEST_QUOTIENT
    if not small.all():
        usual &= small
        scaled *= small
    for step in steps:
        left *= step
        digits = left // by
        left -= digits * by
        scaled *= step
        scaled += digits
    ends = left == 0
    # A tie would be a decimal that ends.
    scaled += left * 2 > by
    apart = divisor.present & (~usual | ~ends & (left % divisor.odd == 0))
    scale, exactly = math.prod(steps), exact or numerator.item
    others = {row: figures.sized(exactly(row) * scale, divisor.exact(row)) for row in np.flatnonzero(apart).tolist()}
    return _field(tag, scaled, numerator < 0, ends, divisor.present & ~apart, others)


def decimals(tag: int, micros: Numbers) -> list[Cells]:
    """A field of millionths in decimal notation."""
    usual = (micros > -_LARGEST) & (micros < _LARGEST)
    size = np.where(usual, np.abs(micros), 0)
    others = {row: figures.sized(micros.item(row), 1) for row in np.flatnonzero(~usual).tolist()}
    return _field(tag, size, micros < 0, np.broadcast_to(np.True_, usual.shape), usual, others)


def total(columns: Iterable[Cells]) -> Numbers:
    """How many bytes the columns have together, row by row."""
    return np.add.reduce([cells.sizes for cells in columns])  # type: ignore[no-any-return]


def joined(columns: Sequence[Cells]) -> bytes:
    """The bytes of all rows, of each row those of the columns in order."""
    data: Octets = np.concatenate([cells.data for cells in columns], axis=1)
    shown: Flags = np.concatenate([cells.shown for cells in columns], axis=1)
    return bytes(data[shown].data)


def _words(texts: Iterable[bytes]) -> Words:
    return np.frombuffer(b"".join(texts), np.uint32)


# Decimal notation is put together from words of four bytes: three digits, and before them room for a sign or the point.
_DIGITS = _words(b"-%03d" % number for number in range(_THOUSAND))
_PLACES = _words(b".%03d" % number for number in range(_THOUSAND))
# How many digits of three stay without the zeros at their end.
_KEPT = np.array([len((b"%03d" % number).rstrip(b"0")) for number in range(_THOUSAND)], np.int64)
# Which bytes of a word of places count, by the number of places, for the two words behind the point.
_FIRST_PLACES = _words(bytes((kept > 0, kept > 0, kept > 1, kept > 2)) for kept in range(7))
_LAST_PLACES = _words(bytes((0, kept > 3, kept > 4, kept > 5)) for kept in range(7))
# As many words of digits as 64 bits may take, and which of their bytes count, by the number of digits that do.
_MOST_GROUPS = 7
_BEFORE_POINT = _words(
    bytes(byte > 0 and word * 3 + 3 - byte < count for word in reversed(range(_MOST_GROUPS)) for byte in range(4))
    for count in range(3 * _MOST_GROUPS + 1)
).reshape(-1, _MOST_GROUPS)
_POWERS = np.array([10**power for power in range(1, 19)], np.int64)
_SIGN = _words([b"\1\0\0\0"])[0]


def _field(
    tag: int, scaled: Numbers, negative: Flags, exact: Flags, present: Flags, others: Mapping[int, bytes]
) -> list[Cells]:
    """A field of millionths in the rows where it is present, and of sized texts in some others.

    Exact millionths are shown without the zeros at their end, others with six digits.
    """
    rest = scaled // _THOUSAND
    low = scaled - rest * _THOUSAND
    whole = rest // _THOUSAND
    high = rest - whole * _THOUSAND
    places = np.where(exact, np.where(low > 0, 3 + _KEPT.take(low), _KEPT.take(high)), 6)
    wide = len(str(int(whole.max(initial=0))))
    digits = np.ones(len(scaled), np.int64)
    for power in _POWERS[: wide - 1]:
        digits += whole >= power
    # What is rounded to nothing has no sign.
    minus = negative & (scaled > 0)
    groups = -(-wide // 3)
    data = np.empty((len(scaled), groups + 3), np.uint32)
    shown = np.empty(data.shape, np.uint32)
    left = whole
    for group in range(groups, 1, -1):
        before = left // _THOUSAND
        data[:, group] = _DIGITS.take(left - before * _THOUSAND)
        left = before
    data[:, 1] = _DIGITS.take(left)
    data[:, -2], data[:, -1] = _PLACES.take(high), _PLACES.take(low)
    masks = _BEFORE_POINT[:, -groups:]
    for group in range(groups):
        shown[:, 1 + group] = masks[:, group].take(digits)
    shown[:, 1] |= minus * _SIGN
    shown[:, -2], shown[:, -1] = _FIRST_PLACES.take(places), _LAST_PLACES.take(places)
    sizes = minus + digits + places + (places > 0)
    octets, flags = data.view(np.uint8), shown.view(np.bool_)
    # Digits of 64 bits: the length takes one byte.
    octets[:, 2], octets[:, 3] = tag, sizes
    flags[:, :2], flags[:, 2:4] = False, True
    sizes += 2
    if not present.all():
        shown *= present[:, None]
        sizes *= present
    cells = [Cells(octets, flags, sizes)]
    if others:
        at = np.zeros(len(scaled), np.int64)
        at[list(others)] = np.arange(1, len(others) + 1)
        cells.append(chosen([b"", *(bytes((tag,)) + sized for sized in others.values())], at))
    return cells
