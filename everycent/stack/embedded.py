"""The embedded stack itself: which processes there are, on one data folder."""

import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psutil

from everycent.clock import now
from everycent.settings import SERVICES, OwnSettings, Settings, load
from everycent.stack import launch, ports, temporal
from everycent.stack.folder import ROLES, DataFolder, role_name
from everycent.stack.ports import LOOPBACK, Ports, StackError
from everycent.stack.postgres import PostgresServer, major_version
from everycent.stack.supervisor import ProcessView, Program, Supervisor

Part = Literal["postgres", "migrate", "temporal", "simulator", "workers"]
PARTS: tuple[Part, ...] = ("postgres", "migrate", "temporal", "simulator", "workers")
WORKERS = ("workflows", *SERVICES)
TOGETHER = ("together", "together-2")  # One process for each core of a small machine.
RELAY = "relay"  # Beside workers of any kind, if there are any.
MARK = "EVERYCENT_STACK_FOLDER"  # In the environment of every child: whose it is.
WORKER_STOP_SECONDS = 25.0  # A worker lets its running activities finish for 15 s.
LEFTOVER_SECONDS = 15.0


class EmbeddedStack:
    """The stack, or parts of it, below one data folder; all are children of this process.

    As a context manager it runs in a thread of its own and returns when everything is ready:
    `with EmbeddedStack(folder, parts=("postgres",)) as stack: stack.settings`. `everycent up`
    calls `open`, then `supervisor.run()` in its main thread, then `close`. A stack that is not
    `durable` does not wait for the disk: for one that is thrown away, whose power nobody cuts.
    """

    def __init__(
        self,
        folder: Path,
        parts: Sequence[Part] = PARTS,
        *,
        given_ports: Mapping[str, int] | None = None,
        usual_ports: bool = False,
        workers: Sequence[str] = WORKERS,
        durable: bool = True,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder = DataFolder(folder)
        self._parts = parts
        self._given_ports = given_ports or {}
        self._usual_ports = usual_ports
        self.workers = workers
        self._durable = durable
        self._listener = tell
        self._thread: threading.Thread | None = None
        self._failure: StackError | None = None
        self.ports: Ports
        self.postgres: PostgresServer
        self.supervisor: Supervisor

    def open(self) -> None:
        """Take the folder, clear what a killed supervisor left, choose ports, write the settings.

        Raises StackError with one line when any of it is impossible; then nothing is held.
        """
        self.folder.open(postgres_major=major_version(), temporal_version=temporal.server_version())
        try:
            self._stop_leftovers()
            self.folder.set_long_logs_aside()
            self.ports, notes = ports.choose(
                self._given_ports, self.folder.remembered_ports(), usual=self._usual_ports
            )
            for note in notes:
                self._tell(note)
            self.folder.write_settings(self.ports, together="together" in self.workers)
            self.postgres = PostgresServer(
                self.folder.path, self.ports.postgres, durable=self._durable
            )
            self.supervisor = Supervisor(
                self._programs(),
                tell=self._tell,
                publish=self.folder.write_status,
                ready_line=self._ready_line(),
            )
        except BaseException:
            self.folder.close()
            raise

    def close(self) -> None:
        """Give the folder back; every process must have been stopped."""
        self.folder.close()

    def start(self) -> None:
        """Run in a thread of its own; return when everything is ready, or raise StackError."""
        self.open()
        self._thread = threading.Thread(target=self._run, name="embedded-stack", daemon=True)
        self._thread.start()
        while not self.supervisor.ready.wait(0.02):
            if not self._thread.is_alive():
                self.stop()
                raise self._failure or StackError("the stack stopped before it was ready")

    def stop(self) -> None:
        """Stop every process in order and give the folder back; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self.supervisor.request_stop()
            thread.join()
            self.close()

    def __enter__(self) -> Self:
        """Start and return when ready."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything."""
        self.stop()

    @property
    def processes(self) -> dict[str, ProcessView]:
        """Return how each process is now, by name (`worker-inventory`)."""
        return self.supervisor.views()

    @property
    def settings(self) -> Settings:
        """Return the settings with the DSNs of every role; a worker has only its own part's."""
        return load(self.folder.path, "owner", kind=OwnSettings)

    def _tell(self, line: str) -> None:
        """Pass a line on and keep it: of a detached supervisor the log is all there is."""
        self._listener(line)
        with suppress(OSError), (self.folder.logs / "supervisor.log").open("a") as log:
            log.write(f"{now().isoformat(timespec='milliseconds')} {line}\n")

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except StackError as error:
            self._failure = error

    def _ready_line(self) -> str:
        ui = f", Web UI http://{LOOPBACK}:{self.ports.ui}" if "temporal" in self._parts else ""
        return f"all ready{ui}, data in {self.folder.path}"

    def _programs(self) -> list[Program]:
        makers: dict[Part, Callable[[], list[Program]]] = {
            "postgres": lambda: [self._postgres()],
            "migrate": lambda: [self._migrate()],
            "temporal": lambda: [self._temporal()],
            "simulator": lambda: [self._simulator()],
            "workers": lambda: [
                self._worker(name) for name in ((*self.workers, RELAY) if self.workers else ())
            ],
        }
        return [program for part in PARTS if part in self._parts for program in makers[part]()]

    def _postgres(self) -> Program:
        server = self.postgres
        return Program(
            name="postgres",
            command=server.command(),
            log=server.log,
            is_ready=lambda pid: server.answers() and _create_databases(server, self.folder),
            address=server.address,
            environment={MARK: str(self.folder.path)},
            prepare=server.prepare,
            user=server.user,
            stop_signal=signal.SIGINT,  # Fast: it ends the sessions and writes a checkpoint.
            stop_seconds=30.0,
        )

    def _migrate(self) -> Program:
        return self._own("migrate", ["migrate"], after=("postgres",), once=True)

    def _temporal(self) -> Program:
        return Program(
            name="temporal",
            command=temporal.command(self.folder.temporal_database, self.ports),
            log=self.folder.logs / "temporal.log",
            is_ready=lambda pid: temporal.is_ready(self.ports),
            address=f"{LOOPBACK}:{self.ports.temporal}, UI http://{LOOPBACK}:{self.ports.ui}",
            environment={MARK: str(self.folder.path)},
        )

    def _simulator(self) -> Program:
        address = f"{LOOPBACK}:{self.ports.provider}"
        return self._own(
            "simulator",
            ["simulator", "--port", str(self.ports.provider)],
            is_ready=lambda pid: _is_healthy(address),
            address=address,
        )

    def _worker(self, name: str) -> Program:
        """Return a worker's program; `NAME-2` is a second process of the worker NAME."""
        service, name = name.split("-")[0], f"worker-{name}"
        ready_file = self.folder.run / f"{name}.ready"
        return self._own(
            name,
            ["worker", service],
            after=("postgres", "migrate", "temporal", "simulator"),
            environment={"EVERYCENT_READY_FILE": str(ready_file)},
            prepare=lambda: ready_file.unlink(missing_ok=True),
            is_ready=lambda pid: _names_pid(ready_file, pid),
            stop_seconds=WORKER_STOP_SECONDS,
        )

    def _own(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        after: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] = lambda: None,
        is_ready: Callable[[int], bool] = lambda pid: False,
        address: str = "",
        once: bool = False,
        stop_seconds: float = 10.0,
    ) -> Program:
        """Return a program that is one of our own commands on this data folder."""
        command, import_path = own_command(arguments, self.folder.path)
        return Program(
            name=name,
            command=command,
            log=self.folder.logs / f"{name}.log",
            is_ready=is_ready,
            after=after,
            address=address,
            environment={
                **import_path,
                **(environment or {}),
                MARK: str(self.folder.path),
                "EVERYCENT_DATA_DIR": str(self.folder.path),
            },
            prepare=prepare,
            once=once,
            stop_seconds=stop_seconds,
        )

    def _stop_leftovers(self) -> None:
        """End what still runs for this folder although its supervisor is gone.

        They got a signal when it died; who is still busy ending well is waited for, then killed.
        """
        left = [process for process in psutil.process_iter() if self._is_ours(process)]
        if not left:
            return
        names = ", ".join(str(process.pid) for process in left)
        self._tell(f"ending what a killed supervisor left behind: pid {names}")
        servers = [process for process in left if process.name() == "postgres"]
        launch.end([p for p in left if p not in servers], signal.SIGTERM, LEFTOVER_SECONDS)
        launch.end([p for p in servers if launch.is_alive(p)], signal.SIGINT, LEFTOVER_SECONDS)
        launch.end([p for p in left if launch.is_alive(p)], signal.SIGKILL, LEFTOVER_SECONDS)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get(MARK) == str(self.folder.path)
            return ours and process.pid != os.getpid() and launch.is_alive(process)
        except (psutil.Error, OSError):
            return False


