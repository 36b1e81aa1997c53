"""Asks each platform the cheapest question that only valid credentials can answer."""

from typing import assert_never

from mrm.accounts.v1 import integration_pb2
from server.platforms.https import Answer, PlatformFault, PlatformHttp
from server.settings import PlatformsSettings

# https://yandex.com/dev/direct/doc/en/concepts/errors-list: invalid token, no rights, registration not completed, no
# account, no API access. Everything else that it may answer to this question passes: 52 and 1000 to 1002 are outages,
# 152 and 506 are quotas.
_DIRECT_REFUSALS = frozenset({53, 54, 58, 513, 3000, 3001})


class Platforms:
    """The platforms that can be connected.

    Args:
        http: The way out.
        settings: Where the platforms are.
    """

    def __init__(self, http: PlatformHttp, settings: PlatformsSettings) -> None:
        self._http = http
        self._settings = settings

    async def check(self, credentials: integration_pb2.IntegrationCredentials) -> None:
        """Returns if the platform takes the credentials.

        Raises:
            PlatformFault: It refuses them, or cannot be asked now.
        """
        kind = credentials.WhichOneof("credentials")
        match kind:
            case "yandex_direct":
                await self._yandex_direct(credentials.yandex_direct)
            case "vk_ads":
                await self._vk_ads(credentials.vk_ads)
            case "yandex_metrika":
                await self._yandex_metrika(credentials.yandex_metrika)
            case None:
                raise PlatformFault("there are no credentials", refused=True)
            case _:
                assert_never(kind)

    async def _yandex_direct(self, credentials: integration_pb2.YandexDirectCredentials) -> None:
        headers = {"authorization": f"Bearer {credentials.oauth_token}", "accept-language": "en"}
        if credentials.client_login:
            headers["client-login"] = credentials.client_login
        question = {"method": "get", "params": {"FieldNames": ["ClientId", "Login"]}}
        answer = await self._http.ask("POST", self._settings.yandex_direct_url, "/json/v5/clients", headers, question)
        error = answer.body.get("error")
        # Errors come with HTTP 200, and with their code as a number or as text.
        if isinstance(error, dict):
            code = _number(error.get("error_code"))
            raise PlatformFault(f"Yandex Direct answers error {code}", refused=code in _DIRECT_REFUSALS)
        if answer.status != 200 or "result" not in answer.body:
            raise _unexpected("Yandex Direct", answer)

    async def _vk_ads(self, credentials: integration_pb2.VkAdsCredentials) -> None:
        headers = {"authorization": f"Bearer {credentials.access_token}"}
        answer = await self._http.ask("GET", self._settings.vk_ads_url, "/api/v2/user.json", headers)
        if answer.status in (401, 403):
            raise PlatformFault(f"VK Ads answers HTTP {answer.status}", refused=True)
        if answer.status != 200 or "id" not in answer.body:
            raise _unexpected("VK Ads", answer)

    async def _yandex_metrika(self, credentials: integration_pb2.YandexMetrikaCredentials) -> None:
        headers = {"authorization": f"OAuth {credentials.oauth_token}"}
        path = f"/management/v1/counter/{credentials.counter_id}"
        answer = await self._http.ask("GET", self._settings.yandex_metrika_url, path, headers)
        # Older answers to a used up quota are 403, too; a counter that is not there is none that the token may see.
        if answer.status in (401, 403, 404) and not _quota(answer):
            raise PlatformFault(f"Yandex Metrika answers HTTP {answer.status}", refused=True)
        if answer.status != 200 or "counter" not in answer.body:
            raise _unexpected("Yandex Metrika", answer)


def _quota(answer: Answer) -> bool:
    errors = answer.body.get("errors")
    return isinstance(errors, list) and any(
        isinstance(each, dict) and str(each.get("error_type", "")).startswith("quota") for each in errors
    )


def _number(value: object) -> int:
    try:
        return int(str(value)[:10])
    except ValueError:
        return 0


def _unexpected(platform: str, answer: Answer) -> PlatformFault:
    return PlatformFault(f"{platform} answers HTTP {answer.status}", refused=False)
