"""The messages of Milvus's protocol.

They come with pymilvus, whose own client is not used: importing the package takes seconds and 140 MB for pandas, and
its calls are repeated up to 75 times behind the caller's back. So only its generated modules are loaded, under another
name, without running the package itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

SERVICE = "milvus.proto.milvus.MilvusService"
_PACKAGE = "_mrm_milvus_wire"


class Wire(NamedTuple):
    """The generated modules."""

    milvus: Any
    schema: Any
    common: Any


@cache
def wire() -> Wire:
    """Loads the messages, at the first call.

    Raises:
        ImportError: pymilvus is not installed.
    """
    found = importlib.util.find_spec("pymilvus")
    if found is None or found.origin is None:
        raise ImportError("package pymilvus is missing: install the `server` extra")
    directory = Path(found.origin).parent / "grpc_gen"
    package = ModuleType(_PACKAGE)
    package.__path__ = [str(directory)]
    sys.modules.setdefault(_PACKAGE, package)
    return Wire(*(importlib.import_module(f"{_PACKAGE}.{name}_pb2") for name in ("milvus", "schema", "common")))
