"""Finding and holding prompts: who may write what."""

from uuid import UUID

from server.rpc import rights
from server.rpc.call import Call, Mutation, Principal
from server.rpc.errors import FailedPrecondition, NotFound
from storage.postgres import prompts
from storage.postgres.database import Executor
from storage.postgres.prompts import Prompt, PromptVersion


def may_write_for_agency(principal: Principal) -> bool:
    """Whether what a caller writes may reach all clients. A key for some clients is not to change what others get."""
    return principal.kind == "user" or principal.scope.everything


async def locked(call: Mutation, prompt_id: UUID) -> Prompt:
    """A prompt that the caller may change. Nothing of it changes until the call ends.

    Raises:
        NotFound: There is no such prompt in scope.
        PermissionDenied: It is the agency's, and the caller a key for some clients.
    """
    row = await prompts.get_for_update(call.tx, call.scope, prompt_id)
    if row is None:
        raise NotFound.resource("prompt", str(prompt_id))
    _check_owner(row, call)
    return row


async def locked_of_version(call: Mutation, version_id: UUID) -> tuple[Prompt, PromptVersion]:
    """As `locked`, by a version of the prompt, which comes with it."""
    row = await prompts.of_version_for_update(call.tx, call.scope, version_id)
    if row is None:
        raise NotFound.resource("prompt_version", str(version_id))
    _check_owner(row, call)
    return row, await found_version(call.tx, call, version_id)


def _check_owner(row: Prompt, call: Call) -> None:
    if row.client_id is None and not may_write_for_agency(call.principal):
        raise rights.denied("PROMPTS_WRITE")


async def found_version(db: Executor, call: Call, version_id: UUID) -> PromptVersion:
    """A version of a prompt in scope.

    Raises:
        NotFound: There is no such version.
    """
    row = await prompts.get_version(db, call.scope, version_id)
    if row is None:
        raise NotFound.resource("prompt_version", str(version_id))
    return row


def check_may_decide(call: Call, label: str, protected: tuple[str, ...]) -> None:
    """Raises PermissionDenied if a label is protected and the caller may not decide what it serves."""
    if label in protected and not rights.granting(call.principal, "PROMPTS_PROMOTE"):
        raise rights.denied("PROMPTS_PROMOTE")


def check_active(version: PromptVersion) -> None:
    """Raises FailedPrecondition if a version may not be served."""
    if version.status != "active":
        raise FailedPrecondition(
            f"version {version.version} is deprecated: restore it first, or take another",
            metadata={"resource_type": "prompt_version", "state": version.status, "wanted": "active"},
        )
