"""All that the services know of one order, brought together by merging their rows in key order."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from everycent.database.audit_rows import OrderRow, ServiceRow
from everycent.proof.provider_books import ProviderEntry

Found = OrderRow | ServiceRow | ProviderEntry
Stream = AsyncIterator[tuple[str, Found]]


@dataclass
class Facts:
    """One order (`xid`: `<tenant>/<order>`) and every row that bears its name."""

    xid: str
    order: OrderRow | None = None
    rows: list[ServiceRow] = field(default_factory=list)
    entries: list[ProviderEntry] = field(default_factory=list)  # Of the provider's own books.
    extends: bool = False  # A message to its extensions is under way, or dead and waits for repair.

    def add(self, found: Found) -> None:
        """Put a row where it belongs."""
        if isinstance(found, OrderRow):
            self.order = found
        elif isinstance(found, ServiceRow):
            self.rows.append(found)
        else:
            self.entries.append(found)

    def key(self, step: str) -> str:
        """Return the key of one of the order's steps."""
        return f"{self.xid}/{step}"

    def of(self, *kinds: str) -> list[ServiceRow]:
        """Return the rows of these kinds."""
        return [row for row in self.rows if row.kind in kinds]

    def at(self, kind: str, step: str) -> ServiceRow | None:
        """Return the row of that kind under the step's key."""
        key = self.key(step)
        return next((row for row in self.rows if row.kind == kind and row.key == key), None)


async def merge(streams: Sequence[Stream]) -> AsyncIterator[Facts]:
    """Yield the facts of every xid that any stream names; one order is in memory at a time.

    The streams come in the order of their keys, and are read one at a time.
    """
    heads = [(stream, await anext(stream, None)) for stream in streams]
    while True:
        waiting = [head[0] for _, head in heads if head is not None]
        if not waiting:
            return
        facts = Facts(min(waiting, key=lambda xid: f"{xid}/"))
        for number, (stream, head) in enumerate(heads):
            following = head
            while following is not None and following[0] == facts.xid:
                facts.add(following[1])
                following = await anext(stream, None)
            heads[number] = (stream, following)
        yield facts
