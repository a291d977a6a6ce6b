"""What is given away: every recorded outcome, redacted, still replays, and names nobody."""

import base64
import re

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import ActivityTaskStartedEventAttributes, HistoryEvent
from temporalio.api.update.v1 import Input
from temporalio.client import WorkflowHistory
from temporalio.workflow import NondeterminismError

from everycent.database.story_rows import StoryRow
from everycent.proof.bundle import bundle_of
from everycent.proof.heard import Broken, Heard
from everycent.proof.histories import MODES
from everycent.proof.redaction import Redactor
from tests.replay.edited import OneStepMore
from tests.replay.test_histories import HISTORIES, failures
from workflows.checkout import Checkout

SECRETS = (
    '"ada"', '"bob"', "of ada", "tok_", "http:", "int_", "ref_", "everycent-histories", "typed",
)  # fmt: skip


def redactor(order_id: str = "o-1") -> Redactor:
    return Redactor("golden", order_id, f"checkout/golden/{order_id}")


def redacted(name: str) -> WorkflowHistory:
    order_id = name.rsplit("/", 1)[-1]
    hide, events = redactor(order_id), HISTORIES[name].events
    hide.learn(events, [])
    return WorkflowHistory(f"checkout/golden/{order_id}", [hide.protocol(each) for each in events])


@pytest.fixture(scope="module", name="given_away")
def all_redacted() -> dict[str, WorkflowHistory]:
    """Every recorded history, redacted."""
    return {name: redacted(name) for name in HISTORIES}


def in_clear(history: WorkflowHistory) -> str:
    """Return a history's JSON, and what its payloads hold, which is in base64 there."""
    told = history.to_json()
    hidden = (base64.b64decode(data) for data in re.findall(r'"data": "([^"]*)"', told))
    return told + "\n".join(each.decode() for each in hidden)


@pytest.mark.requirement("I16")
async def test_every_outcome_replays_when_it_is_redacted(
    given_away: dict[str, WorkflowHistory],
) -> None:
    """Red when: a value is hidden that a flow branches on, or a reason is not made of its parts."""
    assert await failures(Checkout, given_away) == {}


@pytest.mark.requirement("I16")
def test_no_history_names_anybody_when_it_is_redacted(
    given_away: dict[str, WorkflowHistory],
) -> None:
    """Red when: a name, token, address, provider's id, identity or machine stays anywhere."""
    for name, history in HISTORIES.items():
        assert any(secret in in_clear(history) for secret in SECRETS), name
        left = [secret for secret in SECRETS if secret in in_clear(given_away[name])]
        assert left == [], name


@pytest.mark.requirement("I16")
def test_amounts_skus_keys_and_the_steps_of_the_story_stay(
    given_away: dict[str, WorkflowHistory],
) -> None:
    """Red when: all is hidden, and the story is of no use to whom it is given."""
    told = in_clear(given_away[f"{max(HISTORIES).split('/')[0]}/remote/confirmed-by-second-card"])
    for word in (
        '"sku":"LAMP","units":1,"amount_minor":2933', '"currency":"EUR"', '"code":"card_declined"',
        "golden/confirmed-by-second-card/pay/second", "void payment first", "decide COMMITTING",
    ):  # fmt: skip
        assert word in told


@pytest.mark.requirement("I16")
async def test_an_edited_flow_is_caught_by_redacted_histories_too(
    given_away: dict[str, WorkflowHistory],
) -> None:
    """Red when: the redacted history has lost the steps that are compared."""
    for mode in MODES:
        of = {name: history for name, history in given_away.items() if f"/{mode}/" in name}
        caught = await failures(OneStepMore, of)
        assert caught.keys() == {name.rsplit("/", 1)[-1] for name in of}
        assert all(isinstance(error, NondeterminismError) for error in caught.values())


@pytest.mark.requirement("I16")
def test_what_no_rule_names_is_hidden() -> None:
    """Red when: a new field's text or number, or a field that is a name itself, stays."""
    hide = redactor()
    told = hide.facts(
        {
            "iban": "DE02", "phone": 4915112345, "status": "a free text", "key": "golden/o-2/pay",
            "of": {"Anna": 1}, "request_id": "x@y.org", "currency": "Anna", "closed_at": "by Anna",
            "by_hand": True, "reason": "not paid within 12 s by Ünal-Anna, 0171998877",
        }
    )  # fmt: skip
    assert not re.search(r"DE02|4915112345|free|o-2|Anna|@|nal|0171998877", str(told))
    assert told["by_hand"] is True
    assert told["reason"].startswith("not paid within 12 s by hidden-")
    [a, b, c] = hide.facts({"customer": "same", "account": "same", "by": "other"}).values()
    assert a == b != c


