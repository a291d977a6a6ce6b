"""Sell the rows of a CSV file of purchases, each once, however often the import is started.

Columns `order_id, customer_id, ordered_on, quantity, amount_usd`; the amount is that of the whole
row. The file has no cards: each order is paid by the test card `tok_ok`, one that is free by none.
"""

import asyncio
import csv
import hashlib
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from everycent.domain.message import Message, problems_of
from everycent.domain.order import (
    CardPayment,
    OrderLine,
    OrderResult,
    OrderStatus,
    PlaceOrder,
    WaitsFor,
)
from everycent.errors import InvalidRequest
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.refusals import OrderDiffersError, OrderWithdrawnError

COLUMNS = ("order_id", "customer_id", "ordered_on", "quantity", "amount_usd")
CARD = "tok_ok"
AMOUNT = re.compile(r"[0-9]{1,13}(\.[0-9]{1,2})?", re.ASCII)
UNITS = re.compile(r"[0-9]{1,9}", re.ASCII)
UNHURRIED_SECONDS = 60.0


class Problem(Message):
    """A row that was not sold for what it says, and why."""

    line: int
    reason: str


class Summary(Message):
    """What became of a file. Units and minor units are those of the confirmed orders."""

    rows: int
    confirmed: int = 0
    refused: int = 0
    waiting: int = 0  # For a customer or an operator; an import waits for neither.
    malformed: int = 0
    units: int = 0
    minor_units: int = 0
    units_received: int = 0
    seconds: float = 0.0
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Row:
    """A purchase and where it stands in the file."""

    line: int
    order: PlaceOrder


@dataclass
class Purchases:
    """A file, read: the rows that make an order, and those that do not."""

    digest: str
    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def units(self) -> int:
        """The units of all well-formed rows."""
        return sum(line.units for row in self.rows for line in row.order.lines)


def read_purchases(content: bytes, *, tenant: str, sku: str, currency: str) -> Purchases:
    """Read a file. Raises InvalidRequest when it is no such file at all; a bad row is a problem."""
    purchases = Purchases(hashlib.sha256(content).hexdigest()[:32])
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        if tuple(next(reader, ())) != COLUMNS:
            raise InvalidRequest(f"the first line must be {','.join(COLUMNS)}")
        lines: dict[str, int] = {}
        for cells in reader:
            _add(purchases, cells, reader.line_num, lines, (tenant, sku, currency))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"this is no CSV file in UTF-8: {error}") from error
    return purchases


def _add(
    purchases: Purchases,
    cells: Sequence[str],
    line: int,
    lines: dict[str, int],
    terms: tuple[str, str, str],
) -> None:
    try:
        order = _order_of(cells, *terms)
    except (InvalidRequest, ValidationError) as error:
        reason = problems_of(error) if isinstance(error, ValidationError) else str(error)
        purchases.problems.append(Problem(line=line, reason=reason))
        return
    if order.order_id in lines:
        reason = f"order {order.order_id} stands in line {lines[order.order_id]} already"
        purchases.problems.append(Problem(line=line, reason=reason))
        return
    lines[order.order_id] = line
    purchases.rows.append(Row(line, order))


def _order_of(cells: Sequence[str], tenant: str, sku: str, currency: str) -> PlaceOrder:
    if len(cells) != len(COLUMNS):
        raise InvalidRequest(f"{len(cells)} columns instead of {len(COLUMNS)}")
    order_id, customer, ordered_on, quantity, amount = cells
    if not UNITS.fullmatch(quantity):
        raise InvalidRequest(f"quantity {quantity!r} is no whole number of units")
    if not AMOUNT.fullmatch(amount):
        raise InvalidRequest(f"amount_usd {amount!r} is no amount with at most two decimals")
    try:
        date.fromisoformat(ordered_on)
    except ValueError as error:
        raise InvalidRequest(f"ordered_on {ordered_on!r} is no date") from error
    amount_minor = int(Decimal(amount).scaleb(2))
    return PlaceOrder(
        tenant=tenant,
        order_id=order_id,
        customer=customer,
        currency=currency,
        lines=(OrderLine(sku=sku, units=int(quantity), amount_minor=amount_minor),),
        payment=CardPayment(card_token=CARD) if amount_minor else None,
    )


