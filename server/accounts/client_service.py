"""ClientService: the agency's customers."""

from dataclasses import replace
from typing import Final
from uuid import UUID

from mrm.accounts.v1 import client_pb2
from mrm.accounts.v1 import client_service_pb2 as pb
from server.accounts import convert
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, optional_id, required_id, time_zone
from storage.postgres import clients, outbox
from storage.postgres.database import Database

WRITABLE: Final = frozenset({"display_name", "industry", "website", "settings"})


class ClientService:
    """Implements mrm.accounts.v1.ClientService.

    Args:
        database: Where clients live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def CreateClient(self, request: pb.CreateClientRequest, call: Mutation) -> pb.CreateClientResponse:
        """Makes a client. Whoever is no admin becomes its member, or would not see it."""
        wanted = request.client
        _check_time_zone(wanted)
        parent = optional_id(wanted.parent_client_id)
        if parent is not None:
            await _check_parent(call, parent)
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
            )
        )
        return pb.ListClientsResponse(clients=[convert.client(row) for row in rows], next_page_token=next_token)

    async def UpdateClient(self, request: pb.UpdateClientRequest, call: Mutation) -> pb.UpdateClientResponse:
        """Changes a client. A new time zone reaches the figures through the outbox."""
        client_id = required_id(request.client.client_id, "client.client_id")
        row = await clients.get_for_update(call.tx, call.scope, client_id)
        if row is None:
            raise NotFound.resource("client", str(client_id))
        check_etag(request.client.etag, row.revision)
        before = convert.client(row)
        after = apply_mask(before, request.client, request.update_mask, WRITABLE, "client")
        validate(after, "client")
        _check_time_zone(after)
        stored = await clients.update(call.tx, call.scope, replace(row, **convert.writable(after)))
        if stored is None:
            raise NotFound.resource("client", str(client_id))
        if stored.settings.get("timezone") != row.settings.get("timezone"):
            await outbox.append(call.tx, "client", str(client_id))
        client = convert.client(stored)
        await call.record(AuditEntry("update", "client", client_id, client_id, None, before, client))
        return pb.UpdateClientResponse(client=client)


async def _check_parent(call: Mutation, parent_id: UUID) -> None:
    parent = await clients.get(call.tx, call.scope, parent_id)
    if parent is None:
        raise NotFound.resource("client", str(parent_id))
    if parent.type != "agency":
        raise InvalidRequest.field("client.parent_client_id", "PARENT_NOT_AGENCY", "is not an agency")
    if parent.archived_at is not None:
        raise FailedPrecondition("the parent client is archived", metadata={"state": "archived", "wanted": "active"})


def _check_time_zone(client: client_pb2.Client) -> None:
    if client.settings.time_zone:
        time_zone(client.settings.time_zone, "client.settings.time_zone")
