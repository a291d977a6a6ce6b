"""A participant in three functions: the business is the user's, everything round it is here.

A user derives from `Participant` and writes `try_`, `confirm` and `cancel` over an open
transaction. The fence (design rules 3 and 4), the stored answers and the errors come from here: in
her functions each key arrives once, a Confirm and a Cancel only for what is held.
"""

import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent.database import fence
from everycent.database.fence_ddl import fence_table
from everycent.domain.fence import FenceRow, FenceState
from everycent.domain.message import Message
from everycent.domain.outcome import Refusal
from everycent.domain.participant import (
    CANCEL_ANSWERS,
    CONFIRM_ANSWERS,
    NAMES,
    BranchRequest,
    CancelBranch,
    Cancelled,
    ConfirmBranch,
    Confirmed,
)
from everycent.errors import EverycentError, InvalidRequest

R = TypeVar("R", bound=BranchRequest)
H = TypeVar("H", bound=Message)
Q = TypeVar("Q", bound=BranchRequest)

FENCE = fence.FenceTable("fence")


class Participant(Generic[R, H]):
    """One resource of a service, whose Try holds it, whose Confirm spends and Cancel frees it.

    `try_` answers what it holds (`H`) or a `Refusal`; what `confirm` and `cancel` get is that
    answer as it was stored. A participant without a `confirm` of its own is a step of a saga: its
    Try does the work, its Cancel takes it back. None of the three commits, calls anybody outside,
    or looks whether it was called before. An exception undoes all of the transaction.

    `name` is the third part of the key of its branches and the first of its activities' names.
    `service` names the queues and pools that it shares with others; left out, it has its own.
    """

    name: str = ""
    service: str = ""
    table: ClassVar[fence.FenceTable] = FENCE

    def __init__(self) -> None:
        NAMES.validate_python(self.name)
        self.request, self.answers = _types_of(self)
        self._answers: TypeAdapter[Any] = TypeAdapter(self.answers)

    # -- what a user writes

    async def try_(self, tx: AsyncConnection, request: R) -> H | Refusal:
        """Hold what the request asks for, or say no; of what is held nobody else can have it."""
        raise NotImplementedError

    async def confirm(self, tx: AsyncConnection, held: H) -> None:
        """Make it final. It must not be able to fail for a reason of the business."""

    async def cancel(self, tx: AsyncConnection, held: H) -> None:
        """Give it back."""
        raise NotImplementedError

    def row(self, wanted: R | H) -> str:
        """Return which row of the resource it moves: those of a batch are locked in this order."""
        return ""

    # -- for a resource that works on a whole batch at once

    async def try_all(
        self, tx: AsyncConnection, requests: Sequence[R]
    ) -> Mapping[str, H | Refusal]:
        """Answer each of these requests, by key."""
        in_order = sorted(requests, key=lambda request: (self.row(request), request.key))
        return {request.key: await self.try_(tx, request) for request in in_order}

    async def confirm_all(self, tx: AsyncConnection, holds: Mapping[str, H]) -> None:
        """Make all of these holds final."""
        for held in self._in_row_order(holds):
            await self.confirm(tx, held)

    async def cancel_all(self, tx: AsyncConnection, holds: Mapping[str, H]) -> None:
        """Give all of these holds back."""
        for held in self._in_row_order(holds):
            await self.cancel(tx, held)

    def _in_row_order(self, holds: Mapping[str, H]) -> list[H]:
        return [holds[key] for key in sorted(holds, key=lambda key: (self.row(holds[key]), key))]

    # -- the three operations, each over a batch, in the caller's transaction

    async def tries(
        self, tx: AsyncConnection, requests: Sequence[R]
    ) -> list[H | Refusal | EverycentError]:
        """Try each branch once; a repeat gets the first answer, a late Try `AlreadyCancelled`."""

        async def operate(mine: Sequence[R]) -> list[Any]:
            claims = await fence.claim_tries(tx, self.table, mine)
            fresh: Mapping[str, Any] = {}
            if claims.new:
                fresh = await self._business(tx, self.try_all(tx, claims.new))
            for request in claims.new:
                self._assert_answer(fresh.get(request.key))
            await fence.store_tries(tx, self.table, fresh, requests=claims.new)
            return claims.in_order(mine, fresh, self._answers)

        return await self._of_this_participant(requests, operate)

    async def confirms(
        self, tx: AsyncConnection, requests: Sequence[ConfirmBranch]
    ) -> list[Confirmed | EverycentError]:
        """Make what each branch holds final; one that holds nothing is a Bug, nothing moves."""

        async def operate(mine: Sequence[ConfirmBranch]) -> list[Any]:
            claims = await fence.lock_for_confirm(tx, self.table, mine)
            if holds := self._holds(claims.rows):
                await self._business(tx, self.confirm_all(tx, holds))
            fresh = {request.key: Confirmed() for request in claims.new}
            await fence.store_ends(tx, self.table, claims.new, fresh, state=FenceState.CONFIRMED)
            return claims.in_order(mine, fresh, CONFIRM_ANSWERS)

        return await self._of_this_participant(requests, operate)

    async def cancels(
        self, tx: AsyncConnection, requests: Sequence[CancelBranch]
    ) -> list[Cancelled | EverycentError]:
        """Give back what each branch holds; one that holds nothing yet gets its tombstone."""

        async def operate(mine: Sequence[CancelBranch]) -> list[Any]:
            claims = await fence.claim_cancels(tx, self.table, mine)
            if holds := self._holds(claims.rows):
                await self._business(tx, self.cancel_all(tx, holds))
            fresh = {r.key: Cancelled(held=r.key in holds) for r in claims.new}
            await fence.store_ends(tx, self.table, claims.new, fresh, state=FenceState.CANCELLED)
            return claims.in_order(mine, fresh, CANCEL_ANSWERS)

        return await self._of_this_participant(requests, operate)

    def tables(self) -> list[str]:
        """Return the statements that make what the participant keeps beside the user's tables."""
        return []

    def _holds(self, rows: Mapping[str, FenceRow]) -> dict[str, H]:
        """Return what the rows hold: a refused one and a new tombstone hold nothing."""
        return {
            key: self._answers.validate_python(row.try_answer)
            for key, row in rows.items()
            if row.state is FenceState.TRIED
        }

    def _assert_answer(self, answer: object) -> None:
        kinds = typing.get_args(self.answers) or (self.answers,)
        assert isinstance(answer, kinds), f"{self.name}: try_ answered {answer!r}"

    async def _business(self, tx: AsyncConnection, work: Awaitable[Any]) -> Any:
        """Let the user's function work; what it wrote and the fence commit together, or not."""
        mine = tx.get_transaction()
        done = await work
        still = mine is not None and mine is tx.get_transaction() and mine.is_active
        assert still, f"{self.name} ended the transaction that its fence is in"
        return done

    async def _of_this_participant(
        self, requests: Sequence[Q], operate: Callable[[Sequence[Q]], Awaitable[list[Any]]]
    ) -> list[Any]:
        """Operate on the requests whose key names this participant; the others are told so."""
        mine = [request for request in requests if request.participant == self.name]
        answers = iter(await operate(mine) if mine else ())
        return [
            next(answers)
            if request.participant == self.name
            else InvalidRequest(f"{request.key} is a branch of {request.participant!r},"
                                f" not of {self.name!r}")
            for request in requests
        ]  # fmt: skip


