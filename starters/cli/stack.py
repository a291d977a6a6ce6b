"""`everycent up | down | status`: the embedded stack on this machine."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from starters.cli.common import DEFAULT_DATA_DIR, AsJson, DataDir, ExitCode, one_line_errors, say

if TYPE_CHECKING:
    from everycent.stack.folder import DataFolder

DOWN_SECONDS = 90.0
LOG_LINES = 15

Port = Annotated[int | None, typer.Option(min=1, max=65_535, show_default="kept, else a free one")]


class Part(StrEnum):
    """What `up` can be limited to; the same words as the stack's."""

    POSTGRES = "postgres"
    MIGRATE = "migrate"
    TEMPORAL = "temporal"
    SIMULATOR = "simulator"
    WORKERS = "workers"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(migrate)
    app.command(hidden=True)(simulator)


def up(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    detach: Annotated[bool, typer.Option(help="Return when everything is ready.")] = False,
    port_base: Annotated[
        int | None,
        typer.Option(min=1, max=65_531, help="First of five ports in a row for all servers."),
    ] = None,
    postgres_port: Port = None,
    temporal_port: Port = None,
    ui_port: Port = None,
    provider_port: Port = None,
    workers: Annotated[
        Literal["all", "together", "both", "none"],
        typer.Option(
            help="One process for each service, or processes that host everything and take new"
            " orders; both, to let orders in flight end where they began."
        ),
    ] = "all",
    part: Annotated[
        list[Part] | None, typer.Option(help="Run only this part; may be given several times.")
    ] = None,
) -> None:
    """Run PostgreSQL, Temporal, the payment simulator and the workers until Ctrl-C."""
    with _stack_errors():
        from everycent.stack import ports

        given = {name: port_base + i for i, name in enumerate(ports.NAMES)} if port_base else {}
        named = {
            "postgres": postgres_port,
            "temporal": temporal_port,
            "ui": ui_port,
            "provider": provider_port,
        }
        given |= {name: port for name, port in named.items() if port is not None}
        if detach:
            named["base"] = port_base
            _run_detached(data_dir, named, workers, part or [])
        else:
            _run_here(data_dir, given, workers, part or [])


