"""What a bundle may show: the fields that stay, by name and form, and the words of our own code.

Whoever adds a name here lets its values out of the house. What is not named is hidden.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from everycent.domain.order import Decision, OrderStatus, WaitsFor
from everycent.domain.outcome import Refusal
from everycent.settings import SERVICES
from workers.queues import TOGETHER, WORKFLOWS, finishes, tries
from workflows.catalog import FLOWS

WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
ID = re.compile(r"[A-Za-z0-9._~-]{1,64}")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?)?")
CURRENCY = re.compile(r"[A-Z]{3}")

# Fields of requests, answers, rows, search attributes and the memo whose texts stay.
TEXTS: dict[str, re.Pattern[str]] = {
    # Out of a fixed set: which answer, which state, what to do next.
    **dict.fromkeys(
        (
            "kind", "method", "status", "abort_status", "decision", "state", "waits_for", "to",
            "action", "operation", "error_class", "proposals", "fields", "code", "decline_code",
            "EverycentStatus", "EverycentWaitsFor", "steps", "mode", "event", "party",
        ),
        WORD,
    ),
    # What is sold, and the caller's ids of the payments: the keys of the steps contain them.
    **dict.fromkeys(("sku", "EverycentSkus", "request_id", "attempt"), ID),
    "run": UUID,
    "currency": CURRENCY,
    **dict.fromkeys(("at", "may_arrive_until"), TIME),
}  # fmt: skip
TIME_ENDINGS = ("_at", "_on")
# Which name this order, or one of its steps; a value that names another order is hidden.
OF_THE_ORDER = frozenset({
    "tenant", "order_id", "key", "case_key", "payment_key", "original_key", "reference", "driver",
    "owner", "EverycentTenant", "EverycentOrder",
})  # fmt: skip
# Redacted word by word.
SPOKEN = frozenset({"step", "undone", "summary", "reason", "error", "message"})
NUMBERS = frozenset({
    "units", "units_wanted", "units_free", "points", "number", "attempts", "open_sends", "attempt",
    "payment_window_seconds", "EverycentAmountMinor", "points_needed", "points_available",
    "points_used", "points_earned",
})  # fmt: skip
NUMBER_ENDINGS = ("_minor", "_points")
# Names of fields that no model of ours has: of rows, of the provider's books, of Temporal's lists.
NAMES = frozenset({
    "parts", "intent", "refund", "webhooks", "last_answer", "id", "data", "details",
    "EverycentCustomer",
})  # fmt: skip

# Texts in Temporal's own messages that stay: names and numbers that code gives, not people.
PROTOCOL: dict[str, re.Pattern[str]] = {
    **dict.fromkeys(("activity_id", "timer_id"), re.compile(r"\d{1,9}")),
    **dict.fromkeys(
        ("marker_name", "signal_name", "source", "type", "sdk_name", "non_retryable_error_types"),
        WORD,
    ),
    "sdk_version": re.compile(r"[0-9a-z.]{1,20}"),
    **dict.fromkeys(
        (
            "run_id", "base_run_id", "new_run_id", "original_execution_run_id",
            "first_execution_run_id", "continued_execution_run_id", "new_execution_run_id",
        ),
        UUID,
    ),
}  # fmt: skip
NAMED = frozenset({"ActivityType", "WorkflowType", "Input"})  # Whose `name` the code gives.
QUEUES = frozenset({WORKFLOWS, TOGETHER, *map(tries, SERVICES), *map(finishes, SERVICES)})
# What the SDK notes of itself, for itself: without it no history can be replayed.
SDK_MARKERS = frozenset({("core_local_activity", "data"), ("core_patch", "patch-data")})
METADATA = frozenset({"encoding", "type"})

_WORDS = re.compile(r"[A-Za-z][A-Za-z-]*")


def fields_of(kind: type[BaseModel]) -> set[str]:
    """Return the names of the fields of every model of this kind: what a flow can read."""
    return set(kind.model_fields).union(*(fields_of(each) for each in kind.__subclasses__()))


@functools.cache
def words_of_the_flows() -> frozenset[str]:
    """Return the words of which the flows of the catalog make their texts."""
    return frozenset(_words())


def _words() -> Iterator[str]:
    for enumeration in (Decision, OrderStatus, WaitsFor):
        yield from (str(word) for word in enumeration)
    for refusal in _refusals(Refusal):
        kind = refusal.model_fields.get("kind")
        for name in (*refusal.model_fields, str(kind.default) if kind else ""):
            yield from name.removesuffix("_minor").split("_")
    ours = {flow.__module__ for flow in FLOWS}
    for name, module in list(sys.modules.items()):
        if (name.startswith("workflows.") or name in ours) and module.__file__:
            for text in _texts_of(ast.parse(Path(module.__file__).read_text("utf-8"))):
                yield from _WORDS.findall(text)


def _refusals(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in kind.__subclasses__():
        yield each
        yield from _refusals(each)


def _texts_of(tree: ast.Module) -> Iterator[str]:
    """Yield the texts in a module, without its docstrings."""
    told = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for each in ast.walk(tree):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in told:
            yield each.value
