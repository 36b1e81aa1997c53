"""ClientService: the agency's customers."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from mrm.accounts.v1 import client_pb2
from mrm.accounts.v1 import client_service_pb2 as pb
from server.accounts import convert
from server.retention import erase_job
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from server.rpc.paging import Pager
from server.rpc.tokens import InvalidToken, TokenCodec
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, optional_id, required_id, time_zone
from storage.postgres import archives, clients, embeddings, outbox, user_id_salts, users
from storage.postgres.clients import Client
from storage.postgres.database import Database

WRITABLE: Final = frozenset({"display_name", "industry", "website", "settings"})

PURGE_TOPICS: Final = ("client_erasure", embeddings.ERASURE_TOPIC)
"""Outbox topics of purged clients, with the client's id for a key. The relay deletes the measurements by the first, a
job the vectors by the second. The job of the erasure waits for both, and erases the rest."""

_ORDERS: Final[dict[int, clients.Order]] = {
    pb.CLIENT_ORDER_UNSPECIFIED: "oldest",
    pb.CLIENT_ORDER_CREATE_TIME: "oldest",
    pb.CLIENT_ORDER_CREATE_TIME_DESC: "newest",
    pb.CLIENT_ORDER_DISPLAY_NAME: "name",
}


class ClientService:
    """Implements mrm.accounts.v1.ClientService.

    Args:
        database: Where clients live.
        pager: Makes page tokens.
        codec: Makes the tokens that confirm a purge.
        purge_delay: How long a purge must have been asked for before it can be confirmed.
        erasure_deadline: By when all stores must have forgotten a purged client.
    """

    def __init__(
        self, database: Database, pager: Pager, codec: TokenCodec, purge_delay: timedelta, erasure_deadline: timedelta
    ) -> None:
        self._database = database
        self._pager = pager
        self._codec = codec
        self._purge_delay = purge_delay
        self._erasure_deadline = erasure_deadline

    async def CreateClient(self, request: pb.CreateClientRequest, call: Mutation) -> pb.CreateClientResponse:
        """Makes a client. Whoever is no admin becomes its member, or would not see it."""
        wanted = request.client
        _check_time_zone(wanted)
        parent = optional_id(wanted.parent_client_id)
        if parent is not None:
            await _check_parent(call, parent, "client.parent_client_id")
        elif call.principal.kind == "api_key" and not call.scope.everything:
            raise InvalidRequest.field("client.parent_client_id", "PARENT_REQUIRED", "a key of some clients needs one")
        row = await clients.create(
            call.tx,
            type=convert.CLIENT_TYPES.word(wanted.type),
            **convert.writable(wanted),
            parent_client_id=parent,
        )
        if call.principal.kind == "user" and not call.scope.everything and call.principal.principal_id:
            await clients.add_membership(call.tx, user_id=call.principal.principal_id, client_id=row.id)
        client = convert.client(row)
        await call.record(AuditEntry("create", "client", row.id, row.id, None, None, client))
        return pb.CreateClientResponse(client=client)

    async def GetClient(self, request: pb.GetClientRequest, call: Call) -> pb.GetClientResponse:
        """Reads one client."""
        row = await clients.get(self._database, call.scope, UUID(request.client_id))
        if row is None:
            raise NotFound.resource("client", request.client_id)
        return pb.GetClientResponse(client=convert.client(row))

    async def ListClients(self, request: pb.ListClientsRequest, call: Call) -> pb.ListClientsResponse:
        """Lists visible clients."""
        page = self._pager.start(request, call)
        wanted = request.filter
        rows, next_token = page.cut(
            await clients.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                type=convert.CLIENT_TYPES.optional_word(wanted.type),
                industry=wanted.industry or None,
                parent_client_id=optional_id(wanted.parent_client_id),
                include_archived=wanted.show_archived,
                name_contains=wanted.display_name_contains or None,
                member_id=optional_id(wanted.member_user_id),
                order=_ORDERS[request.order],
            )
        )
        return pb.ListClientsResponse(clients=[convert.client(row) for row in rows], next_page_token=next_token)

    async def UpdateClient(self, request: pb.UpdateClientRequest, call: Mutation) -> pb.UpdateClientResponse:
        """Changes a client. A new time zone reaches the figures through the outbox."""
        client_id = required_id(request.client.client_id, "client.client_id")
        row = await _locked(call, client_id, request.client.etag)
        if row.read_only:
            raise FailedPrecondition.archived("client")
        before = convert.client(row)
        after = apply_mask(before, request.client, request.update_mask, WRITABLE, "client")
        validate(after, "client")
        _check_time_zone(after)
        stored = await _stored(call, replace(row, **convert.writable(after)))
        if stored.settings.get("timezone") != row.settings.get("timezone"):
            await outbox.append(call.tx, "client", str(client_id))
        client = convert.client(stored)
        await call.record(AuditEntry("update", "client", client_id, client_id, None, before, client))
        return pb.UpdateClientResponse(client=client)

    async def MoveClient(self, request: pb.MoveClientRequest, call: Mutation) -> pb.MoveClientResponse:
        """Puts a client somewhere else in the tree."""
        row = await _locked(call, UUID(request.client_id), request.etag)
        if row.read_only:
            raise FailedPrecondition.archived("client")
        parent_id = optional_id(request.parent_client_id)
        above: list[UUID] = []
        if parent_id is not None:
            above = (await _check_parent(call, parent_id, "parent_client_id")).path
            if row.id in above:
                raise InvalidRequest.field("parent_client_id", "PARENT_CYCLE", "is the client itself or under it")
        elif not call.scope.everything:
            raise PermissionDenied("only who reaches all clients may", metadata={"permission": "ALL_CLIENTS"})
        if await clients.uses_accounts_outside(call.tx, call.scope, row.id, above):
            raise FailedPrecondition(
                "campaigns under the client run in a platform account of an agency that it would leave",
                metadata={"state": "account_in_use", "wanted": "move"},
            )
        return pb.MoveClientResponse(client=await _changed(call, "move", row, replace(row, parent_client_id=parent_id)))

    async def ArchiveClient(self, request: pb.ArchiveClientRequest, call: Mutation) -> pb.ArchiveClientResponse:
        """Makes a client and everything under it read-only."""
        row = await _locked(call, UUID(request.client_id), request.etag)
        if row.archived_at is not None:
            raise FailedPrecondition("the client is archived", metadata={"state": "archived", "wanted": "archived"})
        archived = replace(row, archived_at=datetime.now(UTC))
        return pb.ArchiveClientResponse(client=await _changed(call, "archive", row, archived))

    async def RestoreClient(self, request: pb.RestoreClientRequest, call: Mutation) -> pb.RestoreClientResponse:
        """Takes a client out of the archive, and withdraws a requested purge."""
        row = await _locked(call, UUID(request.client_id), request.etag)
        if row.archived_at is None:
            raise FailedPrecondition("the client is not archived", metadata={"state": "active", "wanted": "active"})
        restored = replace(row, archived_at=None, purge_allowed_at=None)
        return pb.RestoreClientResponse(client=await _changed(call, "restore", row, restored))

    async def RequestClientPurge(
        self, request: pb.RequestClientPurgeRequest, call: Mutation
    ) -> pb.RequestClientPurgeResponse:
        """Announces a purge. Asked again, it answers the same: the time does not start anew."""
        row = await _locked(call, UUID(request.client_id), request.etag)
        await _check_purgeable(call, row)
        allowed_at = row.purge_allowed_at or datetime.now(UTC) + self._purge_delay
        client = (
            convert.client(row)
            if row.purge_allowed_at
            else await _changed(call, "request_purge", row, replace(row, purge_allowed_at=allowed_at))
        )
        token = self._codec.seal("purge", row.id.bytes, _instant(allowed_at))
        return pb.RequestClientPurgeResponse(client=client, confirmation_token=token)

    async def ConfirmClientPurge(
        self, request: pb.ConfirmClientPurgeRequest, call: Mutation
    ) -> pb.ConfirmClientPurgeResponse:
        """Erases a client. What other stores hold of it follows from the outbox."""
        row = await _locked(call, UUID(request.client_id), "")
        await _check_purgeable(call, row)
        if row.purge_allowed_at is None:
            raise FailedPrecondition(
                "no purge of this client is requested", metadata={"state": "archived", "wanted": "purge_requested"}
            )
        self._check_confirmation(request.confirmation_token, row.id, row.purge_allowed_at)
        left = (row.purge_allowed_at - datetime.now(UTC)).total_seconds()
        if left > 0:
            raise FailedPrecondition(
                "the purge cannot be confirmed yet", metadata={"state": "purge_requested", "wanted": "purged"},
                retry_after=left,
            )  # fmt: skip
        await _check_not_held(call, row)
        purged = await clients.purge(call.tx, call.scope, row)
        if purged is None:
            raise NotFound.resource("client", request.client_id)
        await user_id_salts.drop_internal(call.tx, row.id)
        for topic in PURGE_TOPICS:
            await outbox.append(call.tx, topic, str(row.id))
        await erase_job.request(call.tx, "client", row.id, self._erasure_deadline)
        client = convert.client(purged)
        # Without the state before: the record stays, and what is erased must not stay in it.
        await call.record(AuditEntry("purge", "client", row.id, row.id, None, None, client))
        return pb.ConfirmClientPurgeResponse(client=client)

    async def AddClientMember(self, request: pb.AddClientMemberRequest, call: Mutation) -> pb.AddClientMemberResponse:
        """Lets a person see a client. Adding twice answers the membership that is there."""
        client_id, user_id = UUID(request.client_id), UUID(request.user_id)
        client = await clients.get(call.tx, call.scope, client_id)
        if client is None:
            raise NotFound.resource("client", request.client_id)
        user = await users.get(call.tx, user_id)
        if user is None or user.status == "deleted":
            raise NotFound.resource("user", request.user_id)
        known = await clients.get_member(call.tx, call.scope, client_id=client_id, user_id=user_id)
        if known is not None:
            return pb.AddClientMemberResponse(member=convert.member(known))
        if client.read_only:
            raise FailedPrecondition.archived("client")
        await clients.add_membership(call.tx, user_id=user_id, client_id=client_id)
        added = await clients.get_member(call.tx, call.scope, client_id=client_id, user_id=user_id)
        assert added is not None, "added by this transaction"
        member = convert.member(added)
        await call.record(AuditEntry("add_member", "client", client_id, client_id, None, None, member))
        return pb.AddClientMemberResponse(member=member)

    async def RemoveClientMember(
        self, request: pb.RemoveClientMemberRequest, call: Mutation
    ) -> pb.RemoveClientMemberResponse:
        """Ends a membership; also of an archived client, because taking rights away must always be possible."""
        client_id, user_id = UUID(request.client_id), UUID(request.user_id)
        found = await clients.get_member(call.tx, call.scope, client_id=client_id, user_id=user_id)
        if found is None or not await clients.remove_membership(
            call.tx, call.scope, client_id=client_id, user_id=user_id
        ):
            raise NotFound.resource("client_member", request.user_id)
        member = convert.member(found)
        await call.record(AuditEntry("remove_member", "client", client_id, client_id, None, member, type(member)()))
        return pb.RemoveClientMemberResponse(member=member)

    async def ListClientMembers(self, request: pb.ListClientMembersRequest, call: Call) -> pb.ListClientMembersResponse:
        """Lists the members of a client itself."""
        page = self._pager.start(request, call)
        client_id = UUID(request.client_id)
        if await clients.get(self._database, call.scope, client_id) is None:
            raise NotFound.resource("client", request.client_id)
        rows, next_token = page.cut(
            await clients.list_members(self._database, call.scope, client_id, limit=page.size + 1, after=page.after)
        )
        return pb.ListClientMembersResponse(members=[convert.member(row) for row in rows], next_page_token=next_token)

    def _check_confirmation(self, token: str, client_id: UUID, allowed_at: datetime) -> None:
        try:
            given = self._codec.open("purge", client_id.bytes, token)
        except InvalidToken:
            given = b""
        if given != _instant(allowed_at):
            raise InvalidRequest.field(
                "confirmation_token", "CONFIRMATION_TOKEN_INVALID", "is not the token of the requested purge"
            )


async def _locked(call: Mutation, client_id: UUID, etag: str) -> Client:
    """A client to change, as its caller knows it."""
    row = await clients.get_for_update(call.tx, call.scope, client_id)
    if row is None:
        raise NotFound.resource("client", str(client_id))
    check_etag(etag, row.revision)
    return row


async def _stored(call: Mutation, changed: Client) -> Client:
    stored = await clients.update(call.tx, call.scope, changed)
    if stored is None:
        raise NotFound.resource("client", str(changed.id))
    return stored


async def _changed(call: Mutation, action: str, row: Client, changed: Client) -> client_pb2.Client:
    """Stores and records a step of a client's life."""
    stored = await _stored(call, changed)
    client = convert.client(stored)
    await call.record(AuditEntry(action, "client", row.id, row.id, None, convert.client(row), client))
    return client


