"""Which tenants a caller may touch."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Scope:
    """Which tenants a caller may touch; nothing unless something here says so.

    Every storage function that reads tenant data takes one. A row outside the scope answers exactly like a row that
    does not exist.

    Attributes:
        everything: The caller reaches all tenants (an administrator, a key for all clients, the service itself).
        user_id: The caller reaches the clients this user is a member of, with all clients under them, and the projects
            this user is on the team of.
        client_ids: The caller reaches these clients (an API key's), with all clients under them.
    """

    everything: bool = False
    user_id: UUID | None = None
    client_ids: tuple[UUID, ...] = ()

    @property
    def args(self) -> tuple[bool, UUID | None, list[UUID]]:
        """The three parameters that scoped statements take first, in this order."""
        return self.everything, self.user_id, list(self.client_ids)


EVERYTHING = Scope(everything=True)
"""The scope of the service itself: for start-up, relays and command-line work, never for a caller's request."""
