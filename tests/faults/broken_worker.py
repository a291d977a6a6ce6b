"""A worker with one promise broken, to show that the sweep sees it: `broken_worker.py <what> …`."""

import sys
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from everycent.__main__ import main
from everycent.database import inventory
from everycent.domain.inventory import StockReleased
from workflows import saga

release_stock = inventory.release_stock


async def release_without_tombstone(tx: Any, requests: Sequence[Any]) -> list[Any]:
    """Cancel what is there; where nothing is, leave nothing that could refuse a late Try."""
    [request] = requests
    found = await tx.execute(text("SELECT 1 FROM reservation WHERE key = :k"), {"k": request.key})
    if found.first() is None:
        return [StockReleased(lines=())]
    return await release_stock(tx, requests)


async def step_with_late_undo(self: saga.Saga, name: str, key: str, action: Any, undo: Any) -> Any:
    """Register the undo when the action has answered, as most people would."""
    result = await action()
    self.may_have_run(name, key, lambda _: undo(result))
    return result


if __name__ == "__main__":
    what = sys.argv.pop(1)
    if what == "tombstone":
        inventory.release_stock = release_without_tombstone
    elif what == "undo":
        saga.Saga.step = step_with_late_undo  # type: ignore[method-assign]
    main()
