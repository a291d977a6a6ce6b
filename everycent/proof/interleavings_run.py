"""`make interleavings`: play them all on a server of its own, and print the counts.

The server keeps PostgreSQL's settings but does not wait for the disk (`fsync` off): that moves no
lock and no COMMIT before another, and waiting for it takes two thirds of the time (docs/proof.md).
"""

import asyncio
import gc
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from everycent import clock
from everycent.database.fence_sql import fence_sql_statements
from everycent.database.migrate import migrate
from everycent.proof.interleavings import Case, Lane, Result, cases, draws
from everycent.proof.interleavings_decision import CLOSING, DECIDING
from everycent.proof.interleavings_kinds import Kind
from everycent.proof.interleavings_order import DECISION
from everycent.proof.interleavings_payment import INTENT, PAYMENT
from everycent.proof.interleavings_report import Kept, Share, ShareReport, page, report, summary
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
from everycent.proof.interleavings_tree import orders
from everycent.settings import SERVICES, ServiceName, Settings
from everycent.stack.launch import dying_with
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
_SHARE_ORDERS, _SHARE_DRAWN = 300_000, 250  # One to two minutes each.


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


async def play(
    kind: Kind, dsn: str, part: Part, *, seed: int = 0, lanes: int = 4, share: int = 0, of: int = 1
) -> Result:
    """Play a part of a kind's proof on that database, so many schedules side by side.

    A share is each of-th of the part's cases, from number `share` on.
    """
    total = Result()
    async with stages(dsn, lanes, sessions=part.sessions) as opened:
        playing = [Lane(kind, stage, cut=part.cut) for stage in opened]
        if part.drawn:
            drawn = islice(draws(kind, part.drawn, seed, sessions=part.sessions), share, None, of)
            await asyncio.gather(*(_draw(lane, drawn) for lane in playing))
        else:
            todo = islice(part.cases(kind), share, None, of)
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
    processes: Annotated[
        int, typer.Option(help="Shares of parts played at once; 0: tell of what is kept.")
    ] = 3,
    lanes: Annotated[int, typer.Option(help="Schedules of a part played side by side.")] = 6,
    keep: Annotated[
        Path | None, typer.Option(help="File of the parts that have ended; they are left out.")
    ] = None,
    document: Annotated[Path | None, typer.Option(help="Write the page of results there.")] = None,
) -> None:
    """Play every order of two and three sessions, and a sample of four; exit code 5 if unsafe."""
    unknown = [name for name in kind or () if name not in KINDS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(KINDS)}")
    kinds = [KINDS[name] for name in kind or KINDS]
    todo = [
        Task(each, part, seed, lanes)
        for each in kinds
        for part in parts(each, -(-drawn // len(kinds)))
        if part.sessions in (sessions or (2, 3, 4))
    ]
    kept = Kept(keep)
    if processes:
        _play_on_a_server(todo, kept, processes)
    reports = [whole for task in todo if (whole := kept.whole(task.shares()))]
    missing = [f"{task.kind.name}: {task.name}" for task in todo if not kept.whole(task.shares())]
    typer.echo(summary(reports))
    if document is not None:
        document.write_text(page(reports, missing, at=clock.now()))
    raise typer.Exit(0 if all(each.ok for each in reports) and not missing else 5)


def _play_on_a_server(todo: Sequence["Task"], kept: Kept, processes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # As root the server runs as somebody else.
        server = PostgresServer(Path(folder) / "server", durable=False)
        server.start()
        try:
            _play_all(server, todo, kept, processes)
        finally:
            server.stop()


@dataclass(frozen=True)
class Task:
    """A part of a kind's proof, cut into shares for the processes."""

    kind: Kind
    part: Part
    seed: int
    lanes: int

    @property
    def name(self) -> str:
        """Which part of the proof of its kind it is; what is drawn is known by its seed."""
        seed = f", {self.part.drawn} with seed {self.seed}" if self.part.drawn else ""
        return f"{self.part}{seed}"

    @property
    def size(self) -> int:
        """How many orders there are, by the formula or drawn: small parts are begun first."""
        if self.part.drawn:
            return self.part.drawn
        return sum(
            orders([len(self.kind.points[operation]) for operation, _ in case.steps])
            for case in self.part.cases(self.kind)
        )

    def shares(self) -> list[Share]:
        """Return its shares: small enough to be played to their end, if not the whole part is."""
        number = -(-self.size // (_SHARE_DRAWN if self.part.drawn else _SHARE_ORDERS))
        return [
            Share(kind=self.kind.name, part=self.name, number=n, of=number) for n in range(number)
        ]


def _play_all(server: PostgresServer, todo: Sequence[Task], kept: Kept, processes: int) -> None:
    """Play every share that is not kept, several at once; tell of each part when it ends."""
    dsns = asyncio.run(databases_on(server))
    spawning = multiprocessing.get_context("spawn")  # A fork would share what stands open here.
    with ProcessPoolExecutor(processes, spawning, _begin, (os.getpid(),)) as pool:
        playing = {
            pool.submit(_play, share, task.part, dsns[share.kind], task.seed, task.lanes): task
            for task in sorted(todo, key=lambda task: task.size)
            for share in task.shares()
            if not kept.has(share)
        }
        try:
            for each in as_completed(playing):
                kept.add(each.result())
                if whole := kept.whole(playing[each].shares()):
                    typer.echo(whole.line())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(parent: int) -> None:
    """Make a process ready: it dies with the one that started it, also by kill -9."""
    die_with_parent = dying_with(parent, signal.SIGTERM)
    if die_with_parent is not None:
        die_with_parent()
    gc.freeze()  # What is imported stays; looking through it again took a seventh of the time.
    gc.set_threshold(50_000)


def _play(share: Share, part: Part, dsn: str, seed: int, lanes: int) -> ShareReport:
    """Play one share in a process of its own."""
    began = time.perf_counter()
    playing = play(
        KINDS[share.kind], dsn, part, seed=seed, lanes=lanes, share=share.number, of=share.of
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # As in production.
        result = runner.run(playing)
    return report(
        share, part.sessions, result, drawn=bool(part.drawn), seconds=time.perf_counter() - began
    )


if __name__ == "__main__":
    app()
