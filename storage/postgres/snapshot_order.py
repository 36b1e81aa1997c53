"""Readings of other sources are stored one after the other for each client."""

from __future__ import annotations

from uuid import UUID

from storage.postgres.database import Transaction

# Waits until no other transaction stores readings of the client.
_ENTER = "SELECT pg_advisory_xact_lock(hashtext('metrics_snapshots'), hashtext($1))"


async def enter(tx: Transaction, client_id: UUID) -> None:
    """Waits for the others of the client; the next one may enter when the transaction ends.

    ClickHouse has no transactions: without an order, two readings could each be stored beside what the other one has
    not written yet, and both be told that they count.
    """
    await tx.execute(_ENTER, str(client_id))
