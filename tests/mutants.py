"""Change the domain in every small way and count which changes a fast test notices: `make mutants`.

mutmut does it, in a copy of the tree. Texts are left out: what a message says is no decision. What
survives is judged in docs/mutants.md; the exit code is 1 below WANTED percent.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
COPIED = (
    "everycent",
    "activities",
    "workflows",
    "workers",
    "starters",
    "tests",
    "docs",
    "pyproject.toml",
)
WANTED = 90.0
KILLED = ("killed", "timeout")
WITHOUT_TEXTS = """
from mutmut.mutation import mutators
kept = [each for each in mutators.mutation_operators if each[1] is not mutators.operator_string]
mutators.mutation_operators[:] = kept
from mutmut.__main__ import cli
cli()
"""


def main() -> int:
    """Print killed and survived per module, and every change that nobody noticed."""
    begun = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else 200)
    with tempfile.TemporaryDirectory(prefix="everycent-mutants-") as folder:
        _copy(Path(folder))
        jobs = ["--max-children", str(os.cpu_count() or 1)]
        ran = _mutmut(Path(folder), "run", *jobs)
        found = dict(_results(_mutmut(Path(folder), "results", "--all", "true").stdout))
        if not found:
            console.print(ran.stdout[-3000:], ran.stderr[-3000:], markup=False)
            return 1
        survivors = sorted(name for name, state in found.items() if state not in KILLED)
        for name in survivors:
            console.print(f"{name} ({found[name]})", markup=False)
            console.print(_change(_mutmut(Path(folder), "show", name).stdout), markup=False)
    console.print(_table(found))
    killed = sum(state in KILLED for state in found.values())
    share = 100 * killed / len(found)
    minutes = (time.monotonic() - begun) / 60
    console.print(f"{killed} of {len(found)} mutants killed: {share:.1f} % ({minutes:.1f} min)")
    return 0 if share >= WANTED else 1


def _copy(folder: Path) -> None:
    for name in COPIED:
        whole = ROOT / name
        if whole.is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(whole, folder / name, ignore=skip)
        else:
            shutil.copy(whole, folder)


def _mutmut(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TEXTS, *words], cwd=folder, capture_output=True, text=True
    )


def _results(text: str) -> list[tuple[str, str]]:
    """Read `module.function__mutmut_1: killed` lines."""
    pairs = [line.strip().partition(": ") for line in text.splitlines() if "__mutmut_" in line]
    return [(name, state) for name, _, state in pairs]


def _change(shown: str) -> str:
    lines = shown.splitlines()
    return "\n".join(
        line for line in lines if line[:1] in "+-" and not line.startswith(("+++", "---"))
    )


def _table(found: dict[str, str]) -> Table:
    table = Table("module", "mutants", "killed", "not", box=None, pad_edge=False)
    module = {name: name.split(".")[2] for name in found}
    for each, mutants in sorted(Counter(module.values()).items()):
        killed = sum(found[n] in KILLED for n in found if module[n] == each)
        table.add_row(each, str(mutants), str(killed), str(mutants - killed))
    return table


if __name__ == "__main__":
    sys.exit(main())
