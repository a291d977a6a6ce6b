"""What must hold of one order across the services: pure rules over its `Facts`.

A final order must satisfy them at once: nothing of it moves any more. Whoever reads the facts makes
sure that the order did not move meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from everycent.database.audit_rows import OrderRow, ServiceRow
from everycent.domain.inventory import StockLine, units_by_sku
from everycent.domain.mode import Mode
from everycent.domain.order import Decision, OrderStatus
from everycent.proof.facts import Facts

_OF_AN_ORDER = (
    "reservation", "payment", "refund", "call", "balance_hold", "balance_refund", "points_hold",
    "points_booking", "transfer",
)  # fmt: skip
_HOLDS = ("reservation", "payment", "balance_hold", "points_hold")
_TRYING = (Decision.OPEN, Decision.ABORTING)


@dataclass(frozen=True)
class Fault:
    """What is wrong, under which step's key; a step settled by hand excuses all but open holds."""

    key: str
    how: str
    is_open_hold: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule over one order: how many rows of it are looked at, and what is wrong with them."""

    name: str
    looks_at: Callable[[Facts], int]
    faults: Callable[[Facts], Iterable[Fault]]

    def check(self, facts: Facts) -> list[Fault]:
        """Return what is wrong and was not settled by hand."""
        if not self.looks_at(facts):
            return []
        by_hand = {case.key for case in facts.order.cases if case.by_hand} if facts.order else set()
        return [f for f in self.faults(facts) if f.is_open_hold or f.key not in by_hand]


@dataclass(frozen=True)
class Money:
    """What one payment attempt took and gave back for good, in minor units."""

    key: str
    taken_minor: int
    back_minor: int


def money_of(facts: Facts) -> list[Money]:
    """Return what each attempt took, at the provider or from a stored balance."""
    done = [row for row in facts.of("refund", "balance_refund") if row.state == "CONFIRMED"]
    at_provider = [
        Money(p.key, p.captured, sum(r.amount for r in done if r.about == p.key))
        for p in facts.of("payment")
        if p.captured
    ]
    credited = sum(row.amount for row in done if row.kind == "balance_refund")
    from_balance = [
        Money(hold.key, hold.amount, credited)
        for hold in facts.of("balance_hold")
        if hold.state == "CONFIRMED"
    ]
    return at_provider + from_balance


def _has(*statuses: OrderStatus, decision: Decision = Decision.COMMITTED) -> Callable[[Facts], int]:
    def looks_at(facts: Facts) -> int:
        order = facts.order
        return int(order is not None and order.decision is decision and order.status in statuses)

    return looks_at


def _final(facts: Facts) -> int:
    return int(facts.order is not None and facts.order.is_final)


def _order(facts: Facts) -> OrderRow:
    assert facts.order is not None, f"{facts.xid} is judged without its row"
    return facts.order


def _state(row: ServiceRow | None) -> str:
    return "absent" if row is None else row.state.lower()


def _wants(
    facts: Facts, kind: str, step: str, *, amount: int | None = None, about: str = ""
) -> Iterator[Fault]:
    """Name the row of a step unless it is confirmed, over the amount, and about that key."""
    row, key = facts.at(kind, step), facts.key(step)
    if row is None or row.state != "CONFIRMED":
        yield Fault(key, f"the {kind} is {_state(row)} instead of confirmed")
    elif amount is not None and row.amount != amount:
        yield Fault(key, f"the {kind} is over {row.amount} instead of {amount}")
    elif about and row.about != about:
        yield Fault(key, f"the {kind} is about {row.about or 'nothing'} instead of {about}")


def _open_holds(facts: Facts) -> Iterator[Fault]:
    for row in facts.of(*_HOLDS):
        if row.state == "TRIED":
            # What a person settled at the provider by hand stays open in our books.
            ours = row.kind != "payment"
            yield Fault(row.key, f"the {row.kind} of a closed order is still open", ours)


def _is_paid(facts: Facts) -> Iterator[Fault]:
    """Expect what is due from the attempt that was decided on, and nothing kept by another."""
    order, money = _order(facts), {m.key: m for m in money_of(facts)}
    chosen = facts.key(f"pay/{order.attempt}")
    due = order.request.due_minor
    taken = money[chosen].taken_minor if chosen in money else 0
    if taken != due:
        yield Fault(chosen, f"{taken} was captured and {due} is due")
    for other in _kept(facts):
        if other.key != chosen:
            yield _not_given_back(other)


def _not_given_back(money: Money) -> Fault:
    return Fault(money.key, f"{money.taken_minor} was captured and {money.back_minor} refunded")


def _has_its_goods(facts: Facts) -> Iterator[Fault]:
    yield from _wants(facts, "reservation", "reserve")
    lines = _order(facts).request.lines
    wanted = units_by_sku([StockLine(sku=line.sku, units=line.units) for line in lines])
    row = facts.at("reservation", "reserve")
    if row is not None and row.state == "CONFIRMED" and dict(row.units) != wanted:
        yield Fault(row.key, f"{dict(row.units)} was sold instead of {wanted}")


def _has_its_points(facts: Facts) -> Iterator[Fault]:
    order = _order(facts).request
    if order.points:
        yield from _wants(facts, "points_hold", "points", amount=order.points)
    if order.points_earned and not facts.extends:
        yield from _wants(facts, "points_booking", "earn", amount=order.points_earned)


def _is_in_the_books(facts: Facts) -> Iterator[Fault]:
    total = _order(facts).request.total_minor
    if total:
        yield from _wants(facts, "transfer", "ledger", amount=total)


def _gave_everything_back(facts: Facts) -> Iterator[Fault]:
    order = _order(facts).request
    money = money_of(facts)
    if sum(m.taken_minor for m in money) < order.due_minor:
        yield Fault(facts.key("capture"), f"less than the {order.due_minor} due was captured")
    yield from _nothing_kept(facts)
    if (row := facts.at("reservation", "reserve")) is not None and row.state == "CONFIRMED":
        yield Fault(row.key, "the stock of a refunded order is sold")
    if order.points:
        yield from _wants(facts, "points_hold", "points", amount=order.points)
        yield from _wants(facts, "points_booking", "points-refund", amount=order.points)
    if order.points_earned and _order(facts).mode is not Mode.MIXED:
        yield from _wants(facts, "points_booking", "earn", amount=order.points_earned)
        yield from _wants(facts, "points_booking", "unearn", amount=order.points_earned)
    yield from _is_in_the_books(facts)
    if order.total_minor:
        original = facts.key("ledger")
        yield from _wants(
            facts, "transfer", "ledger-reversal", amount=order.total_minor, about=original
        )


def _nothing_kept(facts: Facts) -> Iterator[Fault]:
    return map(_not_given_back, _kept(facts))


def _kept(facts: Facts) -> list[Money]:
    """Return what was not given back; a refund settled by hand, by its own key, counts as given."""
    settled = {case.key for case in _order(facts).cases if case.by_hand}

    def is_settled(money: Money) -> bool:
        request = money.key.rsplit("/", 1)[-1]
        names = ("full-refund", f"late-refund/{request}")
        return any(facts.key(name) in settled for name in names)

    return [m for m in money_of(facts) if m.taken_minor != m.back_minor and not is_settled(m)]


def _took_nothing(facts: Facts) -> Iterator[Fault]:
    yield from _nothing_kept(facts)
    for row in facts.of("reservation", "balance_hold", "points_hold", "points_booking"):
        if row.state == "CONFIRMED":
            yield Fault(row.key, f"an aborted order has a confirmed {row.kind}")
    posted = {row.key for row in facts.of("transfer") if row.state == "CONFIRMED"}
    if facts.key("ledger") in posted and facts.key("ledger-reversal") not in posted:
        yield Fault(facts.key("ledger"), "an aborted order is in the books")


def _waits_for_the_decision(facts: Facts) -> Iterator[Fault]:
    """Before COMMITTING nothing is confirmed, before ABORTING nothing is cancelled."""
    decision = _order(facts).decision
    forbidden = {"CONFIRMED", "CANCELLED"} if decision is Decision.OPEN else {"CONFIRMED"}
    for row in facts.of(*_HOLDS, "transfer"):
        if row.state in forbidden:
            yield Fault(row.key, f"the {row.kind} is {_state(row)}, the order {decision.lower()}")


def _one_pays(facts: Facts) -> Iterator[Fault]:
    kept = _kept(facts)
    for money in kept[1:]:
        yield Fault(money.key, f"{len(kept)} payments of one order kept money")


def _tells_the_facts(facts: Facts) -> Iterator[Fault]:
    """Compare the stored result with the services; a step done by hand is told by its case.

    Money that came after the close and went back is told by its late refund: a result is final.
    """
    order = _order(facts)
    if order.result is None or any(case.by_hand for case in order.cases):
        return
    money = money_of(facts)
    told = (order.result.captured_minor, order.result.refunded_minor, order.result.status)
    seen = (sum(m.taken_minor for m in money), sum(m.back_minor for m in money), order.status)
    since = seen[0] - told[0]
    came_late = 0 <= since <= _late_refunds(facts) and since == seen[1] - told[1]
    if told[2] != seen[2] or not came_late:
        yield Fault(facts.key("close"), f"its result tells {told}, the services {seen}")


def _belongs_to_an_order(facts: Facts) -> Iterator[Fault]:
    if facts.order is None:
        for row in facts.rows:
            yield Fault(row.key, f"a {row.kind} of an order that does not exist")


def _is_answered(facts: Facts) -> Iterator[Fault]:
    for call in facts.of("call"):
        names = ("refund/", "late-refund/", "full-refund")
        is_refund = call.key.startswith(tuple(facts.key(name) for name in names))
        owner = call.key if is_refund else call.key.rpartition("/")[0]
        yield Fault(owner, f"{call.key} has no answer; it could arrive until {call.about}")


def _agrees_with_the_provider(facts: Facts) -> Iterator[Fault]:
    """Per reference, the provider took and gave back what we booked, and can take no more."""
    ours = {row.key: row for row in facts.of("payment")}
    for key in sorted({*ours, *(entry.reference for entry in facts.entries)}):
        entries = [entry for entry in facts.entries if entry.reference == key]
        theirs = (sum(e.captured_minor for e in entries), sum(e.refunded_minor for e in entries))
        booked = (ours[key].captured, ours[key].refunded) if key in ours else (0, 0)
        if theirs != booked:
            yield Fault(
                key,
                f"the provider captured {theirs[0]} and refunded {theirs[1]},"
                f" we booked {booked[0]} and {booked[1]}",
            )
        for entry in entries:
            if entry.is_open:
                yield Fault(key, f"still {entry.state} at the provider: {entry.provider_id}", True)


def _late_refunds(facts: Facts) -> int:
    late = facts.key("late-refund") + "/"
    done = (row for row in facts.of("refund") if row.state == "CONFIRMED")
    return sum(row.amount for row in done if row.key.startswith(late))


def _of_provider(facts: Facts) -> int:
    """Count what is compared: payments of final orders, and what no order of ours explains."""
    if facts.order is not None and not facts.order.is_final:
        return 0
    return len({*(r.key for r in facts.of("payment")), *(e.reference for e in facts.entries)})


PROVIDER = "provider: captured and refunded as we booked it"
RULES = (
    Rule("order: confirmed, so captured = due", _has(OrderStatus.CONFIRMED), _is_paid),
    Rule("order: confirmed, so its stock is sold", _has(OrderStatus.CONFIRMED), _has_its_goods),
    Rule(
        "order: confirmed, so its points are used and earned",
        _has(OrderStatus.CONFIRMED),
        _has_its_points,
    ),
    Rule("order: confirmed, so it is in the books", _has(OrderStatus.CONFIRMED), _is_in_the_books),
    Rule(
        "order: refunded, so everything went back",
        _has(OrderStatus.REFUNDED),
        _gave_everything_back,
    ),
    Rule(
        "order: aborted, so nothing is taken",
        _has(*OrderStatus, decision=Decision.ABORTED),
        _took_nothing,
    ),
    Rule("order: closed, so nothing is held", _final, _open_holds),
    Rule("order: closed, so at most one payment is kept", _final, _one_pays),
    Rule("order: closed, so its result tells the facts", _final, _tells_the_facts),
    Rule(
        "order: undecided, so nothing is confirmed or cancelled",
        lambda facts: int(facts.order is not None and facts.order.decision in _TRYING),
        _waits_for_the_decision,
    ),
    Rule(
        "order: every hold, payment and transfer belongs to one",
        lambda facts: len(facts.of(*_OF_AN_ORDER)),
        _belongs_to_an_order,
    ),
    Rule(
        "payment: every call of a closed order is answered",
        lambda facts: _final(facts) * len(facts.of("payment", "refund", "call")),
        _is_answered,
    ),
    Rule(PROVIDER, _of_provider, _agrees_with_the_provider),
)
