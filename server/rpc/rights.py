"""What a caller may do, and where: the one place that decides it.

A right is held everywhere in the caller's scope (by role or by key), or inside a project (by the place in its team), or
nowhere. `admit` and `within` answer with a scope that reaches exactly what the right may be used on, so the statement
that reads a row also decides the right to it, and a servicer that asks nothing further cannot do too much.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import cache
from uuid import UUID

from server.accounts.permissions import OF_THE_ACCOUNTABLE, PROJECT_ROLES, ROLE_PERMISSIONS, TEAM_LETTERS
from server.rpc.call import Mutation, Principal
from server.rpc.errors import DomainError, NotFound, PermissionDenied
from server.rpc.policy import Policy
from storage.postgres import (
    alerts,
    api_keys,
    campaigns,
    clients,
    experiments,
    feedback,
    jobs,
    media_plans,
    project_team,
    projects,
    prompts,
    reports,
    templates,
)
from storage.postgres.database import Executor
from storage.scope import SIGHT, Scope

# Scopes of a policy in which a place in a project's team counts.
_IN_PROJECTS = frozenset({"PROJECT", "CAMPAIGN"})

_READERS: Mapping[str, Callable[[Executor, Scope, UUID], Awaitable[object | None]]] = {
    "client": clients.get,
    "project": projects.get,
    "project_member": project_team.get,
    "media_plan": media_plans.get,
    "campaign": campaigns.get,
    "job": jobs.get,
    "alert": alerts.get,
    "report": reports.get,
    "prompt": prompts.get,
    "prompt_version": prompts.get_version,
    "prompt_experiment": experiments.get,
    "feedback": feedback.get,
    "template": templates.get,
}


@cache
def standings(permission: str, held: bool) -> tuple[str, ...]:
    """The relations to a client or project by which a person may use a right (see `Scope.standings`); maybe none.

    Args:
        permission: Name of the right.
        held: Whether the person's role carries it everywhere.
    """
    letters = TEAM_LETTERS.get(permission, "")
    if held:
        return "member", *letters
    if permission in OF_THE_ACCOUNTABLE:
        return tuple(letters)
    carrying = [role for role in PROJECT_ROLES if permission in ROLE_PERMISSIONS[role]]
    return tuple(f"{role}:{letter}" for role in carrying for letter in letters)


def granting(principal: Principal, permission: str) -> tuple[str, ...]:
    """The relations by which this caller may use a right; none for one that it has nowhere."""
    held = permission in principal.permissions
    if principal.kind == "user" and not principal.scope.everything:
        return standings(permission, held)
    return SIGHT if held else ()


def within(principal: Principal, permission: str) -> Scope:
    """Whatever the caller may use a right on. Servicers take it for rights beside the one of their RPC's policy."""
    return _narrowed(principal.scope, granting(principal, permission))


def sight(principal: Principal) -> Scope:
    """Whatever the caller may know of."""
    return _narrowed(principal.scope, SIGHT)


def admit(principal: Principal, policy: Policy) -> Principal:
    """The caller, its scope narrowed to what it may use the policy's right on.

    Raises:
        PermissionDenied: It has the right nowhere that an RPC of this kind could reach.
    """
    permission = policy.permission
    if permission == "AUTHENTICATED":
        return principal
    relations = granting(principal, permission)
    if not relations or ("member" not in relations and policy.scope not in _IN_PROJECTS):
        raise denied(permission)
    scope = _narrowed(principal.scope, relations)
    return principal if scope is principal.scope else replace(principal, scope=scope)


async def explained(db: Executor, principal: Principal, permission: str, error: NotFound) -> DomainError:
    """What to answer when something was not found: PERMISSION_DENIED if the caller sees it, but may not do this to it.

    Costs a statement, and only calls that fail.
    """
    seen = sight(principal)
    read, resource_id = _READERS.get(error.metadata.get("resource_type", "")), error.metadata.get("resource_id")
    if read is None or not resource_id or seen is principal.scope:
        return error
    return error if await read(db, seen, UUID(resource_id)) is None else denied(permission)


async def person(call: Mutation) -> UUID | None:
    """Who stands behind a call: the user, or whoever made the key; None if nobody is known."""
    if call.principal.kind == "user" or call.principal.principal_id is None:
        return call.principal.principal_id
    key = await api_keys.get(call.tx, call.scope, call.principal.principal_id)
    return None if key is None else key.created_by


def denied(permission: str) -> PermissionDenied:
    """The refusal of a call whose right the caller lacks."""
    return PermissionDenied(f"this needs the permission {permission}", metadata={"permission": permission})


def _narrowed(scope: Scope, relations: tuple[str, ...]) -> Scope:
    if scope.everything or scope.user_id is None or scope.standings == relations:
        return scope
    return replace(scope, standings=relations)
