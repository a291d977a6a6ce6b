"""`everycent reconcile STATEMENT.csv`: the provider's statement against payments, orders, stock."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    ExitCode,
    Tenant,
    books,
    new_table,
    one_line_errors,
    operator,
    print_json,
    print_table,
    run,
    say,
    shop,
)

if TYPE_CHECKING:
    from starters.reconciling import Reconciled, Reconciliation, Terms
    from starters.statements import Mapping

_DAY = ["%Y-%m-%d"]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(reconcile)


def reconcile(
    statement: Annotated[
        Path | None,
        typer.Argument(
            metavar="[STATEMENT.csv]",
            exists=True,
            dir_okay=False,
            help="The provider's statement; without it, known breaks are looked at again.",
        ),
    ] = None,
    columns: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A TOML file that names the columns.",
            show_default="those of the simulator's statement",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="An export of your own payments: compared with no database and nothing written.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look; write nothing.")] = False,
    begins: Annotated[
        datetime | None,
        typer.Option(
            "--from",
            formats=_DAY,
            help="The first UTC day that the statement covers.",
            show_default="the day of its first line",
        ),
    ] = None,
    ends: Annotated[
        datetime | None,
        typer.Option(
            "--until",
            formats=_DAY,
            help="The first UTC day that it covers no more.",
            show_default="the day behind its last line",
        ),
    ] = None,
    grace_hours: Annotated[
        float, typer.Option(min=0, help="How long a difference may be only late.")
    ] = 26.0,
    runs: Annotated[
        int, typer.Option(min=1, help="After so many runs that saw it, it is a case anyhow.")
    ] = 3,
    tenant: Tenant = "default",
    by: Annotated[
        str | None, typer.Option(help="Who does it.", show_default="your user name")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Find where a statement and the shop part; each difference that is not young is a case.

    Exit code 5 when a difference is open. The same file twice changes nothing.
    """  # fmt: skip
    with one_line_errors():
        from everycent.errors import InvalidRequest
        from starters.statements import read_mapping

        mapping = read_mapping(columns)
        if against is not None and statement is None:
            raise InvalidRequest("--against compares a statement: name its file too")
        terms = _terms(tenant, by or operator(), grace_hours, runs, begins, ends)
    found = run(_reconcile(statement, against, mapping, terms, data_dir, dry_run=dry_run))
    if as_json:
        print_json(found)
    else:
        _print(found)
    if found.count("open"):
        raise typer.Exit(ExitCode.BROKEN)


def _terms(
    tenant: str,
    by: str,
    grace_hours: float,
    runs: int,
    begins: datetime | None,
    ends: datetime | None,
) -> "Terms":
    from datetime import UTC

    from everycent import clock
    from starters.reconciling import Terms

    return Terms(
        tenant=tenant,
        by=by,
        now=clock.now(),
        grace=timedelta(hours=grace_hours),
        most_looks=runs,
        begins=begins and begins.replace(tzinfo=UTC),
        ends=ends and ends.replace(tzinfo=UTC),
    )


async def _reconcile(
    statement: Path | None,
    against: Path | None,
    mapping: "Mapping",
    terms: "Terms",
    data_dir: Path,
    *,
    dry_run: bool,
) -> "Reconciled":
    from starters.reconciling import Reconciliation, compare_files

    if against is not None and statement is not None:
        return compare_files(statement, mapping.statement, against, mapping.payments, terms)
    if dry_run:
        async with books(data_dir) as reader:
            work = Reconciliation(reader, None, terms)
            return await _either(work, statement, mapping)
    async with shop(data_dir) as at:
        work = Reconciliation(at.reader, at.bookings, terms)
        return await _either(work, statement, mapping)


async def _either(
    work: "Reconciliation", statement: Path | None, mapping: "Mapping"
) -> "Reconciled":
    if statement is None:
        return await work.look_again()
    return await work.read(statement, mapping.statement)


def _print(found: "Reconciled") -> None:
    if found.breaks:
        table = new_table("break", "kind", "state", "since", "reason")
        for each in found.breaks:
            side = each.found
            table.add_row(
                side.key, side.kind, each.state, f"{side.at:%Y-%m-%d %H:%M:%S}",
                f"{side.reference}: {side.says}",
            )  # fmt: skip
        print_table(table)
    if found.read_before is not None:
        when = f"{found.read_before:%Y-%m-%d %H:%M:%S}"
        say(f"{found.statement} was read on {when} already: only known breaks were looked at")
    elif found.statement is not None:
        typer.echo(f"{found.lines} lines, {found.agreed} agree")
    states = ("open", "pending", "closed", "settled")
    typer.echo(", ".join(f"{found.count(state)} {state}" for state in states))
