"""The shape every embedded engine has; a new engine is one subclass and one entry in `engines.ENGINES`."""

import importlib.util
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from server.embedded.directory import DataDirectory
from server.embedded.errors import EngineError


class Engine(ABC):
    """How to prepare, run, check and stop one engine; the supervisor does the rest.

    Args:
        directory: The opened data directory; the engine keeps everything below `directory.path / name`.
    """

    name: ClassVar[str]
    """Name of the sub-directory, the log and the pid file."""
    connection_field: ClassVar[str]
    """The field of `Connections` that carries this engine's DSN."""
    awaited: ClassVar[bool] = True
    """Whether nothing works before it answers; the others are started behind those that are awaited."""
    stop_signal: ClassVar[int] = signal.SIGTERM
    stop_grace_seconds: ClassVar[float] = 15.0
    start_timeout_seconds: ClassVar[float] = 60.0

    def __init__(self, directory: DataDirectory) -> None:
        self.directory = directory
        self.path = directory.path / self.name
        self.password = directory.password(self.name)
        self.port = directory.port(self.name)

    @property
    def identity(self) -> str:
        """Who runs the process, in the launcher's words: `same`, `namespace` or `uid:gid`."""
        return "same"

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables the process gets besides the common ones; the place for secrets, never the command line."""
        return {}

    @abstractmethod
    def prepare(self) -> None:
        """Makes the data directory ready, before every first start of a run. Blocks; runs in a thread.

        Raises:
            EngineError: With the cause and what to do.
        """

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Program and arguments; must name a path inside the data directory, by which orphans are recognised."""

    @abstractmethod
    async def ready(self) -> bool:
        """Whether the engine answers with our credentials now.

        Raises:
            EngineError: It answers, but can never become ready.
        """

    @abstractmethod
    def dsn(self) -> str:
        """The DSN clients use, password included."""


def package_directory(name: str) -> Path:
    """Finds the installed package that brings an engine, without importing it: some do things when imported.

    Raises:
        EngineError: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EngineError(f"package {name} is missing: install the `embedded` extra")
    return Path(spec.origin).parent


def require_binary(binary: Path) -> str:
    """Checks that a program file exists and is made for this machine, and returns its path.

    Raises:
        EngineError: It is missing or of another architecture.
    """
    try:
        with binary.open("rb") as file:
            header = file.read(20)
    except OSError as error:
        raise EngineError(f"{binary} is missing or unreadable: install the `embedded` extra") from error
    if sys.platform == "linux":
        with open("/proc/self/exe", "rb") as file:
            ours = file.read(20)
        if header[:6] != ours[:6] or header[18:20] != ours[18:20]:
            raise EngineError(f"{binary} is made for another architecture: reinstall the `embedded` extra here")
    return str(binary)


def make_private(path: Path) -> None:
    """Creates a directory only its owner may enter.

    Raises:
        EngineError: It cannot be created or written.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise EngineError(f"{path} cannot be created: {error.strerror or error}") from error
