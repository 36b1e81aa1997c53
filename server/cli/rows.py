"""Reads files of events row by row: CSV, NDJSON and Parquet, the first two also gzipped."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from server.cli.console import CommandFailed

_PARQUET_ROWS = 5000
_HASH_BYTES = 2**20
_LONGEST_FIELD = 2**20
_LONGEST_LINE = 2**24


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file.

    Attributes:
        line: Number of its first line, from 1; in Parquet, of the row.
        values: Column values; absent ones are left out.
        fault: Why it could not be read, if it could not.
        columns: Names of all columns, also of those that are absent here, where the file has a header.
    """

    line: int
    values: Mapping[str, Any]
    fault: str = ""
    columns: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """How text is written.

    Attributes:
        delimiter: What stands between the values of a line of CSV.
        encoding: Its encoding.
    """

    delimiter: str = ","
    encoding: str = "utf-8-sig"


Reader = Callable[[BinaryIO, Dialect], Iterator[Row]]


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows, which may be read several times.

    Attributes:
        sha256: Digest of its bytes, in hexadecimal.
    """

    path: Path
    sha256: str
    _reader: Reader
    _dialect: Dialect = Dialect()

    @classmethod
    def open(cls, path: Path, dialect: Dialect | None = None) -> RowFile:
        """Recognises the format by the file's ending.

        Args:
            path: The file.
            dialect: How its text is written; commas and UTF-8 if not given.

        Raises:
            CommandFailed: It has none of the known endings, or there is no such encoding.
        """
        dialect = dialect or Dialect()
        try:
            codecs.lookup(dialect.encoding)
        except LookupError:
            raise CommandFailed(f"there is no encoding {dialect.encoding}") from None
        name = path.name.lower().removesuffix(".gz")
        reader = next((reader for ending, reader in _READERS.items() if name.endswith(ending)), None)
        if reader is None:
            raise CommandFailed(f"{path}: expected a file ending in {', '.join(_READERS)}; text may be gzipped (.gz)")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                digest.update(block)
        return cls(path, digest.hexdigest(), reader, dialect)

    def rows(self) -> Generator[Row, None, None]:
        """Every row from the beginning.

        Raises:
            CommandFailed: The file is damaged beyond single rows.
        """
        try:
            with self.path.open("rb") as raw, closing(_plain(self.path, raw)) as file:
                yield from self._reader(file, self._dialect)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise CommandFailed(f"{self.path}: damaged: {error}") from None
        except UnicodeError:
            raise CommandFailed(f"{self.path}: is not written in {self._dialect.encoding}") from None

    def columns(self) -> Sequence[str]:
        """Names of the columns; none where each row names its own.

        Raises:
            CommandFailed: The file is damaged, or has no row.
        """
        with closing(self.rows()) as rows:
            first = next(rows, None)
        if first is None:
            raise CommandFailed(f"{self.path}: has no rows")
        return first.columns


def _plain(path: Path, raw: BinaryIO) -> Any:
    return gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw


@contextmanager
def _text(file: BinaryIO, dialect: Dialect, newline: str) -> Iterator[io.TextIOWrapper]:
    # Bytes that are none of the encoding's must spoil their row, not the file.
    text = io.TextIOWrapper(file, encoding=dialect.encoding, errors="surrogateescape", newline=newline)
    try:
        yield text
    finally:
        text.detach()


def read_csv(file: BinaryIO, dialect: Dialect) -> Iterator[Row]:
    """Rows of a file of separated values with a header; empty values count as absent."""
    csv.field_size_limit(_LONGEST_FIELD)
    with _text(file, dialect, newline="") as text:
        yield from _records(text, dialect)


def _records(text: io.TextIOWrapper, dialect: Dialect) -> Iterator[Row]:
    reader = csv.reader(text, strict=True, delimiter=dialect.delimiter)
    header = _header(reader, dialect)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, {}, f"is no CSV: {error}", header)
            continue
        if not fields:
            continue
        if len(fields) != len(header):
            yield Row(line, {}, f"has {len(fields)} values for {len(header)} columns", header)
            continue
        yield Row(line, {name: value for name, value in zip(header, fields, strict=True) if value != ""}, "", header)


def _header(reader: Iterator[list[str]], dialect: Dialect) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise CommandFailed(f"the first line is no CSV: {error}") from None
    if not all(name.isprintable() for name in header):
        raise CommandFailed(f"the first line is no text in {dialect.encoding}: --encoding names another one")
    if len(header) == 1 and ";" in header[0]:
        raise CommandFailed("the first line names one column only: --delimiter ';' if that is what separates them")
    if not header or len(set(header)) != len(header):
        raise CommandFailed("the first line must name the columns, each once")
    return header


def read_ndjson(file: BinaryIO, dialect: Dialect) -> Iterator[Row]:
    """Rows of a file with one JSON object a line; numbers are read exactly."""
    with _text(file, dialect, newline="\n") as text:
        line = 0
        while record := text.readline(_LONGEST_LINE):
            line += 1
            if len(record) == _LONGEST_LINE and not record.endswith("\n"):
                while (rest := text.readline(_LONGEST_LINE)) and not rest.endswith("\n"):
                    pass
                yield Row(line, {}, "is longer than a row can be")
            elif record.strip():
                yield _object(line, record)


def _object(line: int, record: str) -> Row:
    try:
        value = json.loads(record, parse_float=Decimal)
    except (ValueError, RecursionError):
        return Row(line, {}, "is no JSON")
    if isinstance(value, dict):
        return Row(line, {name: item for name, item in value.items() if item is not None})
    return Row(line, {}, "is no JSON object")


def read_parquet(file: BinaryIO, dialect: Dialect) -> Iterator[Row]:
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
            yield Row(line, {name: value for name, value in values.items() if value is not None}, "", list(values))


_READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".ndjson": read_ndjson,
    ".jsonl": read_ndjson,
    ".parquet": read_parquet,
}
