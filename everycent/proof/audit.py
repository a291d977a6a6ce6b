"""The audit: what must hold over the live databases holds, or the first offender is named.

Inside one database every rule is read in one REPEATABLE READ snapshot and is true at any instant.
Across databases the order rows are read first, then the services, all merged by key. What looks
wrong is read again, and counts only if the order's row was the same before and after that reading:
so an order that is moving is never accused, and a closed one has no excuse.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent import clock
from everycent.database.audit_reads import CHECKS, run_checks
from everycent.database.audit_rows import (
    OrderRow,
    Span,
    read_orders,
    stream_orders,
    stream_rows,
)
from everycent.database.message_reads import extended, orders_on_their_way
from everycent.database.reads import Reader, reading
from everycent.domain.choreography import DRIVER
from everycent.domain.mode import Mode
from everycent.domain.order import Decision
from everycent.proof.drivers import Drivers
from everycent.proof.facts import Facts, Stream, merge
from everycent.proof.invariants import PROVIDER, RULES, Rule
from everycent.proof.provider_books import ProviderBooks, Spool
from everycent.proof.report import AuditReport, RuleState, Sums, Tally
from everycent.settings import SERVICES, PoolSettings, ServiceName, Settings

OWNER = "owner: every unfinished order has a live driver or a case"
_OVERDUE = timedelta(minutes=10)
_ROUND_SECONDS = 0.25
_BATCH = 200
# One snapshot lasts as long as the audit; no limit of a worker's pool fits it. 0 means none.
_PATIENT = PoolSettings(
    size=2,
    statement_timeout_seconds=600,
    transaction_timeout_seconds=0,
    idle_in_transaction_seconds=0,
)


async def audit(
    settings: Settings,
    *,
    tenant: str | None = None,
    reread_seconds: float = 5.0,
    drivers: Drivers | None = None,
    provider: ProviderBooks | None = None,
) -> AuditReport:
    """Check every rule over one shop, or over all, through the read-only roles.

    `reread_seconds` is how long an order that looks wrong may go on moving before it is left to the
    next audit. Without `drivers` or `provider` their rules are told as not looked at.
    """
    async with auditor(settings) as reader:
        return await _Audit(reader, tenant, reread_seconds, drivers, provider).run()


def auditor(settings: Settings) -> contextlib.AbstractAsyncContextManager[Reader]:
    """Open the connections of an audit, for who audits again and again."""
    return reading(settings.model_copy(update={"pool": _PATIENT}))


async def audit_again(
    reader: Reader,
    *,
    at: datetime,
    tenant: str | None = None,
    orders: Sequence[str] | None = None,
    provider: ProviderBooks | None = None,
) -> AuditReport:
    """Audit as `audit` does, at a time of the caller's, over an `auditor`'s connections.

    With `orders` (xids) the rules about one order look at these alone: for who knows which moved.
    """
    return await _Audit(reader, tenant, 5.0, None, provider, now=at, only=orders).run()


@dataclass
class _Audit:
    reader: Reader
    tenant: str | None
    reread_seconds: float
    drivers: Drivers | None
    provider: ProviderBooks | None
    now: datetime = field(default_factory=clock.now)
    only: Sequence[str] | None = None
    tallies: dict[str, Tally] = field(default_factory=dict)
    sums: Sums = field(default_factory=Sums)
    snapshots: dict[str, datetime] = field(default_factory=dict)
    suspects: list[str] = field(default_factory=list)
    unfinished: dict[str, str] = field(default_factory=dict)  # xid -> its driver
    moving: int = 0

    @property
    def _prefix(self) -> str:
        return "" if self.tenant is None else f"{self.tenant}/"

    async def run(self) -> AuditReport:
        for rule in (*CHECKS, *RULES):
            self.tallies[rule.name] = Tally()
        self.overdue = self.now - _OVERDUE
        await self._look_at_all()
        await self._look_again()
        await self._look_for_owners()
        if self.provider is None:
            self.tallies[PROVIDER] = Tally(
                note="not looked at: no books of the provider were given"
            )
        rules = tuple(tally.result(name) for name, tally in self.tallies.items())
        broken = sum(rule.state is RuleState.BROKEN for rule in rules)
        return AuditReport(
            ok=broken == 0,
            broken_invariants=broken,
            rules=rules,
            totals=self.sums.totals(),
            tenant=self.tenant,
            snapshots=self.snapshots,
            orders_moving=self.moving,
        )

    async def _look_at_all(self) -> None:
        """Run every check and every rule once, over one snapshot per database."""
        async with contextlib.AsyncExitStack() as stack:
            opened: dict[ServiceName, AsyncConnection] = {}
            for service in SERVICES:  # The order's snapshot first: the others are newer.
                tx = await stack.enter_async_context(self.reader.database(service).snapshot())
                opened[service] = tx
                taken = await tx.execute(text("SELECT transaction_timestamp()"))
                self.snapshots[service] = taken.scalar_one()
            await asyncio.gather(*(self._run_checks(s, opened[s]) for s in SERVICES))
            if self.only is not None:
                self.suspects += self.only  # Each is read on its own.
                return
            spool = stack.enter_context(contextlib.closing(Spool()))
            if self.provider is not None:
                await spool.fill(self.provider, self._prefix)
            spans = [Span.of(self._prefix)]
            orders: Stream = stream_orders(opened["order"], self.tenant)
            async for facts in merge([orders, *self._rows(opened, spans), spool.stream()]):
                self._look_at(facts)

    async def _run_checks(self, service: ServiceName, tx: AsyncConnection) -> None:
        for name, found in (await run_checks(tx, service, self.tenant)).items():
            self.tallies[name] = Tally(found.rows, found.offenders, found.first)

    def _rows(
        self, opened: dict[ServiceName, AsyncConnection], spans: Sequence[Span]
    ) -> list[Stream]:
        return [
            stream_rows(tx, service, spans, self.overdue)
            for service, tx in opened.items()
            if service != "order"
        ]

    def _look_at(self, facts: Facts) -> None:
        self.sums.add(facts)
        order = facts.order
        if order is not None and not order.is_final and not _has_open_case(order):
            self.unfinished[facts.xid] = order.driver
        for rule in self._rules():
            self.tallies[rule.name].rows += rule.looks_at(facts)
        if any(rule.check(facts) for rule in self._rules()):
            self.suspects.append(facts.xid)

    def _rules(self) -> Iterable[Rule]:
        return (rule for rule in RULES if rule.name != PROVIDER or self.provider is not None)

    async def _look_again(self) -> None:
        """Read what looked wrong once more, until the order stood still while it was read."""
        left = self.suspects
        rounds = max(1, round(self.reread_seconds / _ROUND_SECONDS))
        for number in range(rounds):
            if not left:
                break
            if number:
                await asyncio.sleep(_ROUND_SECONDS)
            moved: list[str] = []
            for batch in _batches(left):
                moved += await self._judge(batch)
            left = moved
        self.moving = len(left)

    async def _judge(self, xids: Sequence[str]) -> list[str]:
        """Judge each order by a fresh reading; return those that moved meanwhile."""
        before = await self._orders(xids)
        following = await extended(self.reader, _mixed(before))
        found = {xid: Facts(xid, before.get(xid), extends=xid in following) for xid in xids}
        if self.provider is not None:
            for xid, facts in found.items():
                async for entry in self.provider.entries(f"{xid}/"):
                    facts.add(entry)
        async with self._services() as opened:
            for stream in self._rows(opened, [Span.of(f"{xid}/") for xid in xids]):
                async for xid, row in stream:
                    found[xid].add(row)
        after = await self._orders(xids)
        moved = [xid for xid in xids if _mark(before.get(xid)) != _mark(after.get(xid))]
        for xid in xids:
            if xid not in moved:
                self._count(found[xid])
        return moved

    def _count(self, facts: Facts) -> None:
        for rule in self._rules():
            for fault in rule.check(facts)[:1]:  # An order offends a rule once.
                self.tallies[rule.name].add(fault.key, fault.how)

    async def _orders(self, xids: Sequence[str]) -> dict[str, OrderRow]:
        async with self.reader.database("order").snapshot() as tx:
            return await read_orders(tx, xids)

    @contextlib.asynccontextmanager
    async def _services(self) -> AsyncIterator[dict[ServiceName, AsyncConnection]]:
        async with contextlib.AsyncExitStack() as stack:
            yield {
                service: await stack.enter_async_context(self.reader.database(service).snapshot())
                for service in SERVICES
                if service != "order"
            }

    async def _look_for_owners(self) -> None:
        """Accuse each unfinished order whose driver does not run and that nobody has a case of."""
        tally = self.tallies[OWNER] = Tally(rows=len(self.unfinished))
        if self.drivers is None:
            tally.note = f"{tally.rows} unfinished orders not looked at: no Temporal was given"
            tally.rows = 0
            return
        lost = await self._without_driver(self.unfinished)
        for batch in _batches(sorted(lost)):
            # Meanwhile it may have been closed, parked, or taken up by another driver.
            orders = await self._orders(batch)
            still = {
                xid: order.driver
                for xid, order in orders.items()
                if not order.is_final and not _has_open_case(order)
            }
            for xid, driver in (await self._without_driver(still)).items():
                order = orders[xid]
                tally.add(xid, f"{order.decision.lower()}, its driver {driver} does not run")

    async def _without_driver(self, drivers: dict[str, str]) -> dict[str, str]:
        assert self.drivers is not None, "nobody can be asked"
        told = {xid for xid, driver in drivers.items() if driver.startswith(DRIVER)}
        living = await self.drivers.living([d for xid, d in drivers.items() if xid not in told])
        owned = await self._driven_by_messages(sorted(told)) if told else set()
        return {xid: d for xid, d in drivers.items() if d not in living and xid not in owned}

    async def _driven_by_messages(self, xids: Sequence[str]) -> set[str]:
        """Return the choreographed orders that somebody cares for.

        A message of theirs is under way, or dead and waits for a person. An open one also has the
        scan for windows that are over.
        """
        orders = await self._orders(xids)
        on_their_way = await orders_on_their_way(self.reader, xids)
        return on_their_way | {x for x, o in orders.items() if o.decision is Decision.OPEN}


def _has_open_case(order: OrderRow) -> bool:
    return any(case.state == "OPEN" for case in order.cases)


def _mixed(orders: Mapping[str, OrderRow]) -> list[str]:
    return [xid for xid, order in orders.items() if order.mode is Mode.MIXED]


def _mark(order: OrderRow | None) -> tuple[object, ...]:
    return () if order is None else order.mark


def _batches(xids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (xids[start : start + _BATCH] for start in range(0, len(xids), _BATCH))
