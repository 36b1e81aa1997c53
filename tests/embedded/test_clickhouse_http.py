"""ClickHouse's HTTP interface in front of the embedded engine, through clickhouse-connect and through bare sockets."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from urllib.parse import quote, urlsplit

import lz4.frame
import pyarrow as pa
import pytest
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.embedded.conftest import Running

PROTO = 'syntax = "proto3"; message Event { string id = 1; int64 value = 2; }'


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def event(key: str, value: int) -> bytes:
    body = b"\x0a" + varint(len(key)) + key.encode() + b"\x10" + varint(value)
    return b"\x0a" + varint(len(body)) + body


def envelope(count: int, first: int = 0) -> bytes:
    body = b"".join(event(f"k{n}", n) for n in range(first, first + count))
    return varint(len(body)) + body


def ingest(table: str, where: str = "") -> bytes:
    return (
        f"INSERT INTO {table} (id, value) SELECT id, value FROM input('id String, value Int64') {where}"
        f" SETTINGS format_schema_source='string', format_schema='{PROTO}', format_schema_message_name='Event'"
        " FORMAT ProtobufList\n"
    ).encode()


@pytest.fixture
async def table(clickhouse: AsyncClient) -> AsyncIterator[str]:
    name = f"t{os.urandom(4).hex()}"
    await clickhouse.command(f"CREATE TABLE {name} (id String, value Int64) ENGINE = MergeTree ORDER BY id")
    yield name
    await clickhouse.command(f"DROP TABLE {name}")


async def count(client: AsyncClient, table: str) -> int:
    return int((await client.query(f"SELECT count() FROM {table}")).result_rows[0][0])


async def exchange(
    running: Running, head: str, body: bytes = b"", *, authenticated: bool = True
) -> tuple[int, dict[str, str], bytes]:
    """One request on a bare socket; returns status, headers and body."""
    parts = urlsplit(running.connections.clickhouse_dsn)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    keys = f"X-ClickHouse-User: {parts.username}\r\nX-ClickHouse-Key: {parts.password}\r\n" if authenticated else ""
    rest = f"Host: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        writer.write(f"{head} HTTP/1.1\r\n{keys}{rest}".encode() + body)
        answer = await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    top, _, content = answer.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), {name.lower(): value for name, value in pairs}, content


async def until_idle(client: AsyncClient) -> None:
    sql = "SELECT count() FROM system.processes WHERE query NOT LIKE '%system.processes%'"
    for _ in range(500):
        if (await client.query(sql)).result_rows == [(0,)]:
            return
        await asyncio.sleep(0.02)
    pytest.fail("queries are still running")


async def test_wrong_credentials_are_refused(running: Running) -> None:
    for wrong in ({"password": "wrong"}, {"username": "default"}, {"password": ""}):
        with pytest.raises(DatabaseError, match="516"):
            await running.clickhouse(**wrong)
    status, headers, _ = await exchange(running, "POST /?query=SELECT%201", authenticated=False)
    assert (status, headers["x-clickhouse-exception-code"]) == (403, "516")
    assert (await exchange(running, "GET /ping", authenticated=False))[::2] == (200, b"Ok.\n")


async def test_credentials_in_the_url_are_taken(running: Running) -> None:
    parts = urlsplit(running.connections.clickhouse_dsn)
    path = f"POST /?query=SELECT%201&user={parts.username}&password={quote(parts.password or '')}"
    assert (await exchange(running, path, authenticated=False))[::2] == (200, b"1\n")


async def test_ddl_in_our_own_database(clickhouse: AsyncClient) -> None:
    assert (await clickhouse.query("SELECT engine FROM system.databases WHERE name='mrm'")).result_rows == [("Atomic",)]
    await clickhouse.command("CREATE TABLE ddl (a Int32) ENGINE = MergeTree ORDER BY a")
    await clickhouse.command("ALTER TABLE ddl ADD COLUMN b String")
    assert (await clickhouse.query("DESCRIBE ddl")).result_columns[0] == ["a", "b"]
    await clickhouse.command("DROP TABLE ddl")
    with pytest.raises(DatabaseError, match="Code: 60"):
        await clickhouse.query("SELECT * FROM ddl")


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
async def test_native_insert(running: Running, clickhouse: AsyncClient, table: str, compress: str | bool) -> None:
    client = await running.clickhouse(compress=compress)
    summary = await client.insert(table, [[f"k{n}", n] for n in range(5000)], column_names=["id", "value"])
    assert summary.written_rows == 5000
    assert (await client.query(f"SELECT sum(value) FROM {table}")).result_rows == [(12497500,)]
    await client.close()


async def test_lz4_compressed_body_with_the_statement_inside(
    running: Running, clickhouse: AsyncClient, table: str
) -> None:
    body = lz4.frame.compress(ingest(table) + envelope(20000))
    await clickhouse.raw_insert(None, None, body, compression="lz4")
    assert await count(clickhouse, table) == 20000


async def test_protobuf_list_through_input(clickhouse: AsyncClient, table: str) -> None:
    summary = await clickhouse.raw_insert(None, None, ingest(table, "WHERE id != 'FORMAT x'") + envelope(20000))
    assert summary.written_rows == 20000
    assert await count(clickhouse, table) == 20000


async def test_body_of_many_megabytes(clickhouse: AsyncClient, table: str) -> None:
    await clickhouse.raw_insert(None, None, ingest(table) + envelope(300_000))
    assert await count(clickhouse, table) == 300_000


async def test_statement_in_the_url_and_data_in_the_body(running: Running, clickhouse: AsyncClient, table: str) -> None:
    path = f"POST /?database=mrm&query={quote(ingest(table).decode())}"
    status, headers, _ = await exchange(running, path, envelope(10))
    assert status == 200
    assert json.loads(headers["x-clickhouse-summary"])["written_rows"] == "10"
    assert await count(clickhouse, table) == 10


async def test_statement_divided_between_url_and_body(running: Running, clickhouse: AsyncClient, table: str) -> None:
    path = f"POST /?database=mrm&query={quote(f'INSERT INTO {table}')}"
    for body in (b"VALUES ('a', 1)", b"FORMAT CSV\nb,2\n", b"SELECT 'c', 3"):
        assert (await exchange(running, path, body))[0] == 200
    assert await count(clickhouse, table) == 3


async def test_malformed_data_stores_nothing(clickhouse: AsyncClient, table: str) -> None:
    with pytest.raises(DatabaseError, match=r"ProtobufList|Protobuf|Code: 444"):
        await clickhouse.raw_insert(None, None, ingest(table) + envelope(1000)[:-3])
    assert await count(clickhouse, table) == 0


async def test_empty_data_inserts_nothing(clickhouse: AsyncClient, table: str) -> None:
    await clickhouse.raw_insert(None, None, f"INSERT INTO {table} FORMAT Native\n".encode())
    await clickhouse.raw_insert(None, None, ingest(table))
    assert await count(clickhouse, table) == 0


async def test_values_and_parameters(clickhouse: AsyncClient, table: str) -> None:
    await clickhouse.command(
        f"INSERT INTO {table} VALUES ('a FORMAT TSV', 1), ({{x:String}}, 2)", parameters={"x": "it's"}
    )
    assert (await clickhouse.query(f"SELECT id FROM {table} ORDER BY value")).result_rows == [
        ("a FORMAT TSV",),
        ("it's",),
    ]


async def test_the_word_format_in_a_literal(clickhouse: AsyncClient) -> None:
    result = await clickhouse.query("SELECT 'INSERT INTO t FORMAT Native' AS a, ' FORMAT JSON' AS b")
    assert result.result_rows == [("INSERT INTO t FORMAT Native", " FORMAT JSON")]


@pytest.mark.parametrize("through", ["infile", "input"])
async def test_error_inside_a_materialized_view_reaches_the_client(
    clickhouse: AsyncClient, table: str, through: str
) -> None:
    await clickhouse.command(f"CREATE TABLE {table}_target (a UInt8) ENGINE = MergeTree ORDER BY a")
    await clickhouse.command(
        f"CREATE MATERIALIZED VIEW {table}_view TO {table}_target"
        f" AS SELECT throwIf(value = 7, 'seven is refused') AS a FROM {table}"
    )
    body = ingest(table) + envelope(10) if through == "input" else f"INSERT INTO {table} FORMAT TSV\nk7\t7\n".encode()
    with pytest.raises(DatabaseError, match=r"Code: 395.*seven is refused"):
        await clickhouse.raw_insert(None, None, body)
    await clickhouse.command(f"DROP TABLE {table}_view")
    await clickhouse.command(f"DROP TABLE {table}_target")


async def test_streaming_a_million_rows(clickhouse: AsyncClient) -> None:
    total = 0
    async with await clickhouse.query_row_block_stream("SELECT number FROM numbers(1000000)") as stream:
        async for block in stream:
            total += len(block)
    assert total == 1_000_000


async def test_error_in_the_middle_of_a_stream(clickhouse: AsyncClient) -> None:
    with pytest.raises(DatabaseError, match="Code: 395"):
        await clickhouse.query("SELECT throwIf(number = 900000, 'too far') FROM numbers(1000000)")
    assert (await clickhouse.query("SELECT 1")).result_rows == [(1,)]


async def test_arrow_is_one_stream_that_begins_before_the_query_ends(running: Running, clickhouse: AsyncClient) -> None:
    table = await clickhouse.query_arrow("SELECT number, toString(number) AS text FROM numbers(300000)")
    assert table.num_rows == 300_000
    assert table.column("text")[299_999].as_py() == "299999"
    assert (await clickhouse.query_arrow("SELECT 1 AS one WHERE 0")).schema.names == ["one"]
    # The driver hands the error's text to the parser, but what was cut off is never taken for whole.
    with pytest.raises(pa.ArrowInvalid):
        await clickhouse.query_arrow("SELECT throwIf(number = 900000, 'too far') FROM numbers(1000000)")

    parts = urlsplit(running.connections.clickhouse_dsn)
    sql = "SELECT sipHash64(number) FROM numbers(100000000000) FORMAT ArrowStream"
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        f"POST / HTTP/1.1\r\nHost: x\r\nX-ClickHouse-User: {parts.username}\r\n"
        f"X-ClickHouse-Key: {parts.password}\r\nContent-Length: {len(sql)}\r\n\r\n{sql}".encode()
    )
    async with asyncio.timeout(30):
        for _ in range(100):
            assert await reader.read(1 << 16)
    writer.close()
    await until_idle(clickhouse)


SLOW = "SELECT number, sleepEachRow(0.05) FROM numbers(100000) SETTINGS max_block_size = 1"
HEAVY = "SELECT sum(sipHash64(number)) FROM numbers(100000000000)"
HEAVY_INSERT = "INSERT INTO FUNCTION null('a UInt64') SELECT sipHash64(number) FROM numbers(100000000000)"


@pytest.mark.parametrize("sql", [SLOW, HEAVY, HEAVY_INSERT])
@pytest.mark.parametrize("patience", [0.0, 0.3])
async def test_query_of_a_disconnected_client_is_killed(
    running: Running, clickhouse: AsyncClient, sql: str, patience: float
) -> None:
    parts = urlsplit(running.connections.clickhouse_dsn)
    for _ in range(3):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(
            f"POST / HTTP/1.1\r\nHost: x\r\nX-ClickHouse-User: {parts.username}\r\n"
            f"X-ClickHouse-Key: {parts.password}\r\nContent-Length: {len(sql)}\r\n\r\n{sql}".encode()
        )
        await writer.drain()
        await asyncio.sleep(patience)
        writer.transport.abort()
    await until_idle(clickhouse)


async def test_disconnects_do_not_use_up_the_connections(running: Running, clickhouse: AsyncClient) -> None:
    for _ in range(30):
        task = asyncio.create_task(clickhouse.query(SLOW))
        await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await until_idle(clickhouse)
    async with asyncio.timeout(10):
        results = await asyncio.gather(*(clickhouse.query("SELECT 1") for _ in range(50)))
    assert all(result.result_rows == [(1,)] for result in results)


async def test_parallel_inserts(clickhouse: AsyncClient, table: str) -> None:
    await asyncio.gather(
        *(clickhouse.raw_insert(None, None, ingest(table) + envelope(2000, first=n * 2000)) for n in range(24))
    )
    assert await count(clickhouse, table) == 48_000
    assert (await clickhouse.query(f"SELECT uniqExact(id) FROM {table}")).result_rows == [(48_000,)]


async def test_settings_of_one_request_do_not_reach_the_next(running: Running, clickhouse: AsyncClient) -> None:
    sql = "SELECT getSetting('max_threads')"
    before = (await clickhouse.query(sql)).result_rows
    assert (await clickhouse.query(sql, settings={"max_threads": 3})).result_rows == [(3,)]
    await clickhouse.command("SET max_threads = 5")
    assert (await clickhouse.query(sql)).result_rows == before
    with pytest.raises(DatabaseError, match="115"):
        await clickhouse.query(sql, settings={"no_such_setting": 1, "max_threads": 7})
    assert (await clickhouse.query(sql)).result_rows == before


async def test_sessions(running: Running) -> None:
    base = "POST /?session_id=s1&session_timeout=0.5"
    assert (await exchange(running, base, b"SET max_threads = 3"))[0] == 200
    assert (await exchange(running, base, b"SELECT getSetting('max_threads')"))[2] == b"3\n"
    assert (await exchange(running, base, b"SELECT nope"))[0] == 404
    assert (await exchange(running, base, b"SELECT getSetting('max_threads')"))[2] == b"3\n"
    slow = asyncio.create_task(exchange(running, base, b"SELECT sleep(2)"))
    await asyncio.sleep(0.5)
    assert (await exchange(running, base, b"SELECT 1"))[1]["x-clickhouse-exception-code"] == "373"
    assert (await slow)[0] == 200
    await asyncio.sleep(0.7)
    gone = await exchange(running, base + "&session_check=1", b"SELECT 1")
    assert gone[1]["x-clickhouse-exception-code"] == "372"
    assert (await exchange(running, "POST /?session_id=s&session_timeout=x", b"SELECT 1"))[0] == 500
    for n in range(80):
        answer = await exchange(running, f"POST /?session_id=many{n}&session_timeout=2", b"SELECT 1")
    assert answer[1]["x-clickhouse-exception-code"] == "202"
    await asyncio.sleep(2.1)


@pytest.mark.parametrize(
    ("head", "body", "code"),
    [
        ("POST /", b"", "62"),
        ("POST /", b"\x00\xff\xfe garbage", "62"),
        ("POST /", b"foo", "62"),
        ("POST /", b"SELECT nope", "47"),
        ("POST /", b"SELECT * FROM nope", "60"),
        ("POST /?database=nope", b"SELECT 1", "81"),
        ("POST /", b"INSERT INTO nope FORMAT Native\n\x00", "60"),
        ("POST /", b"INSERT INTO nope FORMAT NoSuchFormat\n\x00", "60|73"),
        ("POST /", b"INSERT INTO t SETTINGS a='FORMAT", "62"),
        ("POST /?decompress=1", b"SELECT 1", "48"),
        ("GET /?query=DROP%20TABLE%20x", b"", "164"),
        ("PUT /", b"SELECT 1", "501|27"),
        ("POST /?no%20setting=1", b"SELECT 1", "115"),
    ],
)
async def test_bad_requests_have_clean_errors(running: Running, head: str, body: bytes, code: str) -> None:
    status, headers, text = await exchange(running, head, body)
    assert status >= 400
    assert headers["x-clickhouse-exception-code"] in code.split("|")
    assert text.startswith(b"Code: " + headers["x-clickhouse-exception-code"].encode() + b". DB::Exception: ")
    assert b"Traceback" not in text


async def test_damaged_compression_is_a_clean_error(clickhouse: AsyncClient) -> None:
    for body in (b"garbage", lz4.frame.compress(b"INSERT INTO t FORMAT TSV\n1")[:-6]):
        with pytest.raises(DatabaseError, match=r"Code: (271|3)"):
            await clickhouse.raw_insert(None, None, body, compression="lz4")


async def test_not_http_at_all(running: Running) -> None:
    parts = urlsplit(running.connections.clickhouse_dsn)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"\x16\x03\x01\x00\xff\xff not http\r\n\r\n")
    assert b" 400 " in (await reader.read()).split(b"\r\n")[0]
    writer.close()
    assert (await exchange(running, "GET /nothing"))[0] == 404


async def test_long_url_and_formats(running: Running) -> None:
    long = quote("SELECT length('" + "x" * 100_000 + "') FORMAT JSONEachRow")
    status, headers, text = await exchange(running, f"GET /?query={long}")
    assert (status, headers["x-clickhouse-format"]) == (200, "JSONEachRow")
    assert b"100000" in text
    _, headers, text = await exchange(running, "POST /?default_format=JSON", b"SELECT number FROM numbers(200000)")
    assert len(json.loads(text)["data"]) == 200_000
