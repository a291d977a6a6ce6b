"""What must hold before a worker takes work: the plans of its flows and the ladder of its times.

Each rule says in one line which step or setting breaks it, and what helps. It is asked once, at the
start of a worker, and by a test; an order pays nothing for it.
"""

import inspect
import itertools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from activities.payment import CallTimes
from everycent.domain.mode import Mode
from everycent.domain.outcome import Refusal
from everycent.errors import InvalidRequest
from everycent.settings import PoolSettings, Settings
from workflows.catalog import FLOWS, MODES, PLANS
from workflows.options import BUDGET
from workflows.steps import Plan, Step

AnyStep = Step[Any, Any]

# What an attempt needs beside its transactions and talks: to be fetched, decoded and reported.
MARGIN = timedelta(seconds=2)
_POOL = "EVERYCENT_POOL__"


def check_registration(settings: Settings) -> None:
    """Refuse to start with a flow or with times that could lose an effect or repeat one.

    Raises InvalidRequest with one line: the first problem, and how many more there are.
    """
    found = list(problems(settings))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidRequest(found[0] + more)


def problems(
    settings: Settings,
    flows: Sequence[type[Any]] = FLOWS,
    plans: Mapping[type[Any], Plan] = PLANS,
) -> Iterator[str]:
    """Yield everything that is wrong, each in one line with its fix."""
    yield from _pool_problems(settings.pool)
    for flow in flows:
        if flow not in plans:
            yield f"flow {flow.__name__} declares no steps: give it a Plan in workflows/catalog.py"
    for flow, plan in plans.items():
        yield from plan_problems(flow.__name__, plan)
        for mode in MODES.get(flow, ()):
            yield from mode_problems(flow.__name__, plan, mode)
        for step in plan.steps:
            yield from _time_problems(flow.__name__, step, settings.pool)
    yield from _retention_problems(settings, list(plans.values()))


def plan_problems(flow: str, plan: Plan) -> Iterator[str]:
    """Yield what a flow lacks: keys, ways back, one pivot, retries that end before its deadline."""
    followers = {id(s) for step in plan.steps for s in (step.undo, step.confirm) if s is not None}
    for step in plan.steps:
        where = f"flow {flow}, step {step.name!r}"
        yield from _key_problems(where, step)
        yield from _way_back_problems(where, step, is_follower=id(step) in followers)
    yield from _pivot_problems(flow, plan)
    yield from _deadline_problems(flow, plan)


def _key_problems(where: str, step: AnyStep) -> Iterator[str]:
    """Look how a request names its row: by a key, which the step declares, or the order's ids."""
    fields = set(getattr(_request_of(step), "model_fields", ()))
    if "key" in fields:
        if not step.key:
            yield f"{where} has no key: declare key=, the part after <tenant>/<order>/"
    elif not {"order"} <= fields and not {"tenant", "order_id"} <= fields:
        yield f"{where} has no key: let its request be a StepRequest, so that a repeat is known"


def _way_back_problems(where: str, step: AnyStep, *, is_follower: bool) -> Iterator[str]:
    ways = [step.undo is not None, bool(step.irreversible), step.pivot or is_follower]
    if not any(ways) and not (step.holds or step.confirm):
        yield f"{where} has no undo: declare undo=, or irreversible= with the reason"
    if sum(ways) > 1:
        yield f"{where} has an undo and is also irreversible, a pivot or an undo: keep one of them"
    if step.holds or step.confirm is not None:
        if step.confirm is None:
            yield f"{where} holds and is never confirmed: declare confirm="
        if step.undo is None:
            yield f"{where} holds and is never cancelled: declare undo="
    if step.confirm is not None and _can_refuse(step.confirm) and not step.confirm.pivot:
        yield f"{where}: its confirm {step.confirm.name!r} can refuse: declare it pivot=True"


def mode_problems(flow: str, plan: Plan, mode: Mode) -> Iterator[str]:
    """Yield why a flow cannot be run in a mode."""
    yield from _pivot_problems(flow, plan)
    if mode not in (Mode.TCC, Mode.MIXED):
        return
    for step in plan.steps:
        if step.undo is not None and not step.holds and not step.forward:
            yield (
                f"flow {flow}, step {step.name!r} has no Try, and in {mode} nothing may take effect"
                " before the decision: declare holds=True with a confirm, or forward=True if it is"
                " begun after the decision only"
            )


def _pivot_problems(flow: str, plan: Plan) -> Iterator[str]:
    pivots = [step.name for step in plan.steps if step.pivot]
    if len(pivots) > 1:
        yield (
            f"flow {flow} has two pivots, {' and '.join(map(repr, pivots))}: keep one, and make"
            " the other a hold whose confirm cannot refuse"
        )


