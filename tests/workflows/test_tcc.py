"""The TCC engine alone, in a flow of a user: no service and no database of ours."""

import asyncio
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

from tests.workflows.journey import NAMES, PIVOT, Offices, branch, journey, travel


def ends(offices: Offices) -> dict[str, str]:
    return {key.rsplit("/", 1)[-1]: state for key, state in offices.states.items()}


ALL_CONFIRMED = dict.fromkeys(NAMES, "CONFIRMED")
ALL_CANCELLED = dict.fromkeys(NAMES, "CANCELLED")


async def test_every_branch_is_tried_then_the_pivot_confirmed_then_the_others(
    temporal: WorkflowEnvironment,
) -> None:
    """Red when: a branch is confirmed before the decision, or another one before the pivot."""
    offices = Offices()
    assert await travel(temporal.client, offices) == [True, "", ["yes", "yes", "yes"]]
    tries, decision, pivot, others = (
        offices.lines[:3], offices.lines[3], offices.lines[4], offices.lines[5:],
    )  # fmt: skip
    assert sorted(tries) == ["try car", "try flight", "try hotel"]
    assert (decision, pivot) == ("decide COMMITTING", "confirm car")
    assert sorted(others) == ["confirm flight", "confirm hotel"]
    assert ends(offices) == ALL_CONFIRMED


@pytest.mark.requirement("AC6.4")
@pytest.mark.parametrize("how", ["refused", "broken", "broken after its commit", "late"])
async def test_one_try_that_fails_cancels_all_that_may_have_been_tried(
    temporal: WorkflowEnvironment, how: str
) -> None:
    """Its own branch is cancelled too: it may have committed, and an empty Cancel does no harm.

    Red when: the failed branch, or one that still runs, is left out of the Cancels.
    """
    offices = Offices()
    if how == "refused":
        offices.refusing.add("try flight")
    elif how == "broken":
        offices.broken.add("try flight")
    elif how == "broken after its commit":
        offices.lost["try flight"] = 1_000_000
    else:
        offices.failing["try flight"] = 1_000_000
    committed, reason, _ = await travel(temporal.client, offices, within=30)
    assert not committed
    assert reason
    assert ends(offices) == ALL_CANCELLED
    assert offices.count("decide ABORTING") == 1
    assert not any(line.startswith("confirm") for line in offices.lines)


@pytest.mark.requirement("AC6.4")
async def test_a_try_that_wakes_after_its_cancel_holds_nothing(
    temporal: WorkflowEnvironment,
) -> None:
    """The flight's Try stands still while all is cancelled; it comes and finds the tombstone.

    Red when: the engine waits for a Try that nobody wants any more.
    """
    offices = Offices(refusing={"try hotel"})
    offices.slow["try flight"] = asyncio.Event()  # Set by its Cancel.
    async with journey(temporal.client, offices) as handle:
        committed, _, _ = await handle.result()
        history = await handle.fetch_history()
    assert not any(e.HasField("activity_task_timed_out_event_attributes") for e in history.events)
    assert not committed
    assert ends(offices) == ALL_CANCELLED


@pytest.mark.requirement("AC6.5")
async def test_a_confirm_that_is_out_of_reach_for_hours_is_tried_until_it_is_done(
    temporal: WorkflowEnvironment,
) -> None:
    """The hotel's line is dead for hours of simulated time: nothing is released, it ends confirmed.

    The gaps grow to a minute; after an hour the step is parked, with its alarm, and tried again.

    Red when: a Confirm is given up, or its branch, or another one, is cancelled instead.
    """
    offices = Offices()
    offices.failing["confirm hotel"] = 200  # More than three hours at a minute each.
    began = await temporal.get_current_time()
    assert (await travel(temporal.client, offices))[0] is True
    hours = (await temporal.get_current_time() - began) / timedelta(hours=1)
    assert hours > 3
    assert 200 < offices.count("confirm hotel") < 210  # A gap grows no further than a minute.
    assert not any(line.startswith("cancel") for line in offices.lines)
    assert ends(offices) == ALL_CONFIRMED


@pytest.mark.requirement("AC6.6")
async def test_only_a_refused_pivot_leads_back(temporal: WorkflowEnvironment) -> None:
    """The car's Confirm refuses: the decision is taken back, and all is cancelled, nothing mixed.

    Red when: the others are confirmed before the pivot has answered.
    """
    offices = Offices(refusing={"confirm car"})
    committed, reason, _ = await travel(temporal.client, offices)
    assert (committed, reason) == (False, "no")
    assert ends(offices) == ALL_CANCELLED


