"""Channels, batches and errors."""

import subprocess
import sys
from pathlib import Path

import grpc
import pytest

import mrm_client
from mrm.statistics.v1 import event_pb2
from mrm_client import CallError
from mrm_client.batches import varint

from .conftest import events, status


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("localhost", True),
        ("[::1]:50051", True),
        ("::1", True),
        ("ipv4:127.0.0.1:1", True),
        ("dns:///localhost:1", True),
        ("unix:/tmp/s", True),
        ("10.0.0.1:50051", False),
        ("example.test:443", False),
        ("localhost.example.test:443", False),
        ("dns:///127.0.0.1.example.test:443", False),
    ],
)
def test_which_targets_are_local(target: str, local: bool) -> None:
    assert mrm_client.is_local(target) is local


async def test_a_token_never_leaves_the_machine_in_the_clear() -> None:
    with pytest.raises(ValueError, match="in the clear"):
        mrm_client.channel("example.test:50051", "secret", tls=False)
    async with mrm_client.channel("example.test:50051", "secret"), mrm_client.channel("example.test:1", tls=False):
        pass


async def test_a_client_certificate_needs_its_key(tmp_path: Path) -> None:
    for half in ({"client_certificate": tmp_path / "c"}, {"client_key": tmp_path / "k"}):
        with pytest.raises(ValueError, match="needs its key"):
            mrm_client.channel("example.test:50051", "secret", **half)


def test_the_client_imports_nothing_of_the_server() -> None:
    code = (
        "import sys, mrm_client; sys.exit(any(m.split('.')[0] in ('server', 'storage', 'redis') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ".:generated"}, timeout=60)


def test_batches_keep_order_and_limits() -> None:
    made = list(mrm_client.batches(events(0, 1000, padding=50), max_bytes=5000, max_events=60))
    assert [event.event_id for batch in made for event in batch.events] == [str(n) for n in range(1000)]
    assert all(batch.ByteSize() <= 5000 and len(batch.events) <= 60 for batch in made)
    assert len(made) < 25
    with pytest.raises(ValueError, match="fits no batch"):
        list(mrm_client.batches([event_pb2.Event(attributes={"a": "x" * 600})], max_bytes=100))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 3_670_016])
def test_varint(size: int) -> None:
    message = event_pb2.Event(cost_micros=size)
    assert message.SerializeToString() == (b"\x30" + varint(size) if size else b"")


def test_errors_tell_reason_and_pause() -> None:
    error = CallError.of_status(status(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_after=0.25))
    assert (error.code, error.reason, error.retry_after) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        0.25,
    )
    assert str(error) == "RESOURCE_EXHAUSTED: because RATE_LIMITED"
