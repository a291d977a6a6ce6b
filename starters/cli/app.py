"""The command line: its commands, and how it ends.

Only typer and rich are imported before a command runs, so that `--help` and a typing mistake are
answered at once.
"""

import os
import sys
from types import TracebackType

import typer

from starters.cli import bookings, case, explain, operate, order, stack, sweep, sweeper
from starters.cli.common import ExitCode, one_line, say

app = typer.Typer(
    name="everycent",
    help="Order, payment and inventory transactions on Temporal.\n\nExit codes: 0 confirmed or ok,"
    " 2 invalid input, 3 refused by the business, 4 a dependency is unreachable, 5 an invariant is"
    " broken.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for part in (order, bookings, case, explain, operate, sweep, sweeper, stack):
    part.register(app)


def main() -> int:
    """Run the command line and return its exit code."""
    if not os.environ.get("EVERYCENT_DEBUG"):
        sys.excepthook = _last_words
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else ExitCode.BUG
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return ExitCode.OK


def _last_words(
    kind: type[BaseException], error: BaseException, _trace: TracebackType | None
) -> None:
    """Say in one line what nobody foresaw, and end as hard as `everycent.__main__` does."""
    say(f"error: {kind.__name__}: {one_line(error)} (EVERYCENT_DEBUG=1 shows where)")
    sys.stdout.flush()
    os._exit(ExitCode.BUG)
