"""Reading of files, and what a bad row does."""

import gzip
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from server.cli.console import CommandFailed
from server.cli.rows import Row, RowFile


def rows(path: Path) -> list[Row]:
    return list(RowFile.open(path).rows())


@pytest.mark.parametrize("gzipped", [False, True])
def test_csv(tmp_path: Path, gzipped: bool) -> None:
    text = 'a,b\n1,"two, lines\nof text"\n,4\n\n5\n6,7\n'.encode("utf-8-sig")
    path = tmp_path / ("f.csv.gz" if gzipped else "f.csv")
    path.write_bytes(gzip.compress(text) if gzipped else text)
    first, second, third, fourth = rows(path)
    assert (first.line, first.values) == (2, {"a": "1", "b": "two, lines\nof text"})
    assert (second.line, second.values) == (4, {"b": "4"})
    assert (third.line, third.fault) == (6, "has 1 values for 2 columns")
    assert (fourth.line, fourth.values) == (7, {"a": "6", "b": "7"})


def test_csv_goes_on_after_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(b'a\n"x" y\n\xff\n2\n')
    broken, odd, good = rows(path)
    assert broken.line == 2
    assert broken.fault.startswith("is no CSV")
    assert odd.values == {"a": "\udcff"}, "the event of this row is refused, not the file"
    assert (good.line, good.values) == (4, {"a": "2"})


def test_ndjson_reads_numbers_exactly(tmp_path: Path) -> None:
    path = tmp_path / "f.ndjson"
    path.write_text('{"a": 0.1000000000000000000001, "b": null, "c": 1}\n\n[1]\n{"a"\n{"a": "x"}\n')
    first, second, third, fourth = rows(path)
    assert first.values == {"a": Decimal("0.1000000000000000000001"), "c": 1}
    assert (second.line, second.fault) == (3, "is no JSON object")
    assert (third.line, third.fault) == (4, "is no JSON")
    assert (fourth.line, fourth.values) == (5, {"a": "x"})


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    moments = pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", tz="UTC"))
    costs = pa.array([Decimal("1.5"), Decimal("2.5")], pa.decimal128(18, 6))
    pq.write_table(pa.table({"event_time": moments, "cost": costs}), path)
    first, second = rows(path)
    assert first.values["event_time"] == datetime(2023, 11, 14, 22, 13, 20, 123456, UTC)
    assert first.values["cost"] == Decimal("1.5")
    assert (second.line, set(second.values)) == (2, {"cost"})


@pytest.mark.parametrize(
    ("name", "content"),
    [("f.txt", b""), ("f.csv", b""), ("f.csv", b"a,a\n1,2\n"), ("f.parquet", b"none"), ("f.csv.gz", b"none")],
)
def test_files_that_are_none_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CommandFailed):
        rows(path)


def test_a_truncated_file_is_an_error_and_not_an_end(tmp_path: Path) -> None:
    path = tmp_path / "f.csv.gz"
    path.write_bytes(gzip.compress(b"a\n" + b"\n".join(b"%d" % n for n in range(10_000)))[:-50])
    with pytest.raises(CommandFailed, match="damaged"):
        rows(path)
