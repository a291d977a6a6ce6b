"""What the payment provider says it took and gave back: its own books, not our record of them."""

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from everycent.domain.message import order_of
from everycent.errors import Transient, Unreachable

_PAGE = 1000


@dataclass(frozen=True)
class ProviderEntry:
    """One payment in the provider's books; `reference` is the key that we gave it."""

    reference: str
    provider_id: str
    state: str
    currency: str
    captured_minor: int
    refunded_minor: int

    @property
    def is_open(self) -> bool:
        """Whether it may still take money."""
        return self.state in ("requires_confirmation", "requires_action", "authorised")


class ProviderBooks(Protocol):
    """Where the provider's books can be read: its report, its API or a file of statements."""

    def entries(self, prefix: str) -> AsyncIterator[ProviderEntry]:
        """Yield the payments whose reference begins with `prefix`, in any order."""
        ...


class SimulatorBooks:
    """The books of the payment provider simulator, through its admin's API."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def entries(self, prefix: str) -> AsyncIterator[ProviderEntry]:
        """Yield the payments whose reference begins with `prefix`, as they were opened."""
        after: int | None = 0
        while after is not None:
            page = await self._page(prefix, after)
            for row in page["data"]:
                yield ProviderEntry(
                    reference=row["reference"],
                    provider_id=row["id"],
                    state=row["state"],
                    currency=row["currency"],
                    captured_minor=row["captured_minor"],
                    refunded_minor=row["refunded_minor"],
                )
            after = page["next"]

    async def _page(self, prefix: str, after: int) -> Any:
        # Ids and steps hold none of a glob's own characters.
        query = {"reference": f"{prefix}*", "after": str(after), "limit": str(_PAGE)}
        try:
            answer = await self._http.get("/admin/intents", params=query)
            answer.raise_for_status()
        except httpx.TransportError as error:
            raise Unreachable(f"the provider's books cannot be reached: {error}") from error
        except httpx.HTTPStatusError as error:
            raise Transient(f"the provider's books cannot be read: {error}") from error
        return answer.json()


class Spool:
    """The provider's books in the order of our keys, on disk: memory may be too small."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("")  # A temporary file that ends with the connection.
        columns = "reference, provider_id, state, currency, captured_minor, refunded_minor"
        self._file.execute(f"CREATE TABLE entry ({columns})")

    async def fill(self, books: ProviderBooks, prefix: str) -> None:
        """Write the books down."""
        async for entry in books.entries(prefix):
            self._file.execute(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)",
                (
                    entry.reference,
                    entry.provider_id,
                    entry.state,
                    entry.currency,
                    entry.captured_minor,
                    entry.refunded_minor,
                ),
            )

    async def stream(self) -> AsyncIterator[tuple[str, ProviderEntry]]:
        """Yield (xid, entry) in the order of the references."""
        for row in self._file.execute("SELECT * FROM entry ORDER BY reference, provider_id"):
            yield order_of(row[0]), ProviderEntry(*row)

    def close(self) -> None:
        """Drop the file."""
        self._file.close()
