"""The platforms that can be connected. Adding one means a connector and its line in `Platforms.open`."""

from __future__ import annotations

from collections.abc import Iterable

from server.platforms.http import PlatformHttp
from server.platforms.interface import AnalyticsConnector, CampaignConnector, Connector
from server.platforms.vk_ads import VkAds
from server.platforms.yandex_direct import YandexDirect
from server.platforms.yandex_metrika import YandexMetrika
from server.settings import PlatformsSettings


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
