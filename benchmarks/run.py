"""Measure what the platform costs, print it beside its limits, and keep it as JSON.

    python -m benchmarks.run [--quick] [--json FILE] [--only PART]

Every figure stands with its ratio to the limit, taken in the same run on the same machine. Nothing
is switched off: fsync is on, Temporal's SQLite is at synchronous=full, all seven workers run.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import checkout_rate, fault_points, hot_stock, order_history, worker_memory
from benchmarks.orders import Till, fill_the_shelf
from benchmarks.result import Report, Result
from everycent.clock import now
from everycent.stack.embedded import TOGETHER, WORKERS, EmbeddedStack
from starters.client import connect

RESULTS = Path(__file__).with_name("results.json")
PARTS = ("stock", "history", "points", "rate", "memory")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    runs: int = 5
    count: int = 500
    histories: int = 50
    memory_orders: int = 5000


QUICK = Size(runs=2, count=100, histories=10, memory_orders=300)


def main() -> int:
    """Measure, print, keep; 1 if a limit is not held."""
    options = _options()
    parts = options.only or PARTS
    report = Report.begin(at=now().isoformat(timespec="seconds"), quick=options.quick)
    size = QUICK if options.quick else Size()
    with (
        tempfile.TemporaryDirectory(prefix="everycent-bench-") as folder,
        EmbeddedStack(Path(folder) / "data", workers=(*WORKERS, *TOGETHER), tell=_say) as stack,
    ):
        report.results = asyncio.run(_measure(stack, size, parts))
    report.load_average_at_end = [round(load, 2) for load in os.getloadavg()]
    Console().print(_table(report))
    options.json.write_text(report.model_dump_json(indent=2) + "\n")
    _say(f"kept in {options.json}")
    return 1 if any(result.holds is False for result in report.results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two short runs: it works, no more")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART")
    return parser.parse_args()


async def _measure(stack: EmbeddedStack, size: Size, parts: tuple[str, ...]) -> list[Result]:
    client = await connect(stack.settings)
    tills = (Till(client), Till(client, together=True))
    await fill_the_shelf(tills[0])
    results: list[Result] = []
    if "stock" in parts:
        _say("reserving on one hot SKU …")
        results += await hot_stock.measure(stack.settings, runs=size.runs, count=size.count)
    if "history" in parts:
        _say("counting events and actions …")
        for till in tills:
            run = uuid.uuid4().hex[:8]
            results += await order_history.measure(till, run=run, count=size.histories)
    if "points" in parts:
        _say("passing unarmed fault points …")
        results += await fault_points.measure(stack, tills[0], runs=size.runs, count=size.count)
    if "rate" in parts:
        _say("empty workflows and orders in turn …")
        results += await checkout_rate.measure(stack, tills, pairs=size.runs, count=size.count)
    if "memory" in parts:
        _say(f"watching the workers over {size.memory_orders} orders …")
        for till in tills:
            results += await worker_memory.measure(stack, till, count=size.memory_orders)
    return results


def _table(report: Report) -> Table:
    machine = report.machine
    table = Table(
        title=f"everycent on {machine['cores']} cores, {machine['cpu']}",
        caption=f"Python {machine['python']}, load {machine['load_average'][0]} at the start,"
        f" {report.load_average_at_end[0]} at the end"
        + (", quick: too short to be believed" if report.quick else ""),
    )
    for column in ("what", "measured", "limit", "ratio", ""):
        table.add_column(column, justify="left" if column in ("what", "") else "right")
    for result in report.results:
        table.add_row(
            result.name,
            f"{result.value:,g} {result.unit}",
            "" if result.limit is None else f"{_sign(result)} {result.limit:,g}",
            "" if result.ratio is None else f"{result.ratio:.2f}",
            {True: "holds", False: "MISSED", None: ""}[result.holds],
        )
    return table


def _sign(result: Result) -> str:
    return "≥" if result.bound == "least" else "≤"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    code = main()
    # The Temporal SDK's threads abort about every twelfth Python 3.11 process at a normal exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
