"""Log files by days."""

import gzip
from datetime import date
from pathlib import Path

from server.cli.logfiles import rotate


def test_logs_are_put_aside_by_days_and_deleted_in_time(tmp_path: Path) -> None:
    log, day = tmp_path / "server.log", date(2026, 11, 24)
    old, young, other = (tmp_path / name for name in ("x-2026-10-24.log.gz", "x-2026-10-25.log.gz", "odd.log.gz"))
    for file in (old, young, other):
        file.touch()
    with log.open("ab") as writer:
        writer.write(b"one\n")
        writer.flush()
        rotate(tmp_path, day, 30)
        # The same file goes on, and a second look on the same day takes nothing.
        writer.write(b"two\n")
        writer.flush()
        rotate(tmp_path, day, 30)
    assert log.read_bytes() == b"two\n"
    aside = tmp_path / "server-2026-11-23.log.gz"
    assert gzip.decompress(aside.read_bytes()) == b"one\n"
    assert aside.stat().st_mode & 0o777 == 0o600
    rotate(tmp_path, date(2026, 11, 25), 30)
    assert {file.name for file in tmp_path.iterdir()} == {
        "server.log", "server-2026-11-23.log.gz", "server-2026-11-24.log.gz", "odd.log.gz",
    }  # fmt: skip
