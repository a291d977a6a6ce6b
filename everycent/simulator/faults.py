"""Faults on purpose: by rule, by the `Simulate-Fault` header of one request, by a magic card token.

Kinds, and what `seconds` means for each:
- decline: the operation is refused with 402 and `code`; nothing moves;
- delay: done at once, answered `seconds` late (so a webhook can overtake the answer);
- timeout_after: done, never answered; timeout_before: not done, never answered (the connection
  is held open for at most `seconds`);
- hold: done `seconds` later or when `POST /admin/held/release` lets it go, after whatever came
  meanwhile, and also when its client has gone;
- server_error: done, answered with a bare 500;
- down: not done, answered with 503; a rule with `seconds` ends that long after it was made;
- duplicate_webhook, late_webhook: the events of the request are sent again, or `seconds` late.
"""

import sqlite3
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from everycent import clock
from everycent.simulator.store import Transaction

Operation = Literal["create", "confirm", "capture", "cancel", "refund", "lookup", "customer_pays"]
RequestFault = Literal[
    "decline", "delay", "timeout_after", "timeout_before", "hold", "server_error", "down"
]
WebhookFault = Literal["duplicate_webhook", "late_webhook"]

_USUAL_SECONDS: dict[str, float] = {
    "delay": 1, "timeout_after": 60, "timeout_before": 60, "hold": 3, "down": 5,
    "duplicate_webhook": 0, "late_webhook": 5,
}  # fmt: skip
_DECLINING_TOKENS = {
    "tok_declined": "card_declined",
    "tok_insufficient_funds": "insufficient_funds",
    "tok_expired_card": "expired_card",
    "tok_fraud": "suspected_fraud",
}


class FaultRule(BaseModel):
    """What shall happen to which requests; without `times` to all of them, until deleted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: RequestFault | WebhookFault
    operation: Operation | Literal["*"] = "*"
    reference: str | None = None
    code: str | None = None
    seconds: float | None = Field(default=None, ge=0)
    times: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Faults:
    """What was picked for one request: at most one fault of the request, any of its webhooks."""

    kind: RequestFault | None = None
    seconds: float = 0
    code: str = "card_declined"
    duplicate_after_seconds: float | None = None
    late_by_seconds: float | None = None


def add(tx: Transaction, rule: FaultRule) -> int:
    """Store a rule and return its number."""
    seconds = _USUAL_SECONDS.get(rule.kind, 0) if rule.seconds is None else rule.seconds
    # An outage ends by the wall clock, unless it is counted in requests.
    outage = rule.kind == "down" and (rule.times is None or rule.seconds is not None)
    ends = clock.now().timestamp() + seconds if outage else None
    cursor = tx.execute(
        "INSERT INTO fault (operation, reference, kind, code, seconds, times_left, ends)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (rule.operation, rule.reference, rule.kind, rule.code, seconds, rule.times, ends),
    )
    return int(cursor.lastrowid or 0)


def plant(tx: Transaction, token: str | None, reference: str) -> None:
    """Turn a magic card token into a rule that strikes once, once per reference.

    `tok_declined` and its like decline the confirmation; `tok_<kind>[_<operation>]` brings any
    other fault, to the confirmation if no operation is named. Other tokens are plain good cards.
    """
    rule = _rule_of_token(token, reference) if token else None
    if rule is None:
        return
    won = tx.execute(
        "INSERT INTO planted (reference) VALUES (?) ON CONFLICT (reference) DO NOTHING",
        (reference,),
    )
    if won.rowcount == 1:
        add(tx, rule)


def pick(
    tx: Transaction, operation: Operation, references: tuple[str, ...], header: str | None
) -> Faults:
    """Choose what happens to a request and count it: its header first, then the oldest rule."""
    request_fault: sqlite3.Row | None = None
    webhook_faults: dict[str, float] = {}
    live = "SELECT * FROM fault WHERE operation IN (?, '*') AND times_left IS NOT 0 ORDER BY id"
    for row in tx.execute(live, (operation,)).fetchall():
        if not _applies(row, references):
            continue
        if row["kind"] in get_args(WebhookFault):
            webhook_faults[row["kind"]] = row["seconds"]
        elif request_fault is None and header is None:
            request_fault = row
        else:
            continue
        tx.execute("UPDATE fault SET times_left = times_left - 1 WHERE id = ?", (row["id"],))
    picked = _of_header(header) if header else _of_row(request_fault)
    return Faults(
        kind=picked.kind,
        seconds=picked.seconds,
        code=picked.code,
        duplicate_after_seconds=webhook_faults.get(
            "duplicate_webhook", picked.duplicate_after_seconds
        ),
        late_by_seconds=webhook_faults.get("late_webhook", picked.late_by_seconds),
    )


def _applies(row: sqlite3.Row, references: tuple[str, ...]) -> bool:
    if row["ends"] is not None and row["ends"] <= clock.now().timestamp():
        return False
    pattern = row["reference"]
    return pattern is None or any(r == pattern or fnmatchcase(r, pattern) for r in references)


def _of_row(row: sqlite3.Row | None) -> Faults:
    if row is None:
        return Faults()
    return Faults(kind=row["kind"], seconds=row["seconds"], code=row["code"] or "card_declined")


def _of_header(header: str) -> Faults:
    """Read `<kind>[; seconds=<n>][; code=<code>]`; raises ValueError when it is none of ours."""
    kind, *options = (part.strip() for part in header.split(";"))
    named = {name: value for name, _, value in (option.partition("=") for option in options)}
    rule = FaultRule.model_validate({"kind": kind, **named})
    seconds = _USUAL_SECONDS.get(rule.kind, 0) if rule.seconds is None else rule.seconds
    if rule.kind == "duplicate_webhook":
        return Faults(duplicate_after_seconds=seconds)
    if rule.kind == "late_webhook":
        return Faults(late_by_seconds=seconds)
    return Faults(kind=rule.kind, seconds=seconds, code=rule.code or "card_declined")


def _rule_of_token(token: str, reference: str) -> FaultRule | None:
    if token in _DECLINING_TOKENS:
        return FaultRule(
            kind="decline", operation="confirm", reference=reference, times=1,
            code=_DECLINING_TOKENS[token],
        )  # fmt: skip
    for kind in (*get_args(RequestFault), *get_args(WebhookFault)):
        for operation in get_args(Operation):
            if token in (
                f"tok_{kind}_{operation}",
                f"tok_{kind}" if operation == "confirm" else "",
            ):
                return FaultRule(kind=kind, operation=operation, reference=reference, times=1)
    return None
