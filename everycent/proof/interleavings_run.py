"""`make interleavings`: play them all on a server of its own, and print the counts.

The server keeps PostgreSQL's settings but does not wait for the disk (`fsync` off): that moves no
lock and no COMMIT before another, and waiting for it takes two thirds of the time (docs/proof.md).
"""

import asyncio
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from everycent.database.fence_sql import fence_sql_statements
from everycent.database.migrate import migrate
from everycent.proof.interleavings import Case, Lane, Result, cases, draws
from everycent.proof.interleavings_decision import CLOSING, DECIDING
from everycent.proof.interleavings_kinds import Kind
from everycent.proof.interleavings_order import DECISION
from everycent.proof.interleavings_payment import INTENT, PAYMENT
from everycent.proof.interleavings_rows import (
    AGING,
    BALANCE,
    POINTS,
    SEAT_TABLES,
    SEATS,
    STOCK,
    TRANSFER,
)
from everycent.proof.interleavings_session import Cut, Ending, stages
from everycent.proof.interleavings_sql import FENCE_SQL
from everycent.settings import SERVICES, ServiceName, Settings
from everycent.stack.postgres import PostgresServer

KINDS = {
    kind.name: kind
    for kind in (
        SEATS,
        AGING,
        FENCE_SQL,
        STOCK,
        BALANCE,
        POINTS,
        TRANSFER,
        INTENT,
        PAYMENT,
        DECISION,
        DECIDING,
        CLOSING,
    )
}
COMMITS = (Ending.COMMIT,)
BOTH = (Ending.COMMIT, Ending.ABORT)
ALL = tuple(Ending)


@dataclass(frozen=True)
class Part:
    """A part of the proof: so many sessions, stopped so, on batches of so many keys."""

    sessions: int
    batch: int = 1
    endings: tuple[Ending, ...] = ALL
    cut: Cut = Cut.POINTS
    drawn: int = 0  # So many orders are drawn; 0: every order of every case.

    def __str__(self) -> str:
        if self.drawn:
            return f"{self.sessions} sessions, drawn, stopped before every statement"
        what = f"{self.sessions} sessions, {self.batch} key{'s' * (self.batch > 1)} each"
        at = ", stopped before every statement" if self.cut is Cut.STATEMENTS else ""
        return f"{what}, {'/'.join(self.endings)}{at}"

    def cases(self, kind: Kind) -> Iterator[Case]:
        """Yield the cases that are walked in every order."""
        return cases(kind, self.sessions, endings=self.endings, batch=self.batch)


PAIRS = (
    Part(2),
    *(Part(2, batch, BOTH) for batch in (2, 3, 4)),
    *(Part(2, batch, COMMITS, Cut.STATEMENTS) for batch in (1, 2)),
)
# Sessions that abort among three, and three on batches, are tried where the statements are that all
# share: on the generic fence.
TRIPLES = (Part(3, endings=COMMITS),)
FENCE_TRIPLES = (Part(3, endings=BOTH), *(Part(3, batch, COMMITS) for batch in (2, 3, 4)))


def parts(kind: Kind, drawn: int) -> tuple[Part, ...]:
    """Return the whole proof of one kind, with so many orders of four sessions drawn."""
    triples = FENCE_TRIPLES if kind is SEATS else TRIPLES
    return (*PAIRS, *triples, Part(4, cut=Cut.STATEMENTS, drawn=drawn))


async def play(kind: Kind, dsn: str, part: Part, *, seed: int = 0, lanes: int = 4) -> Result:
    """Play a part of a kind's proof on that database, so many schedules side by side."""
    total = Result()
    async with stages(dsn, lanes, sessions=part.sessions) as opened:
        playing = [Lane(kind, stage, cut=part.cut) for stage in opened]
        if part.drawn:
            drawn = draws(kind, part.drawn, seed, sessions=part.sessions)
            await asyncio.gather(*(_draw(lane, drawn) for lane in playing))
        else:
            todo = iter(part.cases(kind))
            await asyncio.gather(*(_explore(lane, todo) for lane in playing))
    for lane in playing:
        total.add(lane.result)
    return total


