"""ApiKeyService: credentials of programs."""

from uuid import UUID

from mrm.accounts.v1 import api_key_pb2
from mrm.accounts.v1 import api_key_service_pb2 as pb
from server.accounts import convert
from server.accounts.permissions import KEY_ONLY
from server.rpc.auth import KEY_PREFIX, KEY_PREFIX_LENGTH, digest, new_secret
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import NotFound, PermissionDenied
from server.rpc.paging import Pager
from server.rpc.policy import permission_name
from server.rpc.values import moment
from storage.postgres import api_keys, clients
from storage.postgres.database import Database


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
        for name in permissions:
            if name not in call.principal.permissions | KEY_ONLY:
                raise PermissionDenied(f"you lack {name} yourself", metadata={"permission": name})
        if request.all_clients and not call.scope.everything:
            raise PermissionDenied("only who reaches all clients may", metadata={"permission": "ALL_CLIENTS"})
        wanted = [UUID(client_id) for client_id in request.client_ids]
        visible = set(await clients.visible_ids(call.tx, call.scope, wanted))
        for client_id in wanted:
            if client_id not in visible:
                raise NotFound.resource("client", str(client_id))
        secret = new_secret(KEY_PREFIX)
        row = await api_keys.create(
            call.tx,
            name=request.display_name,
            key_hash=bytes.fromhex(digest(secret)),
            prefix=secret[:KEY_PREFIX_LENGTH],
            permissions=permissions,
            client_ids=wanted,
            all_clients=request.all_clients,
            created_by=call.principal.principal_id if call.principal.kind == "user" else None,
            expires_at=moment(request.expire_time) if request.HasField("expire_time") else None,
        )
        key = convert.api_key(row)
        await call.record(AuditEntry("create", "api_key", row.id, None, None, None, key))
        return pb.CreateApiKeyResponse(api_key=key, secret=secret)

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, call: Call) -> pb.ListApiKeysResponse:
        """Lists keys."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await api_keys.list_page(
                self._database, limit=page.size + 1, after=page.after, include_revoked=request.show_revoked
            )
        )
        return pb.ListApiKeysResponse(api_keys=[convert.api_key(row) for row in rows], next_page_token=next_token)

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, call: Mutation) -> pb.RevokeApiKeyResponse:
        """Ends a key for good."""
        row = await api_keys.revoke(call.tx, UUID(request.api_key_id))
        if row is None:
            raise NotFound.resource("api_key", request.api_key_id)
        key = convert.api_key(row)
        before = api_key_pb2.ApiKey()
        before.CopyFrom(key)
        before.ClearField("revoke_time")
        await call.record(AuditEntry("revoke", "api_key", row.id, None, None, before, key))
        return pb.RevokeApiKeyResponse(api_key=key)
