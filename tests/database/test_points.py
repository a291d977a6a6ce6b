"""Points on a real PostgreSQL, through the activities: the yes, the no, the repeat and the race."""

import asyncio
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.exceptions import ApplicationError

from activities.points import PointsActivities
from everycent.database import points as points_in_sql
from everycent.database.engine import Database
from everycent.domain.points import (
    FreezePoints,
    GrantPoints,
    InsufficientPoints,
    PointsFrozen,
    PointsGranted,
    PointsRedeemed,
    PointsRestored,
    PointsRevoked,
    PointsUnfrozen,
    RedeemPoints,
    RestorePoints,
    RevokePoints,
    UnfreezePoints,
)
from everycent.errors import Bug
from everycent.settings import ServiceName

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
TODAY = date(2026, 1, 2)


@pytest.fixture
def database(databases: dict[ServiceName, Database]) -> Database:
    return databases["points"]


@pytest.fixture
def service(database: Database) -> PointsActivities:
    return PointsActivities(database)


def step(tenant: str, order: str, name: str) -> dict[str, Any]:
    return {"key": f"{tenant}/{order}/{name}", "at": NOON, "opened_on": TODAY}


def grant(tenant: str, points: int, order: str = "o-1") -> GrantPoints:
    return GrantPoints(**step(tenant, order, "earn"), customer="ann", points=points)


def restore(tenant: str, points: int, order: str = "o-1") -> RestorePoints:
    return RestorePoints(**step(tenant, order, "restore"), customer="ann", points=points)


def revoke(tenant: str, points: int, order: str = "o-1") -> RevokePoints:
    return RevokePoints(**step(tenant, order, "revoke"), customer="ann", points=points)


def freeze(tenant: str, points: int, order: str = "o-1") -> FreezePoints:
    return FreezePoints(**step(tenant, order, "points"), customer="ann", points=points)


def redeem(tenant: str, order: str = "o-1") -> RedeemPoints:
    return RedeemPoints(**step(tenant, order, "points"))


def unfreeze(tenant: str, order: str = "o-1") -> UnfreezePoints:
    return UnfreezePoints(**step(tenant, order, "points"), reason="customer")


async def purse(database: Database, tenant: str) -> tuple[int, ...]:
    """Return (available, frozen, debt) of Ann."""
    async with database.snapshot() as tx:
        result = await tx.execute(
            text("SELECT available, frozen, debt FROM points_account WHERE tenant = :tenant"),
            {"tenant": tenant},
        )
        return tuple(result.one())


