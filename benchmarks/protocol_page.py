"""The measured part of docs/choosing.md, out of the figures of `make bench-protocols`."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median

from benchmarks.protocol_report import ProtocolReport, WayFigures
from starters.choosing import MEASURED

_HEAD = """
## What each way costs, measured

`make bench-protocols` has written this part, out of one run in which all ways sold the same order
by turns: two units of one SKU that all orders want, paid by stored balance, booked in the ledger,
points earned. *One database* is the limit: the same rows in one transaction, with no fence, so
that a repeat sells twice. *Two-phase commit* runs the services' own steps over their five
databases. The others run on the whole platform, a worker for each service. fsync is on
everywhere.
"""
_PACE = """
*Of the limit*: the pace against that of one database in the same round; the median, and the least
and the most. *Answered*: when the client knows that its order is taken: decided, in the modes
with a workflow; written down, in the mode of messages. *Done*: closed. *CPU*: of all processes
together.
"""
_WRITES = """
*Locked*: how long a transaction, prepared or not, had the SKU's row locked for one order. *Held*:
how long the units were neither free nor sold, which stops nobody who wants others. *fsyncs*: of
PostgreSQL's log. *Temporal writes*: what its server asks its store to write, with the embedded
one an fsync each. *Messages*: rows of an outbox. *Lines*: those that hold code and tell this
flow, without the services' steps, the fence, the relay and the tests.
"""
_SEEN = """
### What an outside reader sees

Another process asked all five services for their rows, over and over, while orders were sold one
at a time, and noted every state that was neither before nor after. *Half done*: something is
final already and something else is not. In the modes of the platform that comes after the
decision, and only forward from there; by two-phase commit it is short, and all that is not yet
committed shows its old value, while nobody can write it. Five databases are not read at one
instant: a state that is seen once in many orders may be two of them.
"""
_COLUMNS = ("order", "stock", "money", "ledger", "points")


def write_into(document: Path, report: ProtocolReport) -> None:
    """Put the figures below the marker of the page; what stands above it stays."""
    above, _, _ = document.read_text().partition(MEASURED)
    document.write_text(f"{above.rstrip()}\n\n{MEASURED}{measured(report)}")


def measured(report: ProtocolReport) -> str:
    """Return what stands below the marker."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: ProtocolReport) -> Iterator[str]:
    limit = report.ways[0]
    yield _HEAD
    yield _machine(report)
    yield _PACE
    yield from _table(
        ("way", "orders/s", "of the limit", "answered, median ms", "done, p50 ms", "p95", "p99",
         "alone, median ms", "CPU ms"),
        (
            (
                way.name, _number(median(way.per_second)), _share(way.ratios(limit)),
                _number(median(way.answered_ms)), _number(median(way.done_ms)),
                _number(percentile(way.done_ms, 95)), _number(percentile(way.done_ms, 99)),
                _number(median(way.alone_ms)), _number(median(way.cpu_ms)),
            )
            for way in report.ways
        ),
    )  # fmt: skip
    yield _WRITES
    yield from _table(
        ("way", "locked, mean ms", "held, median ms", "fsyncs", "Temporal writes", "history events",
         "billable actions", "messages", "lines"),
        (
            (
                way.name, _number(mean(way.locked_ms)), _number(median(way.held_ms)),
                _number(way.fsyncs), _number(way.writes), _number(way.events),
                _number(way.actions), _number(way.messages), str(way.lines_of_code),
            )
            for way in report.ways
        ),
    )  # fmt: skip
    yield _SEEN
    yield from _table(
        ("way", "orders watched", "states between", "of them half done"),
        (
            (way.name, str(way.watched), str(len(way.states)), str(half_done(way)))
            for way in report.ways
        ),
    )
    yield ""
    yield "In the order in which they come; how long each stood is the median of those orders."
    yield ""
    yield from _table(
        ("way", *_COLUMNS, "seen in", "for ms"),
        (
            (way.name, *state.look, f"{state.orders} of {way.watched}", _number(state.median_ms))
            for way in report.ways
            for state in way.states
        ),
    )


def _machine(report: ProtocolReport) -> str:
    machine, size = report.machine, report.size
    quick = ". **Quick: too short to be believed.**" if report.quick else "."
    return (
        f"Taken at {report.taken_at} on {machine['cores']} cores, {machine['cpu']},"
        f" {machine['memory_gib']} GiB, load {machine['load_average'][0]} at the start and"
        f" {report.load_average_at_end[0]} at the end (with its own work); {size['rounds']} rounds"
        f" of {size['crowd']} orders with {size['in_flight']} in flight ({size['quick_factor']}"
        f" times as many where there is no platform). The audit afterwards went over"
        f" {report.audited_orders:,} orders and found nothing{quick}"
    )


def half_done(way: WayFigures) -> int:
    """Count the states in which one effect is final and another is not."""
    final = {"sold", "paid", "booked", "earned"}
    return sum(1 for state in way.states if 0 < len(final.intersection(state.look)) < len(final))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def _share(ratios: Sequence[float]) -> str:
    middle, least, most = (_number(100 * f(ratios)) for f in (median, min, max))
    return f"{middle} % ({least} to {most})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(names: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(names) + " |"
    yield "| --- |" + " ---: |" * (len(names) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