async def _draw(lane: Lane, todo: Iterable[tuple[Case, random.Random]]) -> None:
    for case, dice in todo:
        await lane.draw(case, dice)
    await lane.judge()


async def _explore(lane: Lane, todo: Iterable[Case]) -> None:
    for case in todo:
        await lane.explore(case)
    await lane.judge()


async def databases_on(server: PostgresServer) -> dict[str, str]:
    """Make the databases of every kind on a running server; return each kind's DSN."""

    def dsn(service: ServiceName, user: str | None = None) -> str:
        url = make_url(server.dsn(f"everycent_{service}"))
        url = url.set(username=user, password="interleaved") if user else url
        return url.render_as_string(hide_password=False)

    settings = Settings(
        owner={s: dsn(s) for s in SERVICES},
        database={s: dsn(s, f"everycent_{s}") for s in SERVICES},
        read={s: dsn(s, f"everycent_{s}_read") for s in SERVICES},
    )
    await migrate(settings)
    engine = create_async_engine(
        make_url(server.dsn()).set(drivername="postgresql+asyncpg"), isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        for statement in (*SEAT_TABLES, *fence_sql_statements()):
            await connection.execute(text(statement))
    await engine.dispose()
    return {
        name: settings.database[kind.service] if kind.service else server.dsn()
        for name, kind in KINDS.items()
    }


app = typer.Typer(add_completion=False)


@app.command()
def main(
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind of row.")] = None,
    sessions: Annotated[
        list[int] | None, typer.Option(help="Only so many sessions: 2, 3, 4.")
    ] = None,
    drawn: Annotated[int, typer.Option(help="Orders of four sessions, over all kinds.")] = 10_000,
    seed: Annotated[int, typer.Option(help="What the draws begin with.")] = 0,
    lanes: Annotated[int, typer.Option(help="Schedules played side by side.")] = 4,
) -> None:
    """Play every order of two and three sessions, and a sample of four; exit code 5 if unsafe."""
    unknown = [name for name in kind or () if name not in KINDS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(KINDS)}")
    kinds = [KINDS[name] for name in kind or KINDS]
    todo = [
        (each, part)
        for each in kinds
        for part in parts(each, -(-drawn // len(kinds)))
        if part.sessions in (sessions or (2, 3, 4))
    ]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # As root the server runs as somebody else.
        server = PostgresServer(Path(folder) / "server", durable=False)
        server.start()
        try:
            ok = asyncio.run(_main(server, todo, seed, lanes))
        finally:
            server.stop()
    raise typer.Exit(0 if ok else 5)


async def _main(
    server: PostgresServer, todo: Sequence[tuple[Kind, Part]], seed: int, lanes: int
) -> bool:
    total = Result()
    dsns = await databases_on(server)
    for kind, part in todo:
        result = await play(kind, dsns[kind.name], part, seed=seed, lanes=lanes)
        typer.echo(line(kind, part, result))
        for finding in result.findings[:3]:
            typer.echo(f"    {finding}")
        total.add(result)
    typer.echo(f"{total.played - total.unsafe} of {total.played} schedules are safe")
    return total.ok


def line(kind: Kind, part: Part, result: Result) -> str:
    """Return a part's counts in one line."""
    counts = result.counts
    said = f"{kind.name}: {part}: {result.cases} cases, {result.played} schedules played"
    if counts.formula:
        said += (
            f"; {counts.formula} orders = {counts.executed} walked + {counts.impossible} impossible"
            f" + {counts.equal} equal; {counts.variants} variants"
        )
    return f"{said}; {result.unsafe} unsafe" + ("" if result.ok else ": NOT SAFE")


if __name__ == "__main__":
    app()
