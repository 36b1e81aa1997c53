"""PermissionService: tells callers what they may do."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from mrm.accounts.v1 import permission_service_pb2 as pb
from mrm.common.v1 import options_pb2
from server.accounts.permissions import ALL
from server.rpc import rights
from server.rpc.call import Call, Principal
from server.rpc.errors import NotFound
from server.rpc.paging import Pager
from server.rpc.policy import permission_name
from storage.postgres import standings
from storage.postgres.database import Database

_READERS: Final = {
    "client_id": standings.of_client,
    "project_id": standings.of_project,
    "campaign_id": standings.of_campaign,
}
_NUMBERS: Final = {name: options_pb2.Permission.Value(f"PERMISSION_{name}") for name in ALL}
# What holds everywhere in the caller's scope.
_EVERYWHERE: Final = frozenset({"member"})
_REFUSED: Final = (pb.PERMISSION_BASIS_LETTER_TOO_LOW, pb.PERMISSION_BASIS_NOT_HELD)


@dataclass(frozen=True, slots=True)
class _Held:
    """A permission as a row that pages: its number in the contract, also as an id."""

    id: UUID
    number: options_pb2.Permission.ValueType


class PermissionService:
    """Implements mrm.accounts.v1.PermissionService.

    Args:
        database: Where clients, projects and teams live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def CheckPermission(self, request: pb.CheckPermissionRequest, call: Call) -> pb.CheckPermissionResponse:
        """Compares the relations that carry the right with those that the caller has."""
        target = request.WhichOneof("target")
        related = await self._related(call, target, getattr(request, target)) if target else _EVERYWHERE
        because = _basis(call.principal, permission_name(request.permission), related)
        return pb.CheckPermissionResponse(allowed=because not in _REFUSED, because=because)

    async def ListMyPermissions(self, request: pb.ListMyPermissionsRequest, call: Call) -> pb.ListMyPermissionsResponse:
        """Lists what `CheckPermission` would allow."""
        page = self._pager.start(request, call)
        project_id = request.project_id
        related = await self._related(call, "project_id", project_id) if project_id else _EVERYWHERE
        held = [
            _Held(UUID(int=number), number)
            for name, number in sorted(_NUMBERS.items(), key=lambda item: item[1])
            if related.intersection(rights.granting(call.principal, name))
            and (page.after is None or number > page.after.int)
        ]
        rows, next_token = page.cut(held)
        return pb.ListMyPermissionsResponse(permissions=[row.number for row in rows], next_page_token=next_token)

    async def _related(self, call: Call, target: str, target_id: str) -> frozenset[str]:
        related = await _READERS[target](self._database, call.scope, UUID(target_id))
        if related is None:
            raise NotFound.resource(target.removesuffix("_id"), target_id)
        return related


def _basis(principal: Principal, permission: str, related: frozenset[str]) -> pb.PermissionBasis.ValueType:
    granting = frozenset(rights.granting(principal, permission))
    having = granting & related
    if "member" in having:
        return pb.PERMISSION_BASIS_API_KEY if principal.kind == "api_key" else pb.PERMISSION_BASIS_ROLE
    if having:
        return pb.PERMISSION_BASIS_PROJECT_TEAM
    roles = {word.partition(":")[0] for word in related if ":" in word}
    elsewhere = {word for role in roles for letter in "RACI" for word in (letter, f"{role}:{letter}")}
    return pb.PERMISSION_BASIS_LETTER_TOO_LOW if granting & elsewhere else pb.PERMISSION_BASIS_NOT_HELD
