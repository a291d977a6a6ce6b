"""How a child process is started: in its own session, and never outliving whoever started it."""

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
# The parent may have died before the child could ask to be told: then it must not begin.
UNLESS_ORPHANED = 'test "$PPID" = "$0" && exec "$@"'
READ_ANYWHERE = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


@dataclass(frozen=True)
class User:
    """The system user a server runs as when we are root and it refuses to be."""

    uid: int
    gid: int

    def setpriv_options(self) -> list[str]:
        """Return the options that drop to this user, who may still walk below a folder of ours."""
        return [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", *READ_ANYWHERE]


def start(
    command: Sequence[str],
    *,
    output: Path,
    user: User | None = None,
    environment: Mapping[str, str] | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a direct child that gets `death_signal` when the calling thread dies, even by kill -9.

    Its own session keeps the terminal's Ctrl-C away from it; its output is appended to `output`.
    """
    wrapped = [*_wrapper(user, death_signal), *command]
    plain = user if wrapped[0] != "setpriv" else None
    with output.open("ab") as log:
        return subprocess.Popen(
            wrapped,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment) if environment is not None else None,
            start_new_session=True,
            umask=0o077,
            preexec_fn=None if wrapped[0] == "setpriv" else dying_with(os.getpid(), death_signal),
            user=plain.uid if plain else None,
            group=plain.gid if plain else None,
            extra_groups=[] if plain else None,
        )


def run(
    command: Sequence[str],
    *,
    user: User | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a short command as that user to its end and return what it said."""
    wrapped = [*_wrapper(user, signal.SIGKILL), *command]
    plain = user if wrapped[0] != "setpriv" else None
    return subprocess.run(
        wrapped,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=dict(environment) if environment is not None else None,
        umask=0o077,
        user=plain.uid if plain else None,
        group=plain.gid if plain else None,
        extra_groups=[] if plain else None,
    )


def keeps_reach(user: User) -> bool:
    """Tell whether a child of that user may still read below folders that are closed to it."""
    return _setpriv_can(tuple(user.setpriv_options()))


def end(processes: Sequence[psutil.Process], number: signal.Signals, seconds: float) -> None:
    """Signal processes that are not our children, and wait until they are gone or time is up.

    A zombie is gone: its parent may never reap it, as in a container without an init process.
    """
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    deadline = time.monotonic() + seconds
    while any(is_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)


def is_alive(process: psutil.Process) -> bool:
    """Tell whether the process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wrapper(user: User | None, death_signal: signal.Signals) -> list[str]:
    """Return the setpriv prefix; all of it execs: the pid stays, and `ps` shows the command."""
    death = ("--pdeathsig", death_signal.name.removeprefix("SIG"))
    options = (*(user.setpriv_options() if user else ()), *death)
    if not _setpriv_can(options):
        return []
    return ["setpriv", *options, "--", "sh", "-c", UNLESS_ORPHANED, str(os.getpid())]


@functools.cache
def _setpriv_can(options: tuple[str, ...]) -> bool:
    if shutil.which("setpriv") is None:
        return False
    probe = subprocess.run(["setpriv", *options, "--", "true"], capture_output=True, check=False)
    return probe.returncode == 0


def dying_with(parent: int, death_signal: signal.Signals) -> Callable[[], None] | None:
    """Return what a child of `parent` runs to get the signal when that dies; only Linux can do it.

    It runs before exec where setpriv is missing, and in a child that was not started by `start`.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def die_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:  # It died before we could ask to be told.
            os._exit(1)

    return die_with_parent
