"""Vectors of texts: of the model that comes along, and of one behind an endpoint, with all that can go wrong there."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from server.search import embedder as embedder_module
from server.search.embedder import (
    OFFLINE_DIMENSION,
    OFFLINE_MODEL,
    Embedders,
    EmbedderUnavailable,
    EndpointEmbedder,
    OfflineEmbedder,
    TextRefused,
)
from server.settings import EmbeddingSettings
from tests.search.endpoint import KEY, Endpoint


def settings(endpoint: Endpoint, **more: Any) -> EmbeddingSettings:
    return EmbeddingSettings(
        endpoint=endpoint.url, api_key=SecretStr(KEY), model="fake", dimension=endpoint.dimension, timeout=0.5,
        requests_per_minute=60_000, **more,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder_module, "_FIRST_PAUSE_SECONDS", 0.01)


async def test_the_own_model_understands_both_languages_and_takes_any_text() -> None:
    model = OfflineEmbedder()
    texts = ["реклама нового автомобиля", "advertising of a new car", "рецепт борща", "", "\0\ud7ff" * 9000]
    vectors = await model.embed(texts)
    assert vectors.shape == (5, OFFLINE_DIMENSION)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]
    assert (await model.embed([])).shape == (0, OFFLINE_DIMENSION)
    await model.close()


async def test_an_endpoint_is_asked_in_batches_and_believed_by_index() -> None:
    async with Endpoint().running() as endpoint:
        model = EndpointEmbedder(settings(endpoint, batch=2), "fake", endpoint.dimension)
        texts = ["один два", "три", "четыре пять шесть", "семь", "восемь"]
        vectors = await model.embed(texts)
        assert [len(each) for each in endpoint.asked] == [2, 2, 1]
        for text, vector in zip(texts, vectors, strict=True):
            wanted = np.asarray(endpoint.vector(text))
            assert np.allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-5)
        await model.close()


@pytest.mark.parametrize(
    "passing", [429, 500, 503, 0, '{"data": []}', "[", '{"data": [{"index": 0, "embedding": [1]}]}'], ids=str
)
async def test_what_passes_is_asked_again_and_what_makes_no_sense_is_not(passing: int | str) -> None:
    async with Endpoint(script=_deque(passing)).running() as endpoint:
        model = EndpointEmbedder(settings(endpoint), "fake", endpoint.dimension)
        if isinstance(passing, str):
            with pytest.raises(EmbedderUnavailable):
                await model.embed(["x"])
        else:
            assert len(await model.embed(["x"])) == 1
        assert len(endpoint.asked) == (1 if isinstance(passing, str) else 2)
        await model.close()


async def test_refusals_name_neither_key_nor_host() -> None:
    async with Endpoint(refused="длинно").running() as endpoint:
        model = EndpointEmbedder(settings(endpoint, attempts=2), "fake", endpoint.dimension)
        with pytest.raises(TextRefused):
            await model.embed(["коротко", "слишком длинно"])
        endpoint.script.extend([401])
        with pytest.raises(EmbedderUnavailable) as caught:
            await model.embed(["x"])
        assert str(caught.value) == "the endpoint of the model answers HTTP 401"
        endpoint.script.extend([500, 500])
        with pytest.raises(EmbedderUnavailable):
            await model.embed(["x"])
        assert not endpoint.script
        # Whoever says how long to wait is not asked before; the caller has other things to do.
        endpoint.retry_after, endpoint.script = "120", _deque(429)
        with pytest.raises(EmbedderUnavailable) as caught:
            await model.embed(["x"])
        assert caught.value.retry_after == 120
        await model.close()
    gone = EndpointEmbedder(settings(endpoint, attempts=2), "fake", endpoint.dimension)
    with pytest.raises(EmbedderUnavailable, match="does not answer"):
        await gone.embed(["x"])
    await gone.close()


async def test_an_answer_that_never_ends_is_cut_off() -> None:
    async with Endpoint(script=_deque(json.dumps({"data": "x" * 10**6}))).running() as endpoint:
        model = EndpointEmbedder(settings(endpoint), "fake", endpoint.dimension)
        with pytest.raises(EmbedderUnavailable, match="more than was asked for"):
            await model.embed(["x"])
        await model.close()


async def test_requests_keep_the_pace() -> None:
    async with Endpoint().running() as endpoint:
        paced = settings(endpoint, batch=1).model_copy(update={"requests_per_minute": 1200})
        model = EndpointEmbedder(paced, "fake", endpoint.dimension)
        begun = time.monotonic()
        await model.embed(["a", "b", "c", "d", "e"])
        assert time.monotonic() - begun >= 4 * 0.05 - 0.01
        await model.close()


async def test_a_model_whose_endpoint_is_configured_no_more_is_out_of_reach() -> None:
    embedders = Embedders(EmbeddingSettings())
    assert embedders.present.model == OFFLINE_MODEL
    with pytest.raises(EmbedderUnavailable):
        embedders.of("text-embedding-ada-002", 1536)
    configured = Embedders(EmbeddingSettings(endpoint="https://models.example/v1"))
    assert (configured.present.model, configured.present.dimension) == ("text-embedding-ada-002", 1536)
    assert configured.of(OFFLINE_MODEL, OFFLINE_DIMENSION).model == OFFLINE_MODEL
    await embedders.close()
    await configured.close()


@pytest.mark.parametrize("url", ["http://models.example/v1", "https://key@models.example/v1", "ftp://localhost/", "v1"])
def test_texts_and_key_leave_this_machine_encrypted(url: str) -> None:
    with pytest.raises(ValidationError):
        EmbeddingSettings(endpoint=url)


def _deque(*said: int | str) -> Any:
    return Endpoint().script.__class__(said)
