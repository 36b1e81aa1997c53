"""Structured logs: one JSON object a line on standard error, a constant event name and facts as keywords."""

import logging
import sys
import time
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import orjson
import structlog

# structlog's own context variables cost several times as much, on every call.
_request_id: ContextVar[str] = ContextVar("request_id", default="")

_trace_id: ContextVar[str] = ContextVar("trace_id", default="")

# In every line of this process.
_process: dict[str, int] = {}

# Values of these keys never reach a log, whatever logs them.
SECRET_KEYS = frozenset({"password", "token", "secret", "authorization", "dsn", "credentials", "session_token"})


def mask_secrets(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replaces values under secret names."""
    for key in SECRET_KEYS & event.keys():
        event[key] = "***"
    return event


def exception_type_only(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Logs where an exception came from, never its text: drivers put hosts, users and values into it."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else None
    if error is not None:
        event["error"] = type(error).__name__
        event["at"] = _frames(error)
    return event


def _frames(error: BaseException) -> list[str]:
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}:{code.co_name}")
        trace = trace.tb_next
    return frames[-8:]


def configure(level: str, *, worker: int = 0) -> None:
    """Sets up logging for the process.

    Args:
        level: Least severity.
        worker: Number of this process among those that share a port, which every line then names; 0 for none.
    """
    if worker:
        _process["worker"] = worker
    structlog.configure(
        processors=[
            add_request_id,
            add_process,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            exception_type_only,
            mask_secrets,
            structlog.processors.JSONRenderer(serializer=lambda event, **_: orjson.dumps(event, default=str)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.BytesLoggerFactory(file=sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
    line = "%(levelname)s %(name)s %(message)s"
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format=f"worker {worker} {line}" if worker else line, force=True
    )
    # grpc logs each stream that a client drops as an error with a traceback; the access log has it already.
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger bound to a component name."""
    return structlog.get_logger(component=name)  # type: ignore[no-any-return]


def bind_request(request_id: str, trace_id: str = "") -> None:
    """Puts the ids of the current call, and of the trace that it is part of, into every log line of its task."""
    _request_id.set(request_id)
    if trace_id:
        _trace_id.set(trace_id)


def add_request_id(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Names the call that a line belongs to, if it belongs to one."""
    request_id = _request_id.get()
    if request_id:
        event.setdefault("request_id", request_id)
    trace_id = _trace_id.get()
    if trace_id:
        event.setdefault("trace_id", trace_id)
    return event


def add_process(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Names the process, if it is one of several."""
    event.update(_process)
    return event


def access(**facts: str | float) -> None:
    """Writes the one line that every call leaves; it holds no secrets and skips the processors, being on every path."""
    facts["event"] = "call"
    facts["timestamp"] = time.time()
    facts.update(_process)
    sys.stderr.buffer.write(orjson.dumps(facts) + b"\n")
    sys.stderr.buffer.flush()
