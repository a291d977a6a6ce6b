"""The `everycent` command: finds our folders, hands over to the command line, and ends hard."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line and end the process with its exit code."""
    put_our_folders_first()
    from starters.cli.app import main as run

    exit_code = run()
    # The Temporal SDK's threads abort about every twelfth Python 3.11 process at a normal exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def put_our_folders_first() -> None:
    """Make `workflows` and its sisters importable: from the checkout, or from inside our wheel."""
    package = Path(__file__).resolve().parent
    bundle = package / "_bundle"
    root = str(bundle if bundle.is_dir() else package.parent)
    if sys.path[:1] != [root]:
        sys.path.insert(0, root)


if __name__ == "__main__":
    main()
