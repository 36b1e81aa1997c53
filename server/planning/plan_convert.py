"""Media plans as messages, and back. A row holds its channels compactly: a plan of hundreds is read in milliseconds."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from mrm.common.v1 import channel_pb2, money_pb2, platform_pb2, time_pb2
from mrm.planning.v1 import media_plan_pb2 as pb
from mrm.planning.v1 import media_plan_service_pb2 as rpc_pb
from server import budgets
from server.rpc.auditing import audit_diff
from server.rpc.errors import InvalidRequest
from server.rpc.values import EnumWords, amount, day, etag, json_of, money, timestamp
from storage.postgres.ids import new_id
from storage.postgres.media_plan_history import Comment, Decision
from storage.postgres.media_plans import MediaPlan

PLAN_STATUSES = EnumWords(pb.MediaPlanStatus, "MEDIA_PLAN_STATUS_")
_DECISIONS = EnumWords(pb.MediaPlanDecisionKind, "MEDIA_PLAN_DECISION_KIND_")
_METRICS = EnumWords(pb.KpiMetric, "KPI_METRIC_")
_TYPES = EnumWords(channel_pb2.ChannelType, "CHANNEL_TYPE_")
_PLATFORMS = EnumWords(platform_pb2.Platform, "PLATFORM_")
_LARGEST_EXTRA: Final = 8 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """What a project gives to its plans: the days are None while not decided."""

    currency: str
    start: date | None
    end: date | None


def micros(budget: Decimal | None) -> int | None:
    """An amount of at most six decimals in millionths; None stays None."""
    return None if budget is None else int(budget.scaleb(6))


def plan(row: MediaPlan, was: tuple[MediaPlan, pb.MediaPlan] | None = None) -> pb.MediaPlan:
    """A version.

    Args:
        row: The version.
        was: An earlier state of it and its message, whose channels serve again if they are still the same: hundreds of
            them take longer than all the rest.
    """
    if was is not None and (was[0].channels, was[0].currency) == (row.channels, row.currency):
        channels: Iterable[pb.PlanChannel] = was[1].channels
    else:
        channels = [_channel(entry, row.currency) for entry in row.channels]
    message = pb.MediaPlan(
        media_plan_id=str(row.id),
        etag=etag(row.revision),
        lineage_id=str(row.lineage_id),
        project_id=str(row.project_id),
        client_id=str(row.client_id),
        display_name=row.name,
        version=row.version,
        status=PLAN_STATUSES.number(row.status),
        total_budget=money(row.total_budget, row.currency),
        channels=channels,
        channel_count=row.channel_count,
        creator_id=str(row.created_by or ""),
        author_ids=[str(author) for author in row.author_ids],
        submitter_id=str(row.submitted_by or ""),
        approver_id=str(row.approved_by or ""),
        approve_time=timestamp(row.approved_at),
        override_reason=row.override_reason,
        superseded_by_id=str(row.superseded_by or ""),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )
    if row.targeting:
        ParseDict(row.targeting, message.targeting, ignore_unknown_fields=True)
    return message


def head(row: MediaPlan) -> pb.MediaPlan:
    """A version as lists show it."""
    return plan(replace(row, channels=[], targeting={}))


def _channel(entry: Mapping[str, Any], currency: str) -> pb.PlanChannel:
    message = pb.PlanChannel(
        channel_id=entry["channel_id"],
        channel_type=_TYPES.number(entry["type"]),
        platform=_PLATFORMS.number(entry["platform"]),
        format=entry.get("format", ""),
        budget=money_pb2.Money(currency_code=currency, micros=entry["budget"]),
        kpis=[pb.PlanKpi(metric=_METRICS.number(kpi["metric"]), target=kpi["target"]) for kpi in entry.get("kpis", ())],
    )
    if "start" in entry:
        message.flight.CopyFrom(time_pb2.DateRange(start_date=entry["start"], end_date=entry["end"]))
    if "extra" in entry:
        message.extra.update(entry["extra"])
    return message


def writable(message: pb.MediaPlan, frame: Frame, known: Collection[str]) -> dict[str, Any]:
    """The columns that a caller may write.

    Args:
        message: The plan as it is to be.
        frame: What its project gives.
        known: Ids of channels that it may name.

    Raises:
        InvalidRequest: A field breaks its rules.
        FailedPrecondition: The channels' budgets do not add up to the plan's.
    """
    channels = [
        _entry(channel, frame, known, f"media_plan.channels[{index}]") for index, channel in enumerate(message.channels)
    ]
    named: set[str] = set()
    for index, channel in enumerate(channels):
        if channel["channel_id"] in named:
            raise InvalidRequest.field(
                f"media_plan.channels[{index}].channel_id", "CHANNEL_DUPLICATE", "stands in the plan twice"
            )
        named.add(channel["channel_id"])
    parts = [channel["budget"] for channel in channels]
    total = sum(parts)
    if message.HasField("total_budget"):
        total = _micros(message.total_budget, frame.currency, "media_plan.total_budget")
        budgets.check_plan(parts, total, frame.currency)
    if message.targeting.HasField("extra"):
        _check_extra(message.targeting.extra, "media_plan.targeting.extra")
    return {
        "name": message.display_name,
        "total_budget": amount(money_pb2.Money(micros=total)),
        "channels": channels,
        "targeting": json_of(message.targeting, "media_plan.targeting"),
    }


def _entry(channel: pb.PlanChannel, frame: Frame, known: Collection[str], path: str) -> dict[str, Any]:
    if channel.channel_id and channel.channel_id.lower() not in known:
        raise InvalidRequest.field(
            f"{path}.channel_id", "CHANNEL_UNKNOWN", "is no channel of this plan; leave it empty for a new one"
        )
    entry: dict[str, Any] = {
        "channel_id": channel.channel_id.lower() or str(new_id()),
        "type": _TYPES.word(channel.channel_type),
        "platform": _PLATFORMS.word(channel.platform),
        "budget": _micros(channel.budget, frame.currency, f"{path}.budget"),
    }
    if channel.format:
        entry["format"] = channel.format
    if channel.HasField("flight"):
        start = day(channel.flight.start_date, f"{path}.flight.start_date")
        end = day(channel.flight.end_date, f"{path}.flight.end_date")
        if start is None or end is None:
            raise InvalidRequest.field(f"{path}.flight", "FLIGHT_OPEN", "has two ends")
        if outside(start, end, frame):
            raise InvalidRequest.field(f"{path}.flight", "FLIGHT_OUTSIDE_PROJECT", "lies outside the project's dates")
        entry |= {"start": start.isoformat(), "end": end.isoformat()}
    if channel.kpis:
        entry["kpis"] = _kpis(channel, path)
    if channel.HasField("extra"):
        _check_extra(channel.extra, f"{path}.extra")
        entry["extra"] = json_of(channel.extra, f"{path}.extra")
    return entry


def outside(start: date, end: date, frame: Frame) -> bool:
    """Whether a flight leaves the project's dates, as far as these are decided."""
    return bool((frame.start and start < frame.start) or (frame.end and end > frame.end))