class Import:
    """One file on its way; everything it does has a key of the file's own and can be repeated."""

    def __init__(
        self,
        file: Path,
        *,
        tenant: str = "default",
        sku: str = "CD",
        currency: str = "USD",
        limit: int | None = None,
        receive: bool = False,
        concurrency: int = 32,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"cannot read {file}: {error.strerror}") from error
        self._purchases = read_purchases(content, tenant=tenant, sku=sku, currency=currency)
        self._tenant, self._sku = tenant, sku
        self._rows = self._purchases.rows[:limit]
        self._receive, self._concurrency = receive, concurrency
        self._say = say
        self._problems = list(self._purchases.problems)
        self._confirmed: list[tuple[Row, OrderResult]] = []
        self._refused = self._waiting = 0

    async def run(self, checkouts: Checkouts, bookings: Bookings) -> Summary:
        """Sell every row and return what became of them; bad rows do not stop the others."""
        began = time.monotonic()
        for problem in self._problems:
            self._say(f"line {problem.line}: {problem.reason}")
        received = await self._receive_stock(bookings) if self._receive else 0
        with _progress() as progress:
            bar = progress.add_task("selling", total=len(self._rows))
            await self._sell_all(checkouts, lambda: progress.advance(bar))
        return Summary(
            rows=len(self._rows) + len(self._purchases.problems),
            confirmed=len(self._confirmed),
            refused=self._refused,
            waiting=self._waiting,
            malformed=len(self._problems),
            units=sum(line.units for row, _ in self._confirmed for line in row.order.lines),
            minor_units=sum(result.captured_minor for _, result in self._confirmed),
            units_received=received,
            seconds=round(time.monotonic() - began, 1),
            problems=tuple(self._problems),
        )

    async def _receive_stock(self, bookings: Bookings) -> int:
        """Book the units of the whole file, limited or not: its key is the file's content."""
        units = self._purchases.units
        if units:
            await bookings.receive_stock(
                self._tenant, self._sku, units, request=self._purchases.digest
            )
        return units

    async def _sell_all(self, checkouts: Checkouts, tell_done: Callable[[], None]) -> None:
        rows = iter(self._rows)
        sellers = [
            asyncio.create_task(self._sell_next(checkouts, rows, tell_done))
            for _ in range(min(self._concurrency, len(self._rows)))
        ]
        try:
            await asyncio.gather(*sellers)
        finally:
            for seller in sellers:
                seller.cancel()

    async def _sell_next(
        self, checkouts: Checkouts, rows: Iterator[Row], tell_done: Callable[[], None]
    ) -> None:
        for row in rows:
            try:
                result = await self._sell(checkouts, row.order)
            except (OrderDiffersError, OrderWithdrawnError) as error:
                self._problems.append(Problem(line=row.line, reason=str(error)))
                self._say(f"line {row.line}: {error}")
            else:
                self._count(row, result)
            tell_done()

    async def _sell(self, checkouts: Checkouts, order: PlaceOrder) -> OrderResult | None:
        """Return how the order ended, None if it waits for a customer or an operator."""
        placement = await checkouts.place(order)
        if placement.result is not None or placement.waits_for is WaitsFor.PAYMENT:
            return placement.result
        try:
            async with asyncio.timeout(UNHURRIED_SECONDS):
                return await checkouts.wait(order.tenant, order.order_id)
        except TimeoutError:  # Slow, or parked: now it is worth a question per second.
            return (await checkouts.follow(order.tenant, order.order_id)).result

    def _count(self, row: Row, result: OrderResult | None) -> None:
        if result is None:
            self._waiting += 1
            self._say(f"line {row.line}: order {row.order.order_id} waits; see `order show`")
        elif result.status is OrderStatus.CONFIRMED:
            self._confirmed.append((row, result))
        else:
            self._refused += 1
            self._say(f"line {row.line}: {result.status.lower()}, {result.reason}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
