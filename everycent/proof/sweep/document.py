"""The page of docs/ that shows a sweep; every figure on it comes from the report."""

from collections.abc import Sequence

from everycent.proof.sweep.cells import FAULTS
from everycent.proof.sweep.matrix import SweepReport, by_outcome, markdown, rows, summary

_HEAD = """# The sweep: every fault at every boundary

This page is written by `everycent sweep {flow} --document docs/sweep.md`, broken cells included.
A cell is one fault at one boundary of one outcome: an order is brought to the boundary, the fault
happens, and when nothing moves any more the order's end and every rule of the audit are checked.
"ok" counts the runs that stood at their boundary when the fault came; what did not reach it proves
nothing and is told as "not reached".
"""


def page(report: SweepReport) -> str:
    """Return the whole page."""
    sample = (
        f"\nThis was a sample: {report.sample} cells of each fault at each kind of point.\n"
        if report.sample
        else ""
    )
    parts = [
        _HEAD.format(flow=report.flow),
        f"**{summary(report)}**\n{sample}",
        "## By outcome\n",
        markdown(by_outcome(report)),
        "\n## By boundary and fault\n",
        markdown(rows(report)),
        "\n## The faults\n",
        markdown([("fault", "where"), *((f.name, ", ".join(f.points)) for f in FAULTS)]),
        "\n## Broken cells\n",
        *(_broken(report) or ["None."]),
        "",
    ]
    return "\n".join(parts)


def _broken(report: SweepReport) -> Sequence[str]:
    return [
        f"- {cell.fault} at {cell.boundary}, {cell.outcome}: {cell.how.splitlines()[0]}"
        for cell in report.broken
    ]
