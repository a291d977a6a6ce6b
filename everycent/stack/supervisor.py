"""Keep a set of processes running: start in order, restart what dies, stop in reverse order."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from everycent.clock import now
from everycent.settings import environment_of_a_stack
from everycent.stack import launch
from everycent.stack.ports import StackError

State = Literal["waiting", "starting", "ready", "done", "backing off", "stopping", "stopped"]
Phase = Literal["starting", "ready", "stopping", "stopped", "failed"]
TICK_SECONDS = 0.05
FIRST_BACKOFF_SECONDS = 0.2
LAST_BACKOFF_SECONDS = 10.0
HEALTHY_SECONDS = 60.0  # After so long a ready process may die again without a longer wait.
START_SECONDS = 60.0


@dataclass(frozen=True)
class Program:
    """One process to keep: how it starts, when it is ready, what must be ready before it."""

    name: str
    command: Sequence[str]
    log: Path
    is_ready: Callable[[int], bool]  # Gets the pid; may block a little: it runs in a thread.
    after: tuple[str, ...] = ()
    address: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    user: launch.User | None = None
    once: bool = False  # It ends with 0 when its work is done, and is not restarted.
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    attempts: int = 3  # So often it may die before it was ever ready; then `run` gives up.


@dataclass(frozen=True)
class ProcessView:
    """How one process is, for people and tests."""

    name: str
    pid: int | None
    state: State
    restarts: int
    since: str
    address: str


class StartFailedError(StackError):
    """A process could not be brought up; `log` holds what it said."""

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.log = log


class Supervisor:
    """Runs the programs until `request_stop`; the children belong to the thread of `run`."""

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        tell: Callable[[str], None],
        publish: Callable[[dict[str, Any]], None],
        ready_line: str = "all ready",
    ) -> None:
        self.ready = threading.Event()
        self._children = {program.name: _Child(program) for program in programs}
        self._tell = tell
        self._publish = publish
        self._ready_line = ready_line
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._phase: Phase = "starting"
        self._error: str | None = None

    def run(self) -> None:
        """Start everything, keep it running, and stop it all when asked to or when starting fails.

        Raises StartFailedError when a process cannot be brought up the first time.
        """
        self._announce()
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="probe") as probes:
            try:
                while not self._stop.wait(TICK_SECONDS):
                    self._tick(probes)
                self._phase = "stopping"
            except StackError as error:
                self._phase, self._error = "failed", str(error)
                raise
            finally:
                self._stop_all()
                self._announce()

    def request_stop(self) -> None:
        """Ask `run` to stop everything and return; a second time: without waiting for anybody."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def views(self) -> dict[str, ProcessView]:
        """Return how each process is now, in start order."""
        return {name: child.view() for name, child in self._children.items()}

    def forgive(self, name: str) -> None:
        """Forget how often a program has died: whoever kills it on purpose wants it back soon."""
        self._children[name].forgive()

    def _tick(self, probes: ThreadPoolExecutor) -> None:
        for child in self._children.values():
            if child.state in ("starting", "ready"):
                self._watch(child, probes)
            elif child.is_due() and self._dependencies_ready(child):
                self._start(child)
        if not self.ready.is_set() and all(
            child.state in ("ready", "done") for child in self._children.values()
        ):
            self._phase = "ready"
            self._tell(self._ready_line)
            self._announce()
            self.ready.set()

    def _start(self, child: "_Child") -> None:
        try:
            child.start()
        except OSError as error:
            raise StackError(f"cannot start {child.program.name}: {error}") from error
        self._say(child, "starting", f"pid {child.pid}")

    def _watch(self, child: "_Child", probes: ThreadPoolExecutor) -> None:
        exit_code = child.exit_code()
        if exit_code is not None:
            self._bury(child, exit_code)
        elif child.state == "ready":
            child.forgive_after_health()
        elif child.probe(probes):
            where = f"at {child.program.address}, " if child.program.address else ""
            self._say(child, "ready", f"{where}pid {child.pid}")
        elif child.is_overdue():
            self._say(child, "starting", f"not ready after {START_SECONDS:.0f} s, killing it")
            child.kill()

    def _bury(self, child: "_Child", exit_code: int) -> None:
        """Decide what a death means: work done, another try, or that starting is hopeless."""
        if child.program.once and exit_code == 0:
            child.process = None
            self._say(child, "done")
            return
        child.deaths += 1
        how = _how(exit_code)
        if not child.was_ready and (child.program.once or child.deaths >= child.program.attempts):
            raise StartFailedError(
                f"{child.program.name} did not start ({how}): {_last_line(child.program.log)}",
                child.program.log,
            )
        wait = child.back_off()
        self._say(child, "backing off", f"{how}, restart in {wait:.1f} s")

    def _dependencies_ready(self, child: "_Child") -> bool:
        needed = (self._children[name] for name in child.program.after if name in self._children)
        return all(other.state in ("ready", "done") for other in needed)

    def _stop_all(self) -> None:
        """Stop level by level: nobody loses a server it still needs to end well."""
        while running := {n: c for n, c in self._children.items() if c.process is not None}:
            needed = {name for child in running.values() for name in child.program.after}
            self._stop_level([child for name, child in running.items() if name not in needed])

    def _stop_level(self, level: Sequence["_Child"]) -> None:
        for child in level:
            child.signal(child.program.stop_signal)
            self._say(child, "stopping")
        deadlines = {id(c): time.monotonic() + c.program.stop_seconds for c in level}
        while alive := [child for child in level if child.exit_code() is None]:
            for child in alive:
                if self._hurry.is_set() or time.monotonic() > deadlines[id(child)]:
                    child.kill()
            time.sleep(TICK_SECONDS / 5)
        for child in level:
            child.process = None
            self._say(child, "stopped")

    def _say(self, child: "_Child", state: State, detail: str = "") -> None:
        child.state, child.since = state, now().isoformat(timespec="seconds")
        self._tell(f"{child.program.name}: {state}{f' ({detail})' if detail else ''}")
        self._announce()

    def _announce(self) -> None:
        status = {
            "pid": os.getpid(),
            "phase": self._phase,
            "error": self._error,
            "processes": [vars(view) for view in self.views().values()],
        }
        with contextlib.suppress(OSError):  # A full disk must not end what still runs.
            self._publish(status)


