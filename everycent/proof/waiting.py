"""Why an order waits, and what to type next: worked out of what the timeline has found."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from everycent.database.message_reads import MessageView
from everycent.database.story_rows import StoryRow
from everycent.domain.choreography import DRIVER
from everycent.proof.run_story import PendingStep, RunStory
from everycent.proof.timeline import duration
from everycent.settings import SERVICES

_FINAL = ("COMMITTED", "ABORTED")


@dataclass(frozen=True)
class Situation:
    """What there is to judge by: the order's rows, its runs, and who could not be asked."""

    tenant: str
    order_id: str
    workflow_id: str
    now: datetime
    rows: Sequence[StoryRow]
    runs: Sequence[RunStory]
    silent: frozenset[str]
    broken: bool = False
    messages: Sequence[MessageView] = ()

    @property
    def order(self) -> StoryRow | None:
        """The order's own row."""
        return next((row for row in self.rows if row.table == "shop_order"), None)

    @property
    def open_cases(self) -> list[StoryRow]:
        """The repair cases that nobody has settled."""
        return [r for r in self.rows if r.table == "repair_case" and r.facts["state"] == "OPEN"]

    @property
    def newest(self) -> RunStory | None:
        """The newest run."""
        return self.runs[-1] if self.runs else None

    @property
    def is_driven(self) -> bool:
        """Whether a run lives."""
        return any(run.lives for run in self.runs)

    @property
    def by_messages(self) -> bool:
        """Whether the order is driven by messages, and no run of it is missed."""
        return self.order is not None and str(self.order.facts["driver"]).startswith(DRIVER)

    def command(self, *words: str) -> str:
        """Return a command about this order, with the shop if it is not the usual one."""
        shop = () if self.tenant == "default" else ("--tenant", self.tenant)
        return shlex.join(("everycent", *words, *shop))


@dataclass(frozen=True)
class Waiting:
    """Why it waits, in a sentence, and the commands that help, the first one first."""

    why: str
    commands: tuple[str, ...] = ()


def why_it_waits(at: Situation) -> Waiting:
    """Say why the order is not further than it is."""
    if at.order is None and not at.runs:
        return _never_came(at)
    if at.order is None:
        return _without_row(at)
    if at.order.facts["decision"] in _FINAL:
        return _final(at)
    if at.open_cases:
        return _parked(at)
    if at.by_messages:
        return _by_messages(at)
    if "temporal" in at.silent:
        return Waiting(
            "Temporal does not answer: whether anybody drives it is not known", (_CHECK,)
        )
    if not at.is_driven:
        return _without_driver(at)
    return _under_way(at)


_CHECK = "everycent check"
_LOOK = "everycent sweeper --dry-run"


def _never_came(at: Situation) -> Waiting:
    if at.rows:
        return Waiting("rows bear its name, and no order does: nobody owns them", (_LOOK,))
    if at.silent:
        asked = ", ".join(sorted(at.silent))
        return Waiting(f"nothing was found, and {asked} could not be asked", (_CHECK,))
    return Waiting("no such order has ever come", (at.command("order", "list"),))


def _without_row(at: Situation) -> Waiting:
    if "order" in at.silent:
        return Waiting("the order database does not answer", ("everycent check --only order",))
    if at.is_driven:
        return Waiting(
            "its run has not written the order down yet", (_pending_helps(at) or _CHECK,)
        )
    return Waiting(
        "its run ended before the order was written down", ("everycent order place FILE",)
    )


def _final(at: Situation) -> Waiting:
    assert at.order is not None
    facts = at.order.facts
    if at.broken:
        how = f"it is {facts['status']}, and what is named above is wrong"
        return Waiting(how, ("everycent audit",))
    told = f": {facts['reason']}" if facts["reason"] else ""
    if following := [each for each in at.messages if each.box == "outbox"]:
        return _followed(at, following, f"it is {facts['status']}{told}")
    return Waiting(f"for nothing: it is {facts['status']}{told}")


def _followed(at: Situation, following: Sequence[MessageView], told: str) -> Waiting:
    """Say what is still to follow an order that is over: the dead first, they wait for a person."""
    first = min(following, key=lambda each: each.state != "DEAD")
    look = at.command("messages", "list", "--order", at.order_id)
    sink, _, name = first.other.partition(":")
    if first.state != "DEAD":
        return Waiting(f"for nothing: {told}; {first.type} to {name} is on its way", (look,))
    dead_at = (name, first.service) if sink == "inbox" else (first.service,)  # In this order.
    replay = (shlex.join(("everycent", "messages", "replay", who, first.key)) for who in dead_at)
    why = f"for nothing: {told}; {first.type} to {name} was given up: {first.last_error}"
    return Waiting(why, (*replay, look))


def _parked(at: Situation) -> Waiting:
    case = at.open_cases[0]
    facts = case.facts
    key = shlex.quote(case.key)
    others = f" (and {len(at.open_cases) - 1} more cases)" if len(at.open_cases) > 1 else ""
    why = (
        f"`{facts['step']}` is parked since {facts['opened_at'][:19]}{others}, after"
        f" {facts['attempts']} failures: {facts['error_class']}: {facts['error']}"
    )
    helps = {
        "retry": f"everycent case retry {key}",
        "resolve": f"everycent case resolve {key} --reason WHY",
    }
    return Waiting(why, tuple(helps[word] for word in facts["proposals"] if word in helps))


def _without_driver(at: Situation) -> Waiting:
    assert at.order is not None
    decision = at.order.facts["decision"].lower()
    if at.newest is None:
        how = "Temporal does not know its workflow (deleted, or another namespace)"
    else:
        how = f"its run was {at.newest.ended_how or at.newest.view.status}"
    return Waiting(f"nobody drives it: {how}; the order is {decision}", _TAKE_UP)