async def test_points_are_frozen_then_redeemed_once(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    await service.grant_points(grant(tenant, 100))

    frozen = [await service.freeze_points(freeze(tenant, 30)) for _ in range(2)]
    assert await purse(database, tenant) == (70, 30, 0)
    redeemed = [await service.redeem_points(redeem(tenant)) for _ in range(2)]

    assert frozen == [PointsFrozen(points=30, points_available=70)] * 2
    assert redeemed == [PointsRedeemed(points=30, points_available=70)] * 2
    assert await purse(database, tenant) == (70, 0, 0)


async def test_frozen_points_come_back_once_and_a_late_freeze_is_refused(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    await service.grant_points(grant(tenant, 100))
    await service.freeze_points(freeze(tenant, 30))

    answers = await asyncio.gather(*(service.unfreeze_points(unfreeze(tenant)) for _ in range(10)))

    assert set(answers) == {
        PointsUnfrozen(points=30, points_to_debt=0, points_available=100, points_debt=0)
    }
    assert await purse(database, tenant) == (100, 0, 0)
    with pytest.raises(ApplicationError, match="cancelled before"):
        await service.freeze_points(freeze(tenant, 30))


async def test_an_unfreeze_without_a_freeze_leaves_a_tombstone(
    service: PointsActivities, tenant: str
) -> None:
    assert await service.unfreeze_points(unfreeze(tenant)) == PointsUnfrozen(points=0)
    with pytest.raises(ApplicationError, match="cancelled before"):
        await service.freeze_points(freeze(tenant, 30))


async def test_a_customer_without_a_row_has_no_points(
    service: PointsActivities, tenant: str
) -> None:
    answer = await service.freeze_points(freeze(tenant, 1))

    assert answer == InsufficientPoints(points_needed=1, points_available=0)


async def test_orders_racing_for_the_points_freeze_no_more_than_there_are(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    await service.grant_points(grant(tenant, 70))

    answers = await asyncio.gather(
        *(service.freeze_points(freeze(tenant, 10, f"o-{n}")) for n in range(20))
    )

    assert Counter(a.kind for a in answers) == {"points_frozen": 7, "insufficient_points": 13}
    assert await purse(database, tenant) == (0, 70, 0)


async def test_a_key_grants_once_however_often_it_is_sent_at_once(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    answers = await asyncio.gather(*(service.grant_points(grant(tenant, 100)) for _ in range(20)))

    assert set(answers) == {
        PointsGranted(points=100, points_to_debt=0, points_available=100, points_debt=0)
    }
    assert await purse(database, tenant) == (100, 0, 0)
    with pytest.raises(ApplicationError, match="another request"):
        await service.grant_points(grant(tenant, 101))


async def test_first_grants_at_once_under_their_own_keys_all_count(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    await asyncio.gather(*(service.grant_points(grant(tenant, 5, f"o-{n}")) for n in range(20)))

    assert await purse(database, tenant) == (100, 0, 0)


async def test_revoked_points_that_are_spent_become_a_debt_that_a_later_grant_pays_first(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    await service.grant_points(grant(tenant, 100))
    await service.freeze_points(freeze(tenant, 80, "o-2"))
    await service.redeem_points(redeem(tenant, "o-2"))

    revoked = [await service.revoke_points(revoke(tenant, 100)) for _ in range(2)]
    assert (
        revoked
        == [PointsRevoked(points=100, points_to_debt=80, points_available=0, points_debt=80)] * 2
    )
    assert await purse(database, tenant) == (0, 0, 80)
    part = await service.grant_points(grant(tenant, 50, "o-3"))
    rest = await service.grant_points(grant(tenant, 50, "o-4"))

    assert part == PointsGranted(points=50, points_to_debt=50, points_available=0, points_debt=30)
    assert rest == PointsGranted(points=50, points_to_debt=30, points_available=20, points_debt=0)
    assert await purse(database, tenant) == (20, 0, 0)


async def test_restored_points_are_given_once_and_pay_a_debt_first(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    await service.revoke_points(revoke(tenant, 10))

    answers = [await service.restore_points(restore(tenant, 30)) for _ in range(2)]

    assert (
        answers
        == [PointsRestored(points=30, points_to_debt=10, points_available=20, points_debt=0)] * 2
    )
    assert await purse(database, tenant) == (20, 0, 0)


async def test_points_unfrozen_after_a_revoke_pay_its_debt(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    await service.grant_points(grant(tenant, 100))
    await service.freeze_points(freeze(tenant, 60, "o-2"))
    await service.revoke_points(revoke(tenant, 100))
    assert await purse(database, tenant) == (0, 60, 60)

    answer = await service.unfreeze_points(unfreeze(tenant, "o-2"))

    assert answer == PointsUnfrozen(points=60, points_to_debt=60, points_available=0, points_debt=0)
    assert await purse(database, tenant) == (0, 0, 0)


async def test_a_batch_of_one_customer_gives_each_item_what_the_one_before_left(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    await service.grant_points(grant(tenant, 100))
    wishes = [freeze(tenant, 60, "b"), freeze(tenant, 30, "a"), freeze(tenant, 30, "c")]

    async with database.transaction() as tx:
        answers = await points_in_sql.freeze_points(tx, wishes)

    assert answers == [
        PointsFrozen(points=60, points_available=10),
        PointsFrozen(points=30, points_available=70),
        InsufficientPoints(points_needed=30, points_available=10),
    ]
    assert await purse(database, tenant) == (10, 90, 0)


async def test_grants_and_revokes_of_many_orders_at_once_lose_no_point(
    database: Database, service: PointsActivities, tenant: str
) -> None:
    async def order(n: int) -> None:
        await asyncio.gather(
            service.grant_points(grant(tenant, 7, f"o-{n}")),
            service.revoke_points(revoke(tenant, 5, f"o-{n}")),
            service.restore_points(restore(tenant, 1, f"o-{n}")),
        )

    await asyncio.gather(*(order(n) for n in range(30)))

    available, frozen, debt = await purse(database, tenant)
    assert available + frozen - debt == 30 * (7 - 5 + 1)


@pytest.mark.parametrize(
    ("assignment", "constraint"),
    [
        ("available = -1", "points_account_available_not_negative"),
        ("frozen = -1", "points_account_frozen_not_negative"),
        ("available = 0, debt = -1", "points_account_debt_not_negative"),
        ("debt = 1", "points_account_debt_is_paid_first"),
    ],
)
async def test_a_constraint_refuses_points_below_zero_and_points_beside_a_debt(
    database: Database, service: PointsActivities, tenant: str, assignment: str, constraint: str
) -> None:
    await service.grant_points(grant(tenant, 100))

    with pytest.raises(Bug, match=constraint):
        async with database.transaction() as tx:
            await tx.execute(
                text(f"UPDATE points_account SET {assignment} WHERE tenant = :tenant"),
                {"tenant": tenant},
            )
