"""Which order a person means, by whatever name people know it."""

import contextlib
from collections.abc import Iterable

from everycent.database.reads import Reader, reading
from everycent.database.story_rows import find_by_provider_id, find_by_request_id
from everycent.errors import EverycentError
from everycent.settings import Settings
from workflows.catalog import FLOW_NAMES

Order = tuple[str, str]  # The shop and the order's id.


class AmbiguousError(ValueError):
    """Several orders know the name."""

    def __init__(self, name: str, orders: Iterable[Order]) -> None:
        listed = ", ".join(sorted(map("/".join, orders)))
        super().__init__(f"{name} could be of these orders: {listed}; name one of them like that")


async def find(settings: Settings, tenant: str, name: str) -> Order:
    """Return the order that a person means by `name`.

    That is an order's id, a payment's request id or id at the provider, or a refund's there; or, in
    full, `<tenant>/<order>`, a step's key or a workflow's id. A name that nobody knows, or of which
    nobody can be asked, is taken for an order's. Raises AmbiguousError when several orders know it.
    """
    parts = name.split("/")
    if len(parts) > 1:
        is_workflow = parts[0] in FLOW_NAMES and len(parts) == 3
        return (parts[1], parts[2]) if is_workflow else (parts[0], parts[1])
    async with reading(settings) as reader:
        orders = await _known_as(reader, tenant, name)
    if len(orders) > 1:
        raise AmbiguousError(name, orders)
    return next(iter(orders), (tenant, name))


async def _known_as(reader: Reader, tenant: str, name: str) -> set[Order]:
    """Ask each service by itself: one that is down leaves the others their say."""
    orders: set[Order] = set()
    with contextlib.suppress(EverycentError, OSError):
        if await reader.order(tenant, name) is not None:
            orders.add((tenant, name))
        orders |= await find_by_request_id(reader, tenant, name)
    with contextlib.suppress(EverycentError, OSError):
        orders |= await find_by_provider_id(reader, name)
    return orders
