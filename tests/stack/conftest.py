"""The command line as a stranger types it, on a data folder of its own; nothing is faked."""

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from everycent.stack import launch, ports
from everycent.stack.embedded import MARK

Result = subprocess.CompletedProcess[str]
PATIENCE_SECONDS = 30.0


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return every live process that a supervisor of that folder has started."""

    def belongs(process: psutil.Process) -> bool:
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and process.environ().get(MARK) == str(folder)
        except (psutil.Error, OSError):
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


@dataclass
class Shell:
    """Runs `everycent` on one data folder, on ports that nobody else uses."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    port_options: list[str] = field(default_factory=list)
    prefix: list[str] = field(default_factory=list)

    def __call__(self, command: str, *options: str, folder: Path | None = None) -> Result:
        return subprocess.run(
            self._words(command, options, folder), capture_output=True, text=True, timeout=120
        )

    def up(self, *options: str) -> Result:
        """Start the stack for the test; it must succeed."""
        up = self("up", "--detach", *options)
        assert up.returncode == 0, up.stderr
        return up

    def in_foreground(self, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._words("up", options, None),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def children(self) -> list[psutil.Process]:
        return processes_of(self.folder)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.05)

    def _words(self, command: str, options: tuple[str, ...], folder: Path | None) -> list[str]:
        words = [*self.prefix, sys.executable, "-m", "everycent", command, *options]
        if command == "up" and not any("port" in option for option in options):
            words += self.port_options
        return [*words, "--data-dir", str(folder or self.folder)]


@pytest.fixture
def everycent(tmp_path: Path) -> Iterator[Shell]:
    """The command line on a new data folder."""
    with _shell(tmp_path / "a folder") as shell:
        yield shell


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The command line on a folder whose PostgreSQL runs, for tests that leave it so."""
    with _shell(Path(tmp_path_factory.mktemp("running")) / "a folder") as shell:
        shell.up("--part", "postgres")
        yield shell


@contextmanager
def _shell(folder: Path) -> Iterator[Shell]:
    """Give a command line; whatever a failing test left running is ended."""
    temporal, ui = ports.pick_free(), ports.pick_free()
    shell = Shell(
        folder,
        port_options=["--temporal-port", str(temporal), "--ui-port", str(ui)],
    )
    yield shell
    shell("down")
    for process in shell.started:
        process.kill()
        process.communicate()
    for left in shell.children():
        left.kill()


@pytest.fixture
def plain_user(everycent: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Type as somebody who is not root; root lends the shell to `nobody`."""
    everycent.folder.mkdir()
    if os.geteuid() != 0:
        return
    nobody = pwd.getpwnam("nobody")
    os.chown(everycent.folder, nobody.pw_uid, nobody.pw_gid)
    # He may walk and read below root's folders, where Python and the checkout may lie; not write.
    user = launch.User(nobody.pw_uid, nobody.pw_gid)
    everycent.prefix = ["setpriv", *user.setpriv_options(), "--"]
    monkeypatch.setenv("HOME", str(everycent.folder.parent))
