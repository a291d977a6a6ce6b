"""`everycent advise`: which way to keep services consistent fits what a flow needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from starters.cli.common import AsJson, ExitCode, print_json, say

if TYPE_CHECKING:
    from everycent.domain.advice import Advice


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(advise)


def advise(
    binds: Annotated[
        Literal["all", "core", "follows", "told"],
        typer.Option(
            help="What has to happen together: all effects; a core, and the rest follows; one fact,"
            " and others follow; or somebody is only told."
        ),
    ] = "all",
    databases: Annotated[
        Literal["one", "own"],
        typer.Option(help="One database for all, or each service its own."),
    ] = "own",
    isolation: Annotated[
        Literal["seen", "held", "hidden"],
        typer.Option(
            help="What an outside reader may meet before all is decided: values that may be taken"
            " back; that something is held; or nothing at all."
        ),
    ] = "held",
    third_party: Annotated[
        Literal["none", "holds", "undo", "final"],
        typer.Option(
            help="What the least able company outside can do: hold and confirm; act and take back;"
            " or act for good."
        ),
    ] = "holds",
    reversibility: Annotated[
        Literal["held", "undone", "never"],
        typer.Option(help="How our own least reversible effect is taken back."),
    ] = "held",
    duration: Annotated[
        Literal["instant", "minutes", "days"],
        typer.Option(help="How long until everybody is done."),
    ] = "minutes",
    latency: Annotated[
        Literal["at-once", "seconds", "later"],
        typer.Option(help="When the caller has to know how it ended."),
    ] = "seconds",
    volume: Annotated[int, typer.Option(min=0, help="Flows a second, at the peak.")] = 50,
    team: Annotated[
        Literal["one", "several"],
        typer.Option(help="Several: no team owns a flow through the others' services."),
    ] = "one",
    document: Annotated[
        Path | None,
        typer.Option(
            help="Write all the rules as Markdown into this file instead.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank the ways to keep services consistent, with what speaks for and against each.

    The defaults are those of an ordinary order. Exit code 3 when no way gives what is wanted.
    """
    if document is not None:
        from starters.choosing import rewritten

        document.write_text(rewritten(document.read_text() if document.exists() else ""))
        return
    from everycent.domain import advice

    wanted = advice.Requirements(
        binds=advice.Binds(binds),
        databases=advice.Databases(databases),
        isolation=advice.Isolation(isolation),
        third_party=advice.ThirdParty(third_party),
        reversibility=advice.Reversibility(reversibility),
        duration=advice.Duration(duration),
        latency=advice.Latency(latency),
        volume=volume,
        team=advice.Team(team),
    )
    told = advice.advise(wanted)
    if as_json:
        print_json(told)
    else:
        _print(told)
    if told.best is None:
        say("no way gives all of this; the reasons say what to ask less of")
        raise typer.Exit(ExitCode.REFUSED)


def _print(told: "Advice") -> None:
    for number, choice in enumerate((c for c in told.choices if c.possible), start=1):
        typer.echo(f"{number}. {choice.way}, {choice.points} points")
        for sign, reasons in (("+", choice.reasons), ("-", choice.against), (" ", choice.notes)):
            for reason in reasons:
                typer.echo(f"   {sign} {reason}")
    typer.echo("cannot be:")
    for choice in told.choices:
        if not choice.possible:
            typer.echo(f"   {choice.way}: {'; '.join(choice.against)}")
