"""Child processes of the supervisor: start through the launcher, wait, stop, and reap what an earlier run left."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from server.embedded import launch
from server.embedded.errors import EngineError

_KEPT_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "MALLOC_ARENA_MAX")
_REAP_GRACE_SECONDS = 15.0


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What an engine may see of our environment: no settings or secrets of the service, and always UTC."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return {**kept, "TZ": "UTC", **(extra or {})}


def launcher_command(command: Sequence[str], *, identity: str, directory: Path, death_signal: int) -> list[str]:
    """The argument list that runs `command` through the launcher, as `identity`, inside `directory`."""
    wrapper = [sys.executable, "-I", "-S", launch.__file__]
    return [*wrapper, str(os.getpid()), str(death_signal), identity, str(directory), *command]


class Child:
    """One running engine process in a session of its own, so that a terminal's Ctrl-C does not reach it.

    Create it on the event loop's thread: the kernel ties the death signal to the thread that forked.

    Raises:
        EngineError: The process cannot be started, or its log not be written.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        try:
            self._process = self._start(command, environment, log)
        except OSError as error:
            raise EngineError(f"{error.filename or command[0]} cannot be used: {error.strerror or error}") from error
        self.pid = self._process.pid

    @staticmethod
    def _start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(  # noqa: S603 - our own arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=dict(environment),
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    @property
    def exit_code(self) -> int | None:
        """None while the process runs; negative when a signal ended it."""
        return self._process.poll()

    async def wait(self) -> int:
        """Returns the exit code once the process has ended."""
        if hasattr(os, "pidfd_open") and self._process.poll() is None:
            with suppress(OSError):
                await _wait_pidfd(self.pid)
        return await asyncio.to_thread(self._process.wait)

    async def stop(self, stop_signal: int, grace_seconds: float) -> int:
        """Asks the process to end, kills it when it has not done so in time, and returns its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(stop_signal)
            try:
                return await asyncio.wait_for(self.wait(), grace_seconds)
            except TimeoutError:
                self._process.kill()
        return await self.wait()

    def kill(self) -> None:
        """Ends the process at once, without waiting."""
        if self._process.poll() is None:
            self._process.kill()


async def _wait_pidfd(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code in launch.FAILURES:
        return launch.FAILURES[code]
    if code == -signal.SIGILL:
        return "this processor lacks instructions it needs"
    if code < 0:
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
    return f"it exited with code {code}"


def reap_orphan(pid_file: Path, data_dir: Path, stop_signal: int) -> bool:
    """Ends the engine an earlier supervisor left behind, if the recorded pid still is that engine.

    A pid alone proves nothing, it may have been given to somebody else: the command line must name this
    data directory. Returns whether a process was ended. Blocks up to about 20 s.

    Raises:
        EngineError: The process is still there.
    """
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return False
    found = belongs_to(pid, data_dir)
    if found:
        _end(pid, data_dir, stop_signal)
    pid_file.unlink(missing_ok=True)
    return found


def belongs_to(pid: int, data_dir: Path) -> bool:
    """Whether the live process `pid` was started on `data_dir`, by its command line."""
    root = str(data_dir)
    return any(argument == root or argument.startswith(root + "/") for argument in _arguments(pid))


def _arguments(pid: int) -> list[str]:
    if sys.platform == "linux":
        with suppress(OSError):
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        return []
    command = ["/bin/ps", "-o", "command=", "-p", str(pid)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    return shown.stdout.split()


def _end(pid: int, data_dir: Path, stop_signal: int) -> None:
    for number, seconds in ((stop_signal, _REAP_GRACE_SECONDS), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not belongs_to(pid, data_dir):
                return
            time.sleep(0.02)
    raise EngineError(
        f"process {pid}, an engine left by an earlier run on {data_dir}, cannot be ended: end it yourself"
    )
