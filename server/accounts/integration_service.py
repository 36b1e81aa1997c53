"""IntegrationService: clients' accounts on advertising platforms. Credentials come in here and never go out."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from mrm.accounts.v1 import integration_pb2
from mrm.accounts.v1 import integration_service_pb2 as pb
from server.accounts import convert
from server.platforms.interface import AuthFailed, PlatformError
from server.platforms.registry import Platforms
from server.rpc.auditing import Actor, append_to, recorder
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.values import check_etag, moment, optional_id
from server.sealing import KeyRing, KeyRingError, Unsealable
from server.settings import AlertsSettings
from server.sync.account import OpenAccount, bound_to
from server.sync.making import hold_key
from server.sync.trouble import refused_account, usable_again
from storage.postgres import clients, integrations, jobs
from storage.postgres.audit import BY_CALL
from storage.postgres.database import Database, Transaction
from storage.postgres.integrations import Integration


class IntegrationService:
    """Implements mrm.accounts.v1.IntegrationService.

    Args:
        database: Where integrations live.
        pager: Makes page tokens.
        keyring: Seals and opens credentials.
        platforms: Whom to ask whether they work.
        alerts: When people are told of an account that is refused.
        announce: Told after a commit that changes were recorded.
    """

    def __init__(
        self,
        database: Database,
        pager: Pager,
        keyring: KeyRing,
        platforms: Platforms,
        alerts: AlertsSettings,
        announce: Callable[[], None],
    ) -> None:
        self._database = database
        self._pager = pager
        self._keyring = keyring
        self._platforms = platforms
        self._alerts = alerts
        self._announce = announce

    async def ConnectIntegration(
        self, request: pb.ConnectIntegrationRequest, call: Mutation
    ) -> pb.ConnectIntegrationResponse:
        """Connects an account, or connects it again."""
        client = await clients.get(call.tx, call.scope, UUID(request.client_id))
        if client is None:
            raise NotFound.resource("client", request.client_id)
        if client.read_only:
            raise FailedPrecondition.archived("client")
        platform = _platform(request.credentials)
        account = request.platform_account_id or _account(request.credentials)
        known = await integrations.by_account(
            call.tx, call.scope, client_id=client.id, platform=platform, platform_account_id=account
        )
        if known is None:
            integration_id = integrations.new_integration_id()
            row = await integrations.create(
                call.tx,
                integration_id=integration_id,
                client_id=client.id,
                platform=platform,
                credentials=self._seal(integration_id, client.id, request.credentials),
                platform_account_id=account,
                token_expires_at=_expiry(request.credentials),
            )
        elif known.status != "disconnected":
            raise AlreadyExists(
                "this account is connected: rotate its credentials",
                metadata={"field": "platform_account_id", "integration_id": str(known.id)},
            )
        else:
            row = await _stored(call.tx, call, self._connected(known, request.credentials))
            await usable_again(call.tx, row, BY_CALL)
        integration = convert.integration(row)
        before = None if known is None else convert.integration(known)
        await call.record(AuditEntry("connect", "integration", row.id, row.client_id, None, before, integration))
        return pb.ConnectIntegrationResponse(integration=integration)

    async def GetIntegration(self, request: pb.GetIntegrationRequest, call: Call) -> pb.GetIntegrationResponse:
        """Reads one integration."""
        row = await integrations.get(self._database, call.scope, UUID(request.integration_id))
        if row is None:
            raise NotFound.resource("integration", request.integration_id)
        return pb.GetIntegrationResponse(integration=convert.integration(row))

    async def ListIntegrations(self, request: pb.ListIntegrationsRequest, call: Call) -> pb.ListIntegrationsResponse:
        """Lists visible integrations."""
        page = self._pager.start(request, call)
        wanted = request.filter
        rows, next_token = page.cut(
            await integrations.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                client_id=optional_id(wanted.client_id),
                platform=convert.INTEGRATION_PLATFORMS.optional_word(wanted.platform),
                status=convert.INTEGRATION_STATUSES.optional_word(wanted.status),
            )
        )
        return pb.ListIntegrationsResponse(
            integrations=[convert.integration(row) for row in rows], next_page_token=next_token
        )

    async def TestIntegration(self, request: pb.TestIntegrationRequest, call: Call) -> pb.TestIntegrationResponse:
        """Asks the platform, outside of any transaction, and stores what it means."""
        row = await integrations.get(self._database, call.scope, UUID(request.integration_id))
        if row is None:
            raise NotFound.resource("integration", request.integration_id)
        if row.paused:
            raise FailedPrecondition.archived("client")
        if row.status == "disconnected":
            raise _disconnected("tested")
        account = self._opened(row)
        fault: PlatformError | None = None
        try:
            await account.ask(account.connector.check)
        except PlatformError as error:
            fault = error
        row = await self._noted(call, account.integration, fault)
        if fault is None:
            outcome, detail = pb.TestIntegrationResponse.OUTCOME_ACCEPTED, "the platform takes the credentials"
        elif isinstance(fault, AuthFailed):
            outcome, detail = pb.TestIntegrationResponse.OUTCOME_REFUSED, str(fault)
        else:
            outcome, detail = pb.TestIntegrationResponse.OUTCOME_UNAVAILABLE, str(fault)
        return pb.TestIntegrationResponse(integration=convert.integration(row), outcome=outcome, detail=detail)

    async def RotateIntegrationCredentials(
        self, request: pb.RotateIntegrationCredentialsRequest, call: Mutation
    ) -> pb.RotateIntegrationCredentialsResponse:
        """Replaces the credentials of a connected account."""
        row = await _locked(call, request.integration_id, request.etag)
        if row.paused:
            raise FailedPrecondition.archived("client")
        if row.status == "disconnected":
            raise _disconnected("rotated")
        if _platform(request.credentials) != row.platform:
            raise InvalidRequest.field("credentials", "PLATFORM_MISMATCH", f"must be those of {row.platform}")
        stored = await _stored(call.tx, call, self._connected(row, request.credentials))
        await usable_again(call.tx, stored, BY_CALL)
        integration = convert.integration(stored)
        entry = AuditEntry(
            "rotate", "integration", row.id, row.client_id, None, convert.integration(row), integration
        )  # fmt: skip
        await call.record(entry)
        return pb.RotateIntegrationCredentialsResponse(integration=integration)

    async def DisconnectIntegration(
        self, request: pb.DisconnectIntegrationRequest, call: Mutation
    ) -> pb.DisconnectIntegrationResponse:
        """Erases the credentials; also for archived clients, because a secret must always be possible to erase."""
        row = await _locked(call, request.integration_id, request.etag)
        if row.status == "disconnected":
            raise _disconnected("disconnected")
        erased = replace(row, status="disconnected", credentials={}, token_expires_at=None)
        integration = convert.integration(await _stored(call.tx, call, erased))
        await jobs.cancel_held_internal(call.tx, hold_key(row.id))
        await usable_again(call.tx, row, BY_CALL)
        entry = AuditEntry(
            "disconnect", "integration", row.id, row.client_id, None, convert.integration(row), integration
        )  # fmt: skip
        await call.record(entry)
        return pb.DisconnectIntegrationResponse(integration=integration)

    async def _noted(self, call: Call, row: Integration, fault: PlatformError | None) -> Integration:
        """What a test means for the integration: only a refusal is an error, only acceptance ends one."""
        if fault is None and row.status == "connected" and not row.last_error:
            return row
        error, at = ("", None) if fault is None else (str(fault), datetime.now(UTC))
        status = row.status
        if fault is None:
            status = "connected"
        elif isinstance(fault, AuthFailed):
            status = "error"
        changed = replace(row, status=status, last_error=error, last_error_at=at)

        async def store(tx: Transaction) -> Integration:
            stored = await _stored(tx, call, changed)
            if fault is None:
                await usable_again(tx, stored, BY_CALL)
            elif isinstance(fault, AuthFailed):
                await refused_account(tx, stored, fault, BY_CALL, self._alerts)
            before, after = convert.integration(row), convert.integration(stored)
            if stored.status != row.status:
                record = recorder(
                    append_to(tx, self._announce),
                    Actor.of(call.principal),
                    method=call.method,
                    request_id=call.request_id,
                )
                await record(AuditEntry("test", "integration", row.id, row.client_id, None, before, after))
            return stored

        return await self._database.run("TestIntegration", store)

    def _connected(self, row: Integration, credentials: integration_pb2.IntegrationCredentials) -> Integration:
        return replace(
            row,
            status="connected",
            credentials=self._seal(row.id, row.client_id, credentials),
            last_error="",
            last_error_at=None,
            token_expires_at=_expiry(credentials),
        )

    def _seal(
        self, integration_id: UUID, client_id: UUID, credentials: integration_pb2.IntegrationCredentials
    ) -> dict[str, str]:
        try:
            return self._keyring.seal(credentials.SerializeToString(), bound_to(integration_id, client_id))
        except KeyRingError as error:
            raise FailedPrecondition(str(error), metadata={"state": "no_keyring", "wanted": "keyring"}) from None

    def _opened(self, row: Integration) -> OpenAccount:
        try:
            return OpenAccount(self._database, self._keyring, self._platforms, row)
        except Unsealable as error:
            raise FailedPrecondition(
                f"the credentials cannot be opened ({error}): rotate them",
                metadata={"state": "sealed", "wanted": "opened", "key_id": row.credentials.get("key_id", "")},
            ) from None


async def _locked(call: Mutation, integration_id: str, etag: str) -> Integration:
    """An integration to change, as its caller knows it."""
    row = await integrations.get_for_update(call.tx, call.scope, UUID(integration_id))
    if row is None:
        raise NotFound.resource("integration", integration_id)
    check_etag(etag, row.revision)
    return row


async def _stored(tx: Transaction, call: Call, changed: Integration) -> Integration:
    stored = await integrations.update(tx, call.scope, changed)
    if stored is None:
        raise NotFound.resource("integration", str(changed.id))
    return stored


def _disconnected(wanted: str) -> FailedPrecondition:
    return FailedPrecondition(
        "the integration is disconnected: connect it", metadata={"state": "disconnected", "wanted": wanted}
    )


def _platform(credentials: integration_pb2.IntegrationCredentials) -> str:
    # Validation demands one of them, and they are named like the platforms.
    return credentials.WhichOneof("credentials") or ""


def _account(credentials: integration_pb2.IntegrationCredentials) -> str:
    """What the credentials themselves say of the account."""
    if credentials.HasField("yandex_metrika"):
        return str(credentials.yandex_metrika.counter_id)
    return credentials.yandex_direct.client_login


def _expiry(credentials: integration_pb2.IntegrationCredentials) -> datetime | None:
    return moment(credentials.expire_time) if credentials.HasField("expire_time") else None
