"""Which rows a caller's question may cover, by what PostgreSQL says of its rights."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from server.rpc.errors import NotFound
from server.statistics.rules import Filter
from storage.clickhouse.metrics import Selection
from storage.errors import StoreUnavailable
from storage.postgres import campaigns, reach
from storage.postgres.database import Database
from storage.scope import Scope

T = TypeVar("T")

_KEPT_SECONDS = 900.0
_KEPT_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Reach:
    """What a question covers.

    Attributes:
        selection: The rows.
        time_zone: Zone of the client, if the filter names exactly one.
    """

    selection: Selection
    time_zone: str | None


class ReachResolver:
    """Resolves filters within scopes.

    Args:
        database: Knows the rights. While it is down, an answer that was given not long ago is given again.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: Fallback[Reach] = Fallback()

    async def resolve(self, scope: Scope, wanted: Filter) -> Reach:
        """What a filter covers within a scope.

        Raises:
            NotFound: An id of the filter is unknown or out of scope.
        """
        return await self._known.get((scope, wanted), lambda: self._ask(scope, wanted))

    async def _ask(self, scope: Scope, wanted: Filter) -> Reach:
        zones = await reach.clients(self._database, scope, wanted.client_ids or None)
        require("client", wanted.client_ids, zones)
        zone = zones[wanted.client_ids[0]] if len(wanted.client_ids) == 1 else None
        platforms = wanted.platforms or None
        if not wanted.project_ids and not wanted.campaign_ids:
            return Reach(await self._all(scope, wanted, zones, platforms), zone)
        owners = await self._owners(scope, wanted)
        return Reach(
            Selection(
                clients=owners & zones.keys() if wanted.client_ids else owners,
                projects=wanted.project_ids or None,
                campaigns=wanted.campaign_ids or None,
                platforms=platforms,
            ),
            zone,
        )

    async def _all(
        self, scope: Scope, wanted: Filter, zones: dict[UUID, str], platforms: Collection[str] | None
    ) -> Selection:
        team = [] if wanted.client_ids else await reach.team_projects(self._database, scope)
        if not team:
            return Selection(clients=tuple(zones), platforms=platforms)
        return Selection(
            clients=zones.keys() | {owner.client_id for owner in team},
            whole_clients=tuple(zones),
            team_projects=tuple(owner.project_id for owner in team),
            platforms=platforms,
        )

    async def _owners(self, scope: Scope, wanted: Filter) -> set[UUID]:
        """Clients of the projects and campaigns named, all of which must be in scope."""
        owners: list[set[UUID]] = []
        if wanted.project_ids:
            projects = await reach.projects(self._database, scope, wanted.project_ids)
            require("project", wanted.project_ids, (project.project_id for project in projects))
            owners.append({project.client_id for project in projects})
        if wanted.campaign_ids:
            found = await campaigns.for_dimension(self._database, scope, campaign_ids=wanted.campaign_ids)
            require("campaign", wanted.campaign_ids, (campaign.campaign_id for campaign in found))
            owners.append({campaign.client_id for campaign in found})
        return set.intersection(*owners)


class Fallback(Generic[T]):
    """Answers given once, to give again while the store that knows is down."""

    def __init__(self) -> None:
        self._answers: OrderedDict[object, tuple[float, T]] = OrderedDict()

    async def get(self, key: object, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to a question, from the store if it answers.

        Raises:
            StoreUnavailable: It does not, and the question is new or was long ago.
        """
        try:
            answer = await ask()
        except StoreUnavailable:
            known = self._answers.get(key)
            if known is None or known[0] < time.monotonic():
                raise
            return known[1]
        except NotFound:
            self._answers.pop(key, None)
            raise
        self._answers[key] = (time.monotonic() + _KEPT_SECONDS, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > _KEPT_ENTRIES:
            self._answers.popitem(last=False)
        return answer


def require(kind: str, wanted: Iterable[UUID], found: Iterable[UUID]) -> None:
    """Raises NotFound for the first wanted id that was not found."""
    known = set(found)
    for each in wanted:
        if each not in known:
            raise NotFound.resource(kind, str(each))
