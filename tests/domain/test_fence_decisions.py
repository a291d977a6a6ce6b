"""The fence's table, cell by cell, without a database."""

from datetime import UTC, date, datetime
from typing import ClassVar

import pytest

from everycent.domain.fence import (
    FenceRow,
    FenceState,
    Proceed,
    Repeat,
    judge_cancel,
    judge_confirm,
    judge_try,
    same_request,
    unwrap,
)
from everycent.domain.message import StepRequest, order_of, request_hash, step_key
from everycent.errors import (
    AlreadyCancelled,
    AlreadyConfirmed,
    KeyReused,
    NotConfirmable,
    NothingTried,
)

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


class Wish(StepRequest):
    HASHED: ClassVar = ("units",)

    units: int
    note: str = ""


def wish(units: int = 3, **other: object) -> Wish:
    return Wish.model_validate(
        {"key": "t/o-1/reserve", "at": NOON, "opened_on": date(2026, 1, 2), "units": units, **other}
    )


def row(state: FenceState, *, tombstone: bool = False, answered: bool = True) -> FenceRow:
    return FenceRow(
        key="t/o-1/reserve",
        state=state,
        request_hash=None if tombstone else request_hash(wish(), Wish.HASHED),
        hash_version=None if tombstone else 1,
        try_answer={"kind": "first"} if answered and not tombstone else None,
        end_answer={"kind": "end"}
        if state in (FenceState.CONFIRMED, FenceState.CANCELLED)
        else None,
    )


@pytest.mark.parametrize("state", [FenceState.TRIED, FenceState.REFUSED, FenceState.CONFIRMED])
def test_a_repeated_try_gets_its_first_answer_in_every_state_but_cancelled(
    state: FenceState,
) -> None:
    assert judge_try(row(state), wish(), won=False) == Repeat({"kind": "first"})


@pytest.mark.parametrize("tombstone", [True, False])
def test_a_try_never_gets_its_first_answer_after_a_cancel(tombstone: bool) -> None:
    verdict = judge_try(row(FenceState.CANCELLED, tombstone=tombstone), wish(), won=False)
    assert isinstance(verdict, AlreadyCancelled)


@pytest.mark.parametrize("state", [FenceState.TRIED, FenceState.REFUSED, FenceState.CONFIRMED])
def test_another_request_under_the_key_is_refused(state: FenceState) -> None:
    assert isinstance(judge_try(row(state), wish(units=4), won=False), KeyReused)


def test_an_intent_without_its_answer_is_gone_on_with_but_never_confirmed() -> None:
    intent = row(FenceState.TRIED, answered=False)
    assert isinstance(judge_try(intent, wish(), won=False), Proceed)
    assert isinstance(judge_confirm(intent, intent.key), NotConfirmable)


@pytest.mark.requirement("AC6.2")
def test_a_confirm_needs_a_try_that_stands() -> None:
    """Red when: `judge_confirm` lets a refused or a cancelled row be confirmed."""
    assert isinstance(judge_confirm(None, "t/o-1/reserve"), NothingTried)
    assert isinstance(judge_confirm(row(FenceState.TRIED), "t/o-1/reserve"), Proceed)
    assert judge_confirm(row(FenceState.CONFIRMED), "t/o-1/reserve") == Repeat({"kind": "end"})
    for state in (FenceState.REFUSED, FenceState.CANCELLED):
        assert isinstance(judge_confirm(row(state), "t/o-1/reserve"), NotConfirmable)


@pytest.mark.requirement("AC6.2")
def test_a_cancel_undoes_everything_but_a_confirmed_row() -> None:
    """Red when: `judge_cancel` does not look for a confirmed row first."""
    for state in (FenceState.TRIED, FenceState.REFUSED):
        assert isinstance(judge_cancel(row(state), won=False), Proceed)
    assert judge_cancel(row(FenceState.CANCELLED), won=False) == Repeat({"kind": "end"})
    assert isinstance(judge_cancel(row(FenceState.CONFIRMED), won=False), AlreadyConfirmed)


def test_the_hash_covers_the_named_fields_and_no_others() -> None:
    first = row(FenceState.TRIED)
    later = datetime(2027, 1, 1, tzinfo=UTC)
    assert same_request(first, wish(at=later, note="typed again", opened_on=date(2027, 1, 1)))
    assert not same_request(first, wish(units=4))


def test_an_error_in_an_answers_place_is_raised() -> None:
    assert unwrap(5) == 5
    with pytest.raises(KeyReused):
        unwrap(KeyReused("taken"))


def test_a_key_names_tenant_order_step_and_the_callers_request() -> None:
    assert step_key("t", "o-1", "refund", "r-7") == "t/o-1/refund/r-7"
    assert order_of("t/o-1/refund/r-7") == "t/o-1"
    assert wish().tenant == "t"


def test_an_error_names_its_key() -> None:
    other, tombstone = wish(units=4), row(FenceState.CANCELLED, tombstone=True)
    errors = (
        judge_try(tombstone, wish(), won=False),
        judge_try(row(FenceState.TRIED), other, won=False),
        judge_confirm(None, "t/o-1/reserve"),
        judge_confirm(tombstone, "t/o-1/reserve"),
        judge_cancel(row(FenceState.CONFIRMED), won=False),
    )
    assert all(str(error).startswith("t/o-1/reserve") for error in errors)


def test_a_tombstone_was_made_by_no_request() -> None:
    assert not same_request(row(FenceState.CANCELLED, tombstone=True), wish())
