"""A producer in a process of its own, which a test may kill at any moment and start again."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from uuid import UUID

import mrm_client
from mrm.statistics.v1 import event_pb2

BATCH = 50
MILLIS_APART = 20
PAUSE_SECONDS = 0.02


def event(number: int, campaign_id: str, base: int, index: int) -> event_pb2.Event:
    """The event of this index: always the same, so that one that is sent again is the same event.

    Args:
        number: Which producer.
        campaign_id: Its campaign.
        base: When the first event happened, Unix seconds.
        index: Which event.
    """
    made = event_pb2.Event(
        event_id=str(UUID(int=(number << 64) + index + 1)),
        campaign_id=campaign_id,
        event_type=event_pb2.EVENT_TYPE_IMPRESSION,
        cost_micros=cost(index),
    )
    made.event_time.FromMilliseconds(base * 1000 + index * MILLIS_APART)
    return made


def cost(index: int) -> int:
    """Cost of an event in micros, different from its neighbours'."""
    return index % 977 + 1


async def produce(target: str, client_id: str, campaign_id: str, number: int, base: int, folder: Path) -> None:
    """Appends events until the file `stop` is there; notes what is acknowledged in `acked-N`, after it is.

    It never learns what it had sent before it was killed: the server's position is all it goes by.
    """
    noted = os.open(folder / f"acked-{number}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    async with (
        mrm_client.channel(target, os.environ["KEY"]) as channel,
        mrm_client.Producer(channel, client_id, f"killed-{number}") as producer,
    ):
        while not (folder / "stop").exists():
            first = producer.position
            await producer.send([event(number, campaign_id, base, index) for index in range(first, first + BATCH)])
            await producer.flush()
            os.write(noted, b"%d\n" % producer.acknowledged_position)
            await asyncio.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    _, target, client_id, campaign_id, number, base, folder = sys.argv
    asyncio.run(produce(target, client_id, campaign_id, int(number), int(base), Path(folder)))
