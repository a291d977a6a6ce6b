"""Steps that break one promise each, on the seats of the proof: for the conformance tests to find.

A hold is a row of `seat_hold`, as in `everycent.proof.interleavings_rows`; `START` seats are free.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from everycent.database import fence
from everycent.errors import AlreadyConfirmed, NothingTried
from everycent.proof.conformance import Call, one_by_one
from everycent.proof.interleavings_kinds import UNITS
from everycent.proof.interleavings_rows import (
    FreeSeats,
    HoldSeats,
    SeatsDone,
    SellSeats,
    free_seats,
    hold_seats,
    move_seats,
    sell_seats,
)


async def _take(tx: AsyncConnection, request: HoldSeats) -> None:
    await move_seats(tx, [(request.tenant, request.area)], free=-1, held=+1, sold=0)


def no_fence(engine: AsyncEngine) -> Call:
    async def hold(request: HoldSeats) -> SeatsDone:
        async with engine.begin() as tx:
            await _take(tx, request)
        return SeatsDone(what="held", seats=UNITS)

    return hold


def remembers_in_memory(engine: AsyncEngine) -> Call:
    """What is done stands in a dictionary: it is looked at before, and written after."""
    done: dict[str, SeatsDone] = {}
    unfenced = no_fence(engine)

    async def hold(request: HoldSeats) -> SeatsDone:
        if request.key not in done:
            done[request.key] = await unfenced(request)
        return done[request.key]

    return hold


def waits_its_turn_in_memory(engine: AsyncEngine) -> Call:
    """The same behind a lock of the process: only a death shows it."""
    lock, remembering = asyncio.Lock(), remembers_in_memory(engine)

    async def hold(request: HoldSeats) -> Any:
        async with lock:
            return await remembering(request)

    return hold


def answers_anew(engine: AsyncEngine) -> Call:
    """It moves the seats once, and tells everybody what is free now."""
    fenced = one_by_one(engine.begin, hold_seats)
    other = 0

    async def hold(request: HoldSeats) -> SeatsDone:
        nonlocal other
        await fenced(request)
        other += 1
        return SeatsDone(what="held", seats=other)

    return hold


def knows_the_key_only(engine: AsyncEngine) -> Call:
    """Whatever is asked under a key that it knows, it says yes."""

    async def hold(tx: AsyncConnection, requests: Any) -> list[Any]:
        [request] = requests
        claims = await fence.claim_tries(tx, fence.FenceTable("seat_hold", {}), [_as_one(request)])
        if claims.new:
            await _take(tx, request)
            answer = SeatsDone(what="held", seats=UNITS)
            await fence.store_tries(tx, fence.FenceTable("seat_hold"), {request.key: answer})
        return [SeatsDone(what="held", seats=UNITS)]

    return one_by_one(engine.begin, hold)


def two_transactions(engine: AsyncEngine) -> Call:
    """The seats move in one transaction, the key is written in the next."""
    lock = asyncio.Lock()  # The race is not what is wrong here.

    async def hold(request: HoldSeats) -> Any:
        async with lock:
            async with engine.begin() as tx:
                key = {"key": request.key}
                found = await tx.execute(text("SELECT FROM seat_hold WHERE key = :key"), key)
                if not found.rowcount:
                    await _take(tx, request)
            return await one_by_one(engine.begin, _note)(request)

    return hold


async def _note(tx: AsyncConnection, requests: Any) -> list[Any]:
    claims = await fence.claim_tries(tx, fence.FenceTable("seat_hold", {"area": "text"}), requests)
    fresh = {r.key: SeatsDone(what="held", seats=UNITS) for r in claims.new}
    await fence.store_tries(tx, fence.FenceTable("seat_hold"), fresh)
    return [SeatsDone(what="held", seats=UNITS)]


def _as_one(request: HoldSeats) -> HoldSeats:
    return request.model_copy(update={"area": "any"})


STEPS: dict[str, tuple[Callable[[AsyncEngine], Call], str]] = {
    "no fence": (no_fence, "a second call changes nothing"),
    "memory": (remembers_in_memory, "20 calls at once do it once"),
    "memory and a lock": (waits_its_turn_in_memory, "a call after a death after COMMIT 1 does it"),
    "answers anew": (answers_anew, "a second call gets the first answer"),
    "key only": (knows_the_key_only, "another request under the same key is refused"),
    "two transactions": (two_transactions, "a call after a death before COMMIT 2 does it once"),
}


# Participants: the true Try, Confirm and Cancel, but for one.


def cancel_without_a_tombstone(engine: AsyncEngine) -> Call:
    true = one_by_one(engine.begin, free_seats)

    async def cancel(request: FreeSeats) -> Any:
        async with engine.connect() as tx:
            key = {"key": request.key}
            found = await tx.execute(text("SELECT FROM seat_hold WHERE key = :key"), key)
        return await true(request) if found.rowcount else SeatsDone(what="freed", seats=0)

    return cancel


def cancel_keeps_the_seats(engine: AsyncEngine) -> Call:
    async def cancel(tx: AsyncConnection, requests: Any) -> list[Any]:
        answers = await free_seats(tx, requests)
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, SeatsDone) and answer.seats:
                await tx.execute(
                    text(
                        "UPDATE seats SET free = free - :n, held = held + :n"
                        " WHERE tenant = :tenant AND area = 'x'"
                    ),
                    {"n": UNITS, "tenant": request.tenant},
                )
        return answers

    return one_by_one(engine.begin, cancel)


def confirm_of_nothing(engine: AsyncEngine) -> Call:
    true = one_by_one(engine.begin, sell_seats)

    async def confirm(request: SellSeats) -> Any:
        try:
            return await true(request)
        except NothingTried:
            return SeatsDone(what="sold", seats=UNITS)

    return confirm


def cancel_of_confirmed(engine: AsyncEngine) -> Call:
    true = one_by_one(engine.begin, free_seats)

    async def cancel(request: FreeSeats) -> Any:
        try:
            return await true(request)
        except AlreadyConfirmed:
            return SeatsDone(what="freed", seats=0)

    return cancel


PARTICIPANTS: dict[str, tuple[str, Callable[[AsyncEngine], Call], str]] = {
    "holds nothing": ("try_", lambda engine: _nothing(engine), "a Try holds something"),
    "no tombstone": (
        "cancel",
        cancel_without_a_tombstone,
        "a late Try after its Cancel is refused",
    ),
    "keeps the seats": ("cancel", cancel_keeps_the_seats, "a Cancel leaves nothing held"),
    "confirms nothing": ("confirm", confirm_of_nothing, "a Confirm without a Try is refused"),
    "cancels what is sold": (
        "cancel",
        cancel_of_confirmed,
        "a Cancel of what is confirmed is refused",
    ),
    "no fence": ("try_", no_fence, "a Confirm in its turn succeeds"),
}


def _nothing(engine: AsyncEngine) -> Call:
    return one_by_one(engine.begin, _note)
