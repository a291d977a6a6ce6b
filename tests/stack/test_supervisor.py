"""The supervisor's own promises, with small shell programs in the place of servers."""

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from everycent.stack.supervisor import Program, StartFailedError, Supervisor

PATIENCE_SECONDS = 10.0


class Keeper:
    """A supervisor in a thread, with everything it said."""

    def __init__(self, programs: list[Program]) -> None:
        self.lines: list[str] = []
        self.statuses: list[dict[str, Any]] = []
        self.supervisor = Supervisor(programs, tell=self.lines.append, publish=self.statuses.append)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.01)

    def said(self, start: str) -> list[str]:
        return [line for line in self.lines if line.startswith(start)]

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.supervisor.run)
        thread.start()
        try:
            self.wait_until(self.supervisor.ready.is_set)
            yield
        finally:
            self.supervisor.request_stop()
            thread.join()


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., Program]:
    """Make a program of a shell script; its `is_ready` is a file named after it, made by it."""

    def make(name: str, script: str, **options: Any) -> Program:
        ready = tmp_path / f"{name}.ready"
        options.setdefault("is_ready", lambda pid: ready.exists())
        words = f"cd {shlex.quote(str(tmp_path))}; {script}"
        return Program(
            name=name, command=["sh", "-c", words], log=tmp_path / f"{name}.log", **options
        )

    return make


FOREVER = "while :; do sleep 0.02; done"


def test_a_process_starts_after_what_it_needs_and_stops_before_it(
    shell: Callable[..., Program],
) -> None:
    keeper = Keeper(
        [
            shell("worker", f"touch worker.ready; {FOREVER}", after=("server",)),
            shell("server", f"sleep 0.2; touch server.ready; {FOREVER}"),
        ]
    )
    with keeper.running():
        pass
    order = [line.split(" (")[0] for line in keeper.lines]
    assert order.index("server: ready") < order.index("worker: starting")
    assert order.index("worker: stopped") < order.index("server: stopping")


def test_who_dies_again_and_again_waits_longer_each_time(shell: Callable[..., Program]) -> None:
    """Red when: the backoff is not doubled."""
    script = f"[ -e flap.ready ] && exit 3; touch flap.ready; {FOREVER}"
    keeper = Keeper([shell("flap", script)])
    with keeper.running():
        pid = keeper.supervisor.views()["flap"].pid
        assert pid is not None
        psutil.Process(pid).kill()
        keeper.wait_until(lambda: len(keeper.said("flap: backing off")) == 3)
    waits = [line.rsplit("restart in ")[-1] for line in keeper.said("flap: backing off")]
    assert waits == ["0.2 s)", "0.4 s)", "0.8 s)"]


def test_who_ignores_the_signal_is_killed_with_all_it_has_started(
    shell: Callable[..., Program], tmp_path: Path
) -> None:
    """Red when: only the process itself is killed, not its session."""
    script = (
        f"trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > grandchild; touch deaf.ready; {FOREVER}';"
    )
    keeper = Keeper([shell("deaf", f"{script} {FOREVER}", stop_seconds=0.2)])
    with keeper.running():
        grandchild = psutil.Process(int((tmp_path / "grandchild").read_text()))
    keeper.wait_until(
        lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    )


def test_a_second_request_to_stop_waits_for_nobody(shell: Callable[..., Program]) -> None:
    keeper = Keeper([shell("deaf", f"trap '' TERM; touch deaf.ready; {FOREVER}", stop_seconds=60)])
    started = time.monotonic()
    with keeper.running():
        keeper.supervisor.request_stop()
    assert time.monotonic() - started < PATIENCE_SECONDS


def test_work_that_is_done_once_is_not_started_again(shell: Callable[..., Program]) -> None:
    keeper = Keeper([shell("job", "exit 0", once=True)])
    with keeper.running():
        assert keeper.supervisor.views()["job"].state == "done"
    assert len(keeper.said("job: starting")) == 1


def test_starting_is_given_up_with_the_last_words_of_who_failed(
    shell: Callable[..., Program], tmp_path: Path
) -> None:
    """Red when: a process that never came up is retried for ever."""
    keeper = Keeper(
        [
            shell("other", f"touch other.ready; {FOREVER}"),
            shell("broken", "echo no such luck; exit 9"),
        ]
    )
    patience = threading.Timer(PATIENCE_SECONDS, keeper.supervisor.request_stop)
    patience.start()
    with pytest.raises(StartFailedError, match=r"broken .*exit code 9.*no such luck"):
        keeper.supervisor.run()
    patience.cancel()
    assert keeper.statuses[-1]["phase"] == "failed"
    assert all(row["pid"] is None for row in keeper.statuses[-1]["processes"])


def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    """Red when: a child is started without its death signal."""
    import subprocess
    import sys

    script = f"""
import signal, sys
from pathlib import Path
from everycent.stack import launch
child = launch.start(["sleep", "600"], output=Path({str(tmp_path / "log")!r}))
print(child.pid, flush=True)
signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
