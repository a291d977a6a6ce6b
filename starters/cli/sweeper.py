"""`everycent sweeper`: see that every order and hold has an owner, now or every few minutes."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    ExitCode,
    one_line_errors,
    operator,
    print_facts,
    print_json,
    run,
    say,
    shop,
)

if TYPE_CHECKING:
    from everycent.domain.sweep import Sweep, SweepReport
    from starters.cli.common import Shop


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(sweeper)


def sweeper(
    once: Annotated[bool, typer.Option("--once", help="Run one pass now.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only look, by read-only roles: no worker is needed, nothing changes."
        ),
    ] = False,
    every: Annotated[
        int | None,
        typer.Option(min=0, help="Run a pass every so many seconds from now on; 0: pause."),
    ] = None,
    grace: Annotated[int, typer.Option(min=0, help="Seconds an order may stand still.")] = 120,
    hold_grace: Annotated[
        int, typer.Option(min=0, help="Seconds a hold may be without an order.")
    ] = 3600,
    stuck: Annotated[
        int, typer.Option(min=0, help="Seconds after its time until a live order is told of.")
    ] = 900,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Stop, and repair nothing, if there is more to do.")
    ] = None,
    money_limit: Annotated[
        int | None,
        typer.Option(min=0, help="The same for minor units that would go back, in each currency."),
    ] = None,
    unknown_limit: Annotated[
        int | None,
        typer.Option(min=1, help="Stop if Temporal knows none of so many unfinished orders."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this shop.", show_default="all")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Find orders without a run and holds without an owner, and repair what can be repaired.

    Each repair is on record as a case. Exit code 5 when the pass stopped itself, or left something
    for a person; 4 when a service was silent.
    """
    with one_line_errors():
        from everycent.domain.sweep import Sweep
        from everycent.settings import load

        limits = {
            "limit": limit, "money_limit_minor": money_limit, "unknown_limit": unknown_limit,
        }  # fmt: skip
        told = {name: value for name, value in limits.items() if value is not None}
        sweep = Sweep(
            tenant=tenant, dry_run=dry_run, grace_seconds=grace, hold_grace_seconds=hold_grace,
            stuck_seconds=stuck, **{**load(data_dir, "reader").sweeper.model_dump(), **told},
        )  # fmt: skip
    if every is not None:
        run(_schedule(sweep, every, data_dir))
        return
    if not once and not dry_run:
        say("error: say --once, --dry-run or --every SECONDS")
        raise typer.Exit(ExitCode.INVALID)
    report = run(_sweep(sweep, data_dir))
    if as_json:
        print_json(report)
    else:
        _print(report)
    if report.stopped:
        some = any(each.repaired for each in report.findings)
        how = "stopped itself before it was done" if some else "repaired nothing"
        say(f"error: the sweeper has {how}: {report.stopped}")
    for each in report.silent:
        say(f"error: not looked at: {each}")
    if report.stopped or report.left:
        raise typer.Exit(ExitCode.BROKEN)
    if report.silent:
        raise typer.Exit(ExitCode.UNREACHABLE)


async def _sweep(sweep: "Sweep", data_dir: Path) -> "SweepReport":
    from starters.sweeping import look_only, sweep_now

    async with shop(data_dir) as at:
        if sweep.dry_run:
            return await look_only(at.client, at.reader, sweep)
        return await sweep_now(at.client, _placed(at, sweep))


async def _schedule(sweep: "Sweep", every: int, data_dir: Path) -> None:
    from starters.schedules import install_sweeper, pause_sweeper

    async with shop(data_dir) as at:
        if every:
            await install_sweeper(at.client, _placed(at, sweep), timedelta(seconds=every))
            say(f"the sweeper runs every {every} s")
        else:
            await pause_sweeper(at.client, operator())
            say("the sweeper is paused")


def _placed(at: "Shop", sweep: "Sweep") -> "Sweep":
    """Send what is repaired to the workers that new orders go to."""
    return sweep.model_copy(update={"together": at.settings.steps == "together"})


def _print(report: "SweepReport") -> None:
    for each in report.findings:
        typer.echo(f"{each.act:<8} {each.key}: {each.kind}\n         before: {each.before}")
        if each.after:
            typer.echo(f"         after: {each.after}")
    print_facts(
        {
            "orders_looked_at": report.orders_looked_at,
            "holds_looked_at": report.holds_looked_at,
            "found": len(report.findings) + report.unlisted,
            "left_for_people": len(report.left),
        }
    )
