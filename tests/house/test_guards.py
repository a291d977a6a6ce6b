"""Every guard in the SQL has a test that goes red without it; `make guards` shows it for each."""

import ast
import itertools
import re
from pathlib import Path

from tests.guards.source import DATABASE, READERS, WRITES, files, guards
from tests.guards.table import TESTS

ROOT = Path(__file__).parents[2]
WORDS = re.compile(
    r"\b(CHECK \(|UNIQUE \(|PRIMARY KEY \(|CREATE TRIGGER|ON CONFLICT|FOR (NO KEY )?UPDATE)"
)


def test_every_guard_has_a_test() -> None:
    """A new guard is found by pattern; give it a line in tests/guards/table.txt, and a test.

    Red when: a guard is added, or loses its line.
    """
    found = {guard.id for guard in guards()}
    assert len(found) > 200
    assert sorted(found - set(TESTS)) == [], "guards without a line in tests/guards/table.txt"
    assert sorted(set(TESTS) - found) == [], "lines about guards that are gone"


def test_every_test_of_the_table_exists() -> None:
    for test in set(TESTS.values()):
        file, _, name = test.partition("::")
        names = {
            node.name
            for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name.partition("[")[0] in names, test


def test_a_file_without_one_guard_is_still_a_program() -> None:
    """What is taken away is the guard, not the file's syntax: a test that is red says something."""
    for guard in guards():
        whole = guard.path.read_text()
        assert guard.taken_from(whole) != whole, guard.id
        ast.parse(guard.taken_from(whole))


def test_no_guard_is_missed_by_the_patterns() -> None:
    """Each place where such a word stands in a text is covered by a guard that was found."""
    found_all = guards()
    for path in files():
        spans = [(g.start, g.end) for g in found_all if g.path == path]
        text = path.read_text()
        for found in WORDS.finditer(_without_comments(text)):
            covered = any(start - 200 <= found.start() <= end for start, end in spans)
            assert covered, f"{path.name}: {text[found.start() : found.start() + 80]!r}"


def test_what_only_reads_writes_nothing() -> None:
    for name in READERS:
        for node in ast.walk(ast.parse((DATABASE / name).read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not WRITES.search(node.value), f"{name}: {node.value[:60]}"


def _without_comments(text: str) -> str:
    """Blank the docstrings and comments, so that every place stays where it is."""
    spoken = [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    hidden = set(itertools.chain.from_iterable(range(a, b + 1) for a, b in spoken))
    lines = [
        " " * len(line) if n in hidden or line.lstrip().startswith("#") else line
        for n, line in enumerate(text.split("\n"), start=1)
    ]
    return "\n".join(lines)
