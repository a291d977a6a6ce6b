"""What the commands share: options, exit codes, one line per error, and the way to the services."""

import asyncio
import contextlib
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table
    from temporalio.client import Client

    from everycent.database.reads import Reader
    from everycent.settings import Settings
    from starters.bookings import Bookings
    from starters.checkouts import Checkouts
    from starters.choreographed import ChoreographedOrders

T = TypeVar("T")


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    BUG = 1
    INVALID = 2
    REFUSED = 3
    UNREACHABLE = 4
    BROKEN = 5


DEFAULT_DATA_DIR = Path(".everycent")
DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar="EVERYCENT_DATA_DIR",
        readable=False,  # Not typer's to check: our own error names the fix.
        help="Where the stack keeps its data.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Tenant = Annotated[str, typer.Option(help="The shop.")]
Request = Annotated[
    str | None,
    typer.Option(
        help="The id of this booking: typed again, it happens once.", show_default="a new one"
    ),
]


@dataclass(frozen=True)
class Shop:
    """The ways to a running system; each is one client or one pool for the whole command."""

    settings: "Settings"
    client: "Client"
    reader: "Reader"
    checkouts: "Checkouts"
    bookings: "Bookings"
    choreographed: "ChoreographedOrders"


@contextlib.asynccontextmanager
async def shop(data_dir: Path) -> AsyncIterator[Shop]:
    """Connect to Temporal and be ready to read; databases are opened when first asked."""
    from temporalio.service import RPCError

    from everycent.database.reads import reading
    from everycent.errors import Unreachable
    from everycent.settings import load
    from starters.bookings import Bookings
    from starters.checkouts import Checkouts
    from starters.choreographed import ChoreographedOrders
    from starters.client import address_of, connect

    silence_the_sdk()
    settings = load(data_dir, "reader")
    client = await connect(settings)
    try:
        async with reading(settings) as reader:
            together = settings.steps == "together"
            checkouts = Checkouts(client, reader, together=together)
            yield Shop(
                settings,
                client,
                reader,
                checkouts,
                Bookings(client, together=together),
                ChoreographedOrders(client, reader, together=together),
            )
    except RPCError as error:
        raise Unreachable(f"Temporal at {address_of(client)} says: {error}") from error


@contextlib.asynccontextmanager
async def books(data_dir: Path) -> "AsyncIterator[Reader]":
    """Be ready to read; for commands that do not need Temporal."""
    from everycent.database.reads import reading
    from everycent.settings import load

    async with reading(load(data_dir, "reader")) as reader:
        yield reader


def run(
    work: Coroutine[Any, Any, T],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """Run a command to its end; what stops it becomes one line on stderr and an exit code."""
    with one_line_errors(), asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn our errors, and those of the libraries below us, into one line and an exit code."""
    from everycent.errors import EverycentError

    try:
        yield
    except EverycentError as error:
        raise _leave(error, _code_of(error)) from error
    except (typer.Exit, typer.Abort):
        raise
    except OSError as error:
        raise _leave(error, ExitCode.UNREACHABLE) from error
    except ValueError as error:  # Settings and documents that pydantic refuses.
        raise _leave(error, ExitCode.INVALID) from error


def _code_of(error: Exception) -> ExitCode:
    from everycent.errors import Bug, InvalidRequest
    from starters.refusals import TooLateError

    if isinstance(error, TooLateError):
        return ExitCode.REFUSED
    if isinstance(error, InvalidRequest):
        return ExitCode.INVALID
    return ExitCode.BROKEN if isinstance(error, Bug) else ExitCode.UNREACHABLE


def _leave(error: Exception, code: ExitCode) -> typer.Exit:
    if os.environ.get("EVERYCENT_DEBUG"):
        traceback.print_exception(error)
    say(f"error: {one_line(error)}")
    return typer.Exit(code)


def one_line(error: BaseException) -> str:
    """Say an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def say(line: str) -> None:
    """Tell the person; data never comes this way."""
    with contextlib.suppress(OSError):  # Whoever listened may have gone.
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def silence_the_sdk() -> None:
    """Keep the SDK's warnings out of the data: it writes them to stdout when a server goes away."""
    from temporalio.runtime import Runtime, TelemetryConfig

    quiet = Runtime(telemetry=TelemetryConfig(logging=None))
    Runtime.set_default(quiet, error_if_already_set=False)


def print_json(value: "BaseModel | list[Any] | dict[str, Any]") -> None:
    """Print data: a model, or models and plain values in lists and dicts."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: Any) -> Any:
    """Return what JSON knows of a value."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def print_facts(facts: dict[str, Any]) -> None:
    """Print names and values for people, without what is empty."""
    told = {name: value for name, value in facts.items() if value not in (None, "", [], (), {})}
    width = max(map(len, told), default=0)
    for name, value in told.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        typer.echo(f"{name.replace('_', ' '):<{width}}  {text}")


def print_table(table: "Table") -> None:
    """Print a table as data; in a pipe or a file its lines are whole, whatever the width."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 250).print(table)


def new_table(*columns: str) -> "Table":
    """Return an empty table."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column not in ("reason", "error"))
    return table


def money(amount_minor: int, currency: str) -> str:
    """Say an amount for people; JSON carries minor units."""
    return f"{amount_minor:,} {currency} minor units"


def web_ui(settings: "Settings", workflow_id: str) -> str:
    """Return where Temporal's Web UI shows a workflow."""
    from urllib.parse import quote

    temporal = settings.temporal
    return f"{temporal.ui}/namespaces/{temporal.namespace}/workflows/{quote(workflow_id, safe='')}"


def operator() -> str:
    """Return who types: the user of the operating system."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user without a name.
        return f"uid-{os.getuid()}"
