"""Rows of the accounts domain as messages, and back."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from mrm.accounts.v1 import api_key_pb2, client_pb2, integration_pb2, service_account_pb2, session_pb2, user_pb2
from mrm.common.v1 import options_pb2
from server.rpc.values import EnumWords, etag, json_of, timestamp
from storage.postgres.api_keys import ApiKey
from storage.postgres.clients import Client, Member
from storage.postgres.integrations import Integration
from storage.postgres.service_accounts import ServiceAccount
from storage.postgres.users import User
from storage.redis.sessions import Session

ROLES = EnumWords(user_pb2.UserRole, "USER_ROLE_")
USER_STATUSES = EnumWords(user_pb2.UserStatus, "USER_STATUS_")
CLIENT_TYPES = EnumWords(client_pb2.ClientType, "CLIENT_TYPE_")
INTEGRATION_PLATFORMS = EnumWords(integration_pb2.IntegrationPlatform, "INTEGRATION_PLATFORM_")
INTEGRATION_STATUSES = EnumWords(integration_pb2.IntegrationStatus, "INTEGRATION_STATUS_")

# Field of ClientSettings -> key of the settings column, and its default.
_SETTINGS = {
    "time_zone": ("timezone", "Europe/Moscow"),
    "currency_code": ("currency", "RUB"),
    "language_code": ("language", "ru"),
}
_SETTINGS_KEYS = frozenset(key for key, _ in _SETTINGS.values())


# What a deletion erases. The record of changes cannot be erased from, so it never holds these.
PERSONAL = ("email", "first_name", "last_name")


def user(row: User) -> user_pb2.User:
    """A user without anything secret."""
    return user_pb2.User(
        user_id=str(row.id),
        email="" if row.status == "deleted" else row.email,
        first_name=row.first_name,
        last_name=row.last_name,
        role=ROLES.number(row.role),
        status=USER_STATUSES.number(row.status),
        create_time=timestamp(row.created_at),
        last_login_time=timestamp(row.last_login_at),
        etag=etag(row.revision),
        update_time=timestamp(row.updated_at),
    )


def recorded_user(row: User, before: User | None = None) -> user_pb2.User:
    """A user as the record of changes shows it: whether personal fields are set and have changed, not what they say."""
    message, old = user(row), None if before is None else user(before)
    for name in PERSONAL:
        value = getattr(message, name)
        changed = old is not None and getattr(old, name) != value
        setattr(message, name, ("withheld, changed" if changed else "withheld") if value else "")
    return message


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session and the id that callers know it by, which grows with the time of the sign-in.

    Attributes:
        token_digest: SHA-256 of the token in hexadecimal.
    """

    id: UUID
    token_digest: str
    session: Session

    @classmethod
    def of(cls, token_digest: str, session: Session) -> "OpenSession":
        """The session with its id: the microsecond it began in, then half as many bits of the digest as make a UUID."""
        begun = round(session.created_at * 1_000_000)
        return cls(UUID(int=begun << 64 | int(token_digest[:16], 16)), token_digest, session)


def session(row: OpenSession, current: str) -> session_pb2.Session:
    """A session; `current` is the digest of the session that asks."""
    return session_pb2.Session(
        session_id=str(row.id),
        user_id=str(row.session.user_id),
        create_time=timestamp(datetime.fromtimestamp(row.session.created_at, UTC)),
        expire_time=timestamp(datetime.fromtimestamp(row.session.expire_time, UTC)),
        current=row.token_digest == current,
    )


def api_key(row: ApiKey) -> api_key_pb2.ApiKey:
    """A key without its secret."""
    return api_key_pb2.ApiKey(
        api_key_id=str(row.id),
        display_name=row.name,
        prefix=row.prefix,
        permissions=[
            options_pb2.Permission.Value(f"PERMISSION_{name}")
            for name in row.permissions
            if f"PERMISSION_{name}" in options_pb2.Permission.keys()  # noqa: SIM118 (an enum wrapper, not a dict)
        ],
        client_ids=[str(client_id) for client_id in row.client_ids],
        all_clients=row.all_clients,
        create_time=timestamp(row.created_at),
        expire_time=timestamp(row.expires_at),
        revoke_time=timestamp(row.revoked_at),
        last_use_time=timestamp(row.last_used_at),
        service_account_id=str(row.service_account_id or ""),
        successor_api_key_id=str(row.successor_id or ""),
    )


def service_account(row: ServiceAccount) -> service_account_pb2.ServiceAccount:
    """A service account."""
    return service_account_pb2.ServiceAccount(
        service_account_id=str(row.id),
        etag=etag(row.revision),
        display_name=row.name,
        description=row.description,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        disable_time=timestamp(row.disabled_at),
    )


def client(row: Client) -> client_pb2.Client:
    """A client."""
    known = {field: str(row.settings.get(key, default)) for field, (key, default) in _SETTINGS.items()}
    settings = client_pb2.ClientSettings(
        time_zone=known["time_zone"], currency_code=known["currency_code"], language_code=known["language_code"]
    )
    extra = {key: value for key, value in row.settings.items() if key not in _SETTINGS_KEYS}
    if extra:
        settings.extra.update(extra)
    return client_pb2.Client(
        client_id=str(row.id),
        etag=etag(row.revision),
        display_name=row.name,
        type=CLIENT_TYPES.number(row.type),
        parent_client_id=str(row.parent_client_id or ""),
        industry=row.industry,
        website=row.website,
        settings=settings,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        archive_time=timestamp(row.archived_at),
        read_only=row.read_only,
        purge_allowed_time=timestamp(row.purge_allowed_at),
        purge_time=timestamp(row.purged_at),
    )


def member(row: Member) -> client_pb2.ClientMember:
    """A membership."""
    return client_pb2.ClientMember(
        client_id=str(row.client_id),
        user_id=str(row.id),
        email=row.email,
        first_name=row.first_name,
        last_name=row.last_name,
        role=ROLES.number(row.role),
        create_time=timestamp(row.created_at),
    )


def integration(row: Integration) -> integration_pb2.Integration:
    """An integration without its credentials."""
    return integration_pb2.Integration(
        integration_id=str(row.id),
        etag=etag(row.revision),
        client_id=str(row.client_id),
        platform=INTEGRATION_PLATFORMS.number(row.platform),
        platform_account_id=row.platform_account_id,
        status=INTEGRATION_STATUSES.number(row.status),
        paused=row.paused,
        last_sync_time=timestamp(row.last_synced_at),
        last_error=row.last_error,
        last_error_time=timestamp(row.last_error_at),
        token_expire_time=timestamp(row.token_expires_at),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )


def settings_column(message: client_pb2.ClientSettings) -> dict[str, Any]:
    """The settings column of a message; empty fields take their defaults."""
    known = {key: getattr(message, field) or default for field, (key, default) in _SETTINGS.items()}
    return json_of(message.extra, "client.settings.extra") | known


def writable(message: client_pb2.Client) -> dict[str, Any]:
    """The columns that a caller may write."""
    return {
        "name": message.display_name,
        "industry": message.industry,
        "website": message.website,
        "settings": settings_column(message.settings),
    }
