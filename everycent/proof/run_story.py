"""What Temporal knows of a workflow: every run, its steps with their attempts, what is pending."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType, PendingActivityState, WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.update.v1 import Request as UpdateRequest
from temporalio.client import Client
from temporalio.converter import DataConverter

from everycent.proof.fetched_run import FetchedRun, LocalClock, fetch_run, listed
from everycent.proof.history_values import (
    attributes_of,
    between,
    key_of,
    moment,
    text,
    time,
)
from everycent.proof.timeline import Event, Kind, RunView

_RUN = "{run}"  # Stands for the run in a text, until every run has its number.
_E = EventType
_BEGINNINGS = (
    _E.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
    _E.EVENT_TYPE_TIMER_STARTED,
    _E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
)
_STEP_ENDS = {
    _E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: "",
    _E.EVENT_TYPE_ACTIVITY_TASK_FAILED: "failed",
    _E.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: "timed out",
    _E.EVENT_TYPE_ACTIVITY_TASK_CANCELED: "cancelled",
}
_RUN_ENDS = {
    _E.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: "ends",
    _E.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: "fails",
    _E.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: "times out",
    _E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: "is cancelled",
    _E.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: "goes on in a new run",
}


@dataclass(frozen=True)
class PendingStep:
    """An activity that has not ended: it runs, waits for a worker, or for its next attempt."""

    name: str
    activity: str
    attempt: int
    since: datetime
    is_running: bool
    next_at: datetime | None
    last_error: str


@dataclass
class RunStory:
    """One run with all that happened in it."""

    view: RunView
    fetched: FetchedRun
    events: list[Event] = field(default_factory=list)
    pending: list[PendingStep] = field(default_factory=list)
    failing: str = ""  # Why its workflow task fails, over and over.
    ended_how: str = ""  # Who ended it from outside, and why.
    paused_how: str = ""  # Who has paused it, and why.
    base_runs: set[str] = field(default_factory=set)  # Whose history it began with.
    # When the step began that asked for something: by its key and the time that it gave.
    causes: dict[tuple[str, datetime], datetime] = field(default_factory=dict)
    # When a step began that ran where the run is: its service. Its request is in no history.
    local: list[tuple[str, datetime]] = field(default_factory=list)

    @property
    def lives(self) -> bool:
        """Whether it has not ended; a paused one goes on some day."""
        return self.view.status in ("running", "paused")


async def read_runs(client: Client, workflow_id: str, hints: Iterable[str] = ()) -> list[RunStory]:
    """Return every run of a workflow, the oldest first; none if Temporal does not know the id.

    The list that Temporal keeps shows a run late, so the newest is asked for by id, and those that
    its history, or `hints`, name as well.
    """
    known: set[str] = set()
    stories: list[RunStory] = []
    wanted = ["", *hints, *await listed(client, workflow_id)]  # "": the newest.
    while wanted:
        run_id = wanted.pop()
        if run_id in known:
            continue
        fetched = await fetch_run(client, workflow_id, run_id, known)
        if fetched is None:
            continue
        known.add(fetched.run_id)
        story = await _Reading(fetched, client.data_converter).story()
        stories.append(story)
        wanted += story.base_runs
    return _numbered(stories)


async def retell(runs: Iterable[FetchedRun], converter: DataConverter) -> list[RunStory]:
    """Tell runs that were fetched before, the oldest first."""
    return _numbered([await _Reading(run, converter).story() for run in runs])


def _numbered(stories: list[RunStory]) -> list[RunStory]:
    stories.sort(key=lambda story: (story.view.started_at, story.view.run_id))
    for number, story in enumerate(stories, start=1):
        story.view = story.view.model_copy(update={"number": number})
        story.events = [
            event.model_copy(
                update={"run": number, "what": event.what.replace(_RUN, f"run {number}")}
            )
            for event in story.events
        ]
    return stories


@dataclass
class _Reading:
    """Reads the history of one run, event by event."""

    run: FetchedRun
    converter: DataConverter
    clock: LocalClock = field(default_factory=LocalClock)
    open: dict[int, tuple[HistoryEvent, int]] = field(default_factory=dict)  # Begun, not ended.
    admitted: dict[str, UpdateRequest] = field(default_factory=dict)

    async def story(self) -> RunStory:
        run = self.run
        view = RunView(
            number=0,
            run_id=run.run_id,
            status=run.status,
            started_at=run.started_at,
            closed_at=run.closed_at,
        )
        self.out = RunStory(view, run, pending=list(self._pending()))
        task = run.description.pending_workflow_task
        if task.attempt > 1:
            self.out.failing = f"its workflow task is at attempt {task.attempt}"
        for event in run.events:
            await self._take(event)
        for begun, _ in self.open.values():
            await self._tell_open(begun)
        return self.out

    def _pending(self) -> Iterator[PendingStep]:
        for each in self.run.description.pending_activities:
            failed = each.HasField("last_failure")
            waits = each.HasField("next_attempt_schedule_time")
            yield PendingStep(
                name=each.activity_id,  # Replaced by the step's summary, if it has one.
                activity=each.activity_type.name,
                attempt=each.attempt,
                since=time(each.scheduled_time),
                is_running=each.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED,
                next_at=time(each.next_attempt_schedule_time) if waits else None,
                last_error=text(each.last_failure) if failed else "",
            )

    async def _take(self, event: HistoryEvent) -> None:
        kind = event.event_type
        if kind == _E.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
            self._begin(event)
        elif kind == _E.EVENT_TYPE_WORKFLOW_TASK_STARTED:
            self.clock.woken(time(event.event_time))
        elif kind in _BEGINNINGS:
            self.open[event.event_id] = (event, 1)
        elif kind == _E.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            started = event.activity_task_started_event_attributes
            begun, _ = self.open[started.scheduled_event_id]
            self.open[started.scheduled_event_id] = (begun, started.attempt)
        elif kind == _E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED:
            asked = event.workflow_execution_update_admitted_event_attributes.request
            self.admitted[asked.meta.update_id] = asked
        elif kind == _E.EVENT_TYPE_MARKER_RECORDED:
            await self._take_local(event)
        elif kind in _STEP_ENDS:
            await self._end_step(event)
        elif kind in (_E.EVENT_TYPE_TIMER_FIRED, _E.EVENT_TYPE_TIMER_CANCELED):
            await self._end_timer(event)
        elif kind == _E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED:
            await self._end_update(event)
        else:
            self._take_rare(event)

    def _begin(self, event: HistoryEvent) -> None:
        facts = event.workflow_execution_started_event_attributes
        by = facts.parent_workflow_execution.workflow_id
        self._add(event, Kind.RUN, f"{_RUN} begins{f', started by {by}' if by else ''}")

    async def _end_step(self, event: HistoryEvent) -> None:
        ended = getattr(event, attributes_of(event))
        begun, attempt = self.open.pop(ended.scheduled_event_id)
        word = _STEP_ENDS[event.event_type]
        error = text(ended.failure) if hasattr(ended, "failure") else ""
        await self._add_step(begun, attempt, event, word, error)

    async def _add_step(
        self, begun: HistoryEvent, attempt: int, end: HistoryEvent | None, word: str, error: str
    ) -> None:
        facts = begun.activity_task_scheduled_event_attributes
        name, request = await self._summary(begun), await self._decoded(facts.input.payloads)
        activity = facts.activity_type.name
        tries = f"{attempt} attempts" if end else f"attempt {attempt}"
        parts = [
            name or activity,
            *([tries] if attempt > 1 else []),
            *([word] if word else []),
        ]
        what = ", ".join(parts) + (f": {error}" if error else "")
        caused_at = request.get("at") if isinstance(request, dict) else None
        event = Event(
            at=time(begun.event_time),
            kind=Kind.STEP,
            source=activity.partition(".")[0],
            what=what,
            lasted_seconds=between(begun, end) if end else None,
            key=key_of(activity, request),
        )
        self.out.events.append(event)
        if caused_at:
            self.out.causes[(event.key, datetime.fromisoformat(caused_at))] = event.at

    async def _take_local(self, event: HistoryEvent) -> None:
        """Tell a step that ran in the worker of the run; one event says all of it, at its end."""
        marker = event.marker_recorded_event_attributes
        if marker.marker_name != "core_local_activity":
            return
        told = await self._decoded(marker.details["data"].payloads)
        activity, attempts = told["activity_type"], told["attempt"]
        began, ended = moment(told["original_schedule_time"]), moment(told["complete_time"])
        lasted = self.clock.lasted(began, ended, attempts)
        parts = [
            await self._summary(event) or activity,
            *([f"{attempts} attempts"] if attempts > 1 else []),
        ]
        failed = marker.HasField("failure")
        error = f", failed: {text(marker.failure)}" if failed else ""
        source = activity.partition(".")[0]
        self.out.local.append((source, began))
        self.out.events.append(
            Event(
                at=began,
                kind=Kind.STEP,
                source=source,
                what=", ".join(parts) + error,
                lasted_seconds=lasted,
            )
        )

    async def _end_timer(self, event: HistoryEvent) -> None:
        ended = getattr(event, attributes_of(event))
        begun, _ = self.open.pop(ended.started_event_id)
        over = event.event_type == _E.EVENT_TYPE_TIMER_FIRED
        name = await self._summary(begun) or "a timer"
        what = f"waits: {name}{', which is over' if over else ''}"
        self._add(begun, Kind.WAIT, what, end=event)

    async def _end_update(self, event: HistoryEvent) -> None:
        ended = event.workflow_execution_update_completed_event_attributes
        begun = self._accepted(ended.meta.update_id)
        self.open.pop(begun.event_id)
        failed = text(ended.outcome.failure) if ended.outcome.HasField("failure") else ""
        what = await self._asked(begun) + (f", refused: {failed}" if failed else "")
        self._add(begun, Kind.ACT, what, end=event)

    def _accepted(self, update_id: str) -> HistoryEvent:
        """Return where an update was accepted; not every server names that event's number."""
        for begun, _ in self.open.values():
            accepted = begun.workflow_execution_update_accepted_event_attributes
            if accepted.protocol_instance_id == update_id:
                return begun
        raise AssertionError(f"update {update_id} is answered, and was never accepted")

    async def _tell_open(self, begun: HistoryEvent) -> None:
        """Tell what has begun and has no end; of a run that was ended from outside too."""
        if begun.event_type == _E.EVENT_TYPE_TIMER_STARTED:
            limit = begun.timer_started_event_attributes.start_to_fire_timeout.ToTimedelta()
            name = await self._summary(begun) or "a timer"
            self._add(begun, Kind.WAIT, f"waits: {name}, {limit.total_seconds():.0f} s at most")
        elif begun.event_type == _E.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            facts = begun.activity_task_scheduled_event_attributes
            pending = next((p for p in self.out.pending if p.name == facts.activity_id), None)
            name = await self._summary(begun) or facts.activity_type.name
            if pending is not None:
                self.out.pending.remove(pending)
                self.out.pending.append(_renamed(pending, name))
            await self._add_step(
                begun, pending.attempt if pending else 1, None, "not ended", _error_of(pending)
            )
        else:
            self._add(begun, Kind.ACT, f"{await self._asked(begun)}; not answered")

    async def _asked(self, begun: HistoryEvent) -> str:
        """Say what an update asked for, and who, if it says so."""
        accepted = begun.workflow_execution_update_accepted_event_attributes
        # A reset asks a run's updates again, and writes what they ask for apart.
        request = self.admitted.get(accepted.protocol_instance_id, accepted.accepted_request)
        given = await self._decoded(request.input.args.payloads)
        name = request.input.name
        facts = given if isinstance(given, dict) else {}
        told = [str(facts[word]) for word in ("action", "case_key", "reason") if facts.get(word)]
        if name == "pay":
            payment = facts.get("payment", {})
            told = [f"{payment.get('request_id')} by {payment.get('method')}"]
        by = f" by {facts['by']}" if facts.get("by") else ""
        return f"asked{by}: {name}" + (f" ({', '.join(told)})" if told else "")

    def _take_rare(self, event: HistoryEvent) -> None:
        kind = event.event_type
        if kind in _RUN_ENDS:
            facts = getattr(event, attributes_of(event))
            error = text(facts.failure) if hasattr(facts, "failure") else ""
            self._add(event, Kind.RUN, f"{_RUN} {_RUN_ENDS[kind]}{error and f': {error}'}")
        elif kind == _E.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
            ended = event.workflow_execution_terminated_event_attributes
            self.out.ended_how = f"terminated by {ended.identity}: {ended.reason or 'no reason'}"
            self._add(event, Kind.ACT, f"{_RUN} is {self.out.ended_how}")
        elif kind == _E.EVENT_TYPE_WORKFLOW_EXECUTION_PAUSED:
            held = event.workflow_execution_paused_event_attributes
            self.out.paused_how = f"by {held.identity}: {held.reason or 'no reason'}"
            self._add(event, Kind.ACT, f"{_RUN} is paused {self.out.paused_how}")
        elif kind == _E.EVENT_TYPE_WORKFLOW_EXECUTION_UNPAUSED:
            self.out.paused_how = ""
            let_go = event.workflow_execution_unpaused_event_attributes
            self._add(event, Kind.ACT, f"{_RUN} goes on, said by {let_go.identity}")
        elif kind == _E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
            asked = event.workflow_execution_cancel_requested_event_attributes
            self._add(event, Kind.ACT, f"a cancellation is asked for by {asked.identity}")
        elif kind == _E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
            sent = event.workflow_execution_signaled_event_attributes
            self._add(event, Kind.ACT, f"signal {sent.signal_name} by {sent.identity}")
        elif kind == _E.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            self._take_failed_task(event)

    def _take_failed_task(self, event: HistoryEvent) -> None:
        failed = event.workflow_task_failed_event_attributes
        if failed.cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW:
            self.out.base_runs.add(failed.base_run_id)
            self.out.events = self.out.events[1:]  # This run begins here.
            self._add(event, Kind.ACT, f"reset to here as {_RUN} by {failed.identity}")
        else:
            error = text(failed.failure)
            self.out.failing = self.out.failing and f"{self.out.failing}: {error}"
            self._add(event, Kind.RUN, f"the workflow's own code fails: {error}")

    def _add(
        self, event: HistoryEvent, kind: Kind, what: str, end: HistoryEvent | None = None
    ) -> None:
        self.out.events.append(
            Event(
                at=time(event.event_time),
                kind=kind,
                source="temporal",
                what=what,
                lasted_seconds=between(event, end) if end else None,
            )
        )

    async def _summary(self, event: HistoryEvent) -> str:
        if not event.user_metadata.HasField("summary"):
            return ""
        return str(await self._decoded([event.user_metadata.summary]))

    async def _decoded(self, payloads: Sequence[Payload]) -> Any:
        values = await self.converter.decode(list(payloads)[:1]) if payloads else [None]
        return values[0]


def _renamed(pending: PendingStep, name: str) -> PendingStep:
    return dataclasses.replace(pending, name=name)


def _error_of(pending: PendingStep | None) -> str:
    return pending.last_error if pending else ""
