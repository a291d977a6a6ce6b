"""A flow with a participant behind a URL: the seats of `examples/node/seats.js`."""

from typing import Literal

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from everycent.kit import (
        Branches,
        BranchRequest,
        Message,
        NotDone,
        Refusal,
        RemoteParticipant,
        all_or_nothing,
        hold,
    )


class HoldSeat(BranchRequest):
    """Hold a seat of an area."""

    HASHED = ("area",)
    area: str


class SeatHeld(Message):
    """A seat is held."""

    kind: Literal["seat_held"] = "seat_held"
    area: str


class SoldOut(Refusal):
    """No seat of the area is left."""

    kind: Literal["sold_out"] = "sold_out"
    area: str


SEATS = RemoteParticipant("seat", request=HoldSeat, answers=SeatHeld | SoldOut)
SEAT = hold(SEATS)


@workflow.defn(name="evening")
class Evening:
    """Seats for everybody, or for nobody."""

    @workflow.run
    async def run(self, areas: list[str]) -> int | NotDone:
        """Hold a seat in each area; then all are bought, or none is."""

        async def story(branches: Branches) -> int:
            for n, area in enumerate(areas):
                await branches.take(SEAT, f"seat-{n}", area=area)
            return len(areas)

        return await all_or_nothing(story)
