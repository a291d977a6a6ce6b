"""`everycent explain`: what happened to an order, why it waits, and what to type next."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starters.cli.common import (
    DEFAULT_DATA_DIR,
    AsJson,
    DataDir,
    ExitCode,
    Tenant,
    print_json,
    run,
    say,
)

if TYPE_CHECKING:
    from everycent.proof.timeline import Timeline

Name = Annotated[
    str,
    typer.Argument(
        metavar="ORDER",
        help="The order's id; or a step's key, its workflow's id, a payment's id or request id.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(explain)


def explain(
    name: Name,
    tenant: Tenant = "default",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Tell all that happened to an order, in order, why it waits, and the next command to type.

    Who does not answer is named, and the others speak. Exit code 2 when no such order ever came, 5
    when an invariant does not hold of it.
    """
    told = run(_explain(tenant, name, data_dir))
    if as_json:
        print_json(told)
    else:
        _print(told)
    if not told.found and not told.silent:
        say(f"error: there is no order {told.order_id} of tenant {told.tenant}")
        raise typer.Exit(ExitCode.INVALID)
    if told.broken:
        raise typer.Exit(ExitCode.BROKEN)


async def _explain(tenant: str, name: str, data_dir: Path) -> "Timeline":
    from everycent.proof.explain import explain, find
    from everycent.settings import load

    settings = load(data_dir, "reader")
    return await explain(settings, *await find(settings, tenant, name))


def _print(told: "Timeline") -> None:
    from everycent.proof.timeline_text import as_text

    for line in as_text(told):
        typer.echo(line)
