"""`everycent worker NAME`: one worker process, in the foreground."""

from pathlib import Path
from typing import Annotated

import typer

from starters.cli.common import DEFAULT_DATA_DIR, DataDir, run


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(worker)


def worker(
    name: Annotated[str, typer.Argument(help="`workflows`, or the name of a service.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Run one worker until SIGTERM or Ctrl-C; `up` runs all of them."""
    run(_work(name, data_dir))


async def _work(name: str, data_dir: Path) -> None:
    from everycent.settings import load
    from workers.composition import worker_name
    from workers.run import run_worker

    known = worker_name(name)
    await run_worker(known, load(data_dir, known))
