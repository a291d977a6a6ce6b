"""`everycent new participant | flow | fence`: a working skeleton with tests that pass at once."""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from starters.cli.common import say

Name = Annotated[str, typer.Argument(help="In small letters, as a module: `gift_card`.")]
Into = Annotated[Path, typer.Option("--into", file_okay=False, help="The folder to write to.")]
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

new = typer.Typer(no_args_is_help=True, help="Write the skeleton of a participant or a flow.")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(new, name="new")


@new.command()
def participant(name: Name, into: Into = Path()) -> None:
    """Write a participant in three functions, its worker, and its tests, conformance included."""
    _write("participant", name, into)


@new.command()
def flow(name: Name, into: Into = Path()) -> None:
    """Write a flow of three steps with undo, its worker, and its test on a real Temporal."""
    _write("flow", name, into)


@new.command()
def fence() -> None:
    """Print fence.sql: the fence for a service in another language."""
    from everycent.database.fence_sql import fence_sql

    typer.echo(fence_sql(), nl=False)


def _write(kind: str, name: str, into: Path) -> None:
    """Write three files, all or none; one that is there is never written over."""
    if not _NAME.fullmatch(name):
        raise typer.BadParameter(f"{name!r} is no name like `gift_card`")
    files = {
        into / file.replace("NAME", name): _filled(template, name)
        for file, template in {
            "NAME.py": f"{kind}.py.txt",
            "NAME_worker.py": f"{kind}_worker.py.txt",
            "test_NAME.py": f"{kind}_trial.py.txt",
        }.items()
    }
    for path in files:
        if path.exists():
            raise typer.BadParameter(f"{path} is there already")
    into.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text)
        typer.echo(path)
    say(f"try it: python -m pytest {into / f'test_{name}.py'}")


def _filled(template: str, name: str) -> str:
    text = resources.files("everycent.templates").joinpath(template).read_text()
    words = "".join(part.capitalize() for part in name.split("_"))
    return text.replace("CLASS", words).replace("NAME", name)
