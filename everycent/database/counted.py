"""A ready-made participant by configuration alone: coupons, quotas, caps per customer.

`Counted("coupon")` counts the uses of codes that `allow` has named; `Counted("cap", opens_with=3)`
gives each item three units from the first time that anybody asks for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.engine import sql
from everycent.database.participant import Participant
from everycent.domain.counted import (
    Counter,
    NoSuchItem,
    NotEnough,
    Taken,
    TakeUnits,
    UnitsHeld,
    take,
)
from everycent.errors import InvalidRequest

_PLACES = "unnest(CAST(:tenants AS text[]), CAST(:items AS text[]))"


class Counted(Participant[TakeUnits, UnitsHeld]):
    """Units of items, each in a row with what is allowed of it: free, held or used."""

    def __init__(self, name: str, *, service: str = "", opens_with: int | None = None) -> None:
        """Name it and its table, `<name>_counter`; `opens_with` units are allowed of a new item.

        Without `opens_with` an item has to be named by `allow` first.
        """
        self.name, self.service = name, service
        super().__init__()
        self._opens_with = opens_with
        self._rows = f"{name}_counter"

    async def try_(
        self, tx: AsyncConnection, request: TakeUnits
    ) -> UnitsHeld | NotEnough | NoSuchItem:
        """Hold the units of one request."""
        return (await self.try_all(tx, [request]))[request.key]

    async def try_all(
        self, tx: AsyncConnection, requests: Sequence[TakeUnits]
    ) -> Mapping[str, Taken]:
        """Hold the units of each request in one pass over the locked rows."""
        counters = {request.counter for request in requests}
        if self._opens_with is not None:
            await self._open(tx, counters, self._opens_with)
        decided = take(await self._lock(tx, counters), requests)
        await self._move(tx, decided.units, free=-1, held=+1, used=0)
        return decided.answers

    async def confirm_all(self, tx: AsyncConnection, holds: Mapping[str, UnitsHeld]) -> None:
        """Use what each row holds."""
        await self._end(tx, holds, free=0, held=-1, used=+1)

    async def cancel_all(self, tx: AsyncConnection, holds: Mapping[str, UnitsHeld]) -> None:
        """Free what each row holds."""
        await self._end(tx, holds, free=+1, held=-1, used=0)

    async def allow(self, tx: AsyncConnection, tenant: str, item: str, units: int) -> None:
        """Set how many units are allowed of an item, used ones included; repeated, it is the same.

        Raises InvalidRequest where more are held or used already.
        """
        result = await tx.execute(
            sql(
                f"INSERT INTO {self._rows} AS c (tenant, item, allowed, free)"
                " VALUES (:tenant, :item, :units, :units)"
                " ON CONFLICT (tenant, item) DO UPDATE SET allowed = excluded.allowed,"
                " free = excluded.allowed - c.held - c.used"
                " WHERE excluded.allowed >= c.held + c.used"
            ),
            {"tenant": tenant, "item": item, "units": units},
        )
        if result.rowcount != 1:
            raise InvalidRequest(f"more than {units} of {item!r} are held or used already")

    def tables(self) -> list[str]:
        """Return the statement that makes the rows of its items."""
        name = self._rows
        return [
            f"""
CREATE TABLE {name} (
    tenant text COLLATE "C" NOT NULL,
    item text COLLATE "C" NOT NULL,
    allowed bigint NOT NULL,
    free bigint NOT NULL,
    held bigint NOT NULL DEFAULT 0,
    used bigint NOT NULL DEFAULT 0,
    CONSTRAINT {name}_pkey PRIMARY KEY (tenant, item),
    CONSTRAINT {name}_free_not_negative CHECK (free >= 0),
    CONSTRAINT {name}_held_not_negative CHECK (held >= 0),
    CONSTRAINT {name}_used_not_negative CHECK (used >= 0),
    CONSTRAINT {name}_adds_up CHECK (allowed = free + held + used)
)"""
        ]

    async def _end(self, tx: AsyncConnection, holds: Mapping[str, UnitsHeld], **signs: int) -> None:
        units: dict[Counter, int] = {}
        for key, held in holds.items():
            place = key.split("/", 1)[0], held.item
            units[place] = units.get(place, 0) + held.units
        await self._lock(tx, units)
        await self._move(tx, units, **signs)

    async def _open(self, tx: AsyncConnection, counters: Iterable[Counter], units: int) -> None:
        """Insert the rows that are missing, in their order; one that is there is not waited for."""
        await tx.execute(
            sql(
                f"INSERT INTO {self._rows} (tenant, item, allowed, free)"
                f" SELECT tenant, item, :units, :units FROM {_PLACES} AS new (tenant, item)"
                f" WHERE NOT EXISTS (SELECT FROM {self._rows} AS c"
                " WHERE c.tenant = new.tenant AND c.item = new.item)"
                ' ORDER BY tenant COLLATE "C", item COLLATE "C"'
                " ON CONFLICT (tenant, item) DO NOTHING"
            ),
            {**_arrays(sorted(counters)), "units": units},
        )

    async def _lock(self, tx: AsyncConnection, counters: Iterable[Counter]) -> dict[Counter, int]:
        """Lock the rows in their order, and return how many units of each are free."""
        result = await tx.execute(
            sql(
                f"SELECT tenant, item, free FROM {self._rows}"
                f" WHERE (tenant, item) IN (SELECT * FROM {_PLACES})"
                ' ORDER BY tenant COLLATE "C", item COLLATE "C" FOR NO KEY UPDATE'
            ),
            _arrays(sorted(counters)),
        )
        return {(row.tenant, row.item): row.free for row in result}

    async def _move(
        self, tx: AsyncConnection, units: Mapping[Counter, int], *, free: int, held: int, used: int
    ) -> None:
        """Move units between the parts of the rows, which are locked; guarded like the CHECKs."""
        if not units:
            return
        result = await tx.execute(
            sql(
                f"UPDATE {self._rows} AS c SET free = c.free + moved.free,"
                " held = c.held + moved.held, used = c.used + moved.used"
                " FROM unnest(CAST(:tenants AS text[]), CAST(:items AS text[]),"
                " CAST(:free AS bigint[]), CAST(:held AS bigint[]), CAST(:used AS bigint[]))"
                " AS moved (tenant, item, free, held, used)"
                " WHERE c.tenant = moved.tenant AND c.item = moved.item"
                " AND c.free >= -moved.free AND c.held >= -moved.held"
            ),
            {
                **_arrays(list(units)),
                "free": [free * each for each in units.values()],
                "held": [held * each for each in units.values()],
                "used": [used * each for each in units.values()],
            },
        )
        fence.assert_all_written(result, len(units))


def _arrays(counters: Sequence[Counter]) -> dict[str, Any]:
    return {
        "tenants": [tenant for tenant, _ in counters],
        "items": [item for _, item in counters],
    }
