"""Every marker names a requirement, every marked test says what breaks it, nothing is missing."""

import ast
import subprocess
import sys
from pathlib import Path

from tests.house import requirements_table as table

ROOT = Path(__file__).parents[2]


def test_every_marker_names_a_known_requirement() -> None:
    known = table.index()
    unknown = [(t.name, i) for t in table.marked_tests() for i in t.ids if i not in known]
    assert unknown == []


def test_every_marked_test_tells_when_it_is_red() -> None:
    silent = [f"{t.file}::{t.name}" for t in table.marked_tests() if not t.says_when_it_is_red]
    assert silent == []


def test_what_is_due_is_covered() -> None:
    assert [each.id for each in table.uncovered()] == []


def test_a_marker_is_found_by_the_table_wherever_it_stands() -> None:
    """A marker on a class or a module would be missed by the table, so nobody may write one."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        functions = sum(len(t.ids) for t in table._of_file(path))
        written = sum(
            len(node.args)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.requirement"
        )
        assert functions == written, path


def test_the_table_names_each_requirement_with_its_tests() -> None:
    script = ROOT / "tests" / "house" / "requirements_table.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("AC12.1 ")]
    assert "tests/database/test_fence.py::test_a_hundred_concurrent_cancels" in line
