"""The log files of a data directory: each day's put aside compressed, and deleted after a while."""

from __future__ import annotations

import asyncio
import gzip
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

_LOOK_SECONDS = 300.0


def rotate(directory: Path, today: date, keep_days: int) -> None:
    """Puts the logs of yesterday aside as ``NAME-YYYY-MM-DD.log.gz``, once a day, and deletes what is too old.

    Whoever writes goes on writing into the same file, which is emptied: engines keep theirs open and append. A line
    written between the copy and that is lost.

    Args:
        directory: Where the logs are.
        today: The day.
        keep_days: How many days are kept.
    """
    day = today - timedelta(days=1)
    for log in directory.glob("*.log"):
        aside = log.with_name(f"{log.stem}-{day}.log.gz")
        if aside.exists() or not log.stat().st_size:
            continue
        part = aside.with_suffix(".part")
        with log.open("rb") as source, gzip.open(part, "wb") as target:
            shutil.copyfileobj(source, target)
        with log.open("r+b") as file:
            file.truncate(0)
        part.chmod(0o600)
        part.replace(aside)
    for aside in directory.glob("*.log.gz"):
        try:
            of = date.fromisoformat(aside.name.removesuffix(".log.gz")[-10:])
        except ValueError:
            continue
        if of < today - timedelta(days=keep_days):
            aside.unlink()


async def keep_rotating(directory: Path, keep_days: int) -> None:
    """Rotates at the end of each day, until cancelled. The day of the start is not the end of one."""
    day = datetime.now(UTC).date()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        today = datetime.now(UTC).date()
        if today != day:
            await asyncio.to_thread(rotate, directory, today, keep_days)
            day = today
