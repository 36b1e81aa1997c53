"""RollupService: daily figures rolled up on demand, what was restated, and whether they fit the measurements."""

import hashlib
import struct
from datetime import UTC, date, datetime
from typing import Any, Final
from uuid import UUID

from google.protobuf.message import Message

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import rollup_pb2, snapshot_pb2
from mrm.statistics.v1 import rollup_service_pb2 as pb
from server.rpc import values
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import InvalidRequest, NotFound
from server.rpc.paging import DEFAULT_PAGE, LARGEST_PAGE
from server.rpc.tokens import InvalidToken, TokenCodec
from server.rpc.values import EnumWords, moment, timestamp
from server.statistics import days
from server.statistics.figures import to_message
from server.statistics.marking import enqueue
from storage.postgres import rollups
from storage.postgres.database import Database
from storage.postgres.rollups import Check, Restatement

_CAUSES: Final = EnumWords(rollup_pb2.RestatementCause, "RESTATEMENT_CAUSE_")
_STATES: Final = EnumWords(rollup_pb2.RollupCheckState, "ROLLUP_CHECK_STATE_")
_SOURCES: Final = EnumWords(snapshot_pb2.MetricsSource, "METRICS_SOURCE_")
_NUMBER: Final = struct.Struct(">Q")
_DAY: Final = struct.Struct(">I3s")
_PRIORITY: Final = 5


class RollupService:
    """Implements mrm.statistics.v1.RollupService.

    Args:
        database: Holds the daily figures.
        codec: Authenticates page tokens.
    """

    def __init__(self, database: Database, codec: TokenCodec) -> None:
        self._database = database
        self._codec = codec

    async def RunRollup(self, request: pb.RunRollupRequest, call: Mutation) -> pb.RunRollupResponse:
        """Makes a job that rolls days up."""
        client_id = values.required_id(request.client_id, "client_id")
        state = await rollups.state(call.tx, call.scope, client_id)
        if state is None:
            raise NotFound.resource("client", str(client_id))
        first, last = _span(request.dates)
        if last is None or last > days.closed(datetime.now(UTC), values.time_zone(state.time_zone, "client_id")):
            raise InvalidRequest.field("dates.end_date", "DAY_NOT_OVER", "is not over yet where the client is")
        payload = {"cause": "requested", "first": request.dates.start_date, "last": request.dates.end_date}
        job = await enqueue(
            call.tx,
            client_id,
            payload,
            f"rollup:{client_id}:{first}:{last}",
            priority=_PRIORITY,
            requested_by=call.principal.principal_id if call.principal.kind == "user" else None,
        )
        await call.record(AuditEntry("run", "rollup", client_id, client_id, None, None, request.dates))
        return pb.RunRollupResponse(job_id=str(job.id))

    async def ListRestatements(self, request: pb.ListRestatementsRequest, call: Call) -> pb.ListRestatementsResponse:
        """Lists restatements, oldest first."""
        client_id = values.required_id(request.client_id, "client_id")
        wanted = request.filter
        tokens = _Tokens(self._codec, "restatements", call, str(client_id).encode(), wanted)
        (after,) = tokens.open(_NUMBER, request.page_token) or (0,)
        first, last = _span(wanted.dates)
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        rows = await rollups.list_restatements(
            self._database,
            call.scope,
            client_id,
            limit=size + 1,
            after=after,
            project_id=values.optional_id(wanted.project_id),
            campaign_ids=[UUID(each) for each in wanted.campaign_ids] or None,
            first=first,
            last=last,
            since=moment(wanted.since_time) if wanted.HasField("since_time") else None,
        )
        kept = rows[:size]
        token = tokens.seal(_NUMBER, kept[-1].seq if kept else after)
        return pb.ListRestatementsResponse(
            restatements=[_restatement(row) for row in kept],
            next_page_token=token if len(rows) > size else "",
            resume_token=token,
        )

    async def ListRollupChecks(self, request: pb.ListRollupChecksRequest, call: Call) -> pb.ListRollupChecksResponse:
        """Lists checks, latest day first."""
        client_id = values.required_id(request.client_id, "client_id")
        states = sorted(_STATES.word(each) for each in request.states)
        place = f"{client_id}|{states}".encode()
        tokens = _Tokens(self._codec, "rollup_checks", call, place, request.dates)
        position = tokens.open(_DAY, request.page_token)
        first, last = _span(request.dates)
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        rows = await rollups.list_checks(
            self._database,
            call.scope,
            client_id,
            limit=size + 1,
            after=(date.fromordinal(position[0]), position[1].decode()) if position else None,
            first=first,
            last=last,
            states=states or None,
        )
        kept = rows[:size]
        more = len(rows) > size
        return pb.ListRollupChecksResponse(
            checks=[_check(row) for row in kept],
            next_page_token=tokens.seal(_DAY, kept[-1].day.toordinal(), kept[-1].currency.encode()) if more else "",
        )


class _Tokens:
    """Tokens of a place in a list, for the same caller asking for the same."""

    def __init__(self, codec: TokenCodec, purpose: str, call: Call, place: bytes, wanted: Message) -> None:
        caller = f"{call.principal.kind}|{call.principal.lasting_id}|".encode()
        self._bound_to = hashlib.sha256(caller + place + b"|" + wanted.SerializeToString(deterministic=True)).digest()
        self._codec, self._purpose = codec, purpose

    def seal(self, layout: struct.Struct, *position: int | bytes) -> str:
        """The token of a place."""
        return self._codec.seal(self._purpose, self._bound_to, layout.pack(*position))

    def open(self, layout: struct.Struct, token: str) -> tuple[Any, ...] | None:
        """The place of a token, None for an empty one.

        Raises:
            InvalidRequest: The token is damaged or belongs to another list or caller.
        """
        if not token:
            return None
        try:
            return layout.unpack(self._codec.open(self._purpose, self._bound_to, token))
        except (InvalidToken, struct.error):
            raise InvalidRequest.field(
                "page_token", "PAGE_TOKEN_INVALID", "is not a token of this list", error_reason="PAGE_TOKEN_INVALID"
            ) from None


def _span(dates: time_pb2.DateRange) -> tuple[date | None, date | None]:
    return (
        values.day(dates.start_date, "dates.start_date"),
        values.day(dates.end_date, "dates.end_date"),
    )


def _restatement(row: Restatement) -> rollup_pb2.Restatement:
    return rollup_pb2.Restatement(
        restatement_id=str(row.seq),
        client_id=str(row.client_id),
        project_id=str(row.project_id),
        campaign_id=str(row.campaign_id),
        date=row.day.isoformat(),
        before=to_message(row.before, row.currency),
        after=to_message(row.after, row.currency),
        delivery_source=_SOURCES.number(row.delivery_source),
        outcome_source=_SOURCES.number(row.outcome_source),
        source_version=row.source_version,
        revision=row.revision,
        cause=_CAUSES.number(row.cause),
        job_id=str(row.job_id),
        restate_time=timestamp(row.at),
    )


def _check(row: Check) -> rollup_pb2.RollupCheck:
    return rollup_pb2.RollupCheck(
        client_id=str(row.client_id),
        date=row.day.isoformat(),
        state=_STATES.number(row.state),
        stored=to_message(row.stored, row.currency),
        measured=to_message(row.measured, row.currency),
        drifted_campaign_count=row.campaigns,
        check_time=timestamp(row.checked_at),
        last_drift_time=timestamp(row.drifted_at),
    )
