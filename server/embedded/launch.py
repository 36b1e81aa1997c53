"""Exec wrapper run as a script in front of every engine process; imports nothing but the standard library.

Dropping privileges and asking the kernel for a signal at the parent's death must happen in the child, between fork
and exec. Doing it in `preexec_fn` would run Python in a fork of a process full of gRPC threads, which can deadlock;
a fresh interpreter costs about 20 ms and cannot.

Exit codes above 119 mean the wrapper itself failed, see `FAILURES`.
"""

import ctypes
import os
import sys

PARENT_GONE, NO_DROP, NO_NAMESPACE, NO_DIRECTORY, NO_EXEC = 120, 121, 122, 123, 124

FAILURES = {
    PARENT_GONE: "the supervisor died while it was starting",
    NO_DROP: "root privileges could not be dropped",
    NO_NAMESPACE: "a user namespace could not be created",
    NO_DIRECTORY: "its directory cannot be entered",
    NO_EXEC: "its program file cannot be executed by this user or on this machine",
}

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000


def _fail(code: int, error: OSError | None = None) -> None:
    print(f"launch: {FAILURES[code]}{': ' + str(error) if error else ''}", file=sys.stderr, flush=True)
    os._exit(code)


def _libc_call(name: str, *args: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _drop(identity: str) -> None:
    if identity == "namespace":
        try:
            _libc_call("unshare", _CLONE_NEWUSER)
        except (OSError, AttributeError) as error:
            _fail(NO_NAMESPACE, error if isinstance(error, OSError) else None)
    elif identity != "same":
        uid, gid = map(int, identity.split(":"))
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        except OSError as error:
            _fail(NO_DROP, error)


def main(argv: list[str]) -> None:
    """Becomes the engine: `launch.py PARENT_PID DEATH_SIGNAL IDENTITY DIRECTORY COMMAND...`.

    IDENTITY is `same`, `namespace` or `uid:gid`. DEATH_SIGNAL is what the engine gets when its parent dies.
    """
    parent, death_signal, identity, directory, *command = argv
    _drop(identity)
    # After the drop: the kernel forgets the death signal when credentials change.
    if sys.platform == "linux":
        _libc_call("prctl", _PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):
        _fail(PARENT_GONE)
    try:
        os.chdir(directory)
    except OSError as error:
        _fail(NO_DIRECTORY, error)
    try:
        os.execv(command[0], command)  # noqa: S606 - becoming the engine is the point
    except OSError as error:
        _fail(NO_EXEC, error)


if __name__ == "__main__":
    main(sys.argv[1:])