@pytest.mark.requirement("AC6.6")
async def test_who_loses_the_race_adopts_the_decision(temporal: WorkflowEnvironment) -> None:
    """Another driver has decided to abort while all of ours held: ours cancels.

    Red when: the engine follows its own wish instead of the row's answer.
    """
    offices = Offices(decision="ABORTING")
    committed, _, _ = await travel(temporal.client, offices)
    assert not committed
    assert ends(offices) == ALL_CANCELLED


async def test_a_cancellation_counts_until_the_decision(temporal: WorkflowEnvironment) -> None:
    """While a Try is under way it ends in Cancels; the run itself completes.

    Red when: `uninterrupted` lets the cancellation reach the branches.
    """
    offices = Offices()
    offices.slow["try flight"] = asyncio.Event()
    async with journey(temporal.client, offices) as handle:
        async with asyncio.timeout(20):
            while "try flight" not in offices.lines:
                await asyncio.sleep(0.01)
        await handle.cancel()
        committed, _, _ = await handle.result()
    assert not committed
    assert ends(offices) == ALL_CANCELLED


@pytest.mark.requirement("AC6.1", "AC19.4")
@pytest.mark.parametrize(
    ("keys", "pivots", "says"),
    [
        ([], [], "needs a branch"),
        (["hotel"], [], "no xid and branch id"),
        (["shop/o-1"], [], "no xid and branch id"),
        (["shop//hotel"], [], "no xid and branch id"),
        (["shop/o-1/hotel", "shop/o-2/flight"], [], "two transactions"),
        (["shop/o-1/hotel", "shop/o-1/hotel"], [], "two branches under one key"),
        (["shop/o-1/hotel", "shop/o-1/car"], ["hotel", "car"], "two pivots, hotel and car"),
    ],
)
async def test_a_transaction_without_its_names_or_with_two_pivots_is_refused(
    temporal: WorkflowEnvironment, keys: list[str], pivots: list[str], says: str
) -> None:
    """Typed, and before anything is tried.

    Red when: `_check` is not asked, or does not look at every key.
    """
    offices = Offices()
    with pytest.raises(WorkflowFailureError) as refused:
        await travel(temporal.client, offices, keys=keys, pivots=pivots)
    cause = refused.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "InvalidRequest"
    assert says in cause.message
    assert offices.lines == []


def test_xid_and_branch_id_come_from_the_business_key() -> None:
    one = branch("shop/o-1/pay/first", [])
    assert (one.xid, one.branch_id) == ("shop/o-1", "pay/first")


FAULTS = st.dictionaries(
    st.sampled_from([f"{o} {n}" for o in ("try", "confirm", "cancel") for n in NAMES]),
    st.sampled_from(["fail once", "fail thrice", "lose", "break", "refuse", "park"]),
    max_size=4,
)


@pytest.mark.requirement("AC6.6")
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(faults=FAULTS, decided=st.sampled_from(["OPEN", "OPEN", "OPEN", "ABORTING"]))
async def test_no_transaction_ends_mixed_whatever_goes_wrong(
    temporal: WorkflowEnvironment, faults: dict[str, str], decided: str
) -> None:
    """Random faults of any operation: every branch ends confirmed, or every branch cancelled.

    A Confirm cannot refuse but for the pivot's, and neither it nor a Cancel can be wrong for good.

    Red when: a failed Confirm is answered by a Cancel, or a Cancel is left out.
    """
    offices = Offices(decision=decided)
    for name, fault in faults.items():
        is_try, may_refuse = name.startswith("try"), name in (f"confirm {PIVOT}",)
        if fault in ("fail once", "fail thrice", "park"):
            times = {"fail once": 1, "fail thrice": 3, "park": 70}[fault]
            offices.failing[name] = times if not is_try or fault != "park" else 3
        elif fault == "lose":
            offices.lost[name] = 2
        elif fault == "break" and is_try:
            offices.broken.add(name)
        elif fault == "refuse" and (is_try or may_refuse):
            offices.refusing.add(name)
    committed, _, _ = await travel(temporal.client, offices)
    assert ends(offices) == (ALL_CONFIRMED if committed else ALL_CANCELLED)
    assert committed == (offices.decision == "COMMITTING")
