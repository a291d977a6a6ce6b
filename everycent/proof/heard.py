"""What everybody has said of one order, put together to one line of time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from everycent import clock
from everycent.database.message_reads import MessageView
from everycent.database.story_rows import StoryRow
from everycent.proof.row_story import Causes, events_of_provider, events_of_rows
from everycent.proof.run_story import RunStory
from everycent.proof.timeline import Event, Timeline
from everycent.proof.waiting import Situation, why_it_waits


@dataclass(frozen=True)
class Broken:
    """An invariant that does not hold of the order: which, at which of its keys, and how."""

    rule: str
    key: str
    how: str = ""

    def __str__(self) -> str:
        how = f": {self.how}" if self.how else ""
        return f"{self.rule} -- {self.key}{how}"


@dataclass
class Heard:
    """All that was heard of an order; `entries` are the provider's books, `silent` says who was."""

    tenant: str
    order_id: str
    workflow_id: str
    rows: list[StoryRow] = field(default_factory=list)
    runs: list[RunStory] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)
    messages: list[MessageView] = field(default_factory=list)  # Those that are not consumed.

    @property
    def xid(self) -> str:
        """Return `<tenant>/<order>`."""
        return f"{self.tenant}/{self.order_id}"

    def told(self) -> Timeline:
        """Return the timeline."""
        at = self.situation()
        waiting = why_it_waits(at)
        facts = at.order.facts if at.order else {}
        return Timeline(
            tenant=self.tenant,
            order_id=self.order_id,
            workflow_id=self.workflow_id,
            found=bool(self.rows or self.runs or self.entries),
            **{word: facts.get(word, "") for word in ("decision", "status", "waits_for")},
            by_messages=at.by_messages,
            runs=tuple(run.view for run in self.runs),
            events=tuple(self._events()),
            broken=tuple(map(str, self.broken)),
            silent=self.silent,
            why=waiting.why,
            next_commands=waiting.commands,
        )

    def situation(self) -> Situation:
        """Return what there is to judge by why the order waits."""
        return Situation(
            self.tenant,
            self.order_id,
            self.workflow_id,
            clock.now(),
            self.rows,
            self.runs,
            frozenset(self.silent),
            bool(self.broken),
            self.messages,
        )

    def _events(self) -> list[Event]:
        prefix = f"{self.xid}/"
        causes = Causes(
            {cause: at for run in self.runs for cause, at in run.causes.items()},
            [each for run in self.runs for each in run.local],
        )
        events = [
            *(event for run in self.runs for event in run.events),
            *events_of_rows(self.rows, causes, prefix),
            *events_of_provider(self.entries, prefix),
        ]
        return sorted(_once(events), key=lambda event: event.place)


def _once(events: Sequence[Event]) -> list[Event]:
    """Drop what a run that was reset has copied from the run before."""
    first = {_mark(event): event for event in events[::-1]}
    return [event for event in events if first[_mark(event)] is event]


def _mark(event: Event) -> str:
    return event.model_copy(update={"run": 0}).model_dump_json()
