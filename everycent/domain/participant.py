"""What a participant is asked and answers: one branch of a transaction over several services.

The key of a branch is `<tenant>/<order>/<participant>[/<request>]`: its xid is the first two parts,
its branch id the rest. It is made of business ids alone, so it is the same in every retry and run.
"""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import StringConstraints, TypeAdapter

from everycent.domain.message import Message, StepRequest, Text, order_of, step_key

_ID = r"[A-Za-z0-9._~-]{1,64}"
BranchKey = Annotated[str, StringConstraints(pattern=rf"\A{_ID}/{_ID}/{_ID}(/{_ID})*\z")]
Name = Annotated[str, StringConstraints(pattern=r"\A[a-z][a-z0-9_]{0,39}\z")]
NAMES: TypeAdapter[str] = TypeAdapter(Name)


class BranchRequest(StepRequest):
    """Base of what a participant is asked to try; a key without xid and branch is refused."""

    key: BranchKey

    @classmethod
    def of(
        cls,
        xid: str,
        participant: str,
        request: str | None = None,
        *,
        at: datetime,
        opened_on: date | None = None,
        **fields: object,
    ) -> Self:
        """Make the request of a branch; `request` tells several branches of one participant apart.

        `opened_on` is the order's opening day; left out, it is the day of `at`.
        """
        tenant, order_id = xid.split("/")
        key = step_key(tenant, order_id, participant, request)
        day = at.date() if opened_on is None else opened_on
        return cls.model_validate({"key": key, "at": at, "opened_on": day, **fields})

    @property
    def xid(self) -> str:
        """The transaction over all services: `<tenant>/<order>`."""
        return order_of(self.key)

    @property
    def branch(self) -> str:
        """The branch id: `<participant>[/<request>]`."""
        return self.key.split("/", 2)[2]

    @property
    def participant(self) -> str:
        """The name of the participant whose branch it is."""
        return self.key.split("/")[2]


@dataclass(frozen=True)
class RemoteParticipant:
    """A participant that others run: its name, and the types of its Try's request and answers."""

    name: str
    request: type[BranchRequest]
    answers: Any  # A Message, or a union of Messages that `kind` tells apart.
    service: str = ""  # Whose queues it shares; left out, it has its own.


class ConfirmBranch(BranchRequest):
    """Make what the branch holds final. What moves comes from its row, never from here."""


class CancelBranch(BranchRequest):
    """Give back what the branch holds, or forbid the Try that has not come yet."""

    reason: Text = ""


class Confirmed(Message):
    """What was held is final."""

    kind: Literal["confirmed"] = "confirmed"


class Cancelled(Message):
    """Nothing is held any more, and nothing will be; `held` says whether anything was."""

    kind: Literal["cancelled"] = "cancelled"
    held: bool


CONFIRM_ANSWERS: TypeAdapter[Confirmed] = TypeAdapter(Confirmed)
CANCEL_ANSWERS: TypeAdapter[Cancelled] = TypeAdapter(Cancelled)
