"""Counts what the same coupon costs its author: `python -m examples.lines` prints the table.

Counted are lines that hold code: no blank line, comment or docstring, and no import.
"""

import ast
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
VARIANTS = (
    ("a coupon, TCC by hand", "compare/tcc_by_hand.py"),
    ("the same coupon, TCC on the platform", "coupons.py"),
    ("the same coupon, a step of a saga on the platform", "compare/saga_step.py"),
    ("a whole flow of three ready-made participants, with its undo", "trip.py"),
)
FENCE_WORDS = re.compile(r"hash|tcc_log|conflict|for update|\bstate\b|answer|row\.", re.IGNORECASE)


def code_lines(source: str) -> list[str]:
    """Return the lines of a program that hold code of its author's."""
    tree = ast.parse(source)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (
            is_text or isinstance(node, ast.Import | ast.ImportFrom)
        ):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return [
        line
        for number, line in enumerate(source.splitlines(), start=1)
        if number not in left_out and line.strip() and not line.strip().startswith("#")
    ]


def about_repeats(lines: list[str]) -> int:
    """Count the lines that speak of keys, repeats and states: what is no business."""
    return sum(bool(FENCE_WORDS.search(line)) for line in lines)


def table() -> str:
    """Return the comparison as Markdown."""
    rows = ["| what an author writes | lines of code | of them about repeats and states |",
            "|---|---:|---:|"]  # fmt: skip
    for name, file in VARIANTS:
        lines = code_lines((FOLDER / file).read_text())
        rows.append(f"| [{name}](../examples/{file}) | {len(lines)} | {about_repeats(lines)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
