"""Settings that one process hands to another."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from server.settings import Settings, environment


def test_another_process_gets_what_was_set_here_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRM_GRPC__PORT", "7")
    settings = Settings()
    settings.postgres.dsn = SecretStr("postgresql://u:sekret@h/x")
    settings.secrets.keyring_file = Path("/somewhere/keyring")
    settings.objects.download_lifetime = timedelta(hours=3)
    settings.jobs.concurrency = {"sync": 3, "email": 1}
    settings.jobs.tick = 0.5
    settings.ingest.queue_bytes = 2**21
    settings.grpc.reflection = False
    found = environment(settings)
    assert "MRM_GRPC__PORT" not in found
    assert len(found) == 7
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
