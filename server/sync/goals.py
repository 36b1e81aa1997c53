"""Which goals of a counter count as conversions, and what they are worth, as somebody has set for the account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from google.protobuf.json_format import ParseDict

from mrm.campaigns.v1 import sync_pb2
from mrm.statistics.v1 import snapshot_pb2
from server.platforms.interface import (
    Amount,
    AnalyticsConnector,
    Attribution,
    PlatformStatistics,
    Statistics,
    StatisticsQuery,
    from_micros,
)
from server.rpc.values import EnumWords
from server.sync.account import OpenAccount

_MODELS = EnumWords(snapshot_pb2.AttributionModel, "ATTRIBUTION_MODEL_")


@dataclass(frozen=True, slots=True)
class GoalMap:
    """What counts.

    Attributes:
        attribution: How conversions are given to campaigns.
        counted: Goals whose revenue the counter knows; all if empty and nothing is in `worth` either.
        worth: By goal, what reaching it is worth, where that was set here.
    """

    attribution: Attribution
    counted: tuple[str, ...]
    worth: Mapping[str, Amount]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> GoalMap:
        """The settings of an account, as stored."""
        message = ParseDict(dict(settings), sync_pb2.SyncSettings(), ignore_unknown_fields=True)
        word = _MODELS.optional_word(message.attribution_model)
        worth = {
            each.goal_id: Amount(from_micros(each.value.micros), each.value.currency_code, None)
            for each in message.goals
            if each.HasField("value")
        }
        counted = tuple(each.goal_id for each in message.goals if each.goal_id not in worth)
        return cls(Attribution(word) if word else Attribution.LAST_SIGNIFICANT_CLICK, counted, worth)

    async def outcomes(self, account: OpenAccount, connector: AnalyticsConnector, query: StatisticsQuery) -> Statistics:
        """Conversions and revenue over the goals that count.

        Raises:
            PlatformError: As the connector does.
        """
        sums: dict[tuple[str, Any], tuple[Decimal, Decimal]] = {}
        goals: list[str] = []
        sampled = False
        parts: list[tuple[tuple[str, ...], Amount | None]] = [((goal,), value) for goal, value in self.worth.items()]
        if self.counted or not self.worth:
            parts.insert(0, (self.counted, None))
        for wanted, value in parts:
            part = replace(query, goals=wanted)
            found = await account.ask(lambda opened, part=part: connector.outcomes(opened, part))  # type: ignore[misc]
            sampled = sampled or found.sampled
            goals += found.goals
            for row in found.rows:
                conversions = row.conversions or Decimal(0)
                revenue = row.revenue.value if row.revenue else Decimal(0)
                if value is not None:
                    revenue = conversions * value.value if value.currency == query.currency else Decimal(0)
                before = sums.get((row.external_id, row.date), (Decimal(0), Decimal(0)))
                sums[row.external_id, row.date] = (before[0] + conversions, before[1] + revenue)
        rows = tuple(
            PlatformStatistics(
                external_id,
                day,
                conversions=conversions,
                revenue=Amount(revenue.quantize(Decimal("0.000001")), query.currency, None),
            )
            for (external_id, day), (conversions, revenue) in sums.items()
        )
        return Statistics(rows, sampled=sampled, goals=tuple(goals), attribution=query.attribution)