@pytest.mark.requirement("I16")
def test_what_temporal_tells_is_hidden_but_for_ids_and_names_of_code() -> None:
    """Red when: an identity, a failure's text, an encrypted payload or a newer field stays."""
    event = HistoryEvent(
        event_id=7,
        activity_task_started_event_attributes=ActivityTaskStartedEventAttributes(
            identity="4711@annas-laptop",
            last_failure=Failure(message="Anna at db-1.internal", stack_trace="/home/anna/x.py"),
        ),
    )
    newer = HistoryEvent.FromString(event.SerializeToString() + b"\xfa\x7f\x04Anna")
    assert len(UnknownFieldSet(newer)) == 1
    hide = redactor()
    told = hide.protocol(newer)
    assert not re.search(rb"(?i)anna|internal|laptop", told.SerializeToString())
    assert told.event_id == 7
    assert b"Anna" in newer.SerializeToString()  # What was given is left as it was.
    secret = Payload(metadata={"encoding": b"binary/encrypted", "key": b"k1"}, data=b"Anna")
    hidden = hide.protocol(Payloads(payloads=[secret])).payloads[0]
    assert (dict(hidden.metadata), hidden.data) == ({"encoding": b"binary/null"}, b"")


@pytest.mark.requirement("I16")
def test_what_a_person_has_typed_is_hidden_whole() -> None:
    """Red when: those words of a person's reason stay that a flow happens to use as well."""
    typed = Payload(metadata={"encoding": b"json/plain"}, data=b'{"reason":"the customer paid"}')
    hide = redactor()
    hide.learn([Input(name="cancel", args=Payloads(payloads=[typed]))], [])
    assert hide.facts({"reason": "the customer paid"})["reason"].startswith("hidden-")
    assert hide.facts({"reason": "the customer paid late"}) == {"reason": "the customer paid late"}


@pytest.mark.requirement("I16")
async def test_who_repaired_it_and_why_and_who_was_silent_where_is_hidden() -> None:
    """Red when: rows, broken invariants or the errors of a silent server are given away whole."""
    case = {
        "case_key": "golden/o-1/ledger", "tenant": "golden", "order_id": "o-1", "attempts": 2,
        "step": "post ledger", "error_class": "Unknown", "error": "Anna's account 4711 at db-1",
        "state": "RESOLVED", "opened_at": "2026-01-02T12:00:00+00:00", "by_hand": True,
        "resolved_at": "2026-01-02T13:00:00+00:00", "resolved_by": "anna",
        "resolution": "paid in cash by the customer", "proposals": ["retry"], "owner": "golden/o-1",
    }  # fmt: skip
    hold = {
        "key": "golden/o-1/reserve", "state": "CANCELLED", "reason": "the customer has paid late",
        "ended_at": "2026-01-02T12:30:00+00:00", "tried_at": None, "parts": None,
    }  # fmt: skip
    heard = Heard(
        "golden",
        "o-1",
        "checkout/golden/o-1",
        rows=[
            StoryRow(service="order", table="repair_case", facts=case),
            StoryRow(service="inventory", table="reservation", facts=hold),
        ],
        broken=[Broken("captured is what was due", "pay/first", "Anna paid 17 too much")],
        silent={"temporal": "no answer at anna.internal:7233"},
    )
    bundle = await bundle_of(heard)
    assert not re.search(r"(?i)anna|4711|db-1|cash|internal|too much", bundle.model_dump_json())
    assert [event.what for event in bundle.timeline.events] == [
        "parked, 2 times: post ledger: Unknown: hidden-1's account hidden-2 at hidden-3",
        # There is no history: nobody can tell that a flow has made this reason.
        "reservation reserve CANCELLED, a tombstone: nothing had been tried: hidden-6",
        "case settled by hidden-4, done by hand: hidden-5",
    ]
    assert bundle.timeline.broken == ("captured is what was due -- pay/first",)
