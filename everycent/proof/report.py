"""What an audit says: a line per rule, and what the books add up to."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from everycent.domain.message import Message
from everycent.proof.facts import Facts


class RuleState(StrEnum):
    """What became of a rule; one that looked at nothing has not passed."""

    HELD = "held"
    BROKEN = "broken"
    EMPTY = "empty"


class RuleResult(Message):
    """One rule: how many rows it looked at, how many offend, and the first of those."""

    name: str
    state: RuleState
    rows_looked_at: int
    offenders: int = 0
    first_offender: str | None = None
    detail: str = ""


class Totals(Message):
    """What the books add up to; amounts by currency, but for the two plain sums."""

    orders_by_status: Mapping[str, int] = {}
    orders_confirmed: int = 0
    units_sold: int = 0
    minor_units_captured: int = 0
    minor_units_refunded: int = 0
    captured_at_provider: Mapping[str, int] = {}
    captured_from_balance: Mapping[str, int] = {}
    refunded_at_provider: Mapping[str, int] = {}
    refunded_to_balance: Mapping[str, int] = {}
    points_used: int = 0
    points_earned: int = 0
    points_given_back: int = 0
    points_taken_back: int = 0


class AuditReport(Message):
    """What the audit found; `ok` if no rule is broken. `moving` orders never stood still."""

    ok: bool
    broken_invariants: int
    rules: tuple[RuleResult, ...]
    totals: Totals
    tenant: str | None
    snapshots: dict[str, datetime]
    orders_moving: int = 0


_POINTS = {
    "earn": "points_earned",
    "points-refund": "points_given_back",
    "unearn": "points_taken_back",
}


@dataclass
class Tally:
    """What one rule has come to."""

    rows: int = 0
    offenders: int = 0
    first: tuple[str, str] | None = None  # Its name and what is wrong with it.
    note: str = ""

    def add(self, name: str, how: str) -> None:
        """Count an offender."""
        self.offenders += 1
        if self.first is None or (name, how) < self.first:
            self.first = (name, how)

    def result(self, rule: str) -> RuleResult:
        """Return the rule's line of the report."""
        held = RuleState.HELD if self.rows else RuleState.EMPTY
        name, how = self.first or (
            None,
            self.note if self.rows or self.note else "nothing to look at",
        )
        return RuleResult(
            name=rule,
            state=RuleState.BROKEN if self.offenders else held,
            rows_looked_at=self.rows,
            offenders=self.offenders,
            first_offender=name,
            detail=how or ("" if self.rows else "nothing to look at"),
        )


@dataclass
class Sums:
    """The totals while they are counted."""

    statuses: Counter[str] = field(default_factory=Counter)
    units_sold: int = 0
    money: dict[str, Counter[str]] = field(default_factory=dict)
    points: Counter[str] = field(default_factory=Counter)

    def add(self, facts: Facts) -> None:
        """Add an order with all of its rows."""
        if facts.order is not None and facts.order.asked is not None:
            self.statuses[facts.order.status] += 1
        for row in facts.rows:
            if row.kind == "payment":
                self._add_money("captured_at_provider", row.currency, row.captured)
            elif row.state != "CONFIRMED":
                continue
            elif row.kind == "reservation":
                self.units_sold += sum(row.units.values())
            elif row.kind == "refund":
                self._add_money("refunded_at_provider", row.currency, row.amount)
            elif row.kind == "balance_hold":
                self._add_money("captured_from_balance", row.currency, row.amount)
            elif row.kind == "balance_refund":
                self._add_money("refunded_to_balance", row.currency, row.amount)
            elif row.kind == "points_hold":
                self.points["points_used"] += row.amount
            elif row.kind == "points_booking":
                self.points[_POINTS[row.key.split("/")[2]]] += row.amount

    def _add_money(self, name: str, currency: str, minor: int) -> None:
        if minor:
            self.money.setdefault(name, Counter())[currency] += minor

    def totals(self) -> Totals:
        """Return what came together."""

        def plain(kind: str) -> int:
            return sum(sum(c.values()) for name, c in self.money.items() if name.startswith(kind))

        return Totals(
            orders_by_status=dict(sorted(self.statuses.items())),
            orders_confirmed=self.statuses["CONFIRMED"],
            units_sold=self.units_sold,
            minor_units_captured=plain("captured"),
            minor_units_refunded=plain("refunded"),
            **{name: dict(sorted(counts.items())) for name, counts in self.money.items()},
            **self.points,
        )
