"""`everycent worker | check | audit | demo`: run it, and know that it is well."""

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
)

if TYPE_CHECKING:
    from everycent.proof.report import AuditReport
    from starters.checks import Finding


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(worker)
    app.command()(check)
    app.command()(audit)
    app.command()(demo)


def worker(
    name: Annotated[str, typer.Argument(help="`workflows`, or the name of a service.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Run one worker until SIGTERM or Ctrl-C; `up` runs all of them."""
    run(_work(name, data_dir))


def check(as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Reach every dependency and say what is wrong and what helps; exit code 4 if anything is."""
    findings = run(_check(data_dir))
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


def demo() -> None:
    """Start a stack in a temporary folder, sell orders that end in every way, and leave nothing."""
    with one_line_errors():
        from starters.demo import Demo

        ok = Demo(say=say).run()
    if not ok:
        raise typer.Exit(ExitCode.BROKEN)


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
    from workers.run import run_worker

    known = worker_name(name)
    await run_worker(known, load(data_dir, known))


async def _check(data_dir: Path) -> "tuple[Finding, ...]":
    from everycent.settings import SERVICES, load
    from starters.checks import check_all

    return await check_all(load(data_dir, *SERVICES, "reader", "owner"))


async def _audit(tenant: str | None, data_dir: Path) -> "AuditReport":
    from everycent.proof.connected import audit_connected
    from everycent.settings import load

    return await audit_connected(load(data_dir, "reader"), tenant=tenant)
