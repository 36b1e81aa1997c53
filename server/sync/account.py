"""An account that is asked: its credentials, opened, and renewed when the platform wants others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from mrm.accounts.v1.integration_pb2 import IntegrationCredentials
from server.platforms.interface import Account, AuthFailed, Connector
from server.platforms.registry import Platforms
from server.rpc.values import moment
from server.sealing import KeyRing
from storage.postgres import integrations
from storage.postgres.database import Database
from storage.postgres.integrations import Integration
from storage.scope import EVERYTHING

Answered = TypeVar("Answered")

# Somebody else may have taken the refresh token, which some platforms take only once, and not have stored the new one.
_WAITS = 8
_WAIT_SECONDS = 0.15


def bound_to(integration_id: UUID, client_id: UUID) -> bytes:
    """What the envelope of an integration's credentials is bound to: moved to another row, it does not open."""
    return b"integration" + integration_id.bytes + client_id.bytes


class OpenAccount:
    """An account with opened credentials.

    Args:
        database: Where the integration is.
        keyring: Opens and seals.
        platforms: Whom to ask.
        integration: The account.

    Raises:
        server.sealing.Unsealable: The credentials cannot be opened.
    """

    def __init__(self, database: Database, keyring: KeyRing, platforms: Platforms, integration: Integration) -> None:
        self._database = database
        self._keyring = keyring
        self.integration = integration
        self.connector: Connector = platforms.connector(integration.platform)
        self._account = self._opened(integration)

    async def ask(self, question: Callable[[Account], Awaitable[Answered]]) -> Answered:
        """Asks the platform; if it refuses the token, renews that and asks once more.

        Raises:
            PlatformError: As the question does. `AuthFailed` if the token cannot be renewed, or the new one is refused.
        """
        try:
            return await question(self._account)
        except AuthFailed as refusal:
            if not refusal.renewable or not await self._renewed():
                raise
        return await question(self._account)

    def _opened(self, integration: Integration) -> Account:
        plain = self._keyring.open(integration.credentials, bound_to(integration.id, integration.client_id))
        return Account(str(integration.id), IntegrationCredentials.FromString(plain))

    async def _renewed(self) -> bool:
        """Whether there are other credentials now."""
        if await self._replaced():
            return True
        if not self.connector.capabilities.refreshes:
            return False
        try:
            fresh = await self.connector.refresh(self._account)
        except AuthFailed:
            for _ in range(_WAITS):
                await asyncio.sleep(_WAIT_SECONDS)
                if await self._replaced():
                    return True
            raise
        if fresh is None:
            return False
        mine = self.integration
        envelope = self._keyring.seal(fresh.SerializeToString(), bound_to(mine.id, mine.client_id))
        expires_at = moment(fresh.expire_time) if fresh.HasField("expire_time") else None
        stored = await integrations.renew_internal(self._database, mine.id, mine.credentials, envelope, expires_at)
        if stored:
            self._account = Account(self._account.key, fresh)
        # Otherwise somebody has given it new ones meanwhile, and those count.
        return await self._replaced() or stored

    async def _replaced(self) -> bool:
        """Takes the credentials that are stored, if they are others than those that were opened."""
        row = await integrations.get(self._database, EVERYTHING, self.integration.id)
        if row is None or not row.credentials or row.credentials == self.integration.credentials:
            return False
        self.integration, self._account = row, self._opened(row)
        return True
