"""The command line: its commands, and how it ends.

Only typer and rich are imported before a command runs, so that `--help` and a typing mistake are
answered at once.
"""

import os
import sys
from types import TracebackType

import typer
from typer.exceptions import TyperException

from starters.cli import (
    advise,
    bookings,
    case,
    conformance,
    explain,
    messages,
    new,
    operate,
    order,
    reconcile,
    route,
    stack,
    sweep,
    sweeper,
)
from starters.cli.common import ExitCode, one_line, say

app = typer.Typer(
    name="everycent",
    help="Order, payment and inventory transactions on Temporal.\n\nExit codes: 0 confirmed or ok,"
    " 1 a fault of ours, 2 invalid input, 3 refused by the business or the order waits for another"
    " payment, 4 a dependency is unreachable, 5 an invariant is"
    " broken.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
PARTS = (
    order,
    bookings,
    case,
    explain,
    operate,
    sweep,
    sweeper,
    reconcile,
    advise,
    route,
    messages,
    new,
    conformance,
    stack,
)
for part in PARTS:
    part.register(app)


def main() -> int:
    """Run the command line and return its exit code."""
    if not os.environ.get("EVERYCENT_DEBUG"):
        sys.excepthook = _last_words
    try:
        # By itself typer tells a mistake in a box of many lines.
        code = app(standalone_mode=False, prog_name="everycent")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.BUG
    except TyperException as mistake:
        if said := _mistake(mistake):
            say(f"error: {said}")
        return ExitCode.INVALID
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return 130
    return code if isinstance(code, int) else ExitCode.OK


def _mistake(mistake: TyperException) -> str:
    """Say what was typed wrong, and whose help tells it; a group alone has shown its help."""
    said = " ".join(mistake.format_message().split()).rstrip(".")
    context = getattr(mistake, "ctx", None)
    return f"{said}; see `{context.command_path} --help`" if said and context else said


def _last_words(
    kind: type[BaseException], error: BaseException, _trace: TracebackType | None
) -> None:
    """Say in one line what nobody foresaw, and end as hard as `everycent.__main__` does."""
    say(f"error: {kind.__name__}: {one_line(error)} (EVERYCENT_DEBUG=1 shows where)")
    sys.stdout.flush()
    os._exit(ExitCode.BUG)
