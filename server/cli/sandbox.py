"""`mrm sandbox`: stands in for the advertising platforms."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from server.cli.console import CommandFailed, out, run, say

_KINDS = ("yandex_direct", "vk_ads", "yandex_metrika")


def sandbox(
    port: Annotated[int, typer.Option(help="Port on this machine; a free one if 0.", min=0, max=65535)] = 8090,
    state: Annotated[
        Path | None, typer.Option(help="File that its state is kept in; only in memory if left out.")
    ] = None,
    account: Annotated[
        list[str] | None,
        typer.Option(help="Account to open, as `platform:name`; a counter leads to the ones before it. Repeatable."),
    ] = None,
    campaigns: Annotated[int, typer.Option(help="Campaigns of each account opened.", min=0, max=1_000)] = 5,
    moderation: Annotated[float, typer.Option(help="Seconds that moderation takes.", min=0)] = 5.0,
    seed: Annotated[int, typer.Option(help="What the figures follow from; a state that is kept has its own.")] = 1,
    quiet: Annotated[bool, typer.Option(help="Do not print the requests.")] = False,
) -> None:
    """Stand in for Yandex Direct, VK Ads and Yandex Metrika, on this machine only.

    It keeps accounts, campaigns and tokens, makes plausible figures and restates them, throttles, and breaks on demand.
    Each account that is opened gets tokens, which are printed: they are worth nothing elsewhere. What can be done to it
    is `POST /sandbox/...`, for instance `curl -d '{"campaign_id": 1, "day": "2026-11-20", "thousandths": 940}'
    localhost:8090/sandbox/restate`.
    """
    for each in account or ():
        platform, _, name = each.partition(":")
        if platform not in _KINDS or not name:
            raise typer.BadParameter(f"{each} is not platform:name; platforms are {', '.join(_KINDS)}")
    run(_serve(port, state, account or [], campaigns, moderation, seed, quiet))


async def _serve(
    port: int, path: Path | None, accounts: list[str], campaigns: int, moderation: float, seed: int, quiet: bool
) -> None:
    from pydantic import ValidationError

    from server.sandbox.sandbox import Sandbox
    from server.sandbox.serving import serving
    from server.sandbox.state import State

    def told(method: str, asked: str, status: int) -> None:
        color = "green" if status < 400 else "red"
        out.print(f"{method:4} {asked} [{color}]{status}[/]", soft_wrap=True)

    try:
        made = Sandbox(
            State(seed=seed), path=path, moderation=timedelta(seconds=moderation), told=None if quiet else told
        )
    except ValidationError:
        raise CommandFailed(f"{path} holds no state of a sandbox") from None
    opened: list[str] = []
    async with serving(made, port=port):
        say(f"the sandbox serves at {made.url}; servers and workers find it by")
        for name in ("YANDEX_DIRECT", "VK_ADS", "YANDEX_METRIKA", "YANDEX_OAUTH"):
            say(f"  export MRM_PLATFORMS__{name}_URL={made.url}")
        for name in ("YANDEX", "VK_ADS"):
            say(f"  export MRM_PLATFORMS__{name}_CLIENT_ID=sandbox")
        for each in accounts:
            platform, _, name = each.partition(":")
            counter = platform == "yandex_metrika"
            tokens = made.open(
                platform,  # type: ignore[arg-type]
                name,
                campaigns=0 if counter else campaigns,
                sources=[one for one in opened if not one.startswith("yandex_metrika:")] if counter else (),
            )
            opened.append(each)
            say(f"{each}: token {tokens['access_token']}, refresh token {tokens['refresh_token']}")
        await asyncio.Event().wait()
