"""A flow of a user on the TCC engine alone, and offices that hold, confirm and cancel for it."""

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

with workflow.unsafe.imports_passed_through():
    from workflows.tcc import Branch, Tcc, Wanted

QUICK = timedelta(seconds=5)
TRIES, MUST = timedelta(minutes=3), timedelta(hours=1)  # All attempts of one operation.
CAPPED = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1))
NAMES = ("hotel", "flight", "car")
PIVOT = "car"


@dataclass
class Ticket:
    """What a branch is asked: its key, and which of the three operations."""

    key: str
    operation: str


@dataclass
class Offices:
    """Participants with a fence each, a decision row, and what goes wrong with them.

    `failing` says how often an operation of a branch fails before it is done; `lost` how often it
    is done and its answer lost; `refusing` holds what is refused.
    """

    failing: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    broken: set[str] = field(default_factory=set)
    refusing: set[str] = field(default_factory=set)
    slow: dict[str, asyncio.Event] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    decision: str = "OPEN"
    lines: list[str] = field(default_factory=list)

    @activity.defn(name="operate")
    async def operate(self, ticket: Ticket) -> str:
        name = f"{ticket.operation} {ticket.key.rsplit('/', 1)[-1]}"
        self.lines.append(name)
        if name in self.slow:
            await self.slow[name].wait()
        if self.failing[name] > 0:
            self.failing[name] -= 1
            raise ApplicationError("the line is dead", type="Transient")
        if name in self.broken:
            raise ApplicationError("it makes no sense", type="Bug", non_retryable=True)
        answer = self._done(ticket, refuses=name in self.refusing)
        if waiting := self.slow.get(f"try {ticket.key.rsplit('/', 1)[-1]}"):
            waiting.set()  # Its Try wakes up behind this Cancel.
        if self.lost[name] > 0:
            self.lost[name] -= 1
            raise ApplicationError("the answer was lost", type="Unknown")
        return answer

    def _done(self, ticket: Ticket, *, refuses: bool) -> str:
        """Move the fence of design rule 3; who breaks it gets an error that is never retried."""
        state = self.states.get(ticket.key, "")
        if ticket.operation == "try":
            if state == "CANCELLED":
                raise ApplicationError("too late", type="AlreadyCancelled", non_retryable=True)
            self.states.setdefault(ticket.key, "REFUSED" if refuses else "TRIED")
        elif ticket.operation == "confirm":
            if refuses and state == "TRIED":
                return "no"
            assert state in ("TRIED", "CONFIRMED"), f"{ticket.key} is {state}"
            assert self.decision == "COMMITTING", "confirmed before it was decided"
            self.states[ticket.key] = "CONFIRMED"
        else:
            assert state != "CONFIRMED", f"{ticket.key} is confirmed"
            assert self.decision == "ABORTING", "cancelled before it was decided"
            self.states[ticket.key] = "CANCELLED"
        return "no" if self.states[ticket.key] == "REFUSED" else "yes"

    @activity.defn(name="decide")
    async def decide(self, wanted: list[Any]) -> bool:
        commit, refusal = wanted
        self.lines.append(f"decide {'COMMITTING' if commit else 'ABORTING'}")
        takes_back = self.decision == "COMMITTING" and not commit and refusal
        if self.decision == "OPEN" or takes_back:
            self.decision = "COMMITTING" if commit else "ABORTING"
        return self.decision == "COMMITTING"

    def count(self, name: str) -> int:
        return self.lines.count(name)


def start(key: str, operation: str) -> asyncio.Task[str]:
    return workflow.start_activity(
        "operate", Ticket(key, operation), result_type=str, start_to_close_timeout=QUICK,
        retry_policy=CAPPED, schedule_to_close_timeout=TRIES if operation == "try" else MUST,
    )  # fmt: skip


async def decide(wanted: Wanted) -> bool:
    answer: bool = await workflow.execute_activity(
        "decide", [wanted.commit, wanted.refusal], result_type=bool, start_to_close_timeout=QUICK
    )
    return answer


def branch(key: str, begun: list[asyncio.Task[str]], *, pivot: bool = False) -> Branch:
    def try_() -> asyncio.Task[str]:
        begun.append(start(key, "try"))
        return begun[-1]

    return Branch(
        key.rsplit("/", 1)[-1],
        key,
        try_=try_,
        confirm=lambda: start(key, "confirm"),
        cancel=lambda: start(key, "cancel"),
        pivot=pivot,
    )


@workflow.defn(name="journey")
class Journey:
    """Book everything or nothing; and wait for the Tries that came too late, for the test's sake.

    A server that skips time stands still for ever once a run has ended before its activities.
    """

    @workflow.run
    async def run(self, keys: list[str], within_seconds: int, pivots: list[str]) -> list[Any]:
        begun: list[asyncio.Task[str]] = []
        branches = [branch(key, begun, pivot=key.rsplit("/", 1)[-1] in pivots) for key in keys]
        within = timedelta(seconds=within_seconds) if within_seconds else None
        tcc = Tcc(branches, decide, is_refusal=lambda answer: answer == "no", within=within)
        ending = await tcc.run()
        await asyncio.gather(*begun, return_exceptions=True)
        return [ending.committed, ending.reason, list(ending.answers)]


@contextlib.asynccontextmanager
async def journey(
    client: Client, offices: Offices, *, within: int = 0, keys: list[str] | None = None,
    pivots: list[str] | None = None,
) -> AsyncIterator[WorkflowHandle[Any, list[Any]]]:  # fmt: skip
    xid = f"shop/{uuid.uuid4().hex[:12]}"
    keys = keys if keys is not None else [f"{xid}/{name}" for name in NAMES]
    async with Worker(
        client,
        task_queue=xid,
        workflows=[Journey],
        activities=[offices.operate, offices.decide],
        workflow_runner=SandboxedWorkflowRunner(),
    ):
        yield await client.start_workflow(
            Journey.run, args=[keys, within, pivots or [PIVOT]], id=xid, task_queue=xid
        )


async def travel(client: Client, offices: Offices, **more: Any) -> list[Any]:
    async with journey(client, offices, **more) as handle:
        return await handle.result()
