"""Sell without a pause while everything is killed at random; then count what is left.

    python -m everycent.proof.soak [--minutes 10] [--seed N] [--together] [--document FILE]

Customers place orders of every kind, one after the other, and type again what was not answered. A
chaos loop kills a process, sees a probe order through, and goes on to the next; once it lets
Temporal stand still for a fifth of the time. At the end everything must be final and audited.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import asyncpg
import httpx
from sqlalchemy.exc import DBAPIError
from temporalio.client import Client
from temporalio.service import RPCError

from everycent.clock import now
from everycent.database.reads import Reader
from everycent.domain.order import (
    BalancePayment,
    CancelOrder,
    CardPayment,
    OrderLine,
    OrderResult,
    Payment,
    PayOrder,
    PlaceOrder,
)
from everycent.errors import EverycentError
from everycent.proof.connected import audit_connected
from everycent.stack.embedded import TOGETHER, WORKERS, EmbeddedStack
from starters.bookings import Bookings
from starters.checkouts import Checkouts
from starters.client import connect

TENANT = "soak"
CUSTOMERS = 6
LOOK_SECONDS = 0.2
PROBE_SECONDS = 240.0
END_SECONDS = 420.0
UNITS, BALANCE_MINOR = 10**8, 10**12
# What whoever asks a dying stack is told; he asks again.
DYING = (
    EverycentError, RPCError, httpx.HTTPError, DBAPIError, OSError, asyncpg.PostgresError,
    asyncpg.InterfaceError, RuntimeError, TimeoutError,
)  # fmt: skip


GOOD_CARD = CardPayment(card_token="tok_ok")


@dataclass(frozen=True)
class Kind:
    """One way to buy, and how often it is taken."""

    weight: int
    payment: Payment | None = GOOD_CARD
    sku: str = "LAMP"
    amount_minor: int = 2933
    cancelled: bool = False
    then_pays: bool = False


KINDS: dict[str, Kind] = {
    "card": Kind(8),
    "balance": Kind(6, BalancePayment(account="ada")),
    "free": Kind(1, None, amount_minor=0),
    "sold-out": Kind(2, sku="NONE"),
    "declined": Kind(2, CardPayment(card_token="tok_declined"), then_pays=True),
    "unheard": Kind(1, CardPayment(card_token="tok_timeout_after")),
    "cancelled": Kind(2, cancelled=True),
}


@dataclass
class Books:
    """What a soak has come to."""

    orders: list[PlaceOrder] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)


@dataclass
class Soak:
    """A stack, its customers and its chaos, by one seed."""

    stack: EmbeddedStack
    client: Client
    reader: Reader
    seed: int
    books: Books = field(default_factory=Books)

    def __post_init__(self) -> None:
        together = self.stack.settings.steps == "together"
        self.checkouts = Checkouts(self.client, self.reader, together=together)
        self.bookings = Bookings(self.client, together=together)
        self._over = asyncio.Event()

    async def run(self, seconds: float) -> dict[str, Any]:
        """Soak for so long, wait until every order is final, and return the figures."""
        await self.bookings.receive_stock(TENANT, "LAMP", UNITS, request="first")
        await self.bookings.deposit(TENANT, "ada", BALANCE_MINOR, "EUR", request="first")
        customers = [asyncio.create_task(self._customer(n)) for n in range(CUSTOMERS)]
        await self._chaos(seconds)
        self._over.set()
        _say("no more faults; waiting until every order is final …")
        async with asyncio.timeout(END_SECONDS):
            await asyncio.gather(*customers)
            await asyncio.gather(*(self._end_of(order) for order in self.books.orders))
        report = await audit_connected(self.stack.settings, tenant=TENANT)
        return self._figures(seconds, report.broken_invariants)

    # -- customers

    async def _customer(self, number: int) -> None:
        dice = random.Random(f"{self.seed}/{number}")  # noqa: S311
        count = 0
        while not self._over.is_set():
            name = dice.choices(list(KINDS), [kind.weight for kind in KINDS.values()])[0]
            count += 1
            await self._buy(KINDS[name], f"{name}-{number}-{count}")

    async def _buy(self, kind: Kind, order_id: str) -> None:
        order = PlaceOrder(
            tenant=TENANT,
            order_id=order_id,
            customer="ada",
            currency="EUR",
            lines=(OrderLine(sku=kind.sku, units=1, amount_minor=kind.amount_minor),),
            payment=kind.payment,
            payment_window_seconds=120,
        )
        self.books.orders.append(order)
        cancelling = asyncio.create_task(self._cancel(order)) if kind.cancelled else None
        placement = await self._until_told(lambda: self.checkouts.place(order))
        if kind.then_pays and placement.result is None:
            await self._pay(order)
        if cancelling is not None:
            await cancelling
        self.books.ended[(await self._end_of(order)).status] += 1

    async def _cancel(self, order: PlaceOrder) -> None:
        """Say it once, at whatever moment: too early and too late are answers as well."""
        await asyncio.sleep(random.Random(order.order_id).uniform(0, 2))  # noqa: S311
        with contextlib.suppress(*DYING):
            request = CancelOrder(reason="changed my mind")
            await self.checkouts.cancel(TENANT, order.order_id, request)

    async def _pay(self, order: PlaceOrder) -> None:
        request = PayOrder(payment=CardPayment(request_id="second", card_token="tok_ok"))
        with contextlib.suppress(*DYING):
            await self.checkouts.pay(TENANT, order.order_id, request)

    async def _until_told(self, ask: Any) -> Any:
        """Ask as a person does: who gets an error, or nothing for a minute, types it again."""
        while True:
            with contextlib.suppress(*DYING):
                async with asyncio.timeout(60):
                    return await ask()
            await asyncio.sleep(LOOK_SECONDS)

    async def _end_of(self, order: PlaceOrder) -> OrderResult:
        while True:
            with contextlib.suppress(*DYING):
                view = await self.reader.order(TENANT, order.order_id)
                if view is not None and view.result is not None:
                    return view.result
            await asyncio.sleep(LOOK_SECONDS)

    # -- chaos

    async def _chaos(self, seconds: float) -> None:
        dice, began = random.Random(self.seed), asyncio.get_running_loop().time()  # noqa: S311
        stands_still = False
        while (spent := asyncio.get_running_loop().time() - began) < seconds:
            if not stands_still and spent > seconds / 3:
                stands_still = True
                await self._freeze("temporal", seconds / 5)
            else:
                victims = sorted(n for n, v in self.stack.processes.items() if v.pid)
                await self._kill(dice.choice(victims))
            await asyncio.sleep(dice.uniform(0.5, 4))

    async def _kill(self, name: str) -> None:
        pid = self.stack.processes[name].pid
        if pid is None:
            return
        self.stack.supervisor.forgive(name)
        # PostgreSQL's postmaster takes its backends along on SIGQUIT; -9 would orphan them.
        os.kill(pid, signal.SIGQUIT if name == "postgres" else signal.SIGKILL)
        await self._recover(f"kill {name}")

    async def _freeze(self, name: str, seconds: float) -> None:
        """Let a server stand still: accepted orders have to be completed afterwards."""
        pid = self.stack.processes[name].pid
        if pid is None:
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
        await self._recover(f"{name} stands still for {seconds:.0f} s")

    async def _recover(self, fault: str) -> None:
        """See an order through that is placed right after the fault, and note how long it took."""
        self.books.faults[fault] += 1
        began = asyncio.get_running_loop().time()
        name = f"probe-{sum(self.books.faults.values())}"
        async with asyncio.timeout(PROBE_SECONDS):
            await self._buy(KINDS["card"], name)
        self.books.recoveries.append(asyncio.get_running_loop().time() - began)
        _say(f"{fault}: an order is through after {self.books.recoveries[-1]:.1f} s")

    def _figures(self, seconds: float, broken: int) -> dict[str, Any]:
        cuts = quantiles(self.books.recoveries, n=100) if len(self.books.recoveries) > 1 else []
        return {
            "at": now().isoformat(timespec="seconds"),
            "seed": self.seed,
            "minutes": round(seconds / 60, 1),
            "workers": self.stack.settings.steps,
            "orders": len(self.books.orders),
            "ended": dict(sorted(self.books.ended.items())),
            "faults": dict(sorted(self.books.faults.items())),
            "faults_in_all": sum(self.books.faults.values()),
            "recovery_seconds_p50": round(cuts[49], 1) if cuts else None,
            "recovery_seconds_p99": round(cuts[98], 1) if cuts else None,
            "broken_invariants": broken,
        }


@contextlib.asynccontextmanager
async def soaked(stack: EmbeddedStack, seed: int) -> AsyncIterator[Soak]:
    """Connect to a running stack."""
    settings = stack.settings
    reader = Reader(settings)
    try:
        yield Soak(stack, await connect(settings), reader, seed)
    finally:
        await reader.close()


def page_of(figures: dict[str, Any]) -> str:
    """Return the figures as a table of Markdown."""
    plain = {
        name: ", ".join(f"{key}: {count}" for key, count in value.items())
        if isinstance(value, dict)
        else value
        for name, value in figures.items()
    }
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in plain.items())
    return f"| figure | measured |\n|---|---|\n{rows}\n"


def main() -> int:
    """Soak, print the figures; 1 if an invariant is broken."""
    options = _options(sys.argv[1:])
    _say(f"seed {options.seed}: repeat it with --seed {options.seed}")

    async def work(stack: EmbeddedStack) -> dict[str, Any]:
        async with soaked(stack, options.seed) as soak:
            return await soak.run(options.minutes * 60)

    with (
        tempfile.TemporaryDirectory(prefix="everycent-soak-") as folder,
        EmbeddedStack(
            Path(folder) / "data", workers=TOGETHER if options.together else WORKERS
        ) as stack,
    ):
        figures = asyncio.run(work(stack))
    print(json.dumps(figures, indent=2))  # noqa: T201
    if options.document is not None:
        options.document.write_text(page_of(figures))
    return 1 if figures["broken_invariants"] else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--together", action="store_true", help="workers that host everything")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the table there")
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    code = main()
    # The Temporal SDK's threads abort about every twelfth Python 3.11 process at a normal exit.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
