"""How a recipient asks for no more e-mails: a token that says which address, made by us."""

from typing import Final

from server.rpc.tokens import InvalidToken, TokenCodec
from server.settings import Settings

_PURPOSE: Final = "unsubscribe"


def url(settings: Settings, shared_key: bytes, address: str) -> str:
    """Where to ask for no more e-mails to an address.

    Args:
        settings: Where that is, and the key if it is configured.
        shared_key: The key otherwise.
        address: The address.
    """
    configured = settings.auth.token_key
    codec = TokenCodec(configured.get_secret_value().encode() if configured else shared_key)
    return settings.email.unsubscribe.replace("{token}", codec.seal(_PURPOSE, b"", address.encode()))


def address_of(codec: TokenCodec, token: str) -> str | None:
    """The address that a token is for; None if it is none of ours."""
    try:
        return codec.open(_PURPOSE, b"", token).decode()
    except InvalidToken:
        return None