def down(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stop the stack of a data folder in good order; its data stays."""
    with _stack_errors():
        from everycent.stack.folder import DataFolder
        from everycent.stack.ports import StackError

        folder = DataFolder(data_dir)
        pid = folder.supervisor_pid()
        if pid is None:
            say(f"nothing runs on {folder.path}")
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_SECONDS
        while folder.supervisor_pid() == pid:
            if time.monotonic() > deadline:
                raise StackError(f"the supervisor (pid {pid}) has not stopped; see {folder.logs}")
            time.sleep(0.05)
        say(f"stopped {folder.path}")


def status(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Show each process of the stack; exit code 0 when all are ready, 4 otherwise."""
    with _stack_errors():
        from everycent.errors import InvalidRequest
        from everycent.stack.folder import DataFolder

        folder = DataFolder(data_dir)
        if not folder.path.is_dir():
            raise InvalidRequest(f"there is no folder {folder.path}; `everycent up` makes one")
        report = _report(folder)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print_table(report)
    if report["phase"] != "ready" or not all(_is_well(row) for row in report["processes"]):
        raise typer.Exit(ExitCode.UNREACHABLE)


def migrate(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Bring every service's database, here or elsewhere, to the newest schema with its roles."""
    with _stack_errors():
        import asyncio

        from everycent.database.migrate import migrate as run
        from everycent.settings import load

        for line in asyncio.run(run(load(data_dir, "owner"))):
            typer.echo(line)


def simulator(
    port: Annotated[int, typer.Option(min=1, max=65_535)],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    public_url: Annotated[
        str | None,
        typer.Option(help="By which customers reach it.", show_default="http://HOST:PORT"),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Run the payment provider simulator; `up` does it for you."""
    with _stack_errors():
        from everycent.settings import load
        from everycent.simulator.desk import Options
        from everycent.simulator.serve import serve

        provider = load(data_dir).provider
        options = Options(
            api_key=provider.api_key,
            webhook_secret=provider.webhook_secret,
            public_url=public_url or f"http://{host}:{port}",
        )
        serve(host, port, data_dir / "simulator.db", options)


def _run_here(data_dir: Path, given: dict[str, int], workers: str, parts: list[Part]) -> None:
    from everycent.stack.embedded import PARTS, TOGETHER, WORKERS, EmbeddedStack
    from everycent.stack.supervisor import StartFailedError

    stack = EmbeddedStack(
        data_dir,
        [part.value for part in parts] or PARTS,
        given_ports=given,
        usual_ports=True,
        workers=(
            *(WORKERS if workers in ("all", "both") else ()),
            *(TOGETHER if workers in ("together", "both") else ()),
        ),
        tell=_tell,
    )
    stack.open()
    stop = stack.supervisor.request_stop
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: stop())
        stack.supervisor.run()
    except StartFailedError as error:
        _print_end(error.log)
        raise
    finally:
        stack.close()


def _run_detached(
    data_dir: Path, named_ports: dict[str, int | None], workers: str, parts: list[Part]
) -> None:
    """Start a supervisor in a session of its own; relay what it says until it is ready or gone."""
    from everycent.stack.embedded import own_command
    from everycent.stack.folder import DataFolder

    folder = DataFolder(data_dir)
    options = [
        "up",
        "--workers",
        workers,
        *(word for part in parts for word in ("--part", part.value)),
    ]
    for name, port in named_ports.items():
        if port is not None:
            options += ["--port-base" if name == "base" else f"--{name}-port", str(port)]
    command, environment = own_command(options, folder.path)
    supervisor = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        exit_code = _relay_until_ready(supervisor, folder)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise
    if exit_code != 0:
        raise typer.Exit(exit_code)


def _relay_until_ready(supervisor: subprocess.Popen[bytes], folder: "DataFolder") -> int:
    """Return 0 when the supervisor says that all is ready, else the exit code it ended with."""
    assert supervisor.stderr is not None
    pipe = supervisor.stderr.fileno()
    while True:
        readable, _, _ = select.select([pipe], [], [], 0.05)
        if readable:
            said = os.read(pipe, 65_536)
            if not said:  # It closed its end: it is over.
                return supervisor.wait() or ExitCode.UNREACHABLE
            sys.stderr.write(said.decode(errors="replace"))
            sys.stderr.flush()
        elif _is_ready(folder, supervisor.pid):
            return 0


def _is_ready(folder: "DataFolder", pid: int) -> bool:
    known = folder.read_status()
    return known is not None and known["pid"] == pid and known["phase"] == "ready"


def _report(folder: "DataFolder") -> dict[str, Any]:
    """Return how the stack is: what its supervisor wrote last, if that still lives."""
    pid = folder.supervisor_pid()
    known = folder.read_status() or {"phase": "stopped", "error": None, "processes": []}
    if pid is None:
        known["phase"] = "failed" if known["phase"] == "failed" else "stopped"
        for row in known["processes"]:
            row |= {"pid": None, "state": "stopped"}
    for row in known["processes"]:
        row["rss_bytes"] = _memory(row["pid"])
    return {**known, "pid": pid, "data_dir": str(folder.path)}


def _memory(pid: int | None) -> int | None:
    """Return the memory of a process and its children, counting what they share once."""
    import psutil

    try:
        process = psutil.Process(pid) if pid is not None else None
        if process is None:
            return None
        own: int = process.memory_info().rss
        infos = [child.memory_info() for child in process.children(recursive=True)]
        return own + sum(max(0, info.rss - getattr(info, "shared", 0)) for info in infos)
    except psutil.Error:
        return None


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("process", "pid", "state", "restarts", "since", "memory", "address"):
        table.add_column(name, no_wrap=True)
    for row in report["processes"]:
        memory = f"{row['rss_bytes'] / 2**20:.0f} MB" if row["rss_bytes"] else "-"
        table.add_row(
            row["name"], str(row["pid"] or "-"), row["state"], str(row["restarts"]),
            row["since"], memory, row["address"],
        )  # fmt: skip
    who = f"pid {report['pid']}" if report["pid"] else "no supervisor"
    # Lines in a pipe or a file are whole, however narrow the terminal is thought to be.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(f"{report['phase']} ({who}), data in {report['data_dir']}", soft_wrap=True)
    console.print(table)


def _is_well(row: dict[str, Any]) -> bool:
    return row["state"] in ("ready", "done")


@contextmanager
def _stack_errors() -> Iterator[None]:
    """Turn what stops the stack, also that it is not installed, into one line and an exit code."""
    from everycent.errors import Unreachable

    with one_line_errors():
        try:
            yield
        except ModuleNotFoundError as error:
            if error.name != "psutil":
                raise
            raise Unreachable(
                "the embedded stack is not installed: pip install 'everycent[embedded]'"
            ) from error


def _tell(line: str) -> None:
    from everycent.clock import now

    say(f"{now():%H:%M:%S} {line}")


def _print_end(log: Path) -> None:
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    for line in (f"--- the end of {log}", *lines, "---"):
        say(line)
