"""What a provider's statement says against what we booked: where they part, and why it matters.

A break is one difference. Its key is made of what it is about, never of the file or the run, so
that the same difference found twice is one break. Young ones are pending: the other side may only
be late. Amounts are integer minor units.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from everycent.domain.message import (
    Currency,
    Id,
    Key,
    Message,
    StepRequest,
    Text,
    Told,
    order_of,
    step_key,
)

OWNER: Final = "reconciliation"
STEP: Final = "reconcile"
NO_ORDER: Final = "~statement"  # Stands for the order where a statement names none of ours.
Movement = Literal["capture", "refund"]
_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}")


class BreakKind(StrEnum):
    """How the sides differ."""

    MISSING_HERE = "missing here"  # The provider moved money that we know nothing of.
    MISSING_THERE = "missing there"  # We booked money that no statement tells.
    AMOUNT = "amount"
    CURRENCY = "currency"
    STATUS = "status"  # It happened for one side only.
    TWICE = "twice"  # The provider moved it more than once.
    ORDER = "order"  # The money is as told, but the order does not go with it.
    STOCK = "stock"  # Paid and confirmed, and the units have not left the stock.


# What a person may do; an order's own commands move money, never this one.
PROPOSALS: Final[dict[BreakKind, tuple[str, ...]]] = {
    BreakKind.MISSING_HERE: ("retry", "refund at the provider", "resolve"),
    BreakKind.MISSING_THERE: ("retry", "ask the provider", "resolve"),
    BreakKind.AMOUNT: ("retry", "refund the difference", "resolve"),
    BreakKind.CURRENCY: ("retry", "ask the provider", "resolve"),
    BreakKind.STATUS: ("retry", "take the order up", "resolve"),
    BreakKind.TWICE: ("retry", "refund at the provider", "resolve"),
    BreakKind.ORDER: ("retry", "take the order up", "refund", "resolve"),
    BreakKind.STOCK: ("retry", "take the order up", "refund", "resolve"),
}


class StatementLine(Message):
    """One movement that the provider tells; `reference` is the key that we gave it.

    `number` is the line of the file, from 1 behind its head. `done` is False for a movement that
    the provider tells as failed or still open.
    """

    number: int
    movement: Movement
    reference: Text
    provider_id: Text = ""
    amount_minor: Annotated[int, Field(strict=True, ge=0, le=10**15)]
    currency: Currency
    at: AwareDatetime
    done: bool = True

    @property
    def name(self) -> tuple[Movement, str]:
        """What it is matched by."""
        return self.movement, self.reference


class Booked(Message):
    """The same movement as we have it; `done` is False while our row says it did not happen."""

    movement: Movement
    reference: str
    provider_id: str = ""
    amount_minor: int
    currency: str
    at: AwareDatetime
    done: bool = True

    @property
    def name(self) -> tuple[Movement, str]:
        """What it is matched by."""
        return self.movement, self.reference


class OrderStands(Message):
    """What an order's row and its stock say, for the money that moved in its name.

    `net_minor` is what we hold of it by providers, `sold` whether its units left the stock.
    """

    xid: str
    status: str
    is_final: bool
    due_minor: int
    net_minor: int
    sold: bool


class Break(Message):
    """One difference, under a key of its own."""

    key: Key
    tenant: Id
    order_id: Id
    kind: BreakKind
    movement: Movement
    reference: Told
    line: StatementLine | None = None
    booked: Booked | None = None
    says: Told
    at: AwareDatetime  # When the younger of its sides happened.

    def is_due(self, now: datetime, grace: timedelta, *, looks: int, most_looks: int) -> bool:
        """Tell whether it has been waited for long enough, by time or by the runs that saw it."""
        return now - self.at >= grace or looks >= most_looks


class NoteBreaks(StepRequest):
    """Write down what a run found, once per break; `gone` are breaks that are none any more.

    `run` names the run (a statement's digest, or its time), `grace_seconds` and `most_looks` say
    when a pending break becomes a case. `whole` comes with the last part: the file was read.
    """

    run: str
    by: Told
    found: tuple[Break, ...] = ()
    gone: tuple[str, ...] = ()
    grace_seconds: int = Field(ge=0)
    most_looks: int = Field(ge=1)
    whole: "ReadStatement | None" = None


class ReadStatement(Message):
    """A statement that was compared to its end."""

    digest: str
    name: Told
    lines: int
    begins_at: AwareDatetime
    ends_at: AwareDatetime


class Noted(Message):
    """What became of it: keys that are cases now, those still pending, and those that closed."""

    kind: Literal["noted"] = "noted"
    opened: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


NoteBreaks.model_rebuild()


@dataclass(frozen=True)
class Compared:
    """What one name of the statement comes to: its breaks, or that both sides say the same."""

    breaks: tuple[Break, ...]
    agrees: bool


def compare(tenant: str, lines: Sequence[StatementLine], booked: Booked | None) -> Compared:
    """Compare all lines of one name (movement, reference) with what we booked under it.

    `tenant` is the shop that gets what no key of ours names.
    """
    told = [line for line in lines if line.done]
    if not told:
        line = lines[0]
        if booked is None or not booked.done:
            return Compared((), agrees=True)
        says = f"we booked the {line.movement}, the statement tells that it was not done"
        return _one(tenant, BreakKind.STATUS, line, booked, says)
    ours, more = _ours_first(told, booked)
    found = [_break(tenant, BreakKind.TWICE, line, booked, _twice(line)) for line in more]
    if booked is None:
        says = f"the provider tells a {ours.movement} that we have no row of"
        found.append(_break(tenant, BreakKind.MISSING_HERE, ours, None, says))
    elif (way := _differs(ours, booked)) is not None:
        found.append(_break(tenant, way[0], ours, booked, way[1]))
    return Compared(tuple(found), agrees=not found)


def _ours_first(
    lines: Sequence[StatementLine], booked: Booked | None
) -> tuple[StatementLine, list[StatementLine]]:
    """Take the line that is the one we booked; the others have come on top of it."""
    ordered = sorted(lines, key=lambda line: (line.at, line.number))
    known = booked.provider_id if booked is not None else ""
    ours = next((line for line in ordered if known and line.provider_id == known), ordered[0])
    return ours, [line for line in ordered if line is not ours]


def _differs(line: StatementLine, booked: Booked) -> tuple[BreakKind, str] | None:
    if not booked.done:
        return BreakKind.STATUS, f"the provider did the {line.movement}, our row says it is open"
    known = line.movement == "capture" and booked.provider_id and line.provider_id
    if known and booked.provider_id != line.provider_id:
        return BreakKind.TWICE, f"{_twice(line)}; ours is {booked.provider_id}"
    if line.currency != booked.currency:
        return BreakKind.CURRENCY, f"the statement says {line.currency}, we {booked.currency}"
    if line.amount_minor != booked.amount_minor:
        more = line.amount_minor - booked.amount_minor
        return BreakKind.AMOUNT, (
            f"the statement says {line.amount_minor}, we {booked.amount_minor}: off by {more}"
            f" {line.currency} minor units"
        )
    return None


def _twice(line: StatementLine) -> str:
    return f"the provider tells another {line.movement}: {line.provider_id or 'without an id'}"


def missing_there(tenant: str, booked: Booked) -> Break:
    """Return the break of a movement of ours that a statement of its time does not tell."""
    says = f"we booked a {booked.movement} that the statement does not tell"
    return _break(tenant, BreakKind.MISSING_THERE, None, booked, says)


def order_breaks(tenant: str, line: StatementLine, stands: OrderStands | None) -> Iterable[Break]:
    """Say where an order does not go with the money that moved in its name.

    `stands` is None where there is no such order. One that still moves is left to itself.
    """
    if stands is None:
        says = "money moved for an order that does not exist"
        yield _break(tenant, BreakKind.ORDER, line, None, says)
        return
    if not stands.is_final:
        return
    keeps = stands.due_minor if stands.status == "CONFIRMED" else 0
    if stands.net_minor != keeps:
        says = f"the order is {stands.status} and should keep {keeps}, we hold {stands.net_minor}"
        yield _break(tenant, BreakKind.ORDER, line, None, says)
    if stands.status == "CONFIRMED" and not stands.sold:
        says = "the order is paid and confirmed, its units have not left the stock"
        yield _break(tenant, BreakKind.STOCK, line, None, says)


def _one(
    tenant: str, kind: BreakKind, line: StatementLine, booked: Booked | None, says: str
) -> Compared:
    return Compared((_break(tenant, kind, line, booked, says),), agrees=False)


def _break(
    tenant: str, kind: BreakKind, line: StatementLine | None, booked: Booked | None, says: str
) -> Break:
    side = line or booked
    assert side is not None, "a break has a side"
    tenant, order_id = _place(tenant, side.reference)
    parts = [kind, side.movement, side.reference]
    if kind is BreakKind.TWICE and line is not None:
        parts += [line.provider_id, line.at.isoformat()]  # Each of them is money.
    if kind in (BreakKind.ORDER, BreakKind.STOCK):
        parts = [kind, order_of(side.reference)]  # An order is accused once.
    drawn = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return Break(
        key=step_key(tenant, order_id, "break", f"{kind.replace(' ', '-')}-{drawn}"),
        tenant=tenant,
        order_id=order_id,
        kind=kind,
        movement=side.movement,
        reference=side.reference,
        line=line,
        booked=booked,
        says=says,
        at=max(each.at for each in (line, booked) if each is not None),
    )


def _place(tenant: str, reference: str) -> tuple[str, str]:
    """Return the shop and the order that a reference names, if it is a key of ours."""
    parts = reference.split("/")
    if len(parts) > 2 and all(_ID.fullmatch(part) for part in parts):
        return parts[0], parts[1]
    return tenant, NO_ORDER
