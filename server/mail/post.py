"""Having people told: an e-mail is a row and a job, made in the transaction of what it tells of."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final
from uuid import UUID

from server.mail.letters import Letter, language_of
from storage.postgres import emails, jobs
from storage.postgres.database import Transaction
from storage.postgres.emails import Recipient

SEND_TYPE: Final = "send_email"
SEND_QUEUE: Final = "email"
# Mail servers are away for minutes or hours, not seconds; greylisting wants some minutes.
_TRIES: Final = 10
_FIRST_PAUSE: Final = timedelta(seconds=30)
_LONGEST_PAUSE: Final = timedelta(hours=2)


async def tell(
    tx: Transaction,
    letter: Letter,
    recipients: Iterable[Recipient],
    *,
    event_id: str,
    language: str | None,
    client_id: UUID | None = None,
    requested_by: UUID | None = None,
) -> int:
    """Has recipients told of an event, each address once.

    Args:
        tx: The transaction of what happened.
        letter: What to say.
        recipients: To whom.
        event_id: Names what happened: the same address is told of it once, whoever else asks.
        language: BCP 47 tag of the language; Russian if None.
        client_id: The client it is about.
        requested_by: The user whose doing it is, if one's.

    Returns:
        How many will be told that were not already.
    """
    told = 0
    for recipient in recipients:
        email_id = await emails.add_internal(
            tx,
            template=letter.template,
            language=language_of(language),
            recipient=recipient,
            client_id=client_id,
            event_id=event_id,
            content=letter.model_dump(mode="json"),
        )
        if email_id is None:
            continue
        told += 1
        await jobs.enqueue_internal(
            tx,
            type=SEND_TYPE,
            queue=SEND_QUEUE,
            payload={"email_id": str(email_id)},
            client_id=client_id,
            requested_by=requested_by,
            unique_key=f"email:{email_id}",
            max_attempts=_TRIES,
            backoff_base=_FIRST_PAUSE,
            backoff_cap=_LONGEST_PAUSE,
        )
    return told
