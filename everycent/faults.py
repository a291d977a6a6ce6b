"""Named points at every durable boundary, and the faults that can be made to happen there.

A site asks `if faults.armed is not None`: unarmed, as in production, that is all a point costs. A
process is armed at its start by rules in JSON: text in EVERYCENT_FAULTS, a file named there, or
`faults.json` in the data folder. A file is read again when it changes, and beside it lies a journal
with a line per hit, so that hits are counted on when a killed process comes back.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

POINTS = {
    "activity.before": "an attempt of an activity begins",
    "activity.after": "it has its answer, and Temporal has not",
    "commit.before": "a transaction is about to send its COMMIT",
    "commit.after": "the COMMIT was answered",
    "message.before": "a relay is about to deliver a message, or a consumer to apply it",
    "message.after": "it is delivered and not marked, or it is applied",
    "provider.before": "a call to the payment provider is about to be sent",
    "provider.after": "the provider has answered it",
    "webhook.before": "the provider is about to send a webhook (nobody listens to them yet)",
    "workflow_task.after": "a workflow task is computed, and Temporal does not have it",
}
_BEFORE = tuple(point for point in POINTS if point.endswith(".before"))
_CALLED = tuple(point for point in POINTS if not point.startswith(("workflow_task", "webhook")))
ACTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "note": ("write the hit into the journal, no more", tuple(POINTS)),
    "transient": ("raise Transient: it did not happen", tuple(set(_BEFORE) & set(_CALLED))),
    "unknown": ("raise Unknown: it may have happened", _CALLED),
    "bug": ("raise Bug: this attempt has failed for good", _CALLED),
    "sleep": ("wait for `seconds`, then go on", tuple(POINTS)),
    "zombie": (
        "sleep until the attempt's time is over, `seconds` more, then go on",
        ("activity.before", "activity.after", "message.before", "commit.before"),
    ),
    "kill": ("kill -9 this process", tuple(POINTS)),
    "halt": ("stand there until the rule is gone", tuple(POINTS)),
    "twice": ("deliver the attempt twice at once", ("activity.before", "message.before")),
    "late": (
        "deliver it once more when the rule is gone",
        ("activity.after", "message.after"),
    ),
    "overtaken": (
        "fail this attempt for good with Bug, and deliver it when the rule is gone",
        ("activity.before", "message.before"),
    ),
}
LOOK_SECONDS = 0.05
ZOMBIE_SECONDS = 1.0  # How long after the end of its time a zombie goes on, unless it is told.


class BadRuleError(ValueError):
    """A rule that names no point, no action, or an action that its point does not have."""


@dataclass(frozen=True)
class Rule:
    """What shall happen at the nth hit of a point by an order; `nth` 0 means at every hit.

    `step` and `order` are globs: the activity's name (`inventory.reserve_stock`; with the call for
    the provider, `payment.authorise/create`) and `<tenant>/<order>`. `probability` is drawn from
    the seed, the order and the hit, so a repetition strikes the same hits.
    """

    point: str
    action: str
    step: str = "*"
    order: str = "*"
    nth: int = 1
    probability: float = 1.0
    seed: int = 0
    seconds: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise BadRuleError(f"there is no point {self.point!r}; there are: {', '.join(POINTS)}")
        if self.action not in ACTIONS:
            raise BadRuleError(
                f"there is no action {self.action!r}; there are: {', '.join(ACTIONS)}"
            )
        places = ACTIONS[self.action][1]
        if self.point not in places:
            raise BadRuleError(
                f"{self.action!r} cannot happen at {self.point!r}; it can at:"
                f" {', '.join(sorted(places))}"
            )
        if self.nth < 0 or not 0 <= self.probability <= 1 or (self.seconds or 0) < 0:
            raise BadRuleError(f"a number of {self} is out of its range")
        if not self.name:
            told = json.dumps(dataclasses.asdict(self), sort_keys=True)
            name = hashlib.sha256(told.encode()).hexdigest()[:12]
            object.__setattr__(self, "name", name)

    def strikes(self, order: str, hit: int) -> bool:
        """Tell whether this hit, counted from 1, is one that the rule wants."""
        if self.nth not in (0, hit):
            return False
        drawn = random.Random(f"{self.seed}/{self.name}/{order}/{hit}").random()  # noqa: S311
        return drawn < self.probability


@dataclass(frozen=True)
class Visit:
    """Who comes to the points below this call: an order's step, and how long its attempt has."""

    order: str
    step: str
    patience_seconds: float = 0.0


_visit: ContextVar[Visit | None] = ContextVar("fault_visit", default=None)


@contextlib.contextmanager
def visiting(visit: Visit | None) -> Iterator[None]:
    """Say for whom the points below are passed."""
    token = _visit.set(visit)
    try:
        yield
    finally:
        _visit.reset(token)


def read_rules(text: str) -> tuple[Rule, ...]:
    """Read a JSON list of rules. Raises BadRuleError that names what is valid."""
    try:
        told = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRuleError(f"the fault rules are no JSON: {error}") from error
    if not isinstance(told, list):
        raise BadRuleError("the fault rules are no JSON list")
    return tuple(_rule(each) for each in told)


def _rule(told: object) -> Rule:
    fields = [field.name for field in dataclasses.fields(Rule)]
    if not isinstance(told, dict) or set(told) - set(fields):
        raise BadRuleError(f"{told} is no rule; a rule has: {', '.join(fields)}")
    try:
        return Rule(**told)
    except TypeError as error:
        raise BadRuleError(f"{told} is no rule: {error}") from error


