"""What the services' rows and the provider's books say happened, as events in time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from everycent.database.story_rows import StoryRow
from everycent.domain.money import readable
from everycent.domain.payment import CallName
from everycent.proof.timeline import Event, Kind


@dataclass(frozen=True)
class Causes:
    """When each step began, to put what it wrote below it."""

    asked: Mapping[tuple[str, datetime], datetime]  # By its key and the time that it gave.
    local: Sequence[tuple[str, datetime]] = ()  # Of a step in the run's own worker: its service.

    def of(self, service: str, key: str, at: datetime) -> datetime | None:
        """Return when the step began that wrote at `at`, None if nobody tells.

        A step gives the time at which its run was woken, and begins a moment later; of a local one
        only that is known.
        """
        # A call belongs to its payment's step, and is written under the step's time.
        began = self.asked.get((key, at)) or self.asked.get((key.rpartition("/")[0], at))
        later = (each for who, each in self.local if who == service and each >= at)
        return began or min(later, default=None)


_NOUNS = {
    "balance_hold": "balance",
    "balance_credit": "credit to the balance",
    "points_hold": "points",
    "points_booking": "booking of points",
}


def events_of_rows(rows: list[StoryRow], causes: Causes, prefix: str) -> list[Event]:
    """Return what the rows tell; `causes` says when the step began that wrote at a given time.

    `prefix` (`<tenant>/<order>/`) is left out of the names of steps.
    """
    ordered = sorted(rows, key=_turn)
    return [event for row in ordered for event in _Told(row, causes, prefix).events()]


def _turn(row: StoryRow) -> tuple[str, int]:
    """Return whose turn it is among the calls of one step, which all carry the step's time.

    The one that may arrive later comes later; those of one talk come in the order of the talk.
    """
    name = row.key.rpartition("/")[2]
    turns = get_args(CallName)
    return str(row.facts.get("may_arrive_until", "")), turns.index(name) if name in turns else 0


def events_of_provider(entries: list[dict[str, Any]], prefix: str) -> list[Event]:
    """Return what the provider's own books tell, by its own clock."""
    return [_provider_event(entry, prefix) for entry in entries]


def _provider_event(entry: dict[str, Any], prefix: str) -> Event:
    intent = entry["intent"]
    reference, currency = intent["reference"], intent["currency"]
    kind = entry["kind"].partition(".")[2].replace("_", " ")
    amount = intent["amount_minor"]
    about = intent["reference"].removeprefix(prefix)
    if refund := entry.get("refund"):
        kind, amount = f"refund {kind}", refund["amount_minor"]
        about = refund["reference"].removeprefix(prefix)
    name = f" ({intent['id']})" if kind == "created" else ""
    what = f"{kind}: {readable(amount, currency)} for {about}{name}"
    for webhook in entry["webhooks"]:
        tries = f"{webhook['attempts']} tries, {webhook['last_answer'] or 'not sent yet'}"
        what += f"; webhook {webhook['state']} ({tries})"
    at = datetime.fromisoformat(entry["created_at"])
    return Event(at=at, kind=Kind.PROVIDER, source="provider", what=what, key=reference)


