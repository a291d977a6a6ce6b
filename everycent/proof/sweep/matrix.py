"""What a sweep has found, as a table for people, for docs/ and for machines."""

from collections import Counter
from collections.abc import Iterable

from everycent.domain.message import Message


class CellResult(Message):
    """One cell: whether the run stood at its boundary when the fault came, and what came of it."""

    outcome: str
    boundary: str
    fault: str
    order: str
    stood: bool
    ended: str | None
    held: bool
    how: str = ""


class SweepReport(Message):
    """Every cell of a sweep; none is left out."""

    flow: str
    cells: tuple[CellResult, ...]
    seconds: float
    sample: int = 0  # So many cells of each fault at each kind of point; 0: all of them.

    @property
    def ok(self) -> bool:
        """Whether no invariant broke; a run that did not stand there proves nothing."""
        return all(cell.held for cell in self.cells) and any(cell.stood for cell in self.cells)

    @property
    def broken(self) -> tuple[CellResult, ...]:
        """Return the red cells."""
        return tuple(cell for cell in self.cells if not cell.held)


def rows(report: SweepReport) -> list[tuple[str, ...]]:
    """Return a row per boundary: how many cells held of those that stood, by fault."""
    faults = list(dict.fromkeys(cell.fault for cell in report.cells))
    table: list[tuple[str, ...]] = [("boundary", *faults)]
    places = dict.fromkeys(cell.boundary for cell in report.cells)
    for place in places:
        here = [cell for cell in report.cells if cell.boundary == place]
        table.append((place, *(_told(c for c in here if c.fault == fault) for fault in faults)))
    return table


def summary(report: SweepReport) -> str:
    """Say the whole in one line."""
    stood = sum(cell.stood for cell in report.cells)
    return (
        f"{len(report.cells)} cells, {stood} stood at their boundary, {len(report.broken)} broken,"
        f" {report.seconds:.0f} s"
    )


def by_outcome(report: SweepReport) -> list[tuple[str, ...]]:
    """Return a row per outcome: its cells, and with which status its orders ended."""
    table: list[tuple[str, ...]] = [("outcome", "cells", "stood", "broken", "ended as")]
    for outcome in dict.fromkeys(cell.outcome for cell in report.cells):
        here = [cell for cell in report.cells if cell.outcome == outcome]
        ends = Counter(cell.ended or "no end" for cell in here)
        table.append(
            (
                outcome,
                str(len(here)),
                str(sum(cell.stood for cell in here)),
                str(sum(not cell.held for cell in here)),
                ", ".join(f"{status} {count}" for status, count in sorted(ends.items())),
            )
        )
    return table


def markdown(table: Iterable[tuple[str, ...]]) -> str:
    """Return the table in Markdown."""
    head, *body = table
    lines = [head, ("---",) * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _told(cells: Iterable[CellResult]) -> str:
    here = list(cells)
    if not here:
        return ""
    stood = [cell for cell in here if cell.stood]
    broken = sum(not cell.held for cell in here)
    missed = len(here) - len(stood)
    told = [f"**{broken} broken**"] if broken else []
    told += [f"{len(stood)} ok"] if stood and not broken else []
    told += [f"{missed} not reached"] if missed else []
    return ", ".join(told)
