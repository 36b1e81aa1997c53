"""The process behind the embedded Milvus: `milvus-lite`'s own server, with what it lacks.

Its command line listens on all addresses and asks nobody for a password. Its log of writes is not locked: four writers
at once and a kill lost nearly all of what had been acknowledged. After a start its collections have to be loaded.
"""

import argparse
import hmac
import importlib.util
import os
import signal
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from server.embedded.milvus import PASSWORD_VARIABLE, USER

_WRITES = (
    "CreateCollection", "DropCollection", "TruncateCollection", "RenameCollection", "AlterCollection", "CreateIndex",
    "DropIndex", "LoadCollection", "ReleaseCollection", "CreatePartition", "DropPartition", "Insert", "Upsert",
    "Delete", "Flush", "CreateAlias", "AlterAlias", "DropAlias",
)  # fmt: skip
_CALLS_AT_ONCE = 10
_GRACE_SECONDS = 5.0
# Its start and its indexing come in bursts of seconds, and the server beside it answers in milliseconds.
_NICENESS = 5
_MOST_BYTES = 256 * 2**20


def _without_client() -> None:
    """Lets the engine import pymilvus's generated messages without the client around them, which takes seconds."""
    found = importlib.util.find_spec("pymilvus")
    assert found is not None
    assert found.origin is not None
    package = ModuleType("pymilvus")
    package.__path__ = [str(Path(found.origin).parent)]
    sys.modules["pymilvus"] = package


class _Password(grpc.ServerInterceptor):
    """Lets in whoever knows the password; any user of this machine can reach the port."""

    def __init__(self, password: str) -> None:
        self._expected = b64encode(f"{USER}:{password}".encode()).decode()

        def refuse(request: Any, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong user or password")

        self._refusal: Any = grpc.unary_unary_rpc_method_handler(refuse)

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Passes a call on, or refuses it."""
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        if hmac.compare_digest(str(given).encode(), self._expected.encode()):
            return continuation(handler_call_details)
        return self._refusal


def _servicer(database: Any) -> Any:
    """The engine's servicer with writes one after another, and with the one call that pymilvus makes and it lacks."""
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from pymilvus.grpc_gen import common_pb2, milvus_pb2

    turn = threading.Lock()

    def locked(name: str) -> Callable[..., Any]:
        original = getattr(MilvusServicer, name)

        def write(self: Any, request: Any, context: Any) -> Any:
            with turn:
                return original(self, request, context)

        return write

    def alloc_timestamp(self: Any, request: Any, context: Any) -> Any:
        return milvus_pb2.AllocTimestampResponse(status=common_pb2.Status(), timestamp=int(time.time() * 1000) << 18)

    methods = {name: locked(name) for name in _WRITES} | {"AllocTimestamp": alloc_timestamp}
    return type("Servicer", (MilvusServicer,), methods)(database)


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", required=True, help="data directory")
    parser.add_argument("--port", required=True, type=int, help="port on 127.0.0.1")
    options = parser.parse_args()
    password = os.environ.pop(PASSWORD_VARIABLE)
    os.nice(_NICENESS)
    _without_client()
    from milvus_lite.db import MilvusLite
    from pymilvus.grpc_gen import milvus_pb2_grpc

    database = MilvusLite(options.path)
    for name in database.list_collections():
        collection = database.get_collection(name)
        try:
            collection.load()
        except Exception as error:
            # Made, but not indexed yet when the process ended; whoever makes it goes on.
            print(f"collection {name} is not loaded: {type(error).__name__}", file=sys.stderr, flush=True)
    engine = grpc.server(
        futures.ThreadPoolExecutor(max_workers=_CALLS_AT_ONCE),
        interceptors=[_Password(password)],
        options=(
            ("grpc.max_receive_message_length", _MOST_BYTES),
            ("grpc.max_send_message_length", _MOST_BYTES),
            ("grpc.so_reuseport", 0),
        ),
    )
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(_servicer(database), engine)
    engine.add_insecure_port(f"127.0.0.1:{options.port}")
    engine.start()
    # Only now: until here a signal ends the process at once, as nothing has been written.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    engine.stop(_GRACE_SECONDS).wait()
    database.close()


if __name__ == "__main__":
    main()