class Faults:
    """The rules of an armed process, the hits so far, and what is still to be delivered."""

    def __init__(
        self, source: str | Path, errors: Mapping[str, type[Exception]] | None = None
    ) -> None:
        """Take rules as text or the file that holds them; `errors` are the classes to raise."""
        self._file = source if isinstance(source, Path) else None
        self._errors = dict(errors or {})
        self._hits: Counter[tuple[str, str]] = Counter()
        self._detached: set[asyncio.Task[Any]] = set()
        self._mark: tuple[int, int] | None = None
        self._rules: dict[str, Rule] = {}
        self._exact: dict[str, list[Rule]] = {}
        self._globs: list[Rule] = []
        if isinstance(source, Path):
            self._restore()
            self._refresh()
        else:
            self._take(read_rules(source))

    async def reach(self, point: str, detail: str = "", **facts: Any) -> None:
        """Come to a point: whatever is wanted of this hit happens here."""
        for rule in self.strike(point, detail, **facts):
            await self.act(rule)

    async def act(self, rule: Rule) -> None:
        """Do what a rule wants, at a place where a coroutine waits."""
        self._act_at_once(rule)
        if rule.action == "sleep":
            await asyncio.sleep(rule.seconds or 0)
        elif rule.action == "zombie":
            await asyncio.sleep(self.zombie_seconds(rule))
        elif rule.action == "halt":
            await self.gone(rule)

    def reach_blocking(self, point: str, visit: Visit) -> None:
        """Come to a point in a thread of a workflow's own."""
        with visiting(visit):
            for rule in self.strike(point):
                self._act_at_once(rule)
                if rule.action == "sleep":
                    time.sleep(rule.seconds or 0)
                while rule.action == "halt" and self._holds(rule):
                    time.sleep(LOOK_SECONDS)

    def strike(self, point: str, detail: str = "", **facts: Any) -> list[Rule]:
        """Count a hit of the present visitor and return the rules that want it."""
        visit = _visit.get()
        if visit is None:
            return []
        self._refresh()
        step = f"{visit.step}/{detail}" if detail else visit.step
        wanted = []
        for rule in (*self._exact.get(visit.order, ()), *self._globs):
            if rule.point != point or not fnmatchcase(step, rule.step):
                continue
            if not fnmatchcase(visit.order, rule.order):
                continue
            self._hits[rule.name, visit.order] += 1
            hit = self._hits[rule.name, visit.order]
            acts = rule.strikes(visit.order, hit)
            self.note(rule, order=visit.order, point=point, step=step, hit=hit, acts=acts, **facts)
            if acts:
                wanted.append(rule)
        return wanted

    def note(self, rule: Rule, **facts: Any) -> None:
        """Write a line of the journal, whole or not at all."""
        if self._file is not None:
            line = json.dumps(
                {"rule": rule.name, "action": rule.action, "pid": os.getpid()} | facts
            )
            append_line(journal_of(self._file), line)

    async def gone(self, rule: Rule) -> None:
        """Wait until the rule is taken away."""
        while self._holds(rule):
            await asyncio.sleep(LOOK_SECONDS)

    def detach(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something on, also when whoever began it is given up."""
        task = asyncio.create_task(work)
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)
        return task

    def error(self, name: str, text: str) -> Exception:
        """Return an error of that class."""
        return self._errors.get(name, RuntimeError)(text)

    @staticmethod
    def zombie_seconds(rule: Rule) -> float:
        """Return how long the present visitor sleeps to outlive its time."""
        visit = _visit.get()
        extra = ZOMBIE_SECONDS if rule.seconds is None else rule.seconds
        return (visit.patience_seconds if visit else 0) + extra

    def _act_at_once(self, rule: Rule) -> None:
        if rule.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if rule.action in ("transient", "unknown", "bug"):
            raise self.error(rule.action, f"fault {rule.name}: {rule.action} at {rule.point}")

    def _holds(self, rule: Rule) -> bool:
        self._refresh()
        return rule.name in self._rules

    def _refresh(self) -> None:
        """Read the file again if it has changed; one that is gone has no rules."""
        if self._file is None:
            return
        try:
            status = self._file.stat()
            mark = (status.st_mtime_ns, status.st_ino)
        except FileNotFoundError:
            mark = (0, 0)
        if mark != self._mark:
            self._take(read_rules(self._file.read_text()) if mark != (0, 0) else ())
            self._mark = mark

    def _take(self, rules: tuple[Rule, ...]) -> None:
        exact: dict[str, list[Rule]] = {}
        globs: list[Rule] = []
        for rule in rules:
            if any(sign in rule.order for sign in "*?["):
                globs.append(rule)
            else:
                exact.setdefault(rule.order, []).append(rule)
        # Whole, since the threads of workflow tasks look at them meanwhile.
        self._rules = {rule.name: rule for rule in rules}
        self._exact, self._globs = exact, globs

    def _restore(self) -> None:
        assert self._file is not None, "only a file has a journal"
        for line in read_journal(self._file):
            if "hit" in line:
                self._hits[line["rule"], line["order"]] += 1


armed: Faults | None = None


def arm(source: str | Path, errors: Mapping[str, type[Exception]]) -> None:
    """Arm this process. Raises BadRuleError for rules that make no sense."""
    global armed
    armed = Faults(source, errors)


def disarm() -> None:
    """Take all rules away; a point costs nothing again."""
    global armed
    armed = None


def journal_of(rules: Path) -> Path:
    """Return where the hits of a file of rules are written."""
    return rules.with_suffix(".journal")


def read_journal(rules: Path, offset: int = 0) -> list[dict[str, Any]]:
    """Return the lines of the journal beside the rules, from a byte of it on."""
    try:
        with journal_of(rules).open("rb") as file:
            file.seek(offset)
            text = file.read().decode()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines() if line]


def append_line(path: Path, line: str) -> None:
    """Append a line in one write, so that lines of several processes never mix."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)
