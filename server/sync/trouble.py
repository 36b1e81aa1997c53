"""What becomes of an account and its jobs when a platform refuses, does not answer, or answers nonsense."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from mrm.operations.v1.alert_pb2 import AlertDetails, IntegrationAlertDetails, JobAlertDetails
from server.accounts import convert
from server.alerts.convert import stored_details
from server.alerts.raising import clear_alerts, raise_alert
from server.jobs.handling import JobContext, JobFailed, JobPostponed
from server.platforms.interface import AuthFailed, Malformed, PlatformError, Refused, Throttled, Unavailable
from server.rpc.auditing import SYSTEM, append_to, recorder
from server.rpc.call import AuditEntry
from server.sealing import Unsealable
from server.settings import AlertsSettings
from server.sync.making import hold_key
from storage.postgres import integrations, jobs, sync_streams
from storage.postgres.alerts import Sighting
from storage.postgres.audit import Cause
from storage.postgres.database import Transaction
from storage.postgres.integrations import Integration
from storage.postgres.jobs import Job
from storage.postgres.sync_streams import StreamName
from storage.scope import EVERYTHING

# So often the same must fail before somebody is told: what passes by itself needs nobody.
_PATIENCE: Final = 3
# A job whose account is refused waits for the hold, and again if that was let go of too soon.
_HELD: Final = timedelta(seconds=1)


def broken_key(integration_id: UUID) -> str:
    """Key of the alert that an account cannot be used."""
    return f"integration:{integration_id}"


def failing_key(integration_id: UUID, stream: StreamName) -> str:
    """Key of the alert that a stream fails again and again."""
    return f"sync:{integration_id}:{stream}"


async def met(
    error: PlatformError | Unsealable, job: Job, context: JobContext, integration: Integration, stream: StreamName
) -> JobFailed | JobPostponed:
    """Acts upon what kept a stream from being read, and returns what the job has to raise.

    A refusal of the account puts it into error, holds its jobs back and is told to people. What asks for patience costs
    no attempt. The rest is tried again, and told to people when it goes on.
    """
    match error:
        case AuthFailed():
            return await _refused(error, job, context, integration, stream)
        case Throttled():
            await sync_streams.fail_internal(
                context.stores.database, integration.id, stream, "waiting", str(error), counted=False
            )
            return JobPostponed(error.retry_after, str(error))
        case Unavailable():
            reason = "unavailable"
        case Malformed():
            reason = "malformed"
        case Refused():
            reason = "refused"
        case _:
            reason = "unsealable"
    async with context.transaction("sync_failed") as tx:
        failures = await sync_streams.fail_internal(tx, integration.id, stream, reason, str(error))
        if failures >= _PATIENCE:
            details = JobAlertDetails(job_id=str(job.id), type=job.type, error=str(error))
            sighting = Sighting(
                integration.client_id,
                "job_failed",
                "warning",
                failing_key(integration.id, stream),
                f"{stream} of a {integration.platform} account could not be read {failures} times: {error}",
                stored_details(AlertDetails(job=details)),
                integration_id=integration.id,
            )
            await raise_alert(tx, sighting, cause=_cause(job), settings=context.stores.settings.alerts)
    return JobFailed(str(error), final=reason == "unsealable")


async def recovered_stream(tx: Transaction, job: Job, integration: Integration, stream: StreamName) -> None:
    """Ends the alert that a stream fails, because it was read."""
    key = failing_key(integration.id, stream)
    await clear_alerts(tx, integration.client_id, ["job_failed"], cause=_cause(job), keys=[key])


async def usable_again(tx: Transaction, integration: Integration, cause: Cause) -> None:
    """Lets the jobs of an account go on, because its platform takes the credentials or there are new ones."""
    await jobs.let_go_internal(tx, hold_key(integration.id))
    keys = [broken_key(integration.id)]
    await clear_alerts(tx, integration.client_id, ["integration_error"], cause=cause, keys=keys)


async def _refused(
    error: AuthFailed, job: Job, context: JobContext, integration: Integration, stream: StreamName
) -> JobPostponed:
    async with context.transaction("sync_refused") as tx:
        row = await integrations.get_for_update(tx, EVERYTHING, integration.id)
        if row is None or row.status != "connected" or row.credentials != integration.credentials:
            # Somebody has changed it meanwhile: the next try finds out what that means.
            return JobPostponed(_HELD, str(error))
        cause = Cause("platform", str(row.id), str(error))
        changed = replace(row, status="error", last_error=str(error), last_error_at=datetime.now(UTC))
        stored = await integrations.update(tx, EVERYTHING, changed) or row
        record = recorder(append_to(tx), SYSTEM, cause=cause)
        before, after = convert.integration(row), convert.integration(stored)
        await record(AuditEntry("sync", "integration", row.id, row.client_id, None, before, after))
        await refused_account(tx, stored, error, cause, context.stores.settings.alerts)
        await sync_streams.fail_internal(tx, integration.id, stream, "auth_failed", str(error))
    return JobPostponed(_HELD, str(error))


async def refused_account(
    tx: Transaction, row: Integration, error: AuthFailed, cause: Cause, settings: AlertsSettings
) -> None:
    """Holds the jobs of an account back that its platform refuses, and has people told."""
    await jobs.hold_back_internal(tx, hold_key(row.id), str(error))
    details = IntegrationAlertDetails(
        platform=row.platform, platform_account_id=row.platform_account_id, reason="auth_failed"
    )
    sighting = Sighting(
        row.client_id,
        "integration_error",
        "critical",
        broken_key(row.id),
        f"{row.platform} refuses the credentials of account {row.platform_account_id or row.id}: {error}",
        stored_details(AlertDetails(integration=details)),
        integration_id=row.id,
    )
    await raise_alert(tx, sighting, cause=cause, settings=settings)


def _cause(job: Job) -> Cause:
    return Cause("job", str(job.id), job.type)
