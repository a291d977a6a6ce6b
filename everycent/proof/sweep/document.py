"""The page of docs/ that shows a sweep; every figure on it comes from the report."""

import os
from collections.abc import Sequence

from everycent.faults import ACTIONS, POINTS
from everycent.proof.sweep.cells import FAULTS
from everycent.proof.sweep.matrix import SweepReport, by_outcome, markdown, rows, summary

_HEAD = """# The sweep: every fault at every boundary

This page is written by `everycent sweep {flow} --document {file}`{make}, broken
cells included.
A cell is one fault at one boundary of one outcome: an order is brought to the boundary, the fault
happens, and when nothing moves any more the order's end and every rule of the audit are checked.
"ok" counts the runs that stood at their boundary when the fault came; what did not reach it proves
nothing and is told as "not reached".

An operator's part is played too: a parked step is tried again when the fault is over, and for a run
that cannot go on the sweeper makes a pass at once. After Temporal was put back the sweeper makes a
pass, as [operations](operations.md) wants it: a run has forgotten what it did in the lost second.
"""

_YOURS = """## A flow of yours

The boundaries are learned by running the flow, so a flow of yours needs no list of them. Describe
its outcomes by an object of `SweptFlow` (`everycent/proof/sweep/scenario.py`; the checkout's is
`everycent/proof/sweep/checkout.py`) and name it: `everycent sweep my_shop.sweep:FLOW`.
`--outcome`, `--fault`, `--point` and `--step` narrow the sweep, `--list` counts its cells.

## Faults by hand

A worker that is started with `EVERYCENT_FAULTS`, or on a data folder that holds `faults.json`,
obeys rules. This one kills the inventory's worker when order `o-7` is about to commit there for
the second time:

```json
[{"point": "commit.before", "step": "inventory.*", "order": "main/o-7", "nth": 2, "action": "kill"}]
```

A file is read again when it changes; the journal beside it has a line per hit.
"""


_BY_MESSAGES = """
Orders that messages drive have no run: their boundaries are those of the messages. A step
`relay.order.paid>ledger` is a relay that carries the message `order.paid` to the ledger: its points
are before and after the delivery, and around the two COMMITs, of the inbox and of the mark. A step
`ledger.order.paid` is the ledger's consumer that applies it. In an armed process each message goes
by itself. "worker killed" kills the relay or the consumer, a zombie is one that sleeps beyond its
lease or its patience, and a message that became dead is replayed, as an operator would.
"""


def page(report: SweepReport, file: str = "docs/sweep.md") -> str:
    """Return the whole page, as it is written to `file`."""
    sample = (
        f"\nThis was a sample: {report.sample} cells of each fault at each kind of point.\n"
        if report.sample
        else ""
    )
    parts = [
        _HEAD.format(
            flow=report.flow, file=file, make=" (`make sweep`)" if file == "docs/sweep.md" else ""
        ),
        *([_BY_MESSAGES] if "choreographed" in report.flow else []),
        f"**{summary(report)}**, on {machine()}.\n{sample}",
        "## By outcome\n",
        markdown(by_outcome(report)),
        "\n## By boundary and fault\n",
        markdown(rows(report)),
        "\n## The faults\n",
        markdown([("fault", "where"), *((f.name, ", ".join(f.points)) for f in FAULTS)]),
        "\n## Broken cells\n",
        *(_broken(report) or ["None."]),
        f"\n{_YOURS}",
        "### Points\n",
        markdown([("point", "when"), *POINTS.items()]),
        "\n### Actions\n",
        markdown(
            [
                ("action", "what", "where"),
                *((name, what, ", ".join(sorted(at))) for name, (what, at) in ACTIONS.items()),
            ]
        ),
        "",
    ]
    return "\n".join(parts)


def machine() -> str:
    """Say on what it ran, and how busy that was."""
    load = os.getloadavg()[1]
    return f"{os.cpu_count()} cores, load average {load:.0f}"


def _broken(report: SweepReport) -> Sequence[str]:
    return [
        f"- {cell.fault} at {cell.boundary}, {cell.outcome}: {cell.how.splitlines()[0]}"
        for cell in report.broken
    ]
