"""The stack that is swept: its own servers and workers, armed by one file of rules."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import asyncpg
import httpx
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError

from everycent.database.reads import Reader
from everycent.errors import EverycentError
from everycent.faults import Rule, journal_of
from everycent.proof.sweep.proxy import CommitProxy, Fate
from everycent.proof.sweep.scenario import Shop
from everycent.settings import SERVICES, load
from everycent.stack.embedded import RELAY, TOGETHER, WORKERS, EmbeddedStack
from everycent.stack.folder import write_private
from everycent.stack.supervisor import Program
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.client import connect

LOOK_SECONDS = 0.1
# What lets a run stand at its boundary for `waves.STAND_SECONDS`, and many in one lane at a time.
PATIENT_WORKER = {
    "EVERYCENT_POOL__SIZE": "20",
    "EVERYCENT_POOL__WAIT_SECONDS": "2",
    "EVERYCENT_POOL__TRANSACTION_TIMEOUT_SECONDS": "18",
    "EVERYCENT_POOL__IDLE_IN_TRANSACTION_SECONDS": "18",
}
# A file that is not synced at once survives what is done here: processes die, the machine does not.
PATIENT_TEMPORAL = (
    *("--dynamic-config-value", 'history.defaultWorkflowTaskTimeout="20s"'),
    *("--sqlite-pragma", "synchronous=normal"),
)
PARTS_SECONDS = 60.0
# What whoever asks a dying stack is told; he asks again.
DYING = (
    EverycentError, RPCError, WorkflowUpdateRPCTimeoutOrCancelledError, httpx.HTTPError,
    DBAPIError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError,
)  # fmt: skip
WorkerCommand = Callable[[Sequence[str]], Sequence[str]]


class SweptStack(EmbeddedStack):
    """An embedded stack whose workers are armed and reach their databases through a proxy."""

    def __init__(
        self,
        folder: Path,
        rules: Path,
        proxy: CommitProxy,
        *,
        worker_command: WorkerCommand = list,
        together: bool = False,
    ) -> None:
        super().__init__(folder, workers=TOGETHER if together else WORKERS)
        self.at_next_start: dict[str, Callable[[], None]] = {}
        self._rules = rules
        self._proxy = proxy
        self._worker_command = worker_command

    def _programs(self) -> list[Program]:
        self._proxy.target_port = self.ports.postgres
        return [self._watched(program) for program in super()._programs()]

    def _watched(self, program: Program) -> Program:
        """Let a restart wait for what was done to the program's files."""

        def prepare() -> None:
            self.at_next_start.pop(program.name, lambda: None)()
            program.prepare()

        return dataclasses.replace(program, prepare=prepare)

    def _temporal(self) -> Program:
        program = super()._temporal()
        return dataclasses.replace(program, command=[*program.command, *PATIENT_TEMPORAL])

    def _worker(self, name: str) -> Program:
        program = super()._worker(name)
        more = {"EVERYCENT_FAULTS": str(self._rules), **PATIENT_WORKER}
        if name == RELAY:
            for service, own in load(self.folder.path, "relay").relay.items():
                more[f"EVERYCENT_RELAY__{service.upper()}"] = self._through(own)
        for service in SERVICES if name in TOGETHER else [s for s in SERVICES if s == name]:
            own = load(self.folder.path, service).database[service]
            more[f"EVERYCENT_DATABASE__{service.upper()}"] = self._through(own)
        return dataclasses.replace(
            program,
            command=self._worker_command(program.command),
            environment={**program.environment, **more},
        )

    def _through(self, dsn: str) -> str:
        through = make_url(dsn).set(port=self._proxy.port)
        return through.render_as_string(hide_password=False)


