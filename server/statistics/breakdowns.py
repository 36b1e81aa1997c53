"""Dimensions: which ones go together, what has to be measured for them, and how figures are regrouped by media plan."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast
from uuid import UUID

from mrm.statistics.v1 import event_pb2, metrics_pb2, statistics_service_pb2
from server.rpc import values
from server.rpc.errors import InvalidRequest
from server.statistics import ranking
from server.statistics.ranking import Measured, Series
from server.statistics.rules import PLATFORMS
from storage.clickhouse.event_types import EventDimension
from storage.clickhouse.metrics import Combination, Dimension
from storage.postgres.reach import PlanPlace

EVENT_TYPES = values.EnumWords(event_pb2.EventType, "EVENT_TYPE_")

_NAMES: dict[int, str] = {
    statistics_service_pb2.DIMENSION_CLIENT: "client_id",
    statistics_service_pb2.DIMENSION_PROJECT: "project_id",
    statistics_service_pb2.DIMENSION_CAMPAIGN: "campaign_id",
    statistics_service_pb2.DIMENSION_PLATFORM: "platform",
    statistics_service_pb2.DIMENSION_MEDIA_PLAN: "media_plan_id",
    statistics_service_pb2.DIMENSION_CHANNEL: "channel_id",
    statistics_service_pb2.DIMENSION_EVENT_TYPE: "event_type",
}
_OF_PLANS = {"media_plan_id", "channel_id"}
_NO_PLAN = PlanPlace(None, None)


@dataclass(frozen=True)
class Breakdown:
    """Dimensions in the order of the request, each by the name of its field in a row."""

    names: tuple[str, ...]

    @property
    def by_event_type(self) -> bool:
        """Whether only the raw events know."""
        return "event_type" in self.names

    @property
    def by_plan(self) -> bool:
        """Whether figures are measured by campaign and regrouped."""
        return not _OF_PLANS.isdisjoint(self.names)

    @cached_property
    def columns(self) -> tuple[EventDimension, ...]:
        """What to measure by."""
        columns = [name for name in self.names if name not in _OF_PLANS]
        if self.by_plan and "campaign_id" not in columns:
            columns.append("campaign_id")
        return cast("tuple[EventDimension, ...]", tuple(columns))

    @property
    def metric_columns(self) -> tuple[Dimension, ...]:
        """As `columns`, where no event type is asked for."""
        return cast("tuple[Dimension, ...]", self.columns)

    def campaigns(self, measured: Measured) -> list[UUID]:
        """The campaigns whose plans `regrouped` needs to know, in order."""
        at = self.columns.index("campaign_id")
        return sorted({cast("UUID", combination.values[at]) for combination in measured})

    def regrouped(self, measured: Measured, places: Mapping[UUID, PlanPlace]) -> Measured:
        """Adds up what campaigns of the same plan and channel have.

        Args:
            measured: Figures by `columns`.
            places: Plan and channel of each campaign; those that are missing have none.
        """
        groups: dict[Combination, list[Series]] = {}
        for combination, series in measured.items():
            known = dict(zip(self.columns, combination.values, strict=True))
            place = places.get(cast("UUID", known["campaign_id"]), _NO_PLAN)
            known_plans = {"media_plan_id": place.media_plan_id or "", "channel_id": place.channel_id or ""}
            group = tuple(known_plans[name] if name in _OF_PLANS else known[name] for name in self.names)  # type: ignore[index]
            groups.setdefault(Combination(group, combination.currency), []).append(series)
        return {group: ranking.merged(some) for group, some in groups.items()}

    def described(self, combination: Combination) -> metrics_pb2.MetricsRow:
        """A row with nothing but the values of the dimensions."""
        fields: dict[str, Any] = {
            name: _value(name, value)
            for name, value in zip(self.names, combination.values, strict=bool(combination.values))
        }
        return metrics_pb2.MetricsRow(**fields)


def read(numbers: Iterable[int]) -> Breakdown:
    """The breakdown that a request asks for.

    Raises:
        InvalidRequest: Its dimensions do not go together.
    """
    breakdown = Breakdown(tuple(_NAMES[number] for number in numbers))
    if breakdown.by_event_type and breakdown.by_plan:
        raise InvalidRequest.field(
            "dimensions",
            "DIMENSIONS_EXCLUDE_EACH_OTHER",
            "DIMENSION_EVENT_TYPE cannot be combined with DIMENSION_MEDIA_PLAN or DIMENSION_CHANNEL",
        )
    return breakdown


def _value(name: str, value: UUID | str) -> Any:
    if name == "platform":
        return PLATFORMS.number(str(value))
    return EVENT_TYPES.number(str(value)) if name == "event_type" else str(value)
