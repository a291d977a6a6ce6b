"""The state machine of every resource row (design rule 3), as a pure function per operation.

    row is      Try, same hash      Confirm            Cancel
    absent      a new hold          NothingTried       tombstone
    TRIED       first answer        CONFIRMED          CANCELLED, resource given back
    REFUSED     first answer        NotConfirmable     CANCELLED, nothing moves
    CONFIRMED   first answer        first answer       AlreadyConfirmed
    CANCELLED   AlreadyCancelled    NotConfirmable     first answer

Another hash under a taken key is `KeyReused` in every row.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pydantic import JsonValue

from everycent.domain.message import StepRequest, request_hash
from everycent.errors import (
    AlreadyCancelled,
    AlreadyConfirmed,
    EverycentError,
    KeyReused,
    NotConfirmable,
    NothingTried,
)

A = TypeVar("A")


class FenceState(StrEnum):
    """Where a resource row stands."""

    TRIED = "TRIED"
    REFUSED = "REFUSED"
    CONFIRMED = "CONFIRMED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True)
class FenceRow:
    """The fence's part of a resource row; a tombstone has no hash and no `try_answer`."""

    key: str
    state: FenceState
    request_hash: str | None
    hash_version: int | None
    try_answer: JsonValue
    end_answer: JsonValue


class Proceed:
    """The operation is the first of its kind on this row: do the work and store the answer."""


@dataclass(frozen=True)
class Repeat:
    """The operation was done before: give its stored answer again, move nothing."""

    answer: JsonValue


Verdict = Proceed | Repeat | EverycentError


def judge_try(row: FenceRow, request: StepRequest, *, won: bool) -> Verdict:
    """Say what a Try does to the row it found; `won` means its own insert made the row."""
    if won:
        return Proceed()
    if row.state is FenceState.CANCELLED:
        return AlreadyCancelled(f"{row.key} was cancelled before this Try came")
    if not same_request(row, request):
        return KeyReused(f"{row.key} was used for another request")
    if row.try_answer is None:  # An intent whose answer was lost (design rule 10).
        return Proceed()
    return Repeat(row.try_answer)


def judge_confirm(row: FenceRow | None, key: str) -> Verdict:
    """Say what a Confirm does to the row it found."""
    if row is None:
        return NothingTried(f"{key} was never tried")
    if row.state is FenceState.CONFIRMED and row.end_answer is not None:
        return Repeat(row.end_answer)
    if row.state is FenceState.TRIED and row.try_answer is not None:
        return Proceed()
    return NotConfirmable(f"{key} is {row.state} and cannot be confirmed")


def judge_cancel(row: FenceRow, *, won: bool) -> Verdict:
    """Say what a Cancel does to the row it found; `won` means its tombstone came first."""
    if row.state is FenceState.CONFIRMED:
        return AlreadyConfirmed(f"{row.key} is confirmed and cannot be cancelled")
    if row.state is FenceState.CANCELLED and not won:
        return Repeat(row.end_answer)
    return Proceed()


def same_request(row: FenceRow, request: StepRequest) -> bool:
    """Tell whether the row was made by this very request."""
    if row.hash_version is None:
        return False
    return row.request_hash == request_hash(request, request.HASHED, row.hash_version)


def unwrap(answer: A | EverycentError) -> A:
    """Return an item's answer, or raise the error that stands in its place."""
    if isinstance(answer, EverycentError):
        raise answer
    return answer