def _deadline_problems(flow: str, plan: Plan) -> Iterator[str]:
    """Compare a deadline with the retries: a run that ends before them leaves work half done."""
    if plan.deadline is None:
        return
    total = plan.window
    for step in plan.steps:
        budget = step.options.get("schedule_to_close_timeout")
        if budget is None and not step.holds:
            yield (
                f"flow {flow}, step {step.name!r} is retried for ever and the flow ends after"
                f" {plan.deadline}: give its options a schedule_to_close_timeout"
            )
        total += budget or timedelta(0)
    if plan.deadline <= total:
        yield (
            f"flow {flow} ends after {plan.deadline}, its window and retries may take {total}:"
            " raise the deadline or shorten the retries"
        )


def _time_problems(flow: str, step: AnyStep, pool: PoolSettings) -> Iterator[str]:
    where = f"flow {flow}, step {step.name!r}"
    limit = step.options.get("start_to_close_timeout")
    if limit is None:
        yield f"{where} has no time-out: use the named options of workflows/options.py"
        return
    longest = longest_attempt(step, pool)
    if limit <= longest + MARGIN:
        yield (
            f"{where} ends after {_s(limit)} and one attempt may take {_s(longest)} and a margin of"
            f" {_s(MARGIN)}: lower {_POOL}WAIT_SECONDS or {_POOL}TRANSACTION_TIMEOUT_SECONDS"
        )
    budget = step.options.get("schedule_to_close_timeout")
    if budget is not None and budget < 2 * limit:
        yield (
            f"{where} is given up after {_s(budget)}, which leaves no time for a second attempt of"
            f" {_s(limit)}: raise its schedule_to_close_timeout"
        )


def longest_attempt(step: AnyStep, pool: PoolSettings) -> timedelta:
    """Return how long one attempt can take: a turn, a connection and a transaction; the talks.

    A batch of one waits for nobody in the coalescer. PostgreSQL 15 and 16 have no limit per
    transaction; there the limits per statement and for idling stand in for it.
    """
    transaction = 2 * pool.wait_seconds + pool.transaction_timeout_seconds
    return step.transactions * timedelta(seconds=transaction) + step.talks * CallTimes().item


def _pool_problems(pool: PoolSettings) -> Iterator[str]:
    rungs = (
        ("lock_timeout_seconds", pool.lock_timeout_seconds),
        ("statement_timeout_seconds", pool.statement_timeout_seconds),
        ("transaction_timeout_seconds", pool.transaction_timeout_seconds),
    )
    for name, seconds in rungs:
        if seconds <= 0:  # PostgreSQL reads zero as "no limit".
            yield f"{_POOL}{name.upper()} is {seconds:g} and must be more than 0"
    for (low, less), (high, more) in itertools.pairwise(rungs):
        if less >= more:
            yield (
                f"{_POOL}{low.upper()} ({less:g}) must be less than {_POOL}{high.upper()}"
                f" ({more:g})"
            )
    idle, whole = pool.idle_in_transaction_seconds, pool.transaction_timeout_seconds
    if not 0 < idle <= whole:
        yield (
            f"{_POOL}IDLE_IN_TRANSACTION_SECONDS ({idle:g}) must be more than 0 and at most"
            f" {_POOL}TRANSACTION_TIMEOUT_SECONDS ({whole:g})"
        )


def horizon_of(settings: Settings, plans: Sequence[Plan]) -> timedelta:
    """Return how long after an order's opening day a message about it may still come.

    A run lasts as long as its deadline; without one, its window, its retries and the time that a
    person has for a case. After it the last attempt may still arrive, and the provider still knows
    the keys. One day more, because a row knows its order's day and no hour.
    """
    repair = timedelta(days=settings.retention.repair_days)
    run = max((plan.deadline or plan.window + BUDGET + repair for plan in plans), default=repair)
    remembered = timedelta(hours=settings.provider.key_lifetime_hours)
    return run + max(remembered, BUDGET) + timedelta(days=1)


def _retention_problems(settings: Settings, plans: Sequence[Plan]) -> Iterator[str]:
    days, horizon = settings.retention.days, horizon_of(settings, plans)
    if days is not None and timedelta(days=days) < horizon:
        needed = -(-horizon // timedelta(days=1))
        yield (
            f"EVERYCENT_RETENTION__DAYS ({days}) is shorter than the {needed} days in which a late"
            f" message may still come: set it to {needed} or more, or leave it out to keep all"
        )


def _request_of(step: AnyStep) -> Any:
    hints = typing.get_type_hints(inspect.unwrap(step.activity))
    hints.pop("return", None)
    return next(iter(hints.values()), None)


def _can_refuse(step: AnyStep) -> bool:
    """Tell whether a refusal is among the step's answers."""
    answer = typing.get_type_hints(inspect.unwrap(step.activity)).get("return")
    kinds = typing.get_args(answer) if isinstance(answer, types.UnionType) else (answer,)
    return any(isinstance(kind, type) and issubclass(kind, Refusal) for kind in kinds)


def _s(time: timedelta) -> str:
    return f"{time.total_seconds():g} s"
