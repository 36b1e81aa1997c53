"""The parts of the migration runner that need no database."""

from pathlib import Path

import pytest

from storage.migrations import MigrationOrder, load, parse, split_statements
from storage.postgres.migrating import DIRECTORY


def test_statements_end_with_a_semicolon_at_the_end_of_a_line() -> None:
    sql = "-- first\nCREATE TABLE a (x Int8);\n\n-- second; still a comment\nINSERT INTO a\nSELECT ';x';  \n-- done\n"
    assert split_statements(sql) == [
        "-- first\nCREATE TABLE a (x Int8)",
        "-- second; still a comment\nINSERT INTO a\nSELECT ';x'",
    ]


def test_a_file_of_comments_has_no_statements() -> None:
    assert split_statements("-- nothing\n\n-- here;\n") == []


def test_the_marker_takes_a_file_out_of_its_transaction() -> None:
    assert not parse("0001_a", "-- no-transaction\nSELECT 1;").transactional
    assert parse("0001_a", "SELECT 1;").transactional


def test_the_checksum_is_of_the_whole_text() -> None:
    assert parse("0001_a", "SELECT 1;").checksum != parse("0001_a", "SELECT 1; ").checksum


@pytest.mark.parametrize("names", [("0001_a.sql", "0001_b.sql"), ("1_a.sql",), ("0001-a.sql",), ("a.sql",)])
def test_files_need_a_number_of_their_own(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(MigrationOrder):
        load(tmp_path)


def test_files_are_read_in_order(tmp_path: Path) -> None:
    for name in ("0010_c.sql", "0002_b.sql", "0001_a.sql"):
        (tmp_path / name).write_text("SELECT 1;")
    assert [migration.version for migration in load(tmp_path)] == ["0001_a", "0002_b", "0010_c"]


def test_our_own_files_are_numbered_without_gaps() -> None:
    numbers = [int(migration.version[:4]) for migration in load(DIRECTORY)]
    assert numbers == list(range(1, len(numbers) + 1))
