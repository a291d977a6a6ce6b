"""Where our errors become Temporal's."""

import pytest
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.boundary import errors_for_temporal
from everycent.errors import NotPaidYet, Transient


def test_what_has_to_be_asked_again_later_is_told_as_no_failure() -> None:
    """Red when: a customer who has not paid yet is an error with a cause, told at every question.

    It is said every half minute for as long as the page is open, with two stack traces each time.
    """
    with pytest.raises(ApplicationError) as told, errors_for_temporal():
        raise NotPaidYet("a/1/pay/1 waits for its customer")
    error = told.value
    assert (error.type, error.message) == ("NotPaidYet", "a/1/pay/1 waits for its customer")
    assert error.category is ApplicationErrorCategory.BENIGN
    assert not error.non_retryable
    assert error.__cause__ is None


def test_a_failure_keeps_its_cause_and_its_alarm() -> None:
    """Red when: whatever may be tried again is told as no failure."""
    with pytest.raises(ApplicationError) as told, errors_for_temporal():
        raise Transient("the database gave up")
    assert told.value.category is ApplicationErrorCategory.UNSPECIFIED
    assert isinstance(told.value.__cause__, Transient)
