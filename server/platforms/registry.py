"""The platforms that can be connected. Adding one means a connector and its line in `Platforms.open`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from mrm.accounts.v1.integration_pb2 import IntegrationCredentials
from server.platforms.http import PlatformHttp
from server.platforms.interface import Account, AnalyticsConnector, AuthFailed, CampaignConnector, Connector
from server.platforms.vk_ads import VkAds
from server.platforms.yandex_direct import YandexDirect
from server.platforms.yandex_metrika import YandexMetrika
from server.settings import PlatformsSettings

Answered = TypeVar("Answered")


class Platforms:
    """All platforms, over one way out.

    Args:
        http: The way out, which `close` ends.
        connectors: One for each platform.
    """

    def __init__(self, http: PlatformHttp, connectors: Iterable[Connector]) -> None:
        self.http = http
        self._connectors = {each.platform: each for each in connectors}

    @classmethod
    def open(cls, settings: PlatformsSettings) -> Platforms:
        """The platforms as configured. Close them."""
        http = PlatformHttp(settings.timeout)
        return cls(http, (YandexDirect(http, settings), VkAds(http, settings), YandexMetrika(http, settings)))

    async def close(self) -> None:
        """Ends all connections."""
        await self.http.close()

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the platforms."""
        return tuple(self._connectors)

    @property
    def with_campaigns(self) -> tuple[str, ...]:
        """The words of those on which campaigns run."""
        return tuple(word for word in self._connectors if self.campaigns(word) is not None)

    def connector(self, platform: str) -> Connector:
        """The connector of a platform, by its word.

        Raises:
            KeyError: There is none.
        """
        return self._connectors[platform]

    def campaigns(self, platform: str) -> CampaignConnector | None:
        """The connector of a platform on which campaigns run; None if they do not run there."""
        found = self._connectors.get(platform)
        return found if isinstance(found, CampaignConnector) else None

    def analytics(self, platform: str) -> AnalyticsConnector | None:
        """The connector of a counter; None if the platform is none."""
        found = self._connectors.get(platform)
        return found if isinstance(found, AnalyticsConnector) else None

    async def check(self, key: str, credentials: IntegrationCredentials) -> None:
        """Returns if the platform that credentials are for takes them.

        Raises:
            PlatformError: It does not, or cannot be asked now.
        """
        platform = credentials.WhichOneof("credentials")
        if platform is None:
            raise AuthFailed("there are no credentials")
        await self.connector(platform).check(Account(key, credentials))


async def renewing(
    connector: Connector,
    account: Account,
    ask: Callable[[Account], Awaitable[Answered]],
    store: Callable[[IntegrationCredentials], Awaitable[None]],
) -> Answered:
    """Asks; if the token is refused, renews it, has the new one stored, and asks once more.

    One at a time for each integration: a refresh token may work once, so whoever renews holds a lock on the integration
    and has read the credentials under it.

    Args:
        connector: Whom to ask.
        account: With what.
        ask: What to ask, given the account.
        store: Seals and stores renewed credentials, before they are used: the old ones may be dead already.

    Raises:
        AuthFailed: The token cannot be renewed, or the renewed one is refused, too.
        PlatformError: As `ask` does.
    """
    try:
        return await ask(account)
    except AuthFailed as refusal:
        if not refusal.renewable or not connector.capabilities.refreshes:
            raise
        renewed = await connector.refresh(account)
        if renewed is None:
            raise
    await store(renewed)
    return await ask(Account(account.key, renewed))
