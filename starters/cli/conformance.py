"""`everycent conformance URL`: a service in any language, and a participant's promises."""

import json
from typing import Annotated, Any

import typer

from starters.cli.common import ExitCode, run, say


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(conformance)


def conformance(
    url: Annotated[str, typer.Argument(help="Where its try, confirm and cancel are.")],
    name: Annotated[str, typer.Option(help="The participant's name, a part of its keys.")],
    request: Annotated[
        str, typer.Option(help="The fields of a Try as JSON, which it can grant some 150 times.")
    ],
    tenant: Annotated[str, typer.Option(help="The shop of the keys.")] = "conformance",
    at_once: Annotated[int, typer.Option(min=2, max=100, help="So many calls at once.")] = 20,
) -> None:
    """Try a service's three calls in all their orders, one by one and at once.

    It books for real, in orders of its own. Exit code 5 when a promise is broken.
    """
    from everycent import clock
    from everycent.proof.conformance import BrokenPromise
    from everycent.proof.conformance_url import assert_url_participant

    fields = _fields(request)
    base = url if url.endswith("/") else f"{url}/"
    trial = assert_url_participant(
        base, fields, name=name, at=clock.now(), tenant=tenant, at_once=at_once
    )
    try:
        looked = run(trial)
    except BrokenPromise as broken:
        say(f"broken: {broken}")
        raise typer.Exit(ExitCode.BROKEN) from broken
    for line in looked:
        typer.echo(line)
    typer.echo("every promise is kept")


def _fields(text: str) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--request is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise typer.BadParameter("--request is no JSON object")
    return read
