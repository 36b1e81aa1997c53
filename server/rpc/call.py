"""What a servicer method receives beside its request."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from uuid import UUID

from google.protobuf.message import Message

from storage.postgres.database import Transaction
from storage.redis.limits import RateState
from storage.scope import Scope

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls.

    Attributes:
        kind: ``user``, ``api_key`` or ``anonymous``.
        principal_id: UUID of the user or of the key; None for anonymous callers.
        permissions: Names of the rights held, such as ``CAMPAIGNS_READ``.
        scope: Tenants the caller may touch.
        credential: Digest that names the session or key, never the secret itself.
        role: The user's role in lower case; empty for keys.
        expire_time: Unix time at which the credentials end, if they do.
        service_account_id: The program that a key belongs to, if it belongs to one.
        family_id: The first key of a key's chain of rotations; None for others.
        begin_time: Unix time of the sign-in, for users.
    """

    kind: str
    principal_id: UUID | None
    permissions: frozenset[str]
    scope: Scope
    credential: str = ""
    role: str = ""
    expire_time: float | None = None
    service_account_id: UUID | None = None
    family_id: UUID | None = None
    begin_time: float = 0.0

    @property
    def lasting_id(self) -> UUID | None:
        """Whose retries, tokens and limits these are: the user's, or those of all keys of one chain of rotations.

        They have the same rights, so a program may change its key between a call and its retry.
        """
        return self.family_id or self.principal_id


ANONYMOUS = Principal("anonymous", None, frozenset(), Scope())


@dataclass(slots=True)
class Call:
    """One unary call that changes nothing, or manages its own changes.

    Attributes:
        method: Full name, such as ``/mrm.campaigns.v1.CampaignService/GetCampaign``.
        request_id: Id of this call in logs, replies and audit records.
        principal: Who calls.
        peer: Network address of the caller.
        note_limit: Tells the caller what is left of a limit that the method itself counts, as sign-in does; the others
            are told already.
    """

    method: str
    request_id: str
    principal: Principal
    peer: str = ""
    note_limit: "Callable[[RateState], None]" = field(default=lambda state: None, kw_only=True)

    @property
    def scope(self) -> Scope:
        """Tenants the caller may touch; every storage function that reads tenant data wants it."""
        return self.principal.scope


@dataclass(slots=True)
class Mutation(Call):
    """One call with a `request_id` field: its changes, audit records and stored reply share one transaction.

    Attributes:
        tx: The transaction. It commits after the method returns and rolls back if it raises.
    """

    tx: Transaction = field(kw_only=True)
    record: "AuditRecorder" = field(kw_only=True)


@dataclass(slots=True)
class StreamCall(Call, Generic[Request, Response]):
    """One streaming call.

    Attributes:
        requests: Messages of the caller, for client and bidirectional streams.
        write: Sends one message; waits while the caller does not read. Bytes are sent as they are.
        draining: Set when the server begins to shut down: send what a caller needs to resume, then return.
    """

    requests: AsyncIterator[Request] = field(kw_only=True)
    write: Callable[[Response | bytes], Awaitable[None]] = field(kw_only=True)
    draining: asyncio.Event = field(kw_only=True)


AuditRecorder = Callable[["AuditEntry"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A change to record beside the change itself.

    Attributes:
        action: Verb in lower case, such as ``create``.
        resource_type: Kind of resource, such as ``campaign``.
        resource_id: Its id.
        client_id: Tenant of the resource, if it has one.
        project_id: Project of the resource, if it has one.
        before: The resource as callers saw it before; None on creation.
        after: The resource as callers see it now; None when it is gone.
    """

    action: str
    resource_type: str
    resource_id: UUID
    client_id: UUID | None
    project_id: UUID | None
    before: Message | None
    after: Message | None