class _Child:
    """One program and the process that runs it at the moment."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None
        self.state: State = "waiting"
        self.since = now().isoformat(timespec="seconds")
        self.starts = 0
        self.deaths = 0
        self.was_ready = False
        self._started = self._next_start = 0.0
        self._backoff = FIRST_BACKOFF_SECONDS
        self._probe: Future[bool] | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def view(self) -> ProcessView:
        restarts = max(0, self.starts - 1)
        return ProcessView(
            self.program.name, self.pid, self.state, restarts, self.since, self.program.address
        )

    def is_due(self) -> bool:
        return self.state in ("waiting", "backing off") and time.monotonic() >= self._next_start

    def is_overdue(self) -> bool:
        return time.monotonic() > self._started + START_SECONDS

    def start(self) -> None:
        self.program.prepare()
        self.process = launch.start(
            self.program.command,
            output=self.program.log,
            user=self.program.user,
            environment={**environment_of_a_stack(), **self.program.environment},
            death_signal=self.program.stop_signal,
        )
        self._started, self._probe = time.monotonic(), None
        self.starts += 1

    def probe(self, probes: ThreadPoolExecutor) -> bool:
        """Tell whether the last probe said ready; ask again if it said no."""
        if self._probe is not None and not self._probe.done():
            return False
        if self._probe is not None and self._says_yes(self._probe):
            self.was_ready, self._started = True, time.monotonic()
            return True
        assert self.process is not None
        self._probe = probes.submit(self.program.is_ready, self.process.pid)
        return False

    def _says_yes(self, probe: Future[bool]) -> bool:
        try:
            return probe.result()
        except StackError as error:
            if self.was_ready:  # It died under the question; a restart asks again.
                return False
            name = self.program.name
            raise StartFailedError(f"{name} did not start: {error}", self.program.log) from error

    def forgive_after_health(self) -> None:
        if time.monotonic() > self._started + HEALTHY_SECONDS:
            self.forgive()

    def forgive(self) -> None:
        self._backoff = FIRST_BACKOFF_SECONDS

    def back_off(self) -> float:
        wait = self._backoff
        self.process = None
        self._next_start = time.monotonic() + wait
        self._backoff = min(self._backoff * 2, LAST_BACKOFF_SECONDS)
        return wait

    def exit_code(self) -> int | None:
        return self.process.poll() if self.process is not None else 0

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and whatever it has started in its session."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


def _how(exit_code: int) -> str:
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"{log} is empty"
