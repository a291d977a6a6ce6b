"""The payment service on a real database, in front of a real simulator in this process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from activities.payment import CallTimes, PaymentActivities, answer_one
from everycent.database.engine import Database, assert_no_transaction
from everycent.domain.payment import (
    AuthoriseAnswer,
    AuthorisePayment,
    AwaitCustomer,
    CaptureAnswer,
    CapturePayment,
    CustomerAnswer,
    RefundAnswer,
    RefundPayment,
    VoidAnswer,
    VoidPayment,
)
from everycent.errors import Unknown
from everycent.gateways.payment_provider import HttpPaymentProvider, PaymentProvider
from everycent.settings import ServiceName
from everycent.simulator.api import create_app
from everycent.simulator.desk import Options

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
OPENED = {"at": NOON, "opened_on": date(2026, 1, 2)}
TIMES = CallTimes(
    call=timedelta(seconds=5), item=timedelta(seconds=10), arrival=timedelta(seconds=5)
)


class Crash(Exception):
    """The process dies here: none of our code may catch it."""


class CutProvider:
    """The real provider behind a line that is cut once, before or after the call named."""

    def __init__(self, provider: HttpPaymentProvider, call: str, *, after: bool) -> None:
        self._provider = provider
        self._call = call
        self._after = after
        self.was_cut = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._provider, name)
        if name != self._call or self.was_cut:
            return real

        async def cut(*args: Any, **named: Any) -> Any:
            self.was_cut = True
            if self._after:
                await real(*args, **named)
            raise Crash(name)

        return cut


class LateProvider:
    """The real provider, one of whose answers reaches us only when the gate opens."""

    def __init__(self, provider: HttpPaymentProvider, call: str) -> None:
        self._provider = provider
        self._call = call
        self.gate = asyncio.Event()
        self.has_answered = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._provider, name)
        if name != self._call:
            return real

        async def late(*args: Any, **named: Any) -> Any:
            answer = await real(*args, **named)
            self.has_answered.set()
            await self.gate.wait()
            return answer

        return late


class ZombieProvider:
    """The real provider, reached by one call only when the gate opens; its process dies with it."""

    def __init__(self, provider: HttpPaymentProvider, call: str) -> None:
        self._provider = provider
        self._call = call
        self.gate = asyncio.Event()
        self.is_leaving = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._provider, name)
        if name != self._call:
            return real

        async def zombie(*args: Any, **named: Any) -> Any:
            self.is_leaving.set()
            await self.gate.wait()
            await real(*args, **named)
            raise Crash(name)

        return zombie


class DoubtfulDatabase:
    """The real database, one of whose COMMITs ends without an answer: kept, or not."""

    def __init__(self, database: Database, nth: int, *, kept: bool) -> None:
        self._database = database
        self._left = nth
        self._kept = kept

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        self._left -= 1
        async with self._database.transaction() as tx:
            yield tx
            if self._left == 0 and not self._kept:
                raise Unknown("the connection was lost during COMMIT")
        if self._left == 0:
            raise Unknown("the connection was lost during COMMIT")


@dataclass
class Clock:
    """The edge's clock, which a test may move beside the simulator's."""

    ahead: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Till:
    """A payment service of one tenant, and the provider's books to compare with."""

    http: httpx.AsyncClient
    provider: HttpPaymentProvider
    database: Database
    tenant: str
    options: Options
    times: CallTimes = TIMES
    clock: Clock = field(default_factory=Clock)

    @property
    def payments(self) -> PaymentActivities:
        return self.behind(self.provider)

    def behind(self, provider: Any, database: Any = None) -> PaymentActivities:
        """The activities as another process would build them, perhaps behind a cut line."""
        return PaymentActivities(
            database or self.database,
            cast(PaymentProvider, provider),
            times=self.times,
            now=self.clock,
        )

    def doubtful(self, nth: int, *, kept: bool) -> PaymentActivities:
        return self.behind(self.provider, DoubtfulDatabase(self.database, nth, kept=kept))

    def cut(self, call: str, *, after: bool) -> PaymentActivities:
        return self.behind(CutProvider(self.provider, call, after=after))

    def late(self, call: str) -> LateProvider:
        return LateProvider(self.provider, call)

    def zombie(self, call: str) -> ZombieProvider:
        return ZombieProvider(self.provider, call)

    def key(self, order: str = "o-1", step: str = "pay/first") -> str:
        return f"{self.tenant}/{order}/{step}"

    def wanted(self, order: str = "o-1", **changes: Any) -> AuthorisePayment:
        fields = {
            "key": self.key(order), "amount_minor": 2_933, "currency": "EUR", "method": "card",
            "card_token": "tok_visa", **OPENED,
        }  # fmt: skip
        return AuthorisePayment(**{**fields, **changes})

    async def authorise(self, order: str = "o-1", **changes: Any) -> AuthoriseAnswer:
        return await answer_one(self.wanted(order, **changes), self.payments.authorise_all)

    async def await_customer(self, order: str = "o-1") -> CustomerAnswer:
        return await answer_one(self.look_at(order), self.payments.await_customers)

    async def capture(self, order: str = "o-1") -> CaptureAnswer:
        return await answer_one(self.take(order), self.payments.capture_all)

    async def void(self, order: str = "o-1") -> VoidAnswer:
        return await answer_one(self.give_up(order), self.payments.void_all)

    async def refund(self, amount: int, request: str = "r-1", **changes: Any) -> RefundAnswer:
        return await answer_one(self.back(amount, request, **changes), self.payments.refund_all)

    async def captured(self, order: str = "o-1", **changes: Any) -> None:
        await self.authorise(order, **changes)
        await self.capture(order)

    def look_at(self, order: str = "o-1") -> AwaitCustomer:
        return AwaitCustomer(key=self.key(order), **OPENED)

    def take(self, order: str = "o-1") -> CapturePayment:
        return CapturePayment(key=self.key(order), **OPENED)

    def give_up(self, order: str = "o-1") -> VoidPayment:
        return VoidPayment(key=self.key(order), reason="test", **OPENED)

    def back(self, amount: int, request: str = "r-1", **changes: Any) -> RefundPayment:
        fields = {
            "key": self.key(step=f"refund/{request}"), "payment_key": self.key(),
            "amount_minor": amount, "currency": "EUR", **OPENED,
        }  # fmt: skip
        return RefundPayment(**{**fields, **changes})

    async def rule(self, kind: str, operation: str, times: int | None = 1, **more: Any) -> None:
        """Order a fault; a silence lasts for 50 ms, which ends as no answer like a longer one."""
        rule = {"kind": kind, "operation": operation, "times": times, **more}
        if kind.startswith("timeout"):
            rule.setdefault("seconds", 0.05)
        (await self.http.post("/admin/faults", json=rule)).raise_for_status()

    async def heal(self) -> None:
        await self.http.delete("/admin/faults")

    async def until_held(self, count: int = 1) -> None:
        async def held() -> bool:
            return bool((await self.http.get("/admin/held")).json()["held"] >= count)

        await self.until(held)

    async def release(self) -> None:
        await self.http.post("/admin/held/release")

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(30):
            while not await condition():
                await asyncio.sleep(0.005)

    async def move_clocks(self, seconds: float) -> None:
        self.clock.ahead += timedelta(seconds=seconds)
        await self.http.post("/admin/clock", json={"advance_seconds": seconds})

    async def customer_pays(self, order: str = "o-1") -> int:
        [intent] = await self.intents(order)
        return (await self.http.post(f"/v1/intents/{intent['id']}/customer_pays")).status_code

    async def books(self, reference: str = "*") -> dict[str, Any]:
        answer = await self.http.get("/admin/intents", params={"reference": reference})
        return cast(dict[str, Any], answer.json())

    async def intents(self, order: str = "o-1") -> list[dict[str, Any]]:
        return list((await self.books(self.key(order)))["data"])

    async def refunds(self, request: str = "r-1") -> list[dict[str, Any]]:
        query = {"reference": self.key(step=f"refund/{request}")}
        return list((await self.http.get("/v1/refunds", params=query)).json()["data"])

    async def read(self, sql: str, **values: Any) -> list[Any]:
        async with self.database.transaction() as tx:
            return list((await tx.execute(text(sql), values)).all())

    async def row(self, order: str = "o-1") -> Any:
        [row] = await self.read("SELECT * FROM payment WHERE key = :key", key=self.key(order))
        return row

    async def call(self, name: str, order: str = "o-1") -> Any:
        key = f"{self.key(order)}/{name}"
        [row] = await self.read("SELECT * FROM provider_call WHERE key = :key", key=key)
        return row

    async def audit(self) -> None:
        """Compare every payment with the provider's books: not one cent may differ."""
        books = await self.books()
        rows = await self.read(
            "SELECT key, state, status, captured_minor, refunded_minor FROM payment"
            " WHERE starts_with(key, :tenant)",
            tenant=f"{self.tenant}/",
        )
        ours = {row.key: row for row in rows}
        for intent in books["data"]:
            row = ours[intent["reference"]]
            there = (intent["captured_minor"], intent["refunded_minor"])
            assert there == (row.captured_minor, row.refunded_minor), (intent, row)
            if row.state == "CANCELLED" and row.status == "VOIDED":
                assert intent["state"] in ("cancelled", "declined", "expired"), (intent, row)
        assert books["captured_minor"] == sum(row.captured_minor for row in rows)
        assert books["refunded_minor"] == sum(row.refunded_minor for row in rows)
        references = [intent["reference"] for intent in books["data"]]
        assert len(references) == len(set(references)), "two payments under one key"


@pytest.fixture
def provider_options() -> Options:
    return Options()


@pytest.fixture
async def till(
    databases: dict[ServiceName, Database],
    tenant: str,
    tmp_path: Path,
    provider_options: Options,
) -> AsyncIterator[Till]:
    """A till; when its test is over, what is held is let go and both books are compared."""
    app = create_app(tmp_path / "store.db", provider_options)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://provider",
            headers={"Authorization": f"Bearer {provider_options.api_key}"},
        ) as http,
    ):
        provider = HttpPaymentProvider(
            http,
            api_key=provider_options.api_key,
            guard=assert_no_transaction,
            idempotency_lifetime=provider_options.idempotency_lifetime,
        )
        till = Till(http, provider, databases["payment"], tenant, provider_options)
        yield till
        await till.heal()
        await till.release()
        await till.audit()
