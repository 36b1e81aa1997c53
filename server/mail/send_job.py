"""The job that sends an e-mail.

SMTP has no way to ask whether a message has arrived. A worker that dies after the mail server took it and before that
was noted sends it again, under the same Message-ID; everything else that is repeated sends nothing.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from server.jobs.handling import JobContext, JobFailed
from server.mail import smtp, unsubscribing
from server.mail.letters import REGISTRY, render
from server.mail.post import SEND_QUEUE, SEND_TYPE
from server.monitoring.events import EMAILS
from storage.postgres import audit, emails, token_keys
from storage.postgres.audit import Cause, Record
from storage.postgres.emails import Email
from storage.postgres.jobs import Job

TYPE: Final = SEND_TYPE
QUEUE: Final = SEND_QUEUE


class SendEmail(BaseModel):
    """Payload of a ``send_email`` job.

    Attributes:
        email_id: What to send, a row of ``emails``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    email_id: UUID


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Sends an e-mail, unless it was sent or its recipient wants none."""
    email = await emails.get_internal(context.stores.database, SendEmail.model_validate(job.payload).email_id)
    if email is None or email.status == "sent" or not email.content:
        return {"outcome": "gone" if email is None else email.status}
    settings = context.stores.settings.email
    if not settings.host or not email.reachable:
        return await _end(job, context, email, "skipped")
    if email.suppressed:
        return await _end(job, context, email, "suppressed")
    if not smtp.is_address(email.address):
        return await _end(job, context, email, "undeliverable")
    codec = await token_keys.shared_key(context.stores.database)
    unsubscribe = unsubscribing.url(context.stores.settings, codec, email.address)
    letter = REGISTRY[email.template].model_validate(email.content)
    rendered = render(letter, "en" if email.language == "en" else "ru", name=email.first_name, unsubscribe=unsubscribe)
    made = smtp.message(
        rendered,
        settings,
        email_id=email.id,
        address=email.address,
        date=email.created_at,
        unsubscribe=unsubscribe,
    )
    try:
        await smtp.send(made, settings)
    except smtp.Unsent as error:
        raise JobFailed(str(error)) from None
    except smtp.Refused as error:
        await _end(job, context, email, "undeliverable")
        raise JobFailed(str(error), final=True) from None
    return await _end(job, context, email, "sent")


async def _end(
    job: Job, context: JobContext, email: Email, status: Literal["sent", "suppressed", "undeliverable", "skipped"]
) -> Mapping[str, Any]:
    """Notes what became of it: to whom which kind of e-mail went is recorded, not what it said."""
    async with context.transaction("end_email") as tx:
        if await emails.end_internal(tx, email.id, status) and status == "sent":
            sent = Record(
                actor_kind="system",
                actor_id=None,
                action="send",
                resource_type="email",
                resource_id=email.id,
                client_id=email.client_id,
                diff={
                    "template": [None, email.template],
                    "recipient_user_id": [None, None if email.user_id is None else str(email.user_id)],
                },
                cause=Cause("job", str(job.id), email.event_id),
            )
            await audit.append(tx, sent)
    EMAILS.labels(status).inc()
    return {"outcome": status}
