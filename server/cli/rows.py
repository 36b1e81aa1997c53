"""Reads files of events row by row: CSV, NDJSON and Parquet, the first two also gzipped."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from server.cli.console import CommandFailed

_PARQUET_ROWS = 5000
_HASH_BYTES = 2**20
_LONGEST_FIELD = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file.

    Attributes:
        line: Number of its first line, from 1; in Parquet, of the row.
        values: Column values; absent ones are left out.
        fault: Why it could not be read, if it could not.
    """

    line: int
    values: Mapping[str, Any]
    fault: str = ""


Reader = Callable[[BinaryIO], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows, which may be read several times.

    Attributes:
        sha256: Digest of its bytes, in hexadecimal.
    """

    path: Path
    sha256: str
    _reader: Reader

    @classmethod
    def open(cls, path: Path) -> RowFile:
        """Recognises the format by the file's ending.

        Raises:
            CommandFailed: It has none of the known endings.
        """
        name = path.name.lower().removesuffix(".gz")
        reader = next((reader for ending, reader in _READERS.items() if name.endswith(ending)), None)
        if reader is None:
            raise CommandFailed(f"{path}: expected a file ending in {', '.join(_READERS)}; text may be gzipped (.gz)")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                digest.update(block)
        return cls(path, digest.hexdigest(), reader)

    def rows(self) -> Iterator[Row]:
        """Every row from the beginning.

        Raises:
            CommandFailed: The file is damaged beyond single rows.
        """
        try:
            with self.path.open("rb") as raw, closing(_plain(self.path, raw)) as file:
                yield from self._reader(file)
        except (EOFError, gzip.BadGzipFile) as error:
            raise CommandFailed(f"{self.path}: damaged: {error}") from None


def _plain(path: Path, raw: BinaryIO) -> Any:
    return gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw


@contextmanager
def _text(file: BinaryIO, newline: str) -> Iterator[io.TextIOWrapper]:
    # Bytes that are no UTF-8 must spoil their row, not the file.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    try:
        yield text
    finally:
        text.detach()


def read_csv(file: BinaryIO) -> Iterator[Row]:
    """Rows of a comma-separated file with a header; empty values count as absent."""
    csv.field_size_limit(_LONGEST_FIELD)
    with _text(file, newline="") as text:
        yield from _records(text)


def _records(text: io.TextIOWrapper) -> Iterator[Row]:
    reader = csv.reader(text, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if not header or len(set(header)) != len(header):
        raise CommandFailed("the first line must name the columns, each once")
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, {}, f"is no CSV: {error}")
            continue
        if not fields:
            continue
        if len(fields) != len(header):
            yield Row(line, {}, f"has {len(fields)} values for {len(header)} columns")
            continue
        yield Row(line, {name: value for name, value in zip(header, fields, strict=True) if value != ""})


def read_ndjson(file: BinaryIO) -> Iterator[Row]:
    """Rows of a file with one JSON object a line; numbers are read exactly."""
    with _text(file, newline="\n") as text:
        for line, record in enumerate(text, start=1):
            if record.strip():
                yield _object(line, record)


def _object(line: int, record: str) -> Row:
    try:
        value = json.loads(record, parse_float=Decimal)
    except (ValueError, RecursionError):
        return Row(line, {}, "is no JSON")
    if isinstance(value, dict):
        return Row(line, {name: item for name, item in value.items() if item is not None})
    return Row(line, {}, "is no JSON object")


def read_parquet(file: BinaryIO) -> Iterator[Row]:
    """Rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError):
        raise CommandFailed("is no Parquet file") from None
    line = 0
    for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS):
        table = pa.Table.from_batches([batch])
        # Python's times end at microseconds; finer digits are cut, as the service does.
        for index, column in enumerate(table.schema):
            if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
                cut = table.column(index).cast(pa.timestamp("us", tz=column.type.tz), safe=False)
                table = table.set_column(index, column.name, cut)
        for values in table.to_pylist():
            line += 1
            yield Row(line, {name: value for name, value in values.items() if value is not None})


_READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".ndjson": read_ndjson,
    ".jsonl": read_ndjson,
    ".parquet": read_parquet,
}
