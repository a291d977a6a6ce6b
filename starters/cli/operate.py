"""`everycent worker | check | audit | clean | demo`: run it, and know that it is well."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    ExitCode,
    new_table,
    one_line_errors,
    print_facts,
    print_json,
    print_table,
    run,
    say,
    web_ui,
)

if TYPE_CHECKING:
    from everycent.database.retention import Cleaned
    from everycent.proof.report import AuditReport
    from everycent.settings import Settings
    from starters.checks import Finding
    from starters.demo import Told


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(worker)
    app.command()(check)
    app.command()(audit)
    app.command()(clean)
    app.command()(demo)


def worker(
    name: Annotated[str, typer.Argument(help="`workflows`, `together`, `relay`, or a service.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Run one worker until SIGTERM or Ctrl-C; `up` runs all of them."""
    import uvloop

    run(_work(name, data_dir), loop_factory=uvloop.new_event_loop)


def check(
    only: Annotated[
        str | None,
        typer.Option(
            help="Only what this worker, or `provider`, needs: the health check of a container.",
            show_default="everything",
        ),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Reach every dependency and say what is wrong and what helps; exit code 4 if anything is."""
    findings = run(_check(only, data_dir))
    if as_json:
        print_json(list(findings))
    else:
        for finding in findings:
            fix = f"; {finding.fix}" if finding.fix else ""
            typer.echo(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.what}: {finding.says}{fix}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(ExitCode.UNREACHABLE)


def audit(
    tenant: Annotated[str | None, typer.Option(help="Only this shop.", show_default="all")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Check every invariant over the live databases; exit code 5 when one is broken."""
    report = run(_audit(tenant, data_dir))
    if as_json:
        print_json(report)
    else:
        print_audit(report)
    if not report.ok:
        raise typer.Exit(ExitCode.BROKEN)


def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and remove nothing.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Remove old rows that moved nothing, once no late message can ask for them any more."""
    cleaned = run(_clean(data_dir, dry_run=dry_run))
    if as_json:
        print_json(
            [
                {"table": c.table, "before": c.before.isoformat(), "rows": c.rows, "kept": c.kept}
                for c in cleaned
            ]
        )
        return
    table = new_table("table", "opened before", "rows over" if dry_run else "rows removed")
    for each in cleaned:
        rows = f"{each.rows} stay: {each.kept}" if each.kept else str(each.rows)
        table.add_row(each.table, each.before.isoformat(), rows)
    print_table(table)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it up until Ctrl-C.")] = False,
) -> None:
    """Start a stack in a temporary folder, sell orders that end in every way, and leave nothing."""
    with one_line_errors():
        from starters.demo import Demo

        ok = Demo(say=say, show=_show_demo, keep=keep).run()
    if not ok:
        raise typer.Exit(ExitCode.BROKEN)


async def _show_demo(told: "list[Told]", settings: "Settings") -> bool:
    """Print what the services say about each order, the audit, and where to look at it all."""
    from everycent.proof.connected import audit_connected

    table = new_table(
        "order", "what happened", "outcome", "captured", "refunded", "units sold", "units held",
        "points used", "points earned", "reason",
    )  # fmt: skip
    for each in told:
        file = each.file
        numbers = (file.units_sold, file.units_held, file.points_used, file.points_earned)
        table.add_row(
            file.order.order_id,
            each.title,
            file.order.status + ("" if each.as_expected else f" (not {each.expected}!)"),
            f"{file.captured_minor} {file.order.currency}",
            f"{file.refunded_minor} {file.order.currency}",
            *map(str, numbers),
            file.order.reason,
        )
    typer.echo("Amounts are minor units (cents).")
    print_table(table)
    report = await audit_connected(settings)
    print_audit(report)
    typer.echo("\nEach order in Temporal's Web UI (while the stack runs):")
    for each in told:
        link = web_ui(settings, each.file.order.request.workflow_id())
        typer.echo(f"{each.file.order.order_id:<10}  {link}")
    return report.ok


def print_audit(report: "AuditReport") -> None:
    """Print a rule per line, and the totals."""
    table = new_table("rule", "state", "rows", "offenders", "first offender", "reason")
    for rule in report.rules:
        table.add_row(
            rule.name, rule.state, str(rule.rows_looked_at), str(rule.offenders),
            rule.first_offender or "", rule.detail,
        )  # fmt: skip
    print_table(table)
    print_facts({"broken_invariants": report.broken_invariants, **report.totals.model_dump()})


async def _work(name: str, data_dir: Path) -> None:
    from everycent.settings import load
    from workers.composition import worker_name
    from workers.run import run_relay, run_worker

    if name == "relay":
        await run_relay(load(data_dir, "relay"))
        return
    known = worker_name(name)
    settings = load(data_dir, known)
    if known in ("workflows", "together"):
        from everycent.domain.sweep import Sweep
        from starters.client import connect
        from starters.schedules import install_sweeper

        sweep = Sweep(together=known == "together", **settings.sweeper.model_dump())
        await install_sweeper(await connect(settings), sweep, keep=True)
    await run_worker(known, settings)


async def _check(only: str | None, data_dir: Path) -> "tuple[Finding, ...]":
    from everycent.settings import SERVICES, load
    from starters.checks import check_all, check_only

    if only is None:
        return await check_all(load(data_dir, *SERVICES, "reader", "owner"))
    return await check_only(load(data_dir, only), only)


async def _clean(data_dir: Path, *, dry_run: bool) -> "list[Cleaned]":
    from everycent import clock
    from everycent.database.retention import clean
    from everycent.settings import load
    from workers.registration import check_registration

    settings = load(data_dir, "owner")
    check_registration(settings)  # A retention that is too short removes nothing.
    return await clean(settings, today=clock.now().date(), dry_run=dry_run)


async def _audit(tenant: str | None, data_dir: Path) -> "AuditReport":
    from everycent.proof.connected import audit_connected
    from everycent.settings import load

    return await audit_connected(load(data_dir, "reader"), tenant=tenant)
