"""What the sweeper asks the services, page by page; each question carries its time."""

from pydantic import AwareDatetime, TypeAdapter

from everycent.domain.message import Message
from everycent.domain.sweep import PAGE, Hold, HoldService, Standing

CURSOR: TypeAdapter[tuple[AwareDatetime, str]] = TypeAdapter(tuple[AwareDatetime, str])


class Unfinished(Message):
    """Ask for unfinished orders that have not moved since `before`, the longest still first."""

    tenant: str | None
    before: AwareDatetime
    after: tuple[AwareDatetime, str] | None = None  # (moved_at, xid) of the last one.
    limit: int = 200


class StandingsOf(Message):
    """Ask how these orders stand; `with_request` for what an unfinished one was asked for."""

    xids: tuple[str, ...]
    with_request: bool = False


class Rows(Message):
    """Ask for rows in the order of their keys, behind `after`."""

    tenant: str | None
    after: str = ""
    limit: int = PAGE


class HoldsOf(Message):
    """Ask for the holds of these keys once more."""

    keys: tuple[str, ...]


class Running(Message):
    """Ask Temporal for the orders' runs that have lived since `before`."""

    tenant: str | None
    before: AwareDatetime
    after: str = ""  # Where Temporal's next page begins, in its own words.
    limit: int = PAGE


class UnfinishedPage(Message):
    """Some unfinished orders, and where the next page begins."""

    standings: tuple[Standing, ...]
    next: tuple[AwareDatetime, str] | None = None


class HoldPage(Message):
    """The open holds, and the keys of money kept, among the rows looked at.

    `kept` is short, for every sale that was ever made keeps its money.
    """

    holds: tuple[Hold, ...]
    kept: tuple[str, ...] = ()
    looked_at: int
    next: str | None = None


class KeyPage(Message):
    """Keys, and where the next page begins."""

    keys: tuple[str, ...]
    next: str | None = None


class KeyStates(Message):
    """Keys with the state of their row, `absent` for none."""

    states: tuple[tuple[str, str], ...]


class RunningPage(Message):
    """Runs that are not closed, and where the next page begins."""

    workflow_ids: tuple[str, ...]
    next: str | None = None


class EndRun(Message):
    """Have a run ended whose task fails for ever, if it is still that run and still fails."""

    workflow_id: str
    run_id: str
    failing_since: AwareDatetime
    reason: str


class WorkflowIds(Message):
    """Ask Temporal how these workflows stand, each by its id."""

    workflow_ids: tuple[str, ...]


HOLD_SERVICES: tuple[HoldService, ...] = ("inventory", "payment", "account", "points")