async def _check_purgeable(call: Mutation, row: Client) -> None:
    if row.archived_at is None:
        raise FailedPrecondition("archive the client first", metadata={"state": "active", "wanted": "archived"})
    if await clients.has_children(call.tx, call.scope, row.id):
        raise FailedPrecondition(
            "there are clients under this one: purge or move them first",
            metadata={"state": "has_clients", "wanted": "purged"},
        )


async def _check_not_held(call: Mutation, row: Client) -> None:
    # A hold that is being set is waited for.
    await archives.lock_holds_internal(call.tx)
    if await archives.get_hold(call.tx, row.id) is not None:
        raise FailedPrecondition(
            "the client is held: nothing of it may be erased until the hold is lifted", reason="LEGAL_HOLD"
        )


def _instant(moment: datetime) -> bytes:
    return str(round(moment.timestamp() * 1_000_000)).encode()


async def _check_parent(call: Mutation, parent_id: UUID, field: str) -> Client:
    """The agency that a client is to be put under."""
    parent = await clients.get(call.tx, call.scope, parent_id)
    if parent is None:
        raise NotFound.resource("client", str(parent_id))
    if parent.type != "agency":
        raise InvalidRequest.field(field, "PARENT_NOT_AGENCY", "is not an agency")
    if parent.read_only:
        raise FailedPrecondition.archived("client")
    return parent


def _check_time_zone(client: client_pb2.Client) -> None:
    if client.settings.time_zone:
        time_zone(client.settings.time_zone, "client.settings.time_zone")
