"""Everything that is written down about a shop, to be compared before and after."""

from typing import Any

import httpx

from everycent.database.reads import Reader
from everycent.settings import SERVICES

_TABLES = (
    "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
    " AND relname <> 'alembic_version'"
    " AND relnamespace = CAST('public' AS regnamespace) ORDER BY relname"
)
_ROWS = (
    "SELECT CAST(to_jsonb(t) - ARRAY['run', 'shared'] AS text) AS told FROM {table} t"
    " WHERE CAST(to_jsonb(t) AS text) LIKE :mark ORDER BY 1"
)


async def books_of(reader: Reader, tenant: str) -> dict[str, list[str]]:
    """Return every row of a tenant in every database, but for who has opened the order."""
    books = {}
    for service in SERVICES:
        for found in await reader.rows(service, _TABLES):
            rows = await reader.rows(
                service, _ROWS.format(table=found["relname"]), mark=f'%"{tenant}%'
            )
            books[f"{service}.{found['relname']}"] = [row["told"] for row in rows]
    return books


async def intents_of(provider: httpx.AsyncClient, tenant: str) -> list[dict[str, Any]]:
    """Return the provider's own books of a tenant."""
    answer = await provider.get("/admin/intents", params={"reference": f"{tenant}/*"})
    intents: list[dict[str, Any]] = answer.json()["data"]
    return intents
