"""Counts what each client uses, and adds it up in PostgreSQL every few seconds."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from server.rpc import logs
from server.rpc.call import Principal
from storage.errors import StoreError
from storage.postgres import usage
from storage.postgres.database import Database

_EXPORTS: Final = frozenset({"ExportStatistics", "WriteStatisticsFile"})


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whose call a call of one RPC is: of the client that its reply is of, or its request names, or its key is for.

    Attributes:
        reply: Field of the reply that holds a resource with a ``client_id``; empty if there is none.
        request: Path to the client or clients in the request; empty if it names none.
        export: Whether figures leave the service by it.
    """

    reply: str
    request: tuple[str, ...]
    export: bool

    @classmethod
    def of(cls, method: MethodDescriptor) -> "Attribution":
        """The attribution of an RPC, by what its messages have."""
        # A page of resources is of no one client.
        fields = (field for field in method.output_type.fields if not field.is_repeated)
        reply = next((field.name for field in fields if _names_client(field.message_type)), "")
        asked = method.input_type.fields_by_name
        path: tuple[str, ...] = ()
        if "client_id" in asked:
            path = ("client_id",)
        elif "filter" in asked and asked["filter"].message_type is not None:
            within = asked["filter"].message_type.fields_by_name
            path = next((("filter", name) for name in ("client_id", "client_ids") if name in within), ())
        streaming = method.client_streaming or method.server_streaming
        return cls("" if streaming else reply, path, method.name in _EXPORTS)

    def clients(self, request: Any, reply: Any, principal: Principal) -> Sequence[str]:
        """The clients of one call that went well; none if nothing says.

        Args:
            request: Its request; None for one that streams requests.
            reply: Its reply; None for one that streams replies.
            principal: Who called.
        """
        if self.reply and reply is not None and not isinstance(reply, bytes):
            found = getattr(reply, self.reply).client_id
            if found:
                return (found,)
        if self.request and request is not None:
            value = request
            for name in self.request:
                value = getattr(value, name)
            if value:
                return (value,) if isinstance(value, str) else tuple(value)
        keyed = principal.scope.client_ids
        return (str(keyed[0]),) if len(keyed) == 1 else ()


class UsageCounter:
    """Counts in memory; what is not added up yet when the process is killed, seconds of it, is lost.

    Args:
        database: Where it is added up.
        interval: Seconds between two additions.
    """

    def __init__(self, database: Database, interval: float = 10.0) -> None:
        self._database = database
        self._interval = interval
        self._calls: Counter[str] = Counter()
        self._exports: Counter[str] = Counter()
        self._log = logs.get("usage")

    def count(self, attribution: Attribution, request: Any, reply: Any, principal: Principal) -> None:
        """Counts a call that went well."""
        for client in attribution.clients(request, reply, principal):
            self._calls[client] += 1
            if attribution.export:
                self._exports[client] += 1

    async def run(self) -> None:
        """Adds up again and again, for ever."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.flush()
            except (StoreError, TimeoutError) as error:
                self._log.warning("usage_waits", exc_info=error)

    async def flush(self) -> None:
        """Adds up what was counted; should that fail, it is counted on."""
        calls, self._calls = self._calls, Counter()
        exports, self._exports = self._exports, Counter()
        if not calls:
            return
        try:
            await usage.add_internal(
                self._database, [usage.Amount(UUID(client), calls[client], exports[client]) for client in calls]
            )
        except BaseException:
            self._calls.update(calls)
            self._exports.update(exports)
            raise

    async def close(self) -> None:
        """Adds up the rest."""
        with suppress(StoreError, TimeoutError):
            await self.flush()


def _names_client(message: Descriptor | None) -> bool:
    if message is None:
        return False
    field = message.fields_by_name.get("client_id")
    return field is not None and field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
