"""How far accounts have been read, as messages."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from mrm.campaigns.v1 import sync_pb2
from server.campaigns import effective
from server.rpc.values import EnumWords, timestamp
from storage.postgres.campaign_pushes import Push
from storage.postgres.integrations import Integration
from storage.postgres.sync_streams import PlatformCampaign, Stream

KINDS = EnumWords(sync_pb2.SyncStreamKind, "SYNC_STREAM_KIND_")
FAULTS = EnumWords(sync_pb2.SyncFault, "SYNC_FAULT_")


def status(
    integration: Integration, streams: Sequence[Stream], counts: tuple[int, int], pushes: Sequence[Push]
) -> sync_pb2.SyncStatus:
    """How far an account has been read."""
    return sync_pb2.SyncStatus(
        integration_id=str(integration.id),
        streams=[_stream(row) for row in streams],
        campaign_count=counts[0],
        unlinked_campaign_count=counts[1],
        pushes=[_push(row) for row in pushes],
        settings=settings(integration.settings),
    )


def settings(stored: Mapping[str, Any]) -> sync_pb2.SyncSettings:
    """The settings of an account."""
    return ParseDict(dict(stored), sync_pb2.SyncSettings(), ignore_unknown_fields=True)


def stored_settings(message: sync_pb2.SyncSettings) -> dict[str, Any]:
    """The settings of an account, as its row holds them."""
    return MessageToDict(message, preserving_proto_field_name=True)


def external(row: PlatformCampaign) -> sync_pb2.ExternalCampaign:
    """A campaign as an account has it."""
    return sync_pb2.ExternalCampaign(
        integration_id=str(row.id),
        external_id=row.external_id,
        observed=effective.observation(row.observed),
        first_seen_time=timestamp(row.first_seen_at),
    )


def _stream(row: Stream) -> sync_pb2.SyncStream:
    message = sync_pb2.SyncStream(
        kind=KINDS.number(row.stream),
        attempt_time=timestamp(row.attempted_at),
        success_time=timestamp(row.succeeded_at),
        fault=FAULTS.number(row.reason),
        error=row.error,
        error_time=timestamp(row.failed_at),
        failure_count=row.failures,
        cursor=row.cursor,
        through_date=_day(row.through),
        reread_from_date=_day(row.reread_from),
        reading_time=timestamp(row.reading_at),
    )
    if row.succeeded_at is not None:
        message.lag.FromTimedelta(datetime.now(UTC) - row.succeeded_at)
    return message


def _push(row: Push) -> sync_pb2.CampaignPush:
    return sync_pb2.CampaignPush(
        campaign_id=str(row.campaign_id),
        creates=row.creates,
        parts=row.parts,
        want_time=timestamp(row.wanted_at),
        refused=row.refused,
        error=row.error,
    )


def _day(day: object | None) -> str:
    return "" if day is None else str(day)
