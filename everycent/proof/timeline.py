"""What `explain` tells: one line of time per order, why the order waits, and what to type next."""

from datetime import datetime
from enum import StrEnum

from pydantic import AwareDatetime, Field

from everycent.domain.message import Message


class Kind(StrEnum):
    """What sort of thing happened."""

    RUN = "run"  # A run of the workflow began, ended, was reset.
    STEP = "step"  # An activity, with its attempts.
    WAIT = "wait"  # A timer.
    ROW = "row"  # What a service's row says.
    MESSAGE = "message"  # What a service has told another, or has heard.
    CALL = "call"  # A call to the payment provider, as our books have it.
    PROVIDER = "provider"  # What the provider's own books say.
    ACT = "act"  # What a person, or a program in a person's stead, has done.


class Event(Message):
    """One thing that happened; `lasted_seconds` is None where it has no length, or no end yet."""

    at: AwareDatetime
    kind: Kind
    source: str  # temporal, provider, or the name of the service.
    what: str
    lasted_seconds: float | None = None
    key: str = ""
    run: int = 0  # Which run of the workflow, from 1; 0 for what belongs to none.
    caused_at: AwareDatetime | None = None  # When the step began whose effect this row is.

    @property
    def place(self) -> tuple[datetime, bool, datetime]:
        """Where it stands in the timeline: an effect behind the step that caused it."""
        return self.caused_at or self.at, self.caused_at is not None, self.at


class RunView(Message):
    """A run of the order's workflow."""

    number: int
    run_id: str
    status: str
    started_at: AwareDatetime
    closed_at: AwareDatetime | None = None


class Timeline(Message):
    """All that is known of one order, in order, and what follows from it."""

    tenant: str
    order_id: str
    workflow_id: str
    found: bool  # Whether anybody has ever heard of it.
    decision: str = ""
    status: str = ""
    waits_for: str = ""
    by_messages: bool = False  # Whether messages drive it, and no workflow.
    runs: tuple[RunView, ...] = ()
    events: tuple[Event, ...] = ()
    broken: tuple[str, ...] = ()  # Invariants that do not hold of this order, with the reason.
    silent: dict[str, str] = Field(default_factory=dict)  # Who could not be asked, and why.
    why: str = ""
    next_commands: tuple[str, ...] = ()


def duration(seconds: float) -> str:
    """Say how long something takes, in seven columns."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