class Stage:
    """The running stack, its rules and its journal, and what can be done to it."""

    def __init__(self, stack: SweptStack, shop: Shop, rules: Path, proxy: CommitProxy) -> None:
        self.stack = stack
        self.shop = shop
        self.proxy = proxy
        self.lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._file = rules
        self._rules: dict[str, Rule] = {}
        self._read = 0
        self._rest = b""

    # -- rules and journal

    def add(self, *rules: Rule) -> None:
        """Put rules into force."""
        self._rules |= {rule.name: rule for rule in rules}
        self._write()

    def remove(self, names: Iterable[str]) -> None:
        """Take rules away: who stands at one goes on, what is late is delivered."""
        for name in names:
            self._rules.pop(name, None)
        self._write()

    def look(self) -> None:
        """Read what the journal has got since."""
        with contextlib.suppress(FileNotFoundError), journal_of(self._file).open("rb") as file:
            file.seek(self._read)
            new = file.read()
            self._read += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            for line in lines:
                told = json.loads(line)
                self.lines[told["rule"]].append(told)

    def _write(self) -> None:
        rules = [dataclasses.asdict(rule) for rule in self._rules.values()]
        write_private(self._file, json.dumps(rules))

    # -- deeds

    def kill(self, pids: Iterable[int]) -> None:
        """Kill worker processes as the kernel would."""
        names = {view.pid: view.name for view in self.stack.processes.values()}
        for pid in set(pids):
            if pid in names:
                self.stack.supervisor.forgive(names[pid])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_named(self, *names: str) -> set[int]:
        """Kill worker processes by name, and return their pids."""
        views = [v for name, v in self.stack.processes.items() if name in names]
        pids = {view.pid for view in views if view.pid is not None}
        self.kill(pids)
        return pids

    def crash(self, program: str, before_start: Callable[[], None]) -> int:
        """Kill a server and return its pid; its restart waits until the function has returned."""
        self.stack.at_next_start[program] = before_start
        self.stack.supervisor.forgive(program)
        pid = self.stack.processes[program].pid
        assert pid is not None, f"{program} does not run"
        os.kill(pid, signal.SIGQUIT if program == "postgres" else signal.SIGKILL)
        return pid

    def snapshot_temporal(self) -> Callable[[], None]:
        """Copy Temporal's file as it is now; return what puts it back."""
        live = self.stack.folder.temporal_database
        kept = live.with_suffix(".kept")
        kept.unlink(missing_ok=True)
        with (
            contextlib.closing(sqlite3.connect(f"file:{live}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(kept)) as copy,
        ):
            source.backup(copy)

        def put_back() -> None:
            for ending in ("-wal", "-shm"):
                Path(f"{live}{ending}").unlink(missing_ok=True)
            kept.replace(live)

        return put_back

    def doom(self, backend: int, fate: str, seconds: float) -> bool:
        """Set what becomes of the next COMMIT of a session; False if the session is gone."""
        if backend not in self.proxy.sessions:
            return False
        self.proxy.doom(backend, cast(Fate, fate), seconds)
        return True

    async def end_session(self, backend: int) -> None:
        """End a database session as an administrator, or a failing server, does."""
        connection = await asyncpg.connect(self.stack.postgres.dsn())
        try:
            await connection.execute("SELECT pg_terminate_backend($1)", backend)
        finally:
            await connection.close()

    async def all_ready(self, dead: Iterable[int] = ()) -> None:
        """Wait until every process is ready, and none of them is one of the dead."""
        gone = set(dead)
        async with asyncio.timeout(PARTS_SECONDS):
            while not all(
                view.state in ("ready", "done") and view.pid not in gone
                for view in self.stack.processes.values()
            ):
                await asyncio.sleep(LOOK_SECONDS)


@contextlib.asynccontextmanager
async def stage(
    folder: Path, *, worker_command: WorkerCommand = list, together: bool = False
) -> AsyncIterator[Stage]:
    """Start a stack to be swept, below a folder of its own; stop everything behind it."""
    rules = folder / "rules.json"
    write_private(rules, "[]")
    async with CommitProxy() as proxy:
        stack = SweptStack(
            folder / "data", rules, proxy, worker_command=worker_command, together=together
        )
        await asyncio.to_thread(stack.start)
        try:
            settings = stack.settings
            client = await connect(settings)
            reader = Reader(settings)
            async with httpx.AsyncClient(
                base_url=settings.provider.url, timeout=20, trust_env=False
            ) as provider:
                bookings = Bookings(client, together=together)
                checkouts = Checkouts(client, reader, together=together)
                shop = Shop(settings, client, reader, checkouts, bookings, provider, together)
                yield Stage(stack, shop, rules, proxy)
            await reader.close()
        finally:
            await asyncio.to_thread(stack.stop)
