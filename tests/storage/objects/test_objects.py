"""Object storage on a directory and on a server that speaks S3: the same behaviour, checked by the same tests."""

import asyncio
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from storage.errors import NotFound, StoreUnavailable
from storage.objects.store import CHUNK_BYTES, Objects, is_key
from tests.s3 import S3Server


@pytest.fixture(params=["file", "s3"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> AsyncIterator[Objects]:
    made = Objects((tmp_path / "with space").as_uri()) if request.param == "file" else Objects(s3.url, s3.access)
    yield made
    await made.close()


async def read(objects: Objects, key: str, **how: object) -> bytes:
    pieces = [piece async for piece in objects.get(key, **how)]  # type: ignore[arg-type]
    assert all(0 < len(piece) <= CHUNK_BYTES for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 20_000_003], ids=["empty", "byte", "chunk", "parts"])
async def test_what_is_put_comes_back(objects: Objects, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)
    prefix = f"clients/{uuid4()}/"
    key = f"{prefix}exports/a.parquet"
    digest = hashlib.sha256(data).hexdigest()
    assert await objects.put(key, tmp_path / "source") == digest
    assert await objects.checksum(key) == digest
    head = await objects.head(key)
    assert (head.key, head.size) == (key, size)
    assert await read(objects, key) == data
    for offset in {0, size // 2, size}:
        assert await read(objects, key, offset=offset, etag=head.etag) == data[offset:]
    # The checksum beside it is no object of its own.
    assert [each.key for each in await objects.list(prefix, limit=10)] == [key]

    await objects.put(key, b"another")
    assert await read(objects, key) == b"another"
    assert await objects.checksum(key) == hashlib.sha256(b"another").hexdigest()
    with pytest.raises(NotFound):
        await read(objects, key, etag=head.etag)
    await objects.delete(key)
    await objects.delete(key)
    for failing in (objects.head(key), read(objects, key)):
        with pytest.raises(NotFound):
            await failing
    assert await objects.checksum(key) == ""
    assert await objects.list(prefix, limit=10) == []


async def test_lists_go_by_key_and_continue(objects: Objects) -> None:
    prefix = f"clients/{uuid4()}/"
    names = [f"{prefix}imports/{name}" for name in ("b", "a.x", "a", "d/e", "c")]
    await asyncio.gather(*(objects.put(name, b"1") for name in names), objects.put(f"{prefix[:-1]}0/other", b"2"))
    seen: list[str] = []
    while page := await objects.list(prefix, after=seen[-1] if seen else "", limit=2):
        seen += [each.key for each in page]
    assert seen == sorted(names)


async def test_download_urls_open_one_object(s3: S3Server, tmp_path: Path) -> None:
    objects, directory = Objects(s3.url, s3.access), Objects(tmp_path.as_uri())
    for each in (objects, directory):
        await each.put("clients/x/y", b"data")
    url = await objects.download_url("clients/x/y", timedelta(minutes=1))
    assert await asyncio.to_thread(lambda: urllib.request.urlopen(url).read()) == b"data"
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(lambda: urllib.request.urlopen(url.replace("clients/x/y", "clients/x/z")))
    caught.value.close()
    assert await directory.download_url("clients/x/y", timedelta(minutes=1)) == ""
    for each in (objects, directory):
        await each.close()


@pytest.mark.parametrize(
    "key", ["", "/", "../x", "a/../b", "a//b", "a/", "/a", "a/.", "a\\b", "a b", "a\n", "a.sha256", "ü", "x" * 513]
)
async def test_other_names_are_no_keys(objects: Objects, key: str) -> None:
    assert not is_key(key)
    for failing in (objects.head(key), objects.put(key, b""), objects.delete(key), objects.checksum(key)):
        with pytest.raises(NotFound):
            await failing


async def test_a_server_that_is_away_or_refuses_is_unavailable(s3: S3Server, tmp_path: Path) -> None:
    stranger = Objects(s3.url, replace(s3.access, secret="wrong"))
    away = Objects(s3.url, replace(s3.access, endpoint="http://127.0.0.1:1"))
    nowhere = Objects("s3://no-such-bucket", s3.access)
    for objects in (stranger, away, nowhere):
        for failing in (objects.ping(), objects.put("a", b"1")):
            with pytest.raises(StoreUnavailable) as caught:
                await failing
            assert caught.value.store == "objects"
            assert "127.0.0.1" not in str(caught.value)
        await objects.close()
    assert "wrong" not in repr(replace(s3.access, secret="wrong"))
    good = Objects(s3.url, s3.access)
    await good.ping()
    await good.close()


@pytest.mark.parametrize("url", ["", "x", "/tmp", "file://host/x", "s3://", "s3://key@bucket", "http://x/y", "file:x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be s3"):
        Objects(url)
