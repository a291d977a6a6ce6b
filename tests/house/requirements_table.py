"""Which test proves which requirement; `make requirements` prints it.

Read from the source, so that it costs no servers: a marker is
`@pytest.mark.requirement("AC12.1", …)` on a test function.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "docs" / "requirements-index.txt"


@dataclass(frozen=True)
class Requirement:
    """One line of the index; `due` says that it must have a test by now."""

    id: str
    title: str
    due: bool


@dataclass(frozen=True)
class MarkedTest:
    """A test function with its markers."""

    file: str
    name: str
    ids: tuple[str, ...]
    docstring: str

    @property
    def says_when_it_is_red(self) -> bool:
        """Whether the last paragraph of the docstring tells what breaks the test."""
        return self.docstring.split("\n\n")[-1].strip().startswith("Red when:")


def index() -> dict[str, Requirement]:
    """Return every known requirement by its id."""
    known = {}
    for line in INDEX.read_text().splitlines():
        if not line.startswith("#"):
            name, rest = line[:6].strip(), line[6:]
            known[name] = Requirement(name, rest[3:].strip(), due=rest[1] == "*")
    return known


def marked_tests() -> list[MarkedTest]:
    """Return every test function that carries a requirement marker."""
    return [test for path in sorted((ROOT / "tests").rglob("*.py")) for test in _of_file(path)]


def by_requirement() -> dict[str, list[MarkedTest]]:
    """Return the tests of each requirement that has some."""
    tests: dict[str, list[MarkedTest]] = defaultdict(list)
    for test in marked_tests():
        for name in test.ids:
            tests[name].append(test)
    return tests


def uncovered() -> list[Requirement]:
    """Return what is due and has no test."""
    covered = by_requirement()
    return [each for each in index().values() if each.due and each.id not in covered]


def main() -> int:
    """Print the table, then what is due and uncovered; exit code 1 if anything is."""
    known, tests = index(), by_requirement()
    table = Table("id", "due", "requirement", "tests", box=None, pad_edge=False)
    for name, requirement in known.items():
        if name in tests:
            table.add_row(
                name,
                "due" if requirement.due else "",
                requirement.title,
                "\n".join(f"{test.file}::{test.name}" for test in tests[name]),
            )
    missing = uncovered()
    console = Console(width=None if sys.stdout.isatty() else 260)
    console.print(table)
    console.print(f"\n{len(tests)} of {len(known)} requirements have tests.")
    for requirement in missing:
        console.print(f"due and uncovered: {requirement.id} {requirement.title}", soft_wrap=True)
    return 1 if missing else 0


def _of_file(path: Path) -> Iterator[MarkedTest]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            ids = tuple(name for mark in node.decorator_list for name in _ids(mark))
            if ids:
                file = str(path.relative_to(ROOT))
                yield MarkedTest(file, node.name, ids, ast.get_docstring(node) or "")


def _ids(mark: ast.expr) -> list[str]:
    if not isinstance(mark, ast.Call) or ast.unparse(mark.func) != "pytest.mark.requirement":
        return []
    return [str(ast.literal_eval(argument)) for argument in mark.args]


if __name__ == "__main__":
    sys.exit(main())