class _Told:
    """Tells one row."""

    def __init__(self, row: StoryRow, causes: Causes, prefix: str) -> None:
        self._row = row
        self._facts = row.facts
        self._causes = causes
        self._prefix = prefix

    def events(self) -> Iterator[Event]:
        """Yield what has happened to the row, as far as its times tell."""
        tell = {
            "shop_order": self._order,
            "payment_attempt": self._attempt,
            "repair_case": self._case,
            "provider_call": self._call,
            "outbox": self._sent,
            "inbox": self._heard,
        }
        yield from tell.get(self._row.table, self._fenced)()

    def _order(self) -> Iterator[Event]:
        facts = self._facts
        if facts["currency"] is None:  # Nobody's order: the sweeper has withdrawn its id.
            told = f"the order's id is withdrawn by {facts['driver']}: {facts['reason']}"
            yield from self._at("decided_at", told, kind=Kind.ACT)
            return
        ends = facts["window_ends_at"][11:19]
        total = readable(facts["total_minor"], facts["currency"])
        shared = ", opened by a second run too" if facts["shared"] else ""
        yield from self._at("opened_at", f"opened over {total}, to be paid until {ends}{shared}")
        yield from self._at("decided_at", f"decided {self._decision()}", verb="decide")
        if result := facts["result"]:
            money = [
                f"{word} {readable(minor, facts['currency'])}"
                for word in ("captured", "refunded")
                if (minor := result[f"{word}_minor"])
            ]
            told = f"closed {result['status']}: {', '.join(money) or 'no money moved'}"
            yield from self._at("closed_at", told, verb="close")

    def _decision(self) -> str:
        facts = self._facts
        if facts["decision"] in ("COMMITTING", "COMMITTED"):
            paid = f" on payment {facts['attempt']}" if facts["attempt"] else ""
            return f"COMMITTING{paid}"
        return f"ABORTING as {facts['abort_status']}: {facts['reason']}"

    def _attempt(self) -> Iterator[Event]:
        facts = self._facts
        payment = facts["payment"]
        named = f"payment {payment['request_id']} by {payment['method']}, number {facts['number']}"
        yield from self._at("added_at", named, verb="open" if facts["number"] == 1 else "add")

    def _case(self) -> Iterator[Event]:
        facts = self._facts
        failed = f"{facts['error_class']}: {facts['error']}"
        times = f", {facts['attempts']} times" if facts["attempts"] > 1 else ""
        if facts["step"].startswith("sweeper: "):  # No step of the order: somebody came by.
            found = f"found{times} by the {facts['step']}: {facts['error']}"
            yield from self._at("opened_at", found, kind=Kind.ACT)
        else:
            yield from self._at("opened_at", f"parked{times}: {facts['step']}: {failed}")
        by_hand = ", done by hand" if facts["by_hand"] else ""
        settled = f"case settled by {facts['resolved_by']}{by_hand}: {facts['resolution']}"
        yield from self._at("resolved_at", settled, kind=Kind.ACT)

    def _call(self) -> Iterator[Event]:
        facts = self._facts
        name, answer = facts["key"].removeprefix(self._prefix), facts["answer"]
        if answer is not None:
            told = f"call {name}: {_short({w: answer.get(w) for w in _OF_AN_ANSWER})}"
        else:
            until = facts["may_arrive_until"][11:19]
            told = f"call {name}: no answer; {facts['open_sends']} sent, may arrive until {until}"
        yield from self._at("sent_at", told, kind=Kind.CALL)

    def _sent(self) -> Iterator[Event]:
        """Tell what the service has told; who hears it tells when."""
        facts = self._facts
        stands = "" if facts["state"] in ("SENT", "CONSUMED") else f", {self._message_stands()}"
        yield from self._message("at", f"tells {facts['party']}: {self._message_name()}{stands}")

    def _heard(self) -> Iterator[Event]:
        facts, name = self._facts, self._message_name()
        if facts["state"] == "CONSUMED":
            again = f" at the {_nth(facts['attempts'])} try" if facts["attempts"] > 1 else ""
            yield from self._message(
                "consumed_at", f"has applied {name} of {facts['party']}{again}"
            )
        else:
            told = f"got {name} of {facts['party']}, {self._message_stands()}"
            yield from self._message("carried_at", told)

    def _message_name(self) -> str:
        name = self._facts["key"].removeprefix(self._prefix)
        return f"{name}, a no" if self._facts["refused"] else name

    def _message_stands(self) -> str:
        facts = self._facts
        words = {"PENDING": "not carried yet", "RECEIVED": "not applied yet", "DEAD": "DEAD"}
        tries = f" after {facts['attempts']} tries" if facts["attempts"] else ""
        error = f": {facts['error']}" if facts["error"] else ""
        return f"{words.get(facts['state'], facts['state'])}{tries}{error}"

    def _message(self, column: str, what: str) -> Iterator[Event]:
        """Yield an event of a message, which is caused by no step of a run."""
        if at := self._row.time(column):
            service, key = self._row.service, self._row.key
            yield Event(at=at, kind=Kind.MESSAGE, source=service, what=what, key=key)

    def _fenced(self) -> Iterator[Event]:
        facts, state = self._facts, self._facts["state"]
        name = _NOUNS.get(self._row.table, self._row.table)
        step = facts["key"].removeprefix(self._prefix)
        over = self._over()
        if state == "CONFIRMED" and not facts["ended_at"]:  # A step that has no second half.
            yield from self._at("tried_at", f"{name} {step} {state}{over}")
        elif facts["tried_at"]:
            refused = state == "REFUSED" or (state == "CANCELLED" and _is_no(facts["try_answer"]))
            what = f"REFUSED, {_short(facts['try_answer'])}" if refused else f"TRIED{over}"
            yield from self._at("tried_at", f"{name} {step} {what}")
        if state in ("CONFIRMED", "CANCELLED"):
            stone = "" if facts["tried_at"] else ", a tombstone: nothing had been tried"
            why = f": {facts['reason']}" if facts["reason"] else ""
            yield from self._at("ended_at", f"{name} {step} {state}{over}{stone}{why}")

    def _over(self) -> str:
        """Say what the row is over: units, money or points."""
        facts = self._facts
        if parts := facts.get("parts"):
            told = [_part(part) for part in parts]
            return " " + ", ".join(told[:5]) + (f" and {len(told) - 5} more" * (len(told) > 5))
        if facts.get("amount_minor") is not None:
            return f" {readable(facts['amount_minor'], facts['currency'])}"
        return f" {facts['points']} points" if facts.get("points") is not None else ""

    def _at(
        self, column: str, what: str, *, verb: str = "open", kind: Kind = Kind.ROW
    ) -> Iterator[Event]:
        at = self._row.time(column)
        if at is None:
            return
        key = self._row.key or f"{self._prefix}{verb}"
        caused_at = self._causes.of(self._row.service, key, at)
        yield Event(
            at=at,
            kind=kind,
            source=self._row.service,
            what=what,
            key=key,
            caused_at=None if kind is Kind.ACT else caused_at,
        )


def _part(part: Mapping[str, Any]) -> str:
    if "sku" in part:
        return f"{part['units']} × {part['sku']}"
    return f"{part['account']} {readable(part['amount_minor'], part['currency'])}"


_HELD = {"reserved", "balance_frozen", "points_frozen", "authorised", "redirect_opened"}


# What of a provider's answer is worth a line: the rest is in the payment's row, or in `--json`.
_OF_AN_ANSWER = ("kind", "state", "decline_code", "code", "text")


def _is_no(answer: Mapping[str, Any] | None) -> bool:
    """Tell whether a Try that was cancelled later had been refused."""
    return answer is not None and str(answer.get("kind")) not in _HELD


def _short(answer: Any) -> str:
    """Say a stored answer in a few words: its kind first, then its facts."""
    if not isinstance(answer, dict):
        return str(answer)
    facts = {k: v for k, v in answer.items() if v not in (None, "", [], {}) and k != "kind"}
    told = [str(answer.get("kind") or ""), *(f"{name} {value}" for name, value in facts.items())]
    return ", ".join(filter(None, told)).replace("_", " ")


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
