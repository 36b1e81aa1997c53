"""Ratios of many figures at once: the same digits as `figures.quotient` gives, computed column by column.

A reply has up to seventy thousand ratios, and one at a time they cost more than all else together. Whole columns of
64-bit integers are divided digit group by digit group, so that nothing is rounded before the last digit. The few rows
that this is not for, because a decimal ends or a figure is huge, are left to `figures`.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from server.statistics import figures
from server.statistics.figures import MICROS
from storage.clickhouse.metrics import Figures

# Below this many rows, columns are not worth their making.
_FEW = 50
# Figures below this can be multiplied by a step, and quotients below the other by all steps.
_LARGEST, _LARGEST_QUOTIENT = 2**62 // 10**4, 2**62 // 10**8
_LENGTHS = pa.array([bytes((length,)) for length in range(128)], pa.binary())
# Every power of five below 2^63, as a product of some of these.
_FIVES = (5**16, 5**8, 5**4, 5**2, 5)


def serialized(many: Sequence[Figures]) -> list[bytes]:
    """What `figures.ratios_field` makes of each of them."""
    found: Sequence[bytes | None] = [None] * len(many) if len(many) < _FEW else _in_columns(many)
    return [figures.ratios_field(each) if fields is None else fields for each, fields in zip(many, found, strict=True)]


def _in_columns(many: Sequence[Figures]) -> Sequence[bytes | None]:
    """The ratios of each row, None where it has to be computed by itself."""
    columns = list(zip(*many, strict=True))
    if any(min(column) < 0 or max(column) >= _LARGEST for column in columns):
        return [None] * len(many)
    shown, clicks, conversions, cost, revenue = (pa.array(column, pa.int64()) for column in columns)
    profit = pc.subtract(revenue, cost)
    fields, alone = [], pa.array([False] * len(many))
    for tag, numerator, denominator, steps in (
        (b"\x3a", clicks, shown, (10**4, 10**4)),
        (b"\x42", cost, clicks, ()),
        (b"\x4a", cost, shown, (10**3,)),
        (b"\x52", conversions, clicks, (10**2,)),
        (b"\x5a", cost, conversions, (10**4, 10**2)),
        (b"\x62", profit, cost, (10**4, 10**4)),
        (b"\x6a", revenue, cost, (10**4, 10**2)),
    ):
        text, other = _texts(numerator, denominator, steps)
        sized = pc.binary_join_element_wise(
            pa.scalar(tag), pc.take(_LENGTHS, pc.binary_length(text)), text, pa.scalar(b""), null_handling="emit_null"
        )
        fields.append(pc.fill_null(sized, b""))
        alone = pc.or_(alone, other)
    joined = pc.binary_join_element_wise(*fields, pa.scalar(b""))
    return pc.if_else(alone, pa.scalar(None, pa.binary()), joined).to_pylist()  # type: ignore[no-any-return]


def _texts(numerator: pa.Array, denominator: pa.Array, steps: Sequence[int]) -> tuple[pa.Array, pa.Array]:
    """Quotients with six digits, null where the denominator is 0, and which of them have to be computed otherwise."""
    size = pc.abs(numerator)
    divisor = pc.if_else(pc.equal(denominator, 0), pa.scalar(None, pa.int64()), denominator)
    scaled = pc.divide(size, divisor)
    left = pc.subtract(size, pc.multiply(scaled, divisor))
    # Where the first quotient is too large for the steps, the row is computed otherwise, so any value does here.
    large = pc.greater_equal(scaled, _LARGEST_QUOTIENT)
    scaled = pc.if_else(large, 0, scaled)
    for step in steps:
        moved = pc.multiply(left, step)
        digits = pc.divide(moved, divisor)
        scaled = pc.add(pc.multiply(scaled, step), digits)
        left = pc.subtract(moved, pc.multiply(digits, divisor))
    ends = pc.equal(_remainder(left, _without_tens(divisor)), 0)
    # A tie would be a decimal that ends.
    scaled = pc.add(scaled, pc.cast(pc.greater(pc.multiply(left, 2), divisor), pa.int64()))
    whole = pc.divide(scaled, MICROS)
    fraction = pc.utf8_lpad(pc.cast(_remainder(scaled, MICROS), pa.string()), 6, "0")
    sign = pc.if_else(pc.and_(pc.less(numerator, 0), pc.greater(scaled, 0)), "-", "")
    text = pc.binary_join_element_wise(
        pc.binary_join_element_wise(sign, pc.cast(whole, pa.string()), ""), fraction, "."
    )
    return pc.cast(text, pa.binary()), pc.fill_null(pc.or_(large, ends), False)


def _without_tens(values: pa.Array) -> pa.Array:
    """What is left of positive numbers without their factors 2 and 5."""
    values = pc.divide(values, pc.bit_wise_and(values, pc.negate(values)))
    for power in _FIVES:
        whole = pc.divide(values, power)
        values = pc.if_else(pc.equal(pc.multiply(whole, power), values), whole, values)
    return values


def _remainder(values: pa.Array, divisor: pa.Array | int) -> pa.Array:
    return pc.subtract(values, pc.multiply(pc.divide(values, divisor), divisor))
