"""Alerts as messages."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from mrm.operations.v1 import alert_pb2
from server.rpc.values import EnumWords, etag, timestamp
from storage.postgres.alerts import Alert

KINDS = EnumWords(alert_pb2.AlertKind, "ALERT_KIND_")
SEVERITIES = EnumWords(alert_pb2.AlertSeverity, "ALERT_SEVERITY_")
STATUSES = EnumWords(alert_pb2.AlertStatus, "ALERT_STATUS_")


def stored_details(details: alert_pb2.AlertDetails) -> Mapping[str, Any]:
    """Details as an alert's row holds them."""
    return MessageToDict(details, preserving_proto_field_name=True)


def details(stored: Mapping[str, Any]) -> alert_pb2.AlertDetails:
    """Details of an alert's row."""
    return ParseDict(dict(stored), alert_pb2.AlertDetails(), ignore_unknown_fields=True)


def alert(row: Alert) -> alert_pb2.Alert:
    """An alert."""
    return alert_pb2.Alert(
        alert_id=str(row.id),
        etag=etag(row.revision),
        client_id=_text(row.client_id),
        project_id=_text(row.project_id),
        campaign_id=_text(row.campaign_id),
        integration_id=_text(row.integration_id),
        kind=KINDS.number(row.kind),
        severity=SEVERITIES.number(row.severity),
        status=STATUSES.number(row.status),
        summary=row.summary,
        details=details(row.details),
        occurrence_count=row.occurrences,
        first_seen_time=timestamp(row.first_seen_at),
        last_seen_time=timestamp(row.last_seen_at),
        notify_time=timestamp(row.notified_at),
        acknowledger_id=_text(row.acknowledged_by),
        acknowledge_time=timestamp(row.acknowledged_at),
        resolver_id=_text(row.resolved_by),
        resolve_time=timestamp(row.resolved_at),
        comment=row.comment,
    )


def _text(value: object | None) -> str:
    return "" if value is None else str(value)