def own_command(arguments: Sequence[str], folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return an `everycent` command on a data folder, and the environment it needs beside ours."""
    command = [sys.executable, "-P", "-m", "everycent", *arguments]
    return [*command, "--data-dir", str(folder)], _import_path()


def _create_databases(server: PostgresServer, folder: DataFolder) -> bool:
    """Make each service's database and four roles if they are missing; tables are `migrate`'s."""
    keys = folder.secrets()
    present = set(server.execute("SELECT rolname FROM pg_roles").split())
    statements = [
        f"CREATE ROLE {role} LOGIN PASSWORD '{keys[role]}';"
        for service in SERVICES
        for role in (role_name(service, suffix) for suffix in ROLES)
        if role not in present
    ]
    databases = set(server.execute("SELECT datname FROM pg_database").split())
    for service in SERVICES:
        if (name := f"everycent_{service}") not in databases:
            statements.append(f"CREATE DATABASE {name} OWNER {role_name(service, '_owner')};")
            statements.append(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;")
    if statements:
        server.execute("\n".join(statements))
    return True


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _names_pid(ready_file: Path, pid: int) -> bool:
    try:
        return ready_file.read_text().strip() == str(pid)
    except FileNotFoundError:
        return False


def _import_path() -> dict[str, str]:
    """Return what lets a child import us: nothing for an installed package, a checkout its root."""
    root = Path(__file__).resolve().parents[2]
    if (root / "everycent" / "_bundle").is_dir() or not (root / "workflows").is_dir():
        return {}
    known = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{root}{os.pathsep}{known}" if known else str(root)}