def _kpis(channel: pb.PlanChannel, path: str) -> list[dict[str, str]]:
    kpis: dict[str, str] = {}
    for index, kpi in enumerate(channel.kpis):
        metric, target = _METRICS.word(kpi.metric), Decimal(kpi.target)
        if metric in kpis:
            raise InvalidRequest.field(f"{path}.kpis[{index}].metric", "KPI_DUPLICATE", "stands in the channel twice")
        if target < 0 and metric != "romi":
            raise InvalidRequest.field(f"{path}.kpis[{index}].target", "KPI_NEGATIVE", "must not be below zero")
        plain = f"{target:f}"
        plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
        kpis[metric] = "0" if target == 0 else plain
    return [{"metric": metric, "target": target} for metric, target in kpis.items()]


def _micros(value: money_pb2.Money, currency: str, path: str) -> int:
    if value.currency_code != currency:
        raise InvalidRequest.field(f"{path}.currency_code", "CURRENCY_MISMATCH", f"must be {currency}")
    if value.micros < 0:
        raise InvalidRequest.field(f"{path}.micros", "NEGATIVE_AMOUNT", "must not be negative")
    if value.micros >= 10**18:
        raise InvalidRequest.field(f"{path}.micros", "AMOUNT_TOO_LARGE", f"must be below 10^12 {currency}")
    return value.micros


