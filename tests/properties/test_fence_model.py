"""Random sequences on one key, on a real PostgreSQL, against a model of a few lines."""

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from everycent.database import account
from everycent.database.engine import Database
from everycent.domain.account import DebitBalance, Deposit, FreezeBalance, UnfreezeBalance
from everycent.settings import ServiceName

STEP = {"at": datetime(2026, 1, 2, 12, 0, tzinfo=UTC), "opened_on": date(2026, 1, 2)}
ANN = {"account": "ann", "currency": "EUR"}
FUNDS_MINOR = 1000
# "other" is another request under the same key; "dear" one that the account cannot pay.
AMOUNTS = {"try": 400, "other": 300, "dear": 1001}
STEPS = [*AMOUNTS, "confirm", "cancel"]


@dataclass
class Model:
    """What the fence promises, said without its code: the state, whose Try it was, what moved."""

    state: str = "absent"
    tried: str | None = None

    def expect(self, step: str) -> str:
        """Do a step and name its answer."""
        if step == "cancel":
            return self._cancel()
        if step == "confirm":
            return self._confirm()
        if self.state == "absent":
            self.tried = step
            self.state = "REFUSED" if step == "dear" else "TRIED"
            return "InsufficientBalance" if step == "dear" else "BalanceFrozen"
        if self.state == "CANCELLED":
            return "AlreadyCancelled"
        if step != self.tried:
            return "KeyReused"
        return "InsufficientBalance" if step == "dear" else "BalanceFrozen"

    def _confirm(self) -> str:
        if self.state == "absent":
            return "NothingTried"
        if self.state in ("REFUSED", "CANCELLED"):
            return "NotConfirmable"
        self.state = "CONFIRMED"
        return "BalanceDebited"

    def _cancel(self) -> str:
        if self.state == "CONFIRMED":
            return "AlreadyConfirmed"
        self.state = "CANCELLED"
        return "BalanceUnfrozen"

    def money(self) -> tuple[int, int, int]:
        """Return (balance, available, frozen)."""
        amount = AMOUNTS.get(self.tried or "", 0)
        frozen = amount if self.state == "TRIED" else 0
        spent = amount if self.state == "CONFIRMED" else 0
        return FUNDS_MINOR - spent, FUNDS_MINOR - spent - frozen, frozen


@pytest.mark.requirement("T12")
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(steps=["cancel", "try", "confirm", "try"])
@example(steps=["try", "confirm", "cancel", "try", "confirm"])
@example(steps=["dear", "cancel", "dear", "confirm"])
@given(steps=st.lists(st.sampled_from(STEPS), max_size=8))
async def test_any_sequence_on_one_key_answers_and_moves_what_the_model_says(
    databases: dict[ServiceName, Database], steps: list[str]
) -> None:
    """After every step, not only at the end, and every repeat answers as the first did.

    Red when: any cell of the fence's table is changed.
    """
    database = databases["account"]
    tenant = f"t{uuid.uuid4().hex[:12]}"
    await _run(
        database,
        account.deposit,
        Deposit.model_validate(
            {**STEP, **ANN, "key": f"{tenant}/fund/deposit", "amount_minor": FUNDS_MINOR}
        ),
    )
    model = Model()
    first: dict[str, object] = {}
    for step in steps:
        expected = model.expect(step)
        answer = await _do(database, tenant, step)
        assert type(answer).__name__ == expected
        assert await _money(database, tenant) == model.money()
        if not isinstance(answer, Exception):
            assert first.setdefault(step, answer) == answer


async def _do(database: Database, tenant: str, step: str) -> object:
    named = {**STEP, "key": f"{tenant}/o-1/authorise"}
    if step == "confirm":
        return await _run(database, account.debit_balance, DebitBalance.model_validate(named))
    if step == "cancel":
        request = UnfreezeBalance.model_validate({**named, "reason": "model"})
        return await _run(database, account.unfreeze_balance, request)
    wish = FreezeBalance.model_validate({**named, **ANN, "amount_minor": AMOUNTS[step]})
    return await _run(database, account.freeze_balance, wish)


async def _run(
    database: Database,
    operation: Callable[[Any, Sequence[Any]], Awaitable[Sequence[object]]],
    request: object,
) -> object:
    async with database.transaction() as tx:
        [answer] = await operation(tx, [request])
    return answer


async def _money(database: Database, tenant: str) -> tuple[int, int, int]:
    async with database.snapshot() as tx:
        result = await tx.execute(
            text("SELECT balance, available, frozen FROM account WHERE tenant = :tenant"),
            {"tenant": tenant},
        )
        row = result.one()
    return row.balance, row.available, row.frozen
