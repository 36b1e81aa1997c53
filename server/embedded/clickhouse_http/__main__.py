"""`python -m server.embedded.clickhouse_http`: run by the supervisor, never by hand."""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop
from aiohttp import web

# chdb imports pyarrow when it finds it, for results this process never asks for: 0.1 s and 40 MB.
sys.modules["pyarrow"] = None  # type: ignore[assignment]

from server.embedded.clickhouse import PASSWORD_VARIABLE  # noqa: E402
from server.embedded.clickhouse_http.app import ClickHouseHttp  # noqa: E402
from server.embedded.clickhouse_http.pool import Pool  # noqa: E402

# Spent twice at most: until running statements are killed, and until their handlers have ended.
_SHUTDOWN_SECONDS = 5.0
_READ_BUFFER_BYTES = 1 << 20
_LONGEST_URL_BYTES = 1 << 20
_LONGEST_HEADER_BYTES = 1 << 17
# The engine shares its machine with the server here, and its merges take every core there is. A batch that is stored
# later delays one producer, a server that is kept from running delays everybody.
_NICENESS = 5


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="clickhouse_http")
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace, password: str) -> None:
    options = dict(option.split("=", 1) for option in arguments.option)
    pool = Pool(arguments.path, options, arguments.connections)
    pool.create_database(arguments.database)
    runner = web.AppRunner(
        ClickHouseHttp(pool, arguments.user, password).application(),
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,
        shutdown_timeout=_SHUTDOWN_SECONDS,
        read_bufsize=_READ_BUFFER_BYTES,
        max_line_size=_LONGEST_URL_BYTES,
        max_field_size=_LONGEST_HEADER_BYTES,
    )
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await web.TCPSite(runner, "127.0.0.1", arguments.port, backlog=1024).start()
        print(f"listening on 127.0.0.1:{arguments.port}, engine {pool.version}", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()
        await asyncio.to_thread(pool.close)


def main() -> None:
    """Serves until SIGTERM: running statements may finish, then the engine is closed."""
    arguments = _arguments()
    password = os.environ.pop(PASSWORD_VARIABLE, "")
    if not password:
        sys.exit(f"{PASSWORD_VARIABLE} is not set")
    # Before the engine's threads begin: each inherits it from the one that makes it.
    os.nice(_NICENESS)
    uvloop.run(_serve(arguments, password))


if __name__ == "__main__":
    main()
