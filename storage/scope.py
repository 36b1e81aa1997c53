"""Which tenants a caller may touch."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

SIGHT = ("member", "R", "A", "C", "I")
"""The standings by which things are seen: membership of a client, and any place in a project's team."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which tenants a caller may touch; nothing unless something here says so.

    Every storage function that reads tenant data takes one. A row outside the scope answers exactly like a row that
    does not exist.

    Attributes:
        everything: The caller reaches all tenants (an administrator, a key for all clients, the service itself).
        user_id: The caller reaches the clients this user is a member of, with all clients under them, and the projects
            this user is on the team of, as far as `standings` go.
        client_ids: The caller reaches these clients (an API key's), with all clients under them.
        standings: Which relations of the user count: ``member`` of the client or one above it; a letter of RACI, for
            whoever has it in the project's team; a project role with a letter, such as ``specialist:R``.
    """

    everything: bool = False
    user_id: UUID | None = None
    client_ids: tuple[UUID, ...] = ()
    standings: tuple[str, ...] = SIGHT

    @property
    def args(self) -> tuple[list[str], UUID | None, list[UUID]]:
        """The three parameters that scoped statements take first, in this order."""
        return ["everything"] if self.everything else list(self.standings), self.user_id, list(self.client_ids)


EVERYTHING = Scope(everything=True)
"""The scope of the service itself: for start-up, relays and command-line work, never for a caller's request."""
