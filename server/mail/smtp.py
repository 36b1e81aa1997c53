"""Handing an e-mail to the mail server, and telling what will pass from what will not."""

import re
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime, parseaddr
from typing import Final
from uuid import UUID

import aiosmtplib

from server.mail.letters import Rendered
from server.settings import EmailSettings

# What mail servers take without extensions; nothing that could end a header or an SMTP command.
_ADDRESS: Final = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}))*"
)
_LONGEST_ADDRESS: Final = 254
_LONGEST_LOCAL_PART: Final = 64


class Refused(Exception):
    """The mail server will not take this e-mail, now or later.

    Attributes:
        code: Its SMTP reply code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"the mail server refuses it ({code})")
        self.code = code


class Unsent(Exception):
    """The e-mail was not taken this time; its text holds nothing of what the mail server said."""


def is_address(text: str) -> bool:
    """Whether a text is an address that can be sent to."""
    return (
        len(text) <= _LONGEST_ADDRESS
        and _ADDRESS.fullmatch(text) is not None
        and len(text.partition("@")[0]) <= _LONGEST_LOCAL_PART
    )


def message(
    rendered: Rendered, settings: EmailSettings, *, email_id: UUID, address: str, date: datetime, unsubscribe: str
) -> EmailMessage:
    """An e-mail as it travels. Made again for a retry it has the same Message-ID and date, by which it is recognised.

    Args:
        rendered: What it says.
        settings: Who sends it.
        email_id: Names it for good.
        address: Where it goes, one that `is_address` let pass.
        date: When it came to be.
        unsubscribe: URL by which the recipient asks for no more.

    Raises:
        ValueError: A header would hold a line end.
    """
    name, sender = parseaddr(settings.sender)
    made = EmailMessage(policy=SMTP_POLICY)
    made["From"] = Address(name, addr_spec=sender)
    made["To"] = Address(addr_spec=address)
    made["Subject"] = rendered.subject
    made["Date"] = format_datetime(date)
    made["Message-ID"] = f"<{email_id}@{sender.rpartition('@')[2]}>"
    made["Auto-Submitted"] = "auto-generated"
    made["List-Unsubscribe"] = f"<{unsubscribe}>"
    made.set_content(rendered.text)
    made.add_alternative(rendered.html, subtype="html")
    return made


async def send(made: EmailMessage, settings: EmailSettings) -> None:
    """Hands an e-mail to the mail server, which has it once this returns.

    Raises:
        Refused: It answered with a permanent error (5xx) to sender, recipient or content.
        Unsent: It could not be reached, did not let us in, or answered with a transient error; try again.
    """
    try:
        await aiosmtplib.send(
            made,
            hostname=settings.host,
            port=settings.port,
            username=settings.user or None,
            password=settings.password.get_secret_value() or None,
            timeout=settings.timeout,
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            cert_bundle=None if settings.ca_file is None else str(settings.ca_file),
        )
    except (aiosmtplib.SMTPRecipientsRefused, aiosmtplib.SMTPResponseException) as error:
        code = _code(error)
        about_us = isinstance(error, aiosmtplib.SMTPAuthenticationError | aiosmtplib.SMTPConnectResponseError)
        if 500 <= code < 600 and not about_us:
            raise Refused(code) from None
        raise Unsent(f"the mail server answers {code}") from None
    except (aiosmtplib.SMTPException, OSError) as error:
        raise Unsent(f"the mail server cannot be used ({type(error).__name__})") from None


def _code(error: aiosmtplib.SMTPRecipientsRefused | aiosmtplib.SMTPResponseException) -> int:
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return error.code
    return error.recipients[0].code
