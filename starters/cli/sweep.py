"""`everycent sweep`: every fault at every boundary of a flow, on a stack of its own."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starters.cli.common import (
    AsJson,
    ExitCode,
    new_table,
    print_json,
    print_table,
    run,
    say,
    silence_the_sdk,
)

if TYPE_CHECKING:
    from everycent.proof.sweep.matrix import SweepReport


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(sweep)


def sweep(
    flow: Annotated[
        str,
        typer.Argument(
            help="`checkout`, `checkout-tcc`, `checkout-choreographed`, or yours as"
            " `package.module:attribute`."
        ),
    ] = "checkout",
    outcome: Annotated[
        list[str] | None, typer.Option(help="Only this outcome; may be repeated.")
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help="Only this fault; may be repeated.")
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="Only boundaries of this point; may be repeated.")
    ] = None,
    step: Annotated[
        list[str] | None, typer.Option(help="Only boundaries of this step; may be repeated.")
    ] = None,
    sample: Annotated[
        int, typer.Option(min=0, help="So many cells of each fault at each kind of point; 0: all.")
    ] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="So many on their way at a time.")] = 40,
    stacks: Annotated[
        int, typer.Option(min=1, max=8, help="Sweep so many stacks side by side.")
    ] = 2,
    together: Annotated[
        bool, typer.Option("--together", help="Have one worker host everything.")
    ] = False,
    only_list: Annotated[bool, typer.Option("--list", help="Only list the cells.")] = False,
    as_json: AsJson = False,
    document: Annotated[
        Path | None, typer.Option(help="Write the matrix as Markdown to this file.")
    ] = None,
) -> None:
    """Kill, repeat, delay and reorder every step of a flow, and audit what is left of it.

    It starts stacks of its own in temporary folders and leaves nothing behind. Exit code 5 when
    an invariant broke.
    """
    from everycent.proof.sweep.director import Plan
    from everycent.proof.sweep.run import listed, sweep_flow

    silence_the_sdk()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan = Plan(
        outcome or (), fault or (), point or (), step or (), at_once, together, sample, stacks
    )
    if only_list:
        cells = run(listed(flow, plan, say))
        if as_json:
            print_json(cells)
        else:
            for cell in cells:
                typer.echo(f"{cell['outcome']:<16} {cell['boundary']:<60} {cell['fault']}")
            typer.echo(f"{len(cells)} cells")
        return
    report = run(sweep_flow(flow, plan, say))
    if as_json:
        print_json(report)
    else:
        _print(report)
    if document is not None:
        from everycent.proof.sweep.document import page

        document.write_text(page(report, str(document)))
    if not report.ok:
        raise typer.Exit(ExitCode.BROKEN)


def _print(report: "SweepReport") -> None:
    from everycent.proof.sweep.matrix import by_outcome, rows, summary

    for table in (rows(report), by_outcome(report)):
        shown = new_table(*table[0])
        for row in table[1:]:
            shown.add_row(*row)
        print_table(shown)
    for cell in report.broken:
        typer.echo(f"BROKEN {cell.order}: {cell.outcome}, {cell.fault} at {cell.boundary}")
        typer.echo(f"  {cell.how}")
    typer.echo(summary(report))
