"""The fault points that lie in Temporal's hands: attempts of activities, tasks of workflows.

Nothing of this is installed in a process that was not armed at its start.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    Worker,
    WorkflowInstanceDetails,
)

from everycent import faults
from everycent.domain.message import OrderRequest
from everycent.errors import Bug, EverycentError, Transient, Unknown
from everycent.faults import Rule, Visit
from everycent.gateways.payment_provider import PaymentProvider
from everycent.settings import Settings

T = TypeVar("T")
ERRORS: dict[str, type[EverycentError]] = {"transient": Transient, "unknown": Unknown, "bug": Bug}
RULES_FILE = "faults.json"


def arm(settings: Settings) -> None:
    """Arm this process by the rules it was given, if any. Raises BadRuleError, a ValueError."""
    told = settings.faults.strip()
    file = settings.data_dir / RULES_FILE
    if told.startswith("["):
        faults.arm(told, ERRORS)
    elif told:
        faults.arm(Path(told), ERRORS)
    elif file.exists():
        faults.arm(file, ERRORS)


def interceptors() -> Sequence[Interceptor]:
    """Return what an armed worker puts around its activities."""
    return [] if faults.armed is None else [_Points()]


def after_task(det: WorkflowInstanceDetails) -> Callable[[], None] | None:
    """Return the point behind each task of a run, which the server does not have yet; or none."""
    armed = faults.armed
    if armed is None:
        return None
    visit = Visit(order_of_workflow(det.info.workflow_id), det.info.workflow_type)
    return partial(armed.reach_blocking, "workflow_task.after", visit)


def patient(worker: Worker) -> Worker:
    """Return the worker; in an armed one a workflow task may stand still for longer than 2 s.

    The SDK has no option for it but TEMPORAL_DEBUG, under which one task that stands holds up all.
    """
    if faults.armed is not None and (tasks := worker._workflow_worker) is not None:
        tasks._deadlock_timeout_seconds = None
    return worker


def watched(provider: PaymentProvider) -> PaymentProvider:
    """Return the gateway, in an armed worker with points around each of its calls."""
    return provider if faults.armed is None else cast(PaymentProvider, _WatchedProvider(provider))


def order_of_workflow(workflow_id: str) -> str:
    """Return `<tenant>/<order>` of `<flow>/<tenant>/<order>`."""
    return workflow_id.partition("/")[2] or workflow_id


class _Points(Interceptor):
    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Put the points around an attempt."""
        return _Attempt(next)


class _Attempt(ActivityInboundInterceptor):
    """One attempt of an activity: the points before and after it, and what is done to the whole."""

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        """Run the attempt; what a step of no order does passes no points."""
        info, armed = activity.info(), faults.armed
        order = _order_of(info, input.args)
        if armed is None or order is None:
            return await self.next.execute_activity(input)
        patience = info.start_to_close_timeout.total_seconds() if info.start_to_close_timeout else 0
        with faults.visiting(Visit(order, info.activity_type, patience)):
            try:
                return await between(armed, "activity", lambda: self.next.execute_activity(input))
            except EverycentError as error:
                failed_for_good = isinstance(error, Bug)
                raise ApplicationError(
                    str(error), type=type(error).__name__, non_retryable=failed_for_good
                ) from error


def _order_of(info: activity.Info, given: Sequence[Any]) -> str | None:
    """Return whose step it is; a step of no workflow is an order's if it is asked for in its name.

    Such are the ways into an order that messages drive.
    """
    if info.workflow_id is not None:
        return order_of_workflow(info.workflow_id)
    asked = given[0] if given else None
    return f"{asked.tenant}/{asked.order_id}" if isinstance(asked, OrderRequest) else None


async def between(
    armed: faults.Faults, what: str, run: Callable[[], Awaitable[T]], *, alike: bool = True
) -> T:
    """Run a whole (an attempt, the delivery of a message) between its two points.

    `alike`: whether it answers the same when it is run twice at once.
    """
    for rule in armed.strike(f"{what}.before"):
        if rule.action == "zombie":
            return await asyncio.shield(armed.detach(_rise(armed, rule, run)))
        if rule.action == "overtaken":
            armed.detach(_deliver(armed, rule, run))
            raise armed.error("bug", f"fault {rule.name}: the attempt was lost on its way")
        if rule.action == "twice":
            return await _twice(armed, rule, run, alike=alike)
        await armed.act(rule)
    answer = await run()
    for rule in armed.strike(f"{what}.after"):
        if rule.action == "late":
            armed.detach(_deliver(armed, rule, run))
        else:
            await armed.act(rule)
    return answer


async def _rise(armed: faults.Faults, rule: Rule, run: Callable[[], Awaitable[T]]) -> T:
    """Go on when the attempt's time is over and another may long have answered."""
    await armed.act(rule)
    return await _told(armed, rule, run)


async def _deliver(armed: faults.Faults, rule: Rule, run: Callable[[], Awaitable[Any]]) -> None:
    """Run the attempt when the rule is gone: after all that came meanwhile."""
    await armed.gone(rule)
    await asyncio.gather(_told(armed, rule, run), return_exceptions=True)


async def _twice(
    armed: faults.Faults, rule: Rule, run: Callable[[], Awaitable[T]], *, alike: bool
) -> T:
    """Run the attempt twice at once; both must say the same, unless one is to try again."""
    said = await asyncio.gather(
        *(_told(armed, rule, run) for _ in range(2)), return_exceptions=True
    )
    answers = [each for each in said if not isinstance(each, BaseException)]
    if not answers and isinstance(said[0], BaseException):
        raise said[0]
    if alike and any(answer != answers[0] for answer in answers):
        raise armed.error("bug", f"delivered twice, answered {answers[0]} and {answers[1]}")
    return answers[0]


async def _told(armed: faults.Faults, rule: Rule, run: Callable[[], Awaitable[T]]) -> T:
    """Run the attempt and write into the journal what came of it."""
    said = "no answer"
    try:
        answer = await run()
        said = repr(answer)
    except ApplicationError as error:
        said = f"{error.type}: {error.message}"
        raise
    except EverycentError as error:
        said = f"{type(error).__name__}: {error}"
        raise
    finally:
        armed.note(rule, delivered=said[:200])
    return answer


class _WatchedProvider:
    """A gateway that passes a point before and after each call."""

    def __init__(self, provider: PaymentProvider) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._provider, name)
        if not inspect.iscoroutinefunction(member):
            return member

        async def call(*values: Any, **named: Any) -> Any:
            armed = faults.armed
            if armed is None:
                return await member(*values, **named)
            await armed.reach("provider.before", name)
            answer = await member(*values, **named)
            await armed.reach("provider.after", name)
            return answer

        return call
