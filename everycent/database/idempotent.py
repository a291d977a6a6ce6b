"""`@idempotent`: a function of an open transaction that does its work once per key.

For steps without a Confirm and a Cancel: an activity, a message's consumer, an HTTP handler. The
first result is stored in the fence with the work and given again; another request under the same
key is refused (`KeyReused`); a call that comes while the first is under way waits for its COMMIT.
"""

import functools
import typing
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from pydantic import JsonValue, TypeAdapter
from pydantic_core import to_jsonable_python
from sqlalchemy.ext.asyncio import AsyncConnection

from everycent import clock
from everycent.database import fence
from everycent.database.participant import FENCE
from everycent.domain.fence import FenceState, unwrap
from everycent.domain.message import Message, StepRequest

R = TypeVar("R")
A = TypeVar("A")
Work = Callable[[AsyncConnection, R], Awaitable[A]]

# When a message is sent is no part of what it asks for.
_OUTSIDE = {"at", "opened_on"}


class _Once(StepRequest):
    HASHED = ("body",)
    body: JsonValue


class _Result(Message):
    result: JsonValue


_RESULTS: TypeAdapter[_Result] = TypeAdapter(_Result)


def idempotent(
    *, key: Callable[[Any], str], scope: str, table: fence.FenceTable = FENCE
) -> Callable[[Work[R, A]], Work[R, A]]:
    """Let the function do its work once per `scope` and key; its result has to fit into JSON.

    `key` names the work by business ids alone; the row's key is `<scope>/~once/<key>`. `at` and
    `opened_on` of the request, if it has them, lie outside the hash; without them the row tells
    our clock, which decides nothing. An exception undoes the transaction, so that the next call
    does the work.
    """
    assert scope.strip("/") == scope != "", "a scope is the first part of a key"

    def once(work: Work[R, A]) -> Work[R, A]:
        results: TypeAdapter[Any] = TypeAdapter(typing.get_type_hints(work).get("return", Any))

        @functools.wraps(work)
        async def called(tx: AsyncConnection, request: R) -> A:
            step = _step(f"{scope}/~once/{key(request)}", request)
            claims = await fence.claim_tries(tx, table, [step])
            fresh = {}
            for each in claims.new:
                done = to_jsonable_python(await work(tx, request))
                fresh[each.key] = _Result(result=done)
            await fence.store_tries(
                tx, table, fresh, done=FenceState.CONFIRMED, requests=claims.new
            )
            [answer] = claims.in_order([step], fresh, _RESULTS)
            told: A = results.validate_python(unwrap(answer).result)
            return told

        return called

    return once


def _step(key: str, request: object) -> _Once:
    at = getattr(request, "at", None)
    moment = at if isinstance(at, datetime) else clock.now()
    body = to_jsonable_python(request)
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in _OUTSIDE}
    day = getattr(request, "opened_on", None) or moment.date()
    return _Once(key=key, at=moment, opened_on=day, body=body)
