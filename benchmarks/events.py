"""Realistic events, as many as one likes: the same seed gives the same events, wherever one begins to read.

Every event is a pure function of the seed and its position, so nothing has to be kept: any range can be made again, in
any order and by any process. All is done by whole columns; a batch of 20 000 serialized events takes some 20 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

IMPRESSION, CLICK, CONVERSION = 1, 2, 3

DUPLICATES = 0.02
"""This share of positions repeats an earlier event, as trackers that send again do."""
LATE = 0.04
"""This share of events happened between a minute and three days before they come."""
SHARED = 0.3
"""This share of conversions counts in part only."""

_WHOLE = 1_000_000
_REPEATED_WITHIN = 50_000
_LEAST_LAG, _MOST_LAG = 60.0, 3 * 86_400.0
_SLOT_SECONDS = 900
# Local hours of a day and days of a week, by how much goes on.
_HOURS = (35, 22, 15, 12, 13, 20, 40, 65, 85, 100, 105, 110, 115, 110, 110, 110, 110, 115, 125, 135, 140, 130, 100, 60)
_WEEKDAYS = (100, 102, 103, 102, 98, 85, 88)
_USERS = 200_000
_WIDTH = 135

Numbers = npt.NDArray[np.uint64]


def zipf(ranks: Sequence[int], exponent: float = 0.9) -> list[float]:
    """How much traffic campaigns of these ranks (from 0) have, that of rank 0 being 1."""
    return [float((rank + 1) ** -exponent) for rank in ranks]


@dataclass(frozen=True, slots=True)
class Columns:
    """Some events by their fields.

    Attributes:
        position: Which event it is: of two with the same number one is a repeat of the other.
        event_id: 16 bytes each.
        moment: Microseconds of Unix time.
        campaign: Index of the campaign.
        kind: `IMPRESSION`, `CLICK` or `CONVERSION`.
        user: Number of the viewer.
        cost: Millionths of the currency.
        revenue: Millionths of the currency.
        conversions: Millionths of a conversion: some are shared with other campaigns by attribution.
    """

    position: Numbers
    event_id: npt.NDArray[np.uint8]
    moment: npt.NDArray[np.int64]
    campaign: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]
    user: Numbers
    cost: npt.NDArray[np.int64]
    revenue: npt.NDArray[np.int64]
    conversions: npt.NDArray[np.int64]


class Traffic:
    """What one client's campaigns see over some span of time.

    Args:
        seed: Two with different seeds share no event.
        campaign_ids: The campaigns.
        weights: How much traffic each of them has, see `zipf`.
        start: Begin of the span, Unix seconds.
        end: End of the span, Unix seconds.
        zone: Time zone of the client, which days and nights follow.
        count: Number of events, repeats included.
    """

    def __init__(
        self,
        seed: int,
        campaign_ids: Sequence[UUID],
        weights: Sequence[float],
        start: int,
        end: int,
        zone: str,
        count: int,
    ) -> None:
        self.count = count
        self.start = start
        self.end = end
        self._seed = seed
        names = "".join(map(str, campaign_ids)).encode()
        self._names = np.frombuffer(names, np.uint8).reshape(len(campaign_ids), 36)
        self._popularity = np.cumsum(weights) / np.sum(weights)
        # Rates of a campaign are its own: a click follows 0.3 to 4 % of impressions, a conversion 1 to 9 % of clicks.
        own = np.arange(len(campaign_ids), dtype=np.uint64)
        self._click_rate = 0.003 + 0.037 * self._chance(own, 21) ** 2
        self._conversion_rate = 0.01 + 0.08 * self._chance(own, 22)
        self._pays_for_clicks = self._chance(own, 23) < 0.5
        self._price = np.exp(self._chance(own, 24))
        self._edges, self._arrived = _shape(start, end, zone, count)

    def columns(self, first: int, last: int) -> Columns:
        """The events from position `first` up to, not including, `last`."""
        position = np.arange(first, last, dtype=np.uint64)
        repeats = (self._chance(position, 1) < DUPLICATES) & (position > 0)
        back = 1 + self._bits(position, 2) % np.minimum(np.maximum(position, 1), _REPEATED_WITHIN).astype(np.uint64)
        position = np.where(repeats, position - back, position)
        event_id = np.stack([self._bits(position, 3), self._bits(position, 4)], axis=1).view(np.uint8)
        event_id[:, 6] = event_id[:, 6] & 0x0F | 0x40
        event_id[:, 8] = event_id[:, 8] & 0x3F | 0x80
        campaign = np.searchsorted(self._popularity, self._chance(position, 5))
        kind = self._kinds(position, campaign)
        cost, revenue = self._money(position, campaign, kind)
        user = (self._chance(position, 6) ** 2 * _USERS).astype(np.uint64)
        shared = self._chance(position, 13) < SHARED
        share = np.where(shared, 1 + self._bits(position, 14) % np.uint64(_WHOLE - 1), _WHOLE).astype(np.int64)
        conversions = np.where(kind == CONVERSION, share, 0)
        moment = self._moments(position)
        return Columns(position, event_id, moment, campaign, kind, user, cost, revenue, conversions)

    def batch(self, first: int, last: int) -> bytes:
        """The same events as a serialized `mrm.statistics.v1.EventBatch`."""
        return _serialized(self.columns(first, last), self._names)

    def _moments(self, position: Numbers) -> npt.NDArray[np.int64]:
        arrival = np.interp(position + self._chance(position, 7), self._arrived, self._edges)
        lag = _LEAST_LAG * (_MOST_LAG / _LEAST_LAG) ** self._chance(position, 9)
        happened = arrival - np.where(self._chance(position, 8) < LATE, lag, 0.0)
        return (np.maximum(happened, 0.0) * 1e6).astype(np.int64) + self.start * 1_000_000

    def _kinds(self, position: Numbers, campaign: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        clicks = self._click_rate[campaign]
        conversions = clicks * self._conversion_rate[campaign]
        point = self._chance(position, 10) * (1 + clicks + conversions)
        return 1 + (point >= 1).astype(np.int64) + (point >= 1 + clicks)

    def _money(
        self, position: Numbers, campaign: npt.NDArray[np.int64], kind: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        # The product of two even chances leans to the small side, as prices of an auction do.
        spread = 0.25 + 3 * self._chance(position, 11) * self._chance(position, 12)
        paid = np.where(self._pays_for_clicks[campaign], kind == CLICK, kind == IMPRESSION)
        price = np.where(kind == CLICK, 14e6, 0.13e6) * self._price[campaign] * spread
        earned = np.where(kind == CONVERSION, 2.4e9 * self._price[campaign] * spread, 0)
        return np.where(paid, price, 0).astype(np.int64), earned.astype(np.int64)

    def _chance(self, numbers: Numbers, purpose: int) -> npt.NDArray[np.float64]:
        """Even chances from 0 to 1."""
        return (self._bits(numbers, purpose) >> np.uint64(11)) * 2.0**-53

    def _bits(self, numbers: Numbers, purpose: int) -> Numbers:
        """64 bits for each number that look random (splitmix64)."""
        key = np.uint64((self._seed * 64 + purpose) * 0xD1342543DE82EF95 % 2**64)
        bits = numbers * np.uint64(0x9E3779B97F4A7C15) + key
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def _shape(start: int, end: int, zone: str, count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Edges of the quarters of an hour, in seconds after the start, and how many events have come by each."""
    local = ZoneInfo(zone)
    starts = range(start, end, _SLOT_SECONDS)
    busy = []
    for second in starts:
        moment = datetime.fromtimestamp(second, UTC).astimezone(local)
        busy.append(_HOURS[moment.hour] * _WEEKDAYS[moment.weekday()] * min(_SLOT_SECONDS, end - second))
    arrived = np.concatenate([[0.0], np.cumsum(busy)])
    return np.array([*starts, end], np.float64) - start, arrived * (count / arrived[-1])


