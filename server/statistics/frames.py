"""Messages of a watch, put together from parts that are encoded once and shared by all watchers.

A serialized message is the concatenation of its serialized fields, so a part can be any run of fields.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from mrm.statistics.v1 import metrics_pb2, statistics_service_pb2
from mrm_client.batches import varint
from server.statistics import figures
from storage.clickhouse.metrics import Figures

Response = statistics_service_pb2.WatchMetricsResponse

_FIELDS = Response.DESCRIPTOR.fields_by_name
_SNAPSHOT, _UPDATE = _FIELDS["snapshot"].number, _FIELDS["update"].number
_CAMPAIGNS = Response.Snapshot.DESCRIPTOR.fields_by_name["campaigns"].number
# The rest of a message is small, so that messages stay below 1 MiB.
_MOST_BYTES = 2**20 - 8192

assert Response.Update.DESCRIPTOR.fields_by_name["campaigns"].number == _CAMPAIGNS, "one entry serves both"

# Nothing changed up to the watermark; nothing changed at all. Both lack their trailer.
CHECKPOINT = Response(checkpoint=Response.Checkpoint()).SerializeToString()
HEARTBEAT = Response(heartbeat=Response.Heartbeat()).SerializeToString()


def campaign_entry(campaign_id: UUID, totals: Figures, currency: str, version: int, present: bool) -> bytes:
    """The state of a campaign as an element of a snapshot or update."""
    message = metrics_pb2.CampaignMetrics(
        campaign_id=str(campaign_id),
        metrics=figures.to_message(totals, currency),
        state_version=version,
        data_present=present,
    )
    return _delimited(_CAMPAIGNS, message.SerializeToString())


def trailer(token: str, watermark: int) -> bytes:
    """What every message carries beside its kind; `watermark` in Unix milliseconds, 0 while none is known."""
    message = Response(resume_token=token)
    if watermark:
        message.watermark_time.FromMilliseconds(watermark)
    return message.SerializeToString()


def snapshot(entries: Iterable[bytes], window: tuple[int, int]) -> list[bytes]:
    """The messages of a snapshot, each lacking its trailer; `window` in Unix seconds."""
    start, end = (Timestamp(seconds=seconds) for seconds in window)
    head = Response.Snapshot(window_start_time=start, window_end_time=end).SerializeToString()
    complete = Response.Snapshot(complete=True).SerializeToString()
    parts = _parts(entries)
    return [
        _delimited(_SNAPSHOT, b"".join((head, *part, complete if number == len(parts) else b"")))
        for number, part in enumerate(parts, start=1)
    ]


def update(entries: Iterable[bytes], skipped: int) -> list[bytes]:
    """The messages of an update, each lacking its trailer; the first one tells what was skipped."""
    first, *others = _parts(entries)
    head = Response.Update(skipped_count=skipped).SerializeToString()
    return [
        _delimited(_UPDATE, b"".join((head, *first))),
        *(_delimited(_UPDATE, b"".join(part)) for part in others),
    ]


def reset(reason: statistics_service_pb2.WatchMetricsResponse.ResetReason.ValueType) -> bytes:
    """A snapshot follows; lacks its trailer."""
    return Response(reset=Response.Reset(reason=reason)).SerializeToString()


def _parts(entries: Iterable[bytes]) -> Sequence[Sequence[bytes]]:
    """Entries in groups that fit a message each; one empty group if there are none."""
    parts: list[list[bytes]] = [[]]
    size = 0
    for entry in entries:
        if size + len(entry) > _MOST_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += len(entry)
    return parts


def _delimited(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body
