"""ServiceAccountService: internal programs, which own API keys."""

from typing import Final
from uuid import UUID

from mrm.accounts.v1 import service_account_pb2
from mrm.accounts.v1 import service_account_service_pb2 as pb
from server.accounts import convert
from server.accounts.api_key_service import record_revocation
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import AlreadyExists, NotFound, PermissionDenied
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, required_id
from storage.errors import Conflict
from storage.postgres import api_keys, service_accounts
from storage.postgres.database import Database
from storage.postgres.service_accounts import ServiceAccount

WRITABLE: Final = frozenset({"display_name", "description"})


class ServiceAccountService:
    """Implements mrm.accounts.v1.ServiceAccountService.

    Args:
        database: Where accounts and keys live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def CreateServiceAccount(
        self, request: pb.CreateServiceAccountRequest, call: Mutation
    ) -> pb.CreateServiceAccountResponse:
        """Registers a program."""
        _check_reach(call)
        wanted = request.service_account
        try:
            row = await service_accounts.create(call.tx, name=wanted.display_name, description=wanted.description)
        except Conflict:
            raise _name_taken() from None
        account = convert.service_account(row)
        await call.record(AuditEntry("create", "service_account", row.id, None, None, None, account))
        return pb.CreateServiceAccountResponse(service_account=account)

    async def GetServiceAccount(self, request: pb.GetServiceAccountRequest, call: Call) -> pb.GetServiceAccountResponse:
        """Reads one account."""
        _check_reach(call)
        row = await service_accounts.get(self._database, UUID(request.service_account_id))
        if row is None:
            raise NotFound.resource("service_account", request.service_account_id)
        return pb.GetServiceAccountResponse(service_account=convert.service_account(row))

    async def ListServiceAccounts(
        self, request: pb.ListServiceAccountsRequest, call: Call
    ) -> pb.ListServiceAccountsResponse:
        """Lists accounts."""
        _check_reach(call)
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await service_accounts.list_page(
                self._database, limit=page.size + 1, after=page.after, enabled_only=request.filter.enabled_only
            )
        )
        return pb.ListServiceAccountsResponse(
            service_accounts=[convert.service_account(row) for row in rows], next_page_token=next_token
        )

    async def UpdateServiceAccount(
        self, request: pb.UpdateServiceAccountRequest, call: Mutation
    ) -> pb.UpdateServiceAccountResponse:
        """Changes name or description."""
        wanted = request.service_account
        row = await _locked(
            call, required_id(wanted.service_account_id, "service_account.service_account_id"), wanted.etag
        )
        after = apply_mask(convert.service_account(row), wanted, request.update_mask, WRITABLE, "service_account")
        validate(after, "service_account")
        changed = await _write(call, row, "update", after.display_name, after.description, row.disabled_at is not None)
        return pb.UpdateServiceAccountResponse(service_account=changed)

    async def DisableServiceAccount(
        self, request: pb.DisableServiceAccountRequest, call: Mutation
    ) -> pb.DisableServiceAccountResponse:
        """Stops all keys of the account: `server.rpc.auth` asks for the account whenever it asks for a key."""
        row = await _locked(call, UUID(request.service_account_id), request.etag)
        changed = await _write(call, row, "disable", row.name, row.description, disabled=True)
        return pb.DisableServiceAccountResponse(service_account=changed)

    async def EnableServiceAccount(
        self, request: pb.EnableServiceAccountRequest, call: Mutation
    ) -> pb.EnableServiceAccountResponse:
        """Lets the account's keys work again."""
        row = await _locked(call, UUID(request.service_account_id), request.etag)
        changed = await _write(call, row, "enable", row.name, row.description, disabled=False)
        return pb.EnableServiceAccountResponse(service_account=changed)

    async def DeleteServiceAccount(
        self, request: pb.DeleteServiceAccountRequest, call: Mutation
    ) -> pb.DeleteServiceAccountResponse:
        """Revokes the account's keys and forgets the account."""
        row = await _locked(call, UUID(request.service_account_id), request.etag)
        for key in await api_keys.revoke_all_of(call.tx, row.id):
            await record_revocation(call, key)
        await service_accounts.delete(call.tx, row.id)
        gone = service_account_pb2.ServiceAccount()
        before = convert.service_account(row)
        await call.record(AuditEntry("delete", "service_account", row.id, None, None, before, gone))
        return pb.DeleteServiceAccountResponse()


def _check_reach(call: Call) -> None:
    if not call.scope.everything:
        raise PermissionDenied("only who reaches all clients may", metadata={"permission": "ALL_CLIENTS"})


async def _locked(call: Mutation, account_id: UUID, etag: str) -> ServiceAccount:
    """The account in the state that the caller means."""
    _check_reach(call)
    row = await service_accounts.get_for_update(call.tx, account_id)
    if row is None:
        raise NotFound.resource("service_account", str(account_id))
    check_etag(etag, row.revision)
    return row


async def _write(
    call: Mutation, row: ServiceAccount, action: str, name: str, description: str, disabled: bool
) -> service_account_pb2.ServiceAccount:
    """Stores and records a change; one that changes nothing leaves no record."""
    try:
        stored = await service_accounts.update(call.tx, row.id, name=name, description=description, disabled=disabled)
    except Conflict:
        raise _name_taken() from None
    assert stored is not None, "it is locked"
    account = convert.service_account(stored)
    if stored.revision != row.revision:
        before = convert.service_account(row)
        await call.record(AuditEntry(action, "service_account", row.id, None, None, before, account))
    return account


def _name_taken() -> AlreadyExists:
    return AlreadyExists("another service account has this name", metadata={"field": "display_name"})
