"""What the embedded engines keep between runs: the data directory, its lock, ports, passwords and logs."""

import errno
import fcntl
import json
import os
import random
import secrets
import socket
from pathlib import Path

from server.embedded.errors import EngineError

_LOG_LIMIT_BYTES = 20 * 1024 * 1024
# Below the range the kernel takes outgoing ports from, so that no client connection sits on a port we remember.
_PORTS = range(20000, 30000)


class DataDirectory:
    """One directory owned by one supervisor at a time.

    Args:
        path: Where engines keep data; created when missing, mode 0711 so that an engine running as an
            unprivileged user can reach its own sub-directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))
        self._lock: int | None = None
        self._state: dict[str, dict[str, str | int]] = {}

    def open(self) -> None:
        """Creates the tree, takes the lock and loads remembered ports and passwords.

        Raises:
            EngineError: The directory is not usable, or another supervisor holds it.
        """
        if any(character in str(self.path) for character in "?\n\0"):
            raise EngineError(f"data directory {str(self.path)!r}: a path with '?' or a line break cannot be used")
        try:
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
            for name in ("run", "logs"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise EngineError(f"data directory {self.path} is not usable: {error.strerror or error}") from error
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the directory up; safe to call twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _acquire(self) -> None:
        lock = os.open(self.path / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise EngineError(
                f"data directory {self.path} is in use by process {holder}: stop it or choose another directory"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def _load(self) -> None:
        file = self.path / "engines.json"
        try:
            self._state = json.loads(file.read_text())
        except FileNotFoundError:
            self._state = {}
        except (OSError, ValueError) as error:
            raise EngineError(f"{file} cannot be read: restore it, or remove the whole data directory") from error

    def _save(self) -> None:
        file = self.path / "engines.json"
        fresh = file.with_suffix(".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as out:
                json.dump(self._state, out, indent=1)
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(file)
        except OSError as error:
            raise EngineError(f"{file} cannot be written: {error.strerror or error}") from error

    def password(self, engine: str) -> str:
        """The engine's generated password, the same in every run on this directory."""
        state = self._state.setdefault(engine, {})
        if not state.get("password"):
            state["password"] = secrets.token_urlsafe(24)
            self._save()
        return str(state["password"])

    def port(self, engine: str) -> int:
        """The engine's loopback port: the remembered one when it is free, otherwise a new one.

        Raises:
            EngineError: No port can be bound.
        """
        state = self._state.setdefault(engine, {})
        taken = {other.get("port") for name, other in self._state.items() if name != engine}
        remembered = state.get("port")
        if not isinstance(remembered, int) or not port_is_free(remembered):
            state["port"] = _free_port(taken)
            self._save()
        return int(state["port"])

    def log_file(self, engine: str) -> Path:
        """Path of the engine's log; a log grown past the limit is set aside as `<engine>.log.1`."""
        log = self.path / "logs" / f"{engine}.log"
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))
        return log

    def pid_file(self, engine: str) -> Path:
        """Where the pid of the engine's process is written while it runs."""
        return self.path / "run" / f"{engine}.pid"


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port(taken: set[str | int | None]) -> int:
    for port in random.sample(_PORTS, 50):
        if port not in taken and port_is_free(port):
            return port
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise EngineError(f"no free loopback port: {error.strerror or error}") from error