def _check_extra(extra: Struct, path: str) -> None:
    if len(json.dumps(json_of(extra, path), ensure_ascii=False).encode()) > _LARGEST_EXTRA:
        raise InvalidRequest.field(path, "TOO_LARGE", "must be at most 8 KiB as JSON")


def decision(row: Decision) -> pb.MediaPlanDecision:
    """A decision."""
    return pb.MediaPlanDecision(
        decision_id=str(row.id),
        media_plan_id=str(row.media_plan_id),
        version=row.version,
        kind=_DECISIONS.number(row.kind),
        decider_id=str(row.decided_by or ""),
        comment=row.comment,
        override_reason=row.override_reason,
        decide_time=timestamp(row.created_at),
    )


def comment(row: Comment) -> pb.MediaPlanComment:
    """A comment."""
    return pb.MediaPlanComment(
        comment_id=str(row.id),
        media_plan_id=str(row.media_plan_id),
        channel_id=str(row.channel_id or ""),
        text=row.body,
        author_id=str(row.author_id),
        create_time=timestamp(row.created_at),
    )


def diff(base: MediaPlan, other: MediaPlan) -> rpc_pb.DiffMediaPlansResponse:
    """What differs between two versions of one plan."""
    old = {entry["channel_id"]: entry for entry in base.channels}
    new = {entry["channel_id"]: entry for entry in other.channels}
    response = rpc_pb.DiffMediaPlansResponse(
        base=head(base),
        other=head(other),
        total_difference=money((other.total_budget or Decimal()) - (base.total_budget or Decimal()), other.currency),
        fields=_changes(audit_diff(_compared(base), _compared(other))),
        added_channels=[_channel(entry, other.currency) for key, entry in new.items() if key not in old],
        removed_channels=[_channel(entry, base.currency) for key, entry in old.items() if key not in new],
    )
    for key, entry in new.items():
        before = old.get(key)
        # Entries that are alike need no messages: most channels of a large plan stay as they are.
        if before is not None and before != entry:
            response.changed_channels.append(_channel_change(before, entry, base.currency, other.currency))
    return response


def _channel_change(
    before: Mapping[str, Any], after: Mapping[str, Any], old_currency: str, new_currency: str
) -> rpc_pb.PlanChannelChange:
    base, other = _channel(before, old_currency), _channel(after, new_currency)
    changes = audit_diff(base, other)
    if changes.pop("kpis", None):
        old = {kpi["metric"]: kpi["target"] for kpi in before.get("kpis", ())}
        new = {kpi["metric"]: kpi["target"] for kpi in after.get("kpis", ())}
        for metric in sorted(old.keys() | new.keys()):
            if old.get(metric) != new.get(metric):
                changes[f"kpis.{metric}"] = [old.get(metric), new.get(metric)]
    return rpc_pb.PlanChannelChange(
        base=base,
        other=other,
        budget_difference=money_pb2.Money(currency_code=new_currency, micros=after["budget"] - before["budget"]),
        fields=_changes(changes),
    )


def _compared(row: MediaPlan) -> pb.MediaPlan:
    """What two versions may differ in, beside channels; the rest of a plan tells them apart by nature."""
    compared = pb.MediaPlan(display_name=row.name, total_budget=money(row.total_budget, row.currency))
    if row.targeting:
        ParseDict(row.targeting, compared.targeting, ignore_unknown_fields=True)
    return compared


def _changes(changes: Mapping[str, Any]) -> list[rpc_pb.PlanFieldChange]:
    return [
        rpc_pb.PlanFieldChange(path=path, before=_value(pair[0]), after=_value(pair[1]))
        for path, pair in sorted(changes.items())
    ]


def _value(plain: Any) -> Value | None:
    return None if plain is None else json_format.ParseDict(plain, Value())
