"""A call says which transaction and which branch of it: one that does not is refused."""

from typing import Any

import pytest

from everycent.database import account
from everycent.database.engine import Database
from everycent.domain.account import DebitBalance, FreezeBalance, UnfreezeBalance
from everycent.errors import NoBranch
from everycent.settings import ServiceName
from tests.conftest import NOON, TODAY
from tests.database.test_account import deposit, money

NAMELESS = ("hotel", "shop/o-1", "shop//hotel", "/o-1/hotel", "shop/o-1/")


def requests(kind: type[Any], keys: tuple[str, ...], **more: Any) -> list[Any]:
    return [kind(key=key, at=NOON, opened_on=TODAY, **more) for key in keys]


@pytest.mark.requirement("AC6.1")
async def test_a_call_without_xid_and_branch_is_refused_and_its_neighbours_are_done(
    databases: dict[ServiceName, Database], tenant: str
) -> None:
    """Try, Confirm and Cancel alike: typed, nothing written; the one good call of the batch works.

    Red when: the fence takes any text for a key.
    """
    database = databases["account"]
    async with database.transaction() as tx:
        await account.deposit(tx, [deposit(tenant, 100)])
    terms = {"account": "ann", "currency": "EUR", "amount_minor": 1}
    keys = (*NAMELESS, f"{tenant}/o-1/pay")
    calls: tuple[tuple[Any, type[Any], dict[str, Any]], ...] = (
        (account.freeze_balance, FreezeBalance, terms),
        (account.debit_balance, DebitBalance, {}),
        (account.unfreeze_balance, UnfreezeBalance, {"reason": "r"}),
    )
    for work, kind, more in calls:
        async with database.transaction() as tx:
            *nameless, good = await work(tx, requests(kind, keys, **more))
        assert [type(answer) for answer in nameless] == [NoBranch] * len(NAMELESS)
        assert not isinstance(good, NoBranch)
    assert await money(database, tenant) == (99, 99, 0)
