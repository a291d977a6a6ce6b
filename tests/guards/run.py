"""Take every guard away in turn and see a test go red: `make guards`.

The tests run in a copy of the tree, on one PostgreSQL server that is kept for all of them; each
guard gets the database of its service made anew. With words, only the guards whose id has one.
"""

import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import alembic.command  # noqa: F401  Loaded once, for every fork.
import asyncpg  # noqa: F401
import httpx  # noqa: F401
import hypothesis  # noqa: F401
import pytest
import temporalio.testing
import temporalio.worker  # noqa: F401
import typer.testing  # noqa: F401
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.ext.asyncio import create_async_engine

from everycent.settings import SERVICES, ServiceName
from everycent.stack.postgres import PostgresServer
from tests.guards.source import ROOT, Guard, guards
from tests.guards.table import TESTS

COPIED = ("everycent", "activities", "workflows", "workers", "starters", "tests", "pyproject.toml")
SERVICE_OF: dict[str, str] = {
    "fence": "account", "fence_ddl": "account", "provider_call": "payment",
    "retention": "inventory", "migrate": "ledger", "partitions": "account", "withdrawal": "order",
    "counted": "points", "fence_sql": "points",
    "repair_case": "order", "routing": "order", "decision": "order", "decision_ddl": "order",
    "choreography": "order", "inbox": "inventory", "lanes": "order", "messages_ddl": "order",
    "outbox": "order",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a test said without the guard."""

    guard: Guard
    test: str
    red: bool
    says: str
    seconds: float


class Bench:
    """A copy of the tree and a server with migrated databases."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self.tree.mkdir()
        skip = shutil.ignore_patterns("__pycache__")
        for name in COPIED:
            whole = ROOT / name
            if whole.is_dir():
                shutil.copytree(whole, self.tree / name, ignore=skip)
            else:
                shutil.copy(whole, self.tree)
        self.server = PostgresServer(folder / "server", durable=False)

    def pytest(self, tests: list[str], service: ServiceName | None) -> tuple[int, str]:
        """Run these tests of the copy in a fork, with a new database for the service.

        A fork has the libraries loaded already; what is ours it loads anew, out of the copy.
        """
        output = self.tree.parent / "output.txt"
        child = os.fork()
        if child == 0:
            with output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os._exit(self._pytest_here(tests, service))
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), output.read_text()

    def _pytest_here(self, tests: list[str], service: ServiceName | None) -> int:
        os.environ["EVERYCENT_TEST_SERVER"] = str(self.server.folder)
        if service is not None:
            os.environ["EVERYCENT_TEST_FRESH"] = service
            asyncio.run(self._drop(f"everycent_{service}_fresh"))
        for name in [name for name in sys.modules if name.partition(".")[0] in COPIED]:
            del sys.modules[name]
        os.chdir(self.tree)
        sys.path.insert(0, str(self.tree))
        sys.dont_write_bytecode = True
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
        sys.stdout.flush()
        return int(code)

    def without(self, guard: Guard, tests: list[str]) -> tuple[int, str]:
        """Run the tests while the guard is gone."""
        path = self.tree / guard.path.relative_to(ROOT)
        whole = path.read_text()
        path.write_text(guard.taken_from(whole))
        try:
            return self.pytest(tests, service_of(guard))
        finally:
            path.write_text(whole)

    async def _drop(self, database: str) -> None:
        url = self.server.dsn().replace("postgresql:", "postgresql+asyncpg:")
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
        await engine.dispose()


def service_of(guard: Guard) -> ServiceName:
    """Return the service whose database the guard stands in."""
    if "reservation_line" in guard.name:
        return "inventory"
    folder = re.match(r"migrations/(\w+)/", guard.file)
    name = folder.group(1) if folder else guard.path.stem
    name = "order" if "routing_rule" in guard.id else name  # One list names tables of several.
    return next(s for s in SERVICES if s == SERVICE_OF.get(name, name))


def outcomes(bench: Bench, wanted: list[Guard]) -> Iterator[Outcome]:
    """Yield what became of each guard's test."""
    for guard in wanted:
        test, begun = TESTS.get(guard.id, ""), time.monotonic()
        code, output = bench.without(guard, [f"tests/{test}"]) if test else (0, "")
        # 1: a test failed. Anything else says that it did not even run.
        yield Outcome(guard, test, code == 1, _why(output), time.monotonic() - begun)


def main(words: list[str]) -> int:
    """Print guard × test; exit code 1 unless every test went red, and was green before."""
    wanted = [g for g in guards() if not words or any(word in g.id for word in words)]
    begun = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else 260)
    with tempfile.TemporaryDirectory(prefix="everycent-guards-") as folder:
        bench = Bench(Path(folder))
        bench.server.start()
        try:
            named = sorted({f"tests/{TESTS[g.id]}" for g in wanted if g.id in TESTS})
            code, output = bench.pytest(named, None) if named else (0, "")
            if code:
                console.print(output)
                console.print("a test is red with every guard in place")
                return 1
            table = Table("guard", "test", "without it", box=None, pad_edge=False)
            found = []
            for each in outcomes(bench, wanted):
                found.append(each)
                says = "red" if each.red else f"STILL GREEN {each.says}"
                table.add_row(escape(each.guard.id), escape(each.test or "NONE"), says)
                print(
                    f"{says:<12} {each.seconds:4.1f} s  {each.guard.id}  {each.says}",
                    file=sys.stderr,
                    flush=True,
                )
        finally:
            bench.server.stop()
    red = sum(each.red for each in found)
    console.print(table)
    minutes = (time.monotonic() - begun) / 60
    console.print(f"\n{red} of {len(found)} guards have a test that goes red ({minutes:.1f} min)")
    return 0 if red == len(found) else 1


def _why(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
    return lines[-1][:150] if lines else ""


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
