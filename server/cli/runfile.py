"""``run.json``: how other commands find what `mrm up` started. It holds passwords, so only its owner may read it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.settings import Settings

if TYPE_CHECKING:
    from server.embedded import Connections

DEFAULT_DATA_DIR = Path(".mrm")

DataDir = Annotated[
    Path, typer.Option("--data-dir", envvar="MRM_DATA_DIR", help="Where `mrm up` keeps the engines' data.")
]


@dataclass(frozen=True, repr=False)
class RunFile:
    """One running `mrm up`.

    Attributes:
        pid: Its process.
        target: Address of the server.
        metrics_url: Where it answers Prometheus.
    """

    pid: int
    target: str
    metrics_url: str
    postgres_dsn: str
    redis_dsn: str
    clickhouse_dsn: str
    milvus_dsn: str

    def write(self, data_dir: Path) -> None:
        """Puts it into the data directory, at once or not at all."""
        temporary = data_dir / ".run.json"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file, indent=2)
        temporary.replace(_path(data_dir))


def read(data_dir: Path) -> RunFile | None:
    """The `mrm up` that runs in this data directory now, if one does."""
    try:
        found = RunFile(**json.loads(_path(data_dir).read_text()))
        os.kill(found.pid, 0)
    except PermissionError:
        # Another user's process: theirs to use.
        return None
    except (OSError, ValueError, TypeError):
        return None
    return found


def remove(data_dir: Path) -> None:
    """Takes it away when `mrm up` ends."""
    with suppress(OSError):
        _path(data_dir).unlink()


def load_settings(data_dir: Path) -> Settings:
    """Settings from the environment; engines it does not name are those of `mrm up`, if it runs."""
    # Slow to load, and no command that only calls the server needs them.
    from server.settings import Settings

    settings = Settings()
    if "MRM_POSTGRES__DSN" not in os.environ and (found := read(data_dir)) is not None:
        point_at(settings, data_dir, found)
    return settings


def point_at(settings: Settings, data_dir: Path, engines: Connections | RunFile) -> None:
    """Makes the settings name these engines, and beside their data objects, key rings and backups, if none are set."""
    from pydantic import SecretStr

    if settings.objects.url is None:
        settings.objects.url = (data_dir / "objects").resolve().as_uri()
    if settings.secrets.keyring is None and settings.secrets.keyring_file is None:
        settings.secrets.keyring_file = data_dir / "keyring"
    if settings.backup.url is None:
        settings.backup.url = (data_dir / "backups").resolve().as_uri()
    if settings.backup.keyring is None and settings.backup.keyring_file is None:
        settings.backup.keyring_file = data_dir / "backup-keyring"
    if settings.backup.clickhouse_directory is None:
        settings.backup.clickhouse_directory = (data_dir / "clickhouse" / "backups").resolve()
    if "spool" not in settings.backup.model_fields_set:
        settings.backup.spool = data_dir / "spool"
    settings.postgres.dsn = SecretStr(engines.postgres_dsn)
    settings.redis.durable_dsn = SecretStr(engines.redis_dsn)
    settings.clickhouse.dsn = SecretStr(engines.clickhouse_dsn)
    settings.milvus.dsn = SecretStr(engines.milvus_dsn)


def _path(data_dir: Path) -> Path:
    return data_dir / "run.json"
