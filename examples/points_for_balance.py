"""Exchange points for balance in one two-phase commit, recover what died, measure the locks.

    python -m examples.points_for_balance exchange e-1 --customer c-1 --points 100
    python -m examples.points_for_balance recover
    python -m examples.points_for_balance locks --runs 200

It uses the databases of a running stack (`everycent up`), and the very functions that the steps of
a checkout use: their fences stay, so that a repeated exchange moves nothing either way.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from everycent import clock
from everycent.database import account, points
from everycent.domain.account import Deposit
from everycent.domain.outcome import Refusal
from everycent.domain.points import FreezePoints, GrantPoints, RedeemPoints
from everycent.errors import EverycentError
from everycent.settings import ServiceName, Settings, load
from examples.two_phase_commit import GRACE, LOG, Decision, TwoPhase, Work

BRANCHES: tuple[ServiceName, ...] = ("points", "account")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DataDir = Annotated[Path, typer.Option(envvar="EVERYCENT_DATA_DIR")]
EMBEDDED = Path(".everycent")


class RefusedError(Exception):
    """A service said no, so that nothing of the exchange happens."""


@contextlib.asynccontextmanager
async def coordinator(settings: Settings) -> AsyncIterator[TwoPhase]:
    """Connect to the three databases; the log of decisions lies beside the orders."""
    async with contextlib.AsyncExitStack() as stack:
        log = await stack.enter_async_context(_engine(settings.owner["order"]))
        branches: dict[str, AsyncEngine] = {
            name: await stack.enter_async_context(_engine(settings.owner[name]))
            for name in BRANCHES
        }
        async with log.begin() as connection:
            await connection.execute(text(LOG))
        yield TwoPhase(log, branches)


@contextlib.asynccontextmanager
async def _engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    try:
        yield engine
    finally:
        await engine.dispose()


def works(key: str, customer: str, number: int) -> dict[str, Work]:
    """Return what each database does: a point is worth a cent. `key` is the gid and the fence's."""
    now = clock.now()

    async def spend(tx: AsyncConnection) -> None:
        freeze = FreezePoints(
            key=f"{key}/exchange", at=now, opened_on=now.date(), customer=customer, points=number
        )
        redeem = RedeemPoints(key=freeze.key, at=now, opened_on=now.date())
        _accepted((await points.freeze_points(tx, [freeze]))[0])
        _accepted((await points.redeem_points(tx, [redeem]))[0])

    async def credit(tx: AsyncConnection) -> None:
        deposit = Deposit(
            key=f"{key}/exchange", at=now, opened_on=now.date(), account=customer, currency="EUR",
            amount_minor=number,
        )  # fmt: skip
        _accepted((await account.deposit(tx, [deposit]))[0])

    return {"points": spend, "account": credit}


def _accepted(answer: object) -> None:
    if isinstance(answer, EverycentError):
        raise answer
    if isinstance(answer, Refusal):
        raise RefusedError(str(answer))


@app.command()
def exchange(
    key: Annotated[str, typer.Argument(help="The exchange's id: typed again, it happens once.")],
    customer: Annotated[str, typer.Option()],
    number: Annotated[int, typer.Option("--points", min=1)],
    tenant: str = "default",
    data_dir: DataDir = EMBEDDED,
) -> None:
    """Take points and give as many cents, in both databases or in none."""

    async def run() -> Decision:
        async with coordinator(load(data_dir, "owner")) as two_phase:
            return await two_phase.run(
                f"{tenant}/{key}", works(f"{tenant}/{key}", customer, number)
            )

    try:
        typer.echo(asyncio.run(run()))
    except RefusedError as refused:
        typer.echo(f"ABORT: {refused}")
        raise typer.Exit(3) from refused


@app.command()
def recover(
    grace_seconds: Annotated[float, typer.Option(min=0)] = GRACE.total_seconds(),
    data_dir: DataDir = EMBEDDED,
) -> None:
    """End every transaction that is prepared and has a decision, or has waited for too long.

    Exit code 5, the alarm, when one had waited longer than the grace: rows were locked meanwhile.
    """

    async def run() -> bool:
        async with coordinator(load(data_dir, "owner")) as two_phase:
            grace = timedelta(seconds=grace_seconds)
            ended = await two_phase.recover(now=clock.now(), grace=grace)
        for each in ended:
            waited = (clock.now() - each.prepared.since).total_seconds()
            late = "ALARM: " if each.late else ""
            typer.echo(
                f"{late}{each.prepared.branch} {each.prepared.gid}: {each.decision},"
                f" prepared for {waited:.1f} s"
            )
        return any(each.late for each in ended)

    if asyncio.run(run()):
        raise typer.Exit(5)


@app.command()
def locks(
    runs: Annotated[int, typer.Option(min=10)] = 100,
    tenant: str = "locks",
    data_dir: DataDir = EMBEDDED,
) -> None:
    """Measure how long one customer's points stay locked: by two-phase commit and by one database.

    The same work, in turns, each as a transaction of its own; milliseconds, median and worst.
    """
    found = asyncio.run(_measured(load(data_dir, "owner"), tenant, runs))
    for name, seconds in found.items():
        told = [value * 1000 for value in (statistics.median(seconds), max(seconds))]
        typer.echo(f"{name}: {told[0]:.2f} ms, worst {told[1]:.2f} ms, {len(seconds)} runs")
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    typer.echo(f"ratio: {medians['two phases'] / medians['one database']:.1f}")


async def _measured(settings: Settings, tenant: str, runs: int) -> dict[str, list[float]]:
    alone: list[float] = []
    began = f"{clock.now():%Y%m%d%H%M%S%f}"
    async with coordinator(settings) as two_phase:
        for number in range(runs):
            key = f"{tenant}/{began}-{number}"
            await grant(two_phase.branches["points"], f"{key}-a", "c-1", 1)
            await grant(two_phase.branches["points"], f"{key}-b", "c-1", 1)
            spend = works(f"{key}-a", "c-1", 1)["points"]
            started = time.perf_counter()
            async with two_phase.branches["points"].begin() as tx:
                await spend(tx)
            alone.append(time.perf_counter() - started)
            await two_phase.run(f"{key}-b", works(f"{key}-b", "c-1", 1))
        return {"one database": alone, "two phases": two_phase.locked_seconds}


async def grant(engine: AsyncEngine, key: str, customer: str, number: int) -> None:
    """Give a customer points, once per key."""
    now = clock.now()
    request = GrantPoints(
        key=f"{key}/grant", at=now, opened_on=now.date(), customer=customer, points=number
    )
    async with engine.begin() as tx:
        _accepted((await points.grant_points(tx, [request]))[0])


if __name__ == "__main__":
    app()
