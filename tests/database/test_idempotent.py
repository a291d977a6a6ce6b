"""`@idempotent` on a plain handler: the yes, the repeat, another request, the race, the death."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import date, datetime

import pytest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from temporalio import activity

from everycent.database.participant import fence_tables
from everycent.errors import KeyReused
from everycent.kit import assert_idempotent, idempotent
from everycent.stack.postgres import PostgresServer
from tests.conftest import NOON, TODAY


class IssueInvoice(BaseModel):
    order_id: str
    amount_minor: int
    at: datetime = NOON
    opened_on: date = TODAY


class Invoice(BaseModel):
    number: int
    order_id: str


@idempotent(key=lambda request: request.order_id, scope="invoice")
async def issue(tx: AsyncConnection, request: IssueInvoice) -> Invoice:
    """Book an invoice; who sends it twice would get two numbers."""
    row = await tx.execute(
        text("INSERT INTO invoice (order_id, amount_minor) VALUES (:o, :a) RETURNING number"),
        {"o": request.order_id, "a": request.amount_minor},
    )
    return Invoice(number=row.scalar_one(), order_id=request.order_id)


@idempotent(key=str, scope="greeting")
async def greet(tx: AsyncConnection, name: str) -> list[str]:
    await tx.execute(text("INSERT INTO invoice (order_id, amount_minor) VALUES (:o, 0)"),
                     {"o": name})  # fmt: skip
    return ["hello", name]


@pytest.fixture(scope="module")
async def engine(postgres: PostgresServer) -> AsyncIterator[AsyncEngine]:
    name = f"invoices_{uuid.uuid4().hex[:12]}"
    postgres.execute(f"CREATE DATABASE {name}")
    url = make_url(postgres.dsn(name)).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, pool_size=20)
    table = (
        "CREATE TABLE invoice (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " order_id text NOT NULL, amount_minor bigint NOT NULL)"
    )
    async with engine.begin() as tx:
        for statement in (*fence_tables(), table):
            await tx.execute(text(statement))
    yield engine
    await engine.dispose()


async def call(engine: AsyncEngine, request: IssueInvoice) -> Invoice:
    async with engine.begin() as tx:
        return await issue(tx, request)


@pytest.mark.requirement("AC14.4")
async def test_a_repeated_call_gets_the_first_result_and_another_request_is_refused(
    engine: AsyncEngine, tenant: str
) -> None:
    """Red when: the result is not stored, or the hash leaves a business field out."""
    first = await call(engine, IssueInvoice(order_id=tenant, amount_minor=500))
    later = IssueInvoice(order_id=tenant, amount_minor=500, at=NOON.replace(hour=13))
    assert await call(engine, later) == first
    with pytest.raises(KeyReused):
        await call(engine, IssueInvoice(order_id=tenant, amount_minor=501))
    other = await call(engine, IssueInvoice(order_id=f"{tenant}-2", amount_minor=500))
    assert other.number != first.number


@pytest.mark.requirement("AC14.4")
async def test_an_activity_with_it_is_safe_to_run_twice_at_once_and_after_a_death(
    engine: AsyncEngine,
) -> None:
    """The whole conformance, on an activity of Temporal's.

    Red when: the work is done before the claim, or its row is not in the work's transaction.
    """

    @activity.defn(name="invoice")
    async def invoice(request: IssueInvoice) -> Invoice:
        return await call(engine, request)

    def fresh(_: int) -> IssueInvoice:
        return IssueInvoice(order_id=f"o-{uuid.uuid4().hex}", amount_minor=500)

    await assert_idempotent(
        invoice,
        fresh,
        engine=engine,
        other=lambda request: request.model_copy(update={"amount_minor": 1}),
        ignore={"invoice.number"},
    )


@pytest.mark.requirement("AC14.4")
async def test_a_plain_value_is_a_request_and_its_result_comes_back_as_its_type(
    engine: AsyncEngine, tenant: str
) -> None:
    """Also two scopes share a key and not a row.

    Red when: the scope is no part of the key, or a stored result comes back as raw JSON.
    """

    async def once() -> list[str]:
        async with engine.begin() as tx:
            return await greet(tx, tenant)

    assert await asyncio.gather(*(once() for _ in range(10))) == [["hello", tenant]] * 10
    invoice = await call(engine, IssueInvoice(order_id=tenant, amount_minor=1))
    assert isinstance(invoice, Invoice)
    async with engine.connect() as tx:
        query = text("SELECT count(*) FROM invoice WHERE order_id = :o")
        assert (await tx.execute(query, {"o": tenant})).scalar_one() == 2