def fence_tables() -> list[str]:
    """Return the statements that make the fence which all participants of a database share."""
    return fence_table(FENCE.name, FENCE.columns)


def _types_of(participant: Participant[Any, Any]) -> tuple[Any, Any]:
    """Return the request's type and the type of the answers, as the user wrote them at `try_`.

    Raises TypeError where a stored answer could not be told from another one.
    """
    where = f"{type(participant).__name__}.try_"
    hints = typing.get_type_hints(type(participant).try_)
    answers = hints.pop("return", None)
    hints.pop("tx", None)
    request = next(iter(hints.values()), None)
    if not (isinstance(request, type) and issubclass(request, BranchRequest)):
        raise TypeError(f"{where} needs a request that is a BranchRequest, and says so")
    if not request.HASHED:
        raise TypeError(f"{request.__name__}.HASHED names no field: what must a repeat agree in?")
    kinds = typing.get_args(answers) if isinstance(answers, types.UnionType) else (answers,)
    if not all(isinstance(kind, type) and issubclass(kind, Message) for kind in kinds):
        raise TypeError(f"{where} needs answers that are Messages, and says which")
    told = [_kind_of(kind) for kind in kinds]
    if len(kinds) > 1 and (None in told or len(set(told)) < len(told)):
        raise TypeError(f'{where}: give each answer a `kind: Literal["…"]` of its own')
    return request, answers


def _kind_of(answer: type[BaseModel]) -> object:
    field = answer.model_fields.get("kind")
    is_literal = field is not None and typing.get_origin(field.annotation) is Literal
    return typing.get_args(field.annotation)[0] if field is not None and is_literal else None
