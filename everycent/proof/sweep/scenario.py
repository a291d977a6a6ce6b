"""What the sweep asks of a flow: its outcomes, how each is brought about, and how an order stands.

A flow of yours is swept like the checkout: give an object of `SweptFlow` (everycent/proof/sweep/
checkout.py is one) and name it to `everycent sweep` as `package.module:attribute`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx
from temporalio.client import Client

from everycent.database.reads import Reader
from everycent.settings import Settings
from starters.bookings import Bookings
from starters.checkouts import Checkouts


@dataclass(frozen=True)
class Shop:
    """The ways into the running stack."""

    settings: Settings
    client: Client
    reader: Reader
    checkouts: Checkouts
    bookings: Bookings
    provider: httpx.AsyncClient  # The simulator, its admin's API included.
    together: bool = False  # Whether one worker hosts everything.


@dataclass(frozen=True)
class State:
    """How an order stands: its status once it is final, and whether it waits for an operator."""

    status: str | None = None
    parked: bool = False


@dataclass(frozen=True)
class Audited:
    """What the audit said: the broken rules of each run, by tenant, and how many rows it saw."""

    broken: Mapping[str, Sequence[str]]
    rows: int


class Scenario(Protocol):
    """One outcome of a flow. Each run has a tenant of its own, so that runs share no row."""

    @property
    def name(self) -> str:
        """What the matrix calls it."""
        ...

    @property
    def usual(self) -> str:
        """The status with which an order ends when no fault strikes."""
        ...

    @property
    def given_up(self) -> frozenset[str]:
        """The further ends that are right when a step fails for good."""
        ...

    @property
    def forgotten(self) -> frozenset[str]:
        """The further ends that are right when Temporal has forgotten the last second."""
        ...

    def patient(self) -> "Scenario":
        """Return the same outcome with more time, for a run that did not get to its boundary."""
        ...

    async def prepare(self, shop: Shop, tenant: str) -> None:
        """Fill the tenant's shelves and accounts."""
        ...

    async def play(self, shop: Shop, tenant: str) -> None:
        """Do what the customer does. Called again after an error: each act is safe to repeat."""
        ...


class SweptFlow(Protocol):
    """A flow of the catalog with its outcomes."""

    @property
    def name(self) -> str:
        """The flow's name in Temporal."""
        ...

    @property
    def scenarios(self) -> Sequence[Scenario]:
        """Every outcome that the flow has."""
        ...

    def order(self, tenant: str) -> str:
        """Return `<tenant>/<order>` of a run."""
        ...

    async def states(self, shop: Shop, tenants: Collection[str]) -> dict[str, State]:
        """Tell how the orders of these runs stand; one without a row is left out."""
        ...

    async def cancel(self, shop: Shop, tenant: str) -> None:
        """Ask for the order's cancellation; return when the run has taken or refused it."""
        ...

    async def repair(self, shop: Shop, tenant: str) -> None:
        """Do what an operator does with a parked order: have its steps tried again."""
        ...

    async def take_up(self, shop: Shop, tenant: str) -> None:
        """See to a run that cannot go on, by a pass of the sweeper; leave any other alone."""
        ...

    async def after_restore(self, shop: Shop) -> None:
        """Do what operators do when Temporal's store was put back: a pass of the sweeper."""
        ...

    async def audit(self, shop: Shop, tenants: Collection[str]) -> Audited:
        """Check every invariant over the runs, when nothing moves any more."""
        ...

    async def tell(self, shop: Shop, tenant: str) -> str:
        """Say all that is known of an order: for a red cell."""
        ...
