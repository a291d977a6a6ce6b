"""The command line: its commands, and how an error becomes one line and an exit code."""

import sys

import typer

from starters.cli import stack

app = typer.Typer(
    name="everycent",
    help="Order, payment and inventory transactions on Temporal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
stack.register(app)


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return 0
