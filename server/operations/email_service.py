"""EmailService: who gets no e-mails."""

from typing import Final
from uuid import UUID

from mrm.operations.v1 import email_pb2
from mrm.operations.v1 import email_service_pb2 as pb
from server.mail import unsubscribing
from server.rpc.auditing import SYSTEM, append_to, recorder
from server.rpc.auth import refuse_if_limited
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.tokens import TokenCodec
from server.rpc.values import EnumWords, timestamp
from storage.postgres import emails
from storage.postgres.database import Database, Transaction
from storage.postgres.emails import Suppression
from storage.redis.limits import RateLimiter, address_subject

_ENDPOINT: Final = "mrm.operations.v1.EmailService/Unsubscribe"
_REASONS: Final = EnumWords(email_pb2.EmailSuppressionReason, "EMAIL_SUPPRESSION_REASON_")


class EmailService:
    """Implements mrm.operations.v1.EmailService.

    Args:
        database: Where suppressed addresses live.
        limiter: Counts tokens that are tried.
        codec: Reads the tokens of e-mails.
        pager: Makes page tokens.
        limit_address: Tokens an hour per peer address.
    """

    def __init__(
        self, database: Database, limiter: RateLimiter, codec: TokenCodec, pager: Pager, limit_address: int
    ) -> None:
        self._database = database
        self._limiter = limiter
        self._codec = codec
        self._pager = pager
        self._limit_address = limit_address

    async def Unsubscribe(self, request: pb.UnsubscribeRequest, call: Call) -> pb.UnsubscribeResponse:
        """Suppresses the address that a token is for."""
        state = await self._limiter.hit(address_subject(call.peer), _ENDPOINT, self._limit_address)
        call.note_limit(state)
        refuse_if_limited(state)
        address = unsubscribing.address_of(self._codec, request.token)
        if address is None:
            raise InvalidRequest.field("token", "TOKEN_UNKNOWN", "is no token of an e-mail of ours")

        async def work(tx: Transaction) -> None:
            row, new = await emails.suppress(tx, address=address, reason="unsubscribed", comment="", created_by=None)
            if new:
                record = recorder(append_to(tx), SYSTEM, method=call.method, request_id=call.request_id)
                await record(_entry("create", row))

        await self._database.run("Unsubscribe", work)
        return pb.UnsubscribeResponse()

    async def CreateEmailSuppression(
        self, request: pb.CreateEmailSuppressionRequest, call: Mutation
    ) -> pb.CreateEmailSuppressionResponse:
        """Suppresses an address."""
        row, new = await emails.suppress(
            call.tx,
            address=request.address,
            reason="manual",
            comment=request.comment,
            created_by=call.principal.principal_id,
        )
        if new:
            await call.record(_entry("create", row))
        return pb.CreateEmailSuppressionResponse(email_suppression=_message(row))

    async def DeleteEmailSuppression(
        self, request: pb.DeleteEmailSuppressionRequest, call: Mutation
    ) -> pb.DeleteEmailSuppressionResponse:
        """Lets an address be sent to again."""
        row = await emails.get_suppression(call.tx, UUID(request.email_suppression_id))
        if row is None:
            raise NotFound.resource("email_suppression", request.email_suppression_id)
        await emails.unsuppress(call.tx, row.id)
        await call.record(_entry("delete", row))
        return pb.DeleteEmailSuppressionResponse()

    async def ListEmailSuppressions(
        self, request: pb.ListEmailSuppressionsRequest, call: Call
    ) -> pb.ListEmailSuppressionsResponse:
        """Lists suppressed addresses."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await emails.list_suppressions(
                self._database, limit=page.size + 1, after=page.after, address=request.address
            )
        )
        return pb.ListEmailSuppressionsResponse(
            email_suppressions=[_message(row) for row in rows], next_page_token=next_token
        )


def _message(row: Suppression) -> email_pb2.EmailSuppression:
    return email_pb2.EmailSuppression(
        email_suppression_id=str(row.id),
        address=row.address,
        reason=_REASONS.number(row.reason),
        comment=row.comment,
        creator_id=str(row.created_by or ""),
        create_time=timestamp(row.created_at),
    )


def _entry(action: str, row: Suppression) -> AuditEntry:
    """What is recorded leaves the address out: the record cannot be erased from, and addresses must be."""
    message = _message(row)
    message.ClearField("address")
    before, after = (None, message) if action == "create" else (message, None)
    return AuditEntry(action, "email_suppression", row.id, None, None, before, after)