_HEX = np.frombuffer(b"".join(b"%02x" % value for value in range(256)), np.uint8).reshape(256, 2)


def _hex(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return _HEX[data].reshape(len(data), -1)


def _serialized(events: Columns, names: npt.NDArray[np.uint8]) -> bytes:
    """Every event in a row of its own with room for the longest, and then only the bytes that are meant."""
    rows = np.zeros((len(events.kind), _WIDTH), np.uint8)
    meant = np.ones(rows.shape, bool)

    def number(at: int, width: int, values: npt.NDArray[Any], tag: int | None = None) -> None:
        """A varint, or nothing for zero if it has a tag of its own."""
        values = values.astype(np.uint64)
        if tag is not None:
            rows[:, at - 1], meant[:, at - 1] = tag, values > 0
        for index in range(width):
            rest = values >> np.uint64(7 * index)
            rows[:, at + index] = (rest & np.uint64(127)) | ((rest > 127).astype(np.uint64) << np.uint64(7))
            meant[:, at + index] = rest > 0

    rows[:, 0] = 0x0A
    rows[:, 3:5] = 0x0A, 36
    text = _hex(events.event_id)
    for target, source, length in ((5, 0, 8), (14, 8, 4), (19, 12, 4), (24, 16, 4), (29, 20, 12)):
        rows[:, target : target + length] = text[:, source : source + length]
    rows[:, (13, 18, 23, 28)] = ord("-")
    rows[:, 41] = 0x12
    number(44, 5, events.moment // 1_000_000, tag=0x08)
    number(50, 5, events.moment % 1_000_000 * 1000, tag=0x10)
    rows[:, 42] = meant[:, 43:55].sum(axis=1)
    rows[:, 55:57] = 0x1A, 36
    rows[:, 57:93] = names[events.campaign]
    rows[:, 93], rows[:, 94] = 0x20, events.kind
    rows[:, 95:97] = 0x2A, 16
    rows[:, 97:113] = _hex(events.user.byteswap().view(np.uint8).reshape(-1, 8))
    number(114, 8, events.cost, tag=0x30)
    number(123, 8, events.revenue, tag=0x38)
    # A whole conversion is what an absent field means.
    number(132, 3, np.where(events.conversions == _WHOLE, 0, events.conversions), tag=0x40)
    number(1, 2, meant[:, 3:].sum(axis=1))
    return rows[meant].tobytes()
