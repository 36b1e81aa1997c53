"""Where an INSERT ends and its data begins."""

import pytest

from server.embedded.clickhouse_http.statements import NeedMore, kind_of, output_format, read_insert

FILE = "/proc/self/fd/7"


def split(text: bytes) -> tuple[bytes, bytes] | None:
    insert = read_insert(text)
    return None if insert is None else (insert.reading_from(FILE), text[insert.data_start :])


SOURCE = f" FROM INFILE '{FILE}' COMPRESSION 'none' ".encode()


@pytest.mark.parametrize(
    ("before", "after", "gap", "data"),
    [
        (b"INSERT INTO t ", b" FORMAT Native", b"\n", b"\x01\x02"),
        (b"insert into db.t (a, b) ", b" FORMAT TSV", b"\r\n", b"1\t2"),
        (b"INSERT INTO t ", b" FORMAT TSV", b" ", b"1\n"),
        (b"INSERT INTO t ", b" FORMAT CSV", b";\n", b"1"),
        (b"INSERT INTO format ", b" FORMAT CSV", b"\n", b"1"),
        (b"INSERT INTO db.format (format) ", b" FORMAT CSV", b"\n", b"1"),
        (b"INSERT INTO `FORMAT X` ", b" FORMAT CSV", b"\n", b"1"),
        (b"INSERT INTO t ", b"SETTINGS a='FORMAT X', b=1  FORMAT CSV", b"\n", b"1"),
        (b"INSERT /* FORMAT X */ INTO t -- FORMAT Y\n ", b" FORMAT CSV", b"\n", b"1"),
        (b"INSERT INTO FUNCTION file('a FORMAT b') ", b" FORMAT CSV", b"\n", b""),
    ],
)
def test_plain_insert(before: bytes, after: bytes, gap: bytes, data: bytes) -> None:
    text = before + after.lstrip().replace(b"  ", b" ") + gap + data
    assert split(text) == (before + SOURCE + after, data)


def test_values_are_data_too() -> None:
    assert split(b"INSERT INTO t (a) VALUES (1), ('FORMAT X')") == (
        b"INSERT INTO t (a) " + SOURCE + b" FORMAT Values",
        b"(1), ('FORMAT X')",
    )


@pytest.mark.parametrize(
    "middle",
    [
        b"",
        b" WHERE a = 'FORMAT CSV'",
        b" WHERE format = 'x' AND s != 'it''s \\' FORMAT CSV'",
        b" ORDER BY format DESC",
        b" -- FORMAT CSV\n",
        b" SETTINGS format_schema='syntax = \"proto3\"; message E { int32 format = 1; }'",
        b" SETTINGS format_schema=$q$message E { string a = 1; } FORMAT CSV$q$",
    ],
)
def test_input_becomes_a_file(middle: bytes) -> None:
    data = bytes(range(256)) + b"'; FORMAT X /* \" `"
    head = b"INSERT INTO t (a) SELECT format('{}', a), format AS f FROM (SELECT * FROM "
    text = head + b"input ('a String, b Enum8(''x''=1)'))" + middle + b" FORMAT ProtobufList\n" + data
    want = head + f"file('{FILE}', 'ProtobufList', 'a String, b Enum8(''x''=1)')".encode() + b")" + middle + b" "
    assert split(text) == (want, data)


def test_data_that_looks_like_sql_is_left_alone() -> None:
    assert split(b"INSERT INTO t FORMAT TSV\nINSERT INTO t FORMAT CSV\n") == (
        b"INSERT INTO t " + SOURCE + b" FORMAT TSV",
        b"INSERT INTO t FORMAT CSV\n",
    )


@pytest.mark.parametrize("text", [b"INSERT INTO t SELECT a FROM u", b"", b"INSERT INTO t SETTINGS a='FORMAT CSV"])
def test_more_is_needed(text: bytes) -> None:
    with pytest.raises(NeedMore):
        read_insert(text)


def test_every_cut_of_a_statement_asks_for_more_or_agrees() -> None:
    whole = b"INSERT INTO t (a) SELECT a FROM input('a String') SETTINGS x='FORMAT Y it''s' FORMAT RowBinary\n"
    for end in range(len(whole) - 1):
        try:
            insert = read_insert(whole[:end])
        except NeedMore:
            continue
        # Only a cut inside the format's name may answer, and then the data begins where the text ends.
        assert insert is not None
        assert insert.data_start == end
        assert end > whole.index(b" RowBinary")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"select 1", "select"),
        (b" /* insert */ -- x\n (SELECT 1)", "select"),
        (b"WITH 1 AS x SELECT x", "with"),
        (b"WITH (SELECT 'insert') AS x INSERT INTO t SELECT x", "insert"),
        (b"WITH 'insert into' AS x SELECT x", "with"),
        (b"\x00\x01", ""),
        (b"", ""),
    ],
)
def test_kind(text: bytes, kind: str) -> None:
    assert kind_of(text) == kind


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"SELECT 1 FORMAT Native", "Native"),
        (b"SELECT 1\nformat\nJSON ;\n", "JSON"),
        (b"SELECT 'a FORMAT Native", "Native"),
        (b"SELECT 'a FORMAT Native'", None),
        (b"SELECT 1 -- FORMAT Native", None),
        (b"SELECT 1", None),
    ],
)
def test_output_format(text: bytes, name: str | None) -> None:
    assert output_format(text) == name
