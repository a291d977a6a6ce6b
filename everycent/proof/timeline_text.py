"""The timeline for people: a line per event, at most a hundred columns wide."""

import textwrap
from collections.abc import Iterator

from everycent.proof.timeline import Event, Kind, Timeline, duration

WIDTH = 100
_INDENT = 34
_SIGNS = {Kind.ROW: "· ", Kind.CALL: "· ", Kind.MESSAGE: "~ ", Kind.PROVIDER: "· ", Kind.ACT: "> "}

_MISSING = {
    "temporal": "the runs with their steps and attempts, and what people asked of them",
    "provider": "what the provider's own books say",
    "the invariants": "whether they hold",
}


def as_text(told: Timeline) -> Iterator[str]:
    """Yield the lines."""
    order = f"order {told.order_id} of shop {told.tenant}"
    if told.decision:
        waits = "" if told.waits_for == "nothing" else f", waits for {told.waits_for}"
        yield f"{order}: {told.status}, decision {told.decision}{waits} (times are UTC)"
    else:
        yield f"{order}: {'no row' if told.found else 'nothing known'}"
    yield _driver(told)
    yield from _events(told)
    yield ""
    for who, why in told.silent.items():
        yield from _named("silent", f"{who}: {why}")
        yield from _named("missing", _MISSING.get(who, f"the rows of {who}"))
    if told.silent:
        yield from _named("missing", "a look at the invariants: it needs everybody's answer")
    for rule in told.broken:
        yield from _named("broken", rule)
    yield from _named("waits", told.why)
    for number, command in enumerate(told.next_commands):
        yield from _named("or" if number else "next", command)


def _driver(told: Timeline) -> str:
    if told.by_messages:
        return "driven by the messages of its services: it has no workflow"
    runs = ", ".join(f"run {run.number} {run.status}" for run in told.runs)
    none = "its runs are not known" if "temporal" in told.silent else "no run known to Temporal"
    return f"workflow {told.workflow_id}: {runs or none}"


def _events(told: Timeline) -> Iterator[str]:
    day = ""
    for event in told.events:
        if f"{event.at:%Y-%m-%d}" != day:
            day = f"{event.at:%Y-%m-%d}"
            yield ""
            yield f"{day:<12}  {'took':>7}  who        what"
        yield from _event(event)


def _event(event: Event) -> Iterator[str]:
    caused = event.caused_at is not None
    time = "" if caused else f"{event.at:%H:%M:%S}.{event.at.microsecond // 1000:03}"
    took = "" if event.lasted_seconds is None else duration(event.lasted_seconds)
    head = f"{time:<12}  {took:>7}  {event.source:<9}  "
    yield from textwrap.wrap(
        _SIGNS.get(event.kind, "") + event.what,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * _INDENT + "    ",
        break_on_hyphens=False,
    )


def _named(name: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{name:<7} ",
        subsequent_indent=" " * 8,
        break_on_hyphens=False,
        break_long_words=False,
    )
