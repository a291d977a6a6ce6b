"""What an order would have come to in another mode, out of the answers that its branches gave.

Nothing is asked again: a branch that today's mode never came to has no answer. First the plan of
the order's own mode has to explain what did happen; otherwise the order tells nothing.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum

from everycent.domain.message import Message
from everycent.domain.mode import Mode
from everycent.domain.order import Decision, OrderResult


class Answer(StrEnum):
    """What a branch's Try came to."""

    HELD = "held"
    REFUSED = "refused"
    OPEN = "open"  # Given up without an answer: the customer left, or the window ended.
    NEVER = "never"  # It was not begun.


class Course(Message):
    """Which branches are begun, in their order, and what is decided then."""

    begun: tuple[str, ...]
    decision: Decision


class Shadow(Message):
    """An order as it went, and as it would have gone."""

    order_id: str
    tenant: str
    today: Course
    then: Course | None = None  # None: the plan of its own mode does not explain it.
    more: tuple[str, ...] = ()  # Branches that would have been begun, and cancelled again.

    @property
    def differs(self) -> bool:
        """Whether the other mode would have decided or begun anything else."""
        return self.then is not None and self.then != self.today


def in_turn(branches: Mapping[str, Answer]) -> Course:
    """Begin one branch after the other, until one does not hold."""
    begun: list[str] = []
    for name, answer in branches.items():
        begun.append(name)
        if answer is not Answer.HELD:
            break
    return Course(begun=tuple(begun), decision=_decided(branches))


def at_once(branches: Mapping[str, Answer]) -> Course:
    """Begin every branch."""
    return Course(begun=tuple(branches), decision=_decided(branches))


PLANS: Mapping[Mode, Callable[[Mapping[str, Answer]], Course]] = {
    Mode.SAGA: in_turn,
    Mode.TCC: at_once,
    Mode.MIXED: at_once,  # Its extensions come behind the decision.
}


def shadow(
    result: OrderResult, branches: Mapping[str, Answer], *, today: Mode, then: Mode
) -> Shadow:
    """Compare how an order ended with how it would have in another mode."""
    happened = Course(
        begun=tuple(name for name, answer in branches.items() if answer is not Answer.NEVER),
        decision=result.decision,
    )
    told = {"order_id": result.order_id, "tenant": result.tenant, "today": happened}
    if PLANS[today](branches) != happened:
        return Shadow(**told)
    course = PLANS[then](branches)
    more = tuple(name for name in course.begun if name not in happened.begun)
    return Shadow(**told, then=course, more=more)


def _decided(branches: Mapping[str, Answer]) -> Decision:
    holds = all(answer is Answer.HELD for answer in branches.values())
    return Decision.COMMITTED if holds else Decision.ABORTED