def _by_messages(at: Situation) -> Waiting:
    """Say what messages wait for: a person, the customer, a consumer, the relay."""
    boxes = [r for r in at.rows if r.table in ("inbox", "outbox")]
    dead = [r for r in boxes if r.facts["state"] == "DEAD"]
    if dead:
        return _dead(dead)
    if away := sorted(at.silent & {*SERVICES}):
        asked = ", ".join(away)
        return Waiting(f"where its messages are is not known: {asked} does not answer", (_CHECK,))
    assert at.order is not None
    ends = at.order.time("window_ends_at")
    assert ends is not None
    left = (ends - at.now).total_seconds()
    if at.order.facts["waits_for"] == "payment" and left > 0:
        return _unpaid(at, left)
    for state, late in (("RECEIVED", _not_applied), ("PENDING", _not_carried)):
        waiting = [r for r in boxes if r.facts["state"] == state]
        if waiting:
            return late(at, min(waiting, key=lambda row: str(row.facts["at"])))
    if any(row.facts["state"] == "SENT" for row in boxes):
        return Waiting("it is on its way", (at.command("explain", at.order_id),))
    if left <= 0 and at.order.facts["decision"] == "OPEN":
        return Waiting(
            "its window is over, and the order service has not looked", ("everycent check",)
        )
    listed = at.command("messages", "list", "--order", at.order_id)
    return Waiting("no message of it is under way: nobody drives it", ("everycent audit", listed))


def _dead(rows: Sequence[StoryRow]) -> Waiting:
    """Name the first that was given up; one that its receiver gave up is dead on both sides."""
    first, *_ = ordered = sorted(rows, key=lambda row: row.table)  # The inbox comes first.
    facts = first.facts
    more = len({row.key for row in rows}) - 1
    others = f" (and {more} more)" if more else ""
    name = f"`{facts['event']}`{others} is dead"
    side = f"{first.service} could not apply it" if first.table == "inbox" else "it was refused"
    why = f"{name}, {side} in {facts['attempts']} tries: {facts['error']}"
    replays = [shlex.join(("everycent", "messages", "replay", r.service, r.key)) for r in ordered]
    return Waiting(why, tuple(dict.fromkeys(replays)))


def _not_applied(at: Situation, row: StoryRow) -> Waiting:
    facts = row.facts
    since = duration((at.now - (row.time("carried_at") or at.now)).total_seconds())
    failed = f", {facts['attempts']} tries: {facts['error']}" if facts["error"] else ""
    why = f"{row.service} has not applied `{facts['event']}` for {since}{failed}"
    return Waiting(why, (f"everycent check --only {row.service}",))


def _not_carried(at: Situation, row: StoryRow) -> Waiting:
    facts = row.facts
    since = duration((at.now - (row.time("at") or at.now)).total_seconds())
    failed = f": {facts['error']}" if facts["error"] else ""
    why = f"the relay has not carried `{facts['event']}` to {facts['party']} for {since}{failed}"
    return Waiting(why, ("everycent check --only relay", "everycent messages count"))


_TAKE_UP = ("everycent sweeper --once --grace 0", "everycent order place FILE")


def _under_way(at: Situation) -> Waiting:
    assert at.order is not None
    live = next(run for run in reversed(at.runs) if run.lives)
    if live.paused_how:
        command = _temporal("unpause", at.workflow_id)
        return Waiting(f"its run was paused {live.paused_how}", (command,))
    if live.failing:
        command = _temporal("show", at.workflow_id)
        return Waiting(f"its run cannot go on: {live.failing}", (command,))
    ends = at.order.time("window_ends_at")
    assert ends is not None
    left = (ends - at.now).total_seconds()
    if at.order.facts["waits_for"] == "payment" and left > 0:
        return _unpaid(at, left)
    for step in live.pending:
        return _pending(at, step)
    return Waiting("it is on its way", (at.command("explain", at.order_id),))


def _temporal(verb: str, workflow_id: str) -> str:
    return shlex.join(("temporal", "workflow", verb, "--workflow-id", workflow_id))


def _unpaid(at: Situation, left: float) -> Waiting:
    why = f"the customer has not paid; the window is open for another {duration(left)}"
    urls = [
        answer["url"]
        for row in at.rows
        if row.table == "payment" and row.facts["state"] == "TRIED"
        and (answer := row.facts["try_answer"]) and answer.get("url")
    ]  # fmt: skip
    page = tuple(f"curl -X POST {shlex.quote(url)}" for url in urls[-1:])
    pay = at.command("order", "pay", at.order_id, "--card", "TOKEN")
    return Waiting(why, (*page, pay, at.command("order", "cancel", at.order_id)))


def _pending(at: Situation, step: PendingStep) -> Waiting:
    service = step.activity.partition(".")[0]
    check = f"everycent check --only {service}"
    since = duration((at.now - step.since).total_seconds())
    if step.last_error:
        again = (
            f", again in {duration(max((step.next_at - at.now).total_seconds(), 0))}"
            if step.next_at
            else ", it is tried again now"
        )
        why = f"`{step.name}` fails for {since}, attempt {step.attempt}{again}"
        return Waiting(f"{why}: {step.last_error}", (check,))
    if step.is_running:
        return Waiting(f"`{step.name}` runs for {since}", (check,))
    return Waiting(f"`{step.name}` waits for a worker for {since}", (check,))


def _pending_helps(at: Situation) -> str:
    for run in at.runs:
        for step in run.pending:
            return f"everycent check --only {step.activity.partition('.')[0]}"
    return ""
