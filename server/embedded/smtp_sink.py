"""A mail server that delivers to nobody: it keeps what it is given, and misbehaves for whoever asks it to.

It speaks real SMTP over a socket. What it does is decided by the tag of an address, the part between ``+`` and ``@``:
``450`` and any other code refuses the recipient with it, ``data-552`` the content, ``450x2`` does so twice and then
takes it, ``slow`` never answers, ``drop`` ends the connection before it keeps the message, ``lost`` after.
"""

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as default_policy
from pathlib import Path
from typing import Any, Final

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

_TAG: Final = re.compile(r"\+(?P<where>data-)?(?P<what>\d{3}|slow|drop|lost)(?:x(?P<times>\d+))?@")
_SLOW_SECONDS: Final = 3600.0
_OK: Final = "250 OK"


@dataclass(frozen=True, slots=True)
class Kept:
    """A message that was taken.

    Attributes:
        sender: Who sent it, by the envelope.
        recipients: To whom, by the envelope.
        message: The message.
        file: Where it is stored; None without a directory.
    """

    sender: str
    recipients: tuple[str, ...]
    message: EmailMessage
    file: Path | None


@dataclass
class SmtpSink:
    """The mail server.

    Attributes:
        directory: Where messages are stored as ``.eml`` files; None keeps them in memory alone.
        kept: What was taken, in order.
        on_mail: Told of each message.
        login: User and password that it asks for, over TLS.
        tls: Certificate for STARTTLS.
        host: Where it listens.
        port: At which port; 0 picks a free one.
    """

    directory: Path | None = None
    kept: list[Kept] = field(default_factory=list)
    on_mail: Callable[[Kept], None] = lambda mail: None
    login: tuple[str, str] | None = None
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    port: int = 0
    _seen: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["SmtpSink"]:
        """Listens for the length of a block; `port` says where.

        Raises:
            OSError: The port is taken.
        """
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._session, self.host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    def to(self, address: str) -> list[Kept]:
        """What was taken for an address."""
        return [mail for mail in self.kept if address in mail.recipients]

    def _session(self) -> SMTP:
        return SMTP(
            self,
            hostname="sink.localhost",
            ident="MRM mail sink",
            tls_context=self.tls,
            require_starttls=self.tls is not None,
            auth_required=self.login is not None,
            authenticator=self._authenticate if self.login else None,
            loop=asyncio.get_running_loop(),
        )

    def _authenticate(self, server: SMTP, session: Session, envelope: Envelope, method: str, data: Any) -> AuthResult:
        given = (data.login.decode(), data.password.decode()) if isinstance(data, LoginPassword) else None
        # An unhandled failure is what makes it answer 535.
        return AuthResult(success=given == self.login, handled=False)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Takes a recipient, or not."""
        wanted = self._wanted(address, in_data=False)
        if wanted.isdigit():
            return f"{wanted} refused on demand"
        envelope.rcpt_tos.append(address)
        return _OK

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Takes a message, or not."""
        wanted = next((each for address in envelope.rcpt_tos if (each := self._wanted(address, in_data=True))), "")
        if wanted.isdigit():
            return f"{wanted} refused on demand"
        if wanted == "slow":
            await asyncio.sleep(_SLOW_SECONDS)
        if wanted != "drop":
            self._keep(envelope)
        if wanted in ("drop", "lost"):
            assert isinstance(server.transport, asyncio.WriteTransport)
            server.transport.abort()
        return _OK

    def _wanted(self, address: str, *, in_data: bool) -> str:
        """What is to be done for an address now; empty for nothing special."""
        tag = _TAG.search(address)
        if tag is None or in_data != (bool(tag["where"]) or not tag["what"].isdigit()):
            return ""
        self._seen[address] += 1
        return tag["what"] if tag["times"] is None or self._seen[address] <= int(tag["times"]) else ""

    def _keep(self, envelope: Envelope) -> None:
        content = envelope.content
        assert isinstance(content, bytes)
        file = None
        if self.directory is not None:
            file = self.directory / f"{len(self.kept) + 1:05d}.eml"
            file.write_bytes(content)
        message = message_from_bytes(content, policy=default_policy)
        mail = Kept(envelope.mail_from or "", tuple(envelope.rcpt_tos), message, file)
        self.kept.append(mail)
        self.on_mail(mail)
