"""ApiKeyService: credentials of programs."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from mrm.accounts.v1 import api_key_pb2
from mrm.accounts.v1 import api_key_service_pb2 as pb
from server.accounts import convert
from server.accounts.permissions import KEY_ONLY, PEOPLE_ONLY
from server.rpc.auth import KEY_PREFIX, KEY_PREFIX_LENGTH, digest, new_secret
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from server.rpc.paging import Pager
from server.rpc.policy import permission_name
from server.rpc.values import moment, optional_id
from storage.postgres import api_keys, clients, service_accounts
from storage.postgres.api_keys import ApiKey
from storage.postgres.database import Database

DEFAULT_OVERLAP: Final = timedelta(hours=24)


class ApiKeyService:
    """Implements mrm.accounts.v1.ApiKeyService.

    Args:
        database: Where keys live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, call: Mutation) -> pb.CreateApiKeyResponse:
        """Makes a key. Nobody can hand out what they do not have, except the right that only keys hold."""
        permissions = [permission_name(value) for value in request.permissions]
        _check_rights(call, permissions)
        if request.all_clients and not call.scope.everything:
            raise PermissionDenied("only who reaches all clients may", metadata={"permission": "ALL_CLIENTS"})
        wanted = [UUID(client_id) for client_id in request.client_ids]
        visible = set(await clients.visible_ids(call.tx, call.scope, wanted))
        for client_id in wanted:
            if client_id not in visible:
                raise NotFound.resource("client", str(client_id))
        expires_at = moment(request.expire_time) if request.HasField("expire_time") else None
        _check_end(call, expires_at)
        secret = new_secret(KEY_PREFIX)
        row = await api_keys.create(
            call.tx,
            name=request.display_name,
            key_hash=bytes.fromhex(digest(secret)),
            prefix=secret[:KEY_PREFIX_LENGTH],
            permissions=permissions,
            client_ids=wanted,
            all_clients=request.all_clients,
            created_by=_author(call),
            expires_at=expires_at,
            service_account_id=await _account(call, optional_id(request.service_account_id)),
        )
        key = convert.api_key(row)
        await call.record(AuditEntry("create", "api_key", row.id, None, None, None, key))
        return pb.CreateApiKeyResponse(api_key=key, secret=secret)

    async def GetApiKey(self, request: pb.GetApiKeyRequest, call: Call) -> pb.GetApiKeyResponse:
        """Reads one key."""
        row = await api_keys.get(self._database, call.scope, UUID(request.api_key_id))
        if row is None:
            raise NotFound.resource("api_key", request.api_key_id)
        return pb.GetApiKeyResponse(api_key=convert.api_key(row))

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, call: Call) -> pb.ListApiKeysResponse:
        """Lists keys."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await api_keys.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                include_revoked=request.show_revoked,
                service_account_id=optional_id(request.service_account_id),
            )
        )
        return pb.ListApiKeysResponse(api_keys=[convert.api_key(row) for row in rows], next_page_token=next_token)

    async def RotateApiKey(self, request: pb.RotateApiKeyRequest, call: Mutation) -> pb.RotateApiKeyResponse:
        """Makes a key in place of another. Whoever gets the secret gets its rights, so they must have them."""
        old = await api_keys.get_for_update(call.tx, call.scope, UUID(request.api_key_id))
        if old is None:
            raise NotFound.resource("api_key", request.api_key_id)
        now = datetime.now(UTC)
        _check_rotatable(old, now)
        _check_rights(call, old.permissions)
        expires_at = moment(request.expire_time) if request.HasField("expire_time") else _same_life(old, now)
        _check_end(call, expires_at)
        secret = new_secret(KEY_PREFIX)
        row = await api_keys.create(
            call.tx,
            name=old.name,
            key_hash=bytes.fromhex(digest(secret)),
            prefix=secret[:KEY_PREFIX_LENGTH],
            permissions=old.permissions,
            client_ids=old.client_ids,
            all_clients=old.all_clients,
            created_by=_author(call),
            expires_at=expires_at,
            service_account_id=await _account(call, old.service_account_id),
            family_id=old.family_id,
        )
        overlap = request.overlap.ToTimedelta() if request.HasField("overlap") else DEFAULT_OVERLAP
        replaced = convert.api_key(await api_keys.succeed(call.tx, old.id, row.id, overlap))
        key = convert.api_key(row)
        await call.record(AuditEntry("create", "api_key", row.id, None, None, None, key))
        await call.record(AuditEntry("rotate", "api_key", old.id, None, None, convert.api_key(old), replaced))
        return pb.RotateApiKeyResponse(api_key=key, secret=secret, replaced_api_key=replaced)

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, call: Mutation) -> pb.RevokeApiKeyResponse:
        """Ends a key for good."""
        before = await api_keys.get_for_update(call.tx, call.scope, UUID(request.api_key_id))
        row = await api_keys.revoke(call.tx, call.scope, UUID(request.api_key_id))
        if before is None or row is None:
            raise NotFound.resource("api_key", request.api_key_id)
        if before.revoked_at is None:
            await record_revocation(call, row)
        return pb.RevokeApiKeyResponse(api_key=convert.api_key(row))


async def record_revocation(call: Mutation, row: ApiKey) -> None:
    """Records that a key has been revoked.

    Args:
        call: The call that revoked it.
        row: The key, revoked.
    """
    after = convert.api_key(row)
    before = api_key_pb2.ApiKey()
    before.CopyFrom(after)
    before.ClearField("revoke_time")
    await call.record(AuditEntry("revoke", "api_key", row.id, None, None, before, after))


def _author(call: Mutation) -> UUID | None:
    return call.principal.principal_id if call.principal.kind == "user" else None


def _check_rights(call: Mutation, permissions: Sequence[str]) -> None:
    held = call.principal.permissions | (KEY_ONLY if call.principal.kind == "user" else frozenset())
    for position, name in enumerate(permissions):
        if name in PEOPLE_ONLY:
            raise InvalidRequest.field(f"permissions[{position}]", "PEOPLE_ONLY", "is a right that no key may hold")
        if name not in held:
            raise PermissionDenied(f"you lack {name} yourself", metadata={"permission": name})


def _check_end(call: Mutation, expires_at: datetime | None) -> None:
    """A key that could make one which outlives it would never end."""
    if call.principal.kind == "user" or call.principal.expire_time is None:
        return
    if expires_at is None or expires_at.timestamp() > call.principal.expire_time:
        raise InvalidRequest.field("expire_time", "BEYOND_YOURS", "must not be after the end of the calling key")


async def _account(call: Mutation, wanted: UUID | None) -> UUID | None:
    """The account that a new key is to belong to, kept from ending until the key is there.

    A key of an account makes keys of this account only, so that disabling it stops all of them.
    """
    own = call.principal.service_account_id
    account_id = wanted or own
    if account_id is None:
        return None
    if (own is not None and account_id != own) or (own is None and not call.scope.everything):
        raise NotFound.resource("service_account", str(account_id))
    if await service_accounts.get_for_update(call.tx, account_id) is None:
        raise NotFound.resource("service_account", str(account_id))
    return account_id


def _check_rotatable(key: ApiKey, now: datetime) -> None:
    state = (
        "revoked"
        if key.revoked_at is not None
        else "rotated"
        if key.successor_id is not None
        else "expired"
        if key.expires_at is not None and key.expires_at <= now
        else ""
    )
    if state:
        raise FailedPrecondition(f"the key is {state}", metadata={"state": state, "wanted": "working"})


def _same_life(key: ApiKey, now: datetime) -> datetime | None:
    return None if key.expires_at is None else now + (key.expires_at - key.created_at)
