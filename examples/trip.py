"""A trip: a room, a flight and a car, all or none."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from everycent.kit import Branches, Counted, NotDone, all_or_nothing, hold

PARTICIPANTS = [Counted(name, service="trips") for name in ("room", "flight", "car")]
ROOM, FLIGHT, CAR = map(hold, PARTICIPANTS)


@workflow.defn(name="trip")
class BookTrip:
    """Started under the id `trip/<tenant>/<order>`: every key is made of it."""

    @workflow.run
    async def run(self, city: str) -> str | NotDone:
        """Take all three, or give back what was taken."""

        async def story(branches: Branches) -> str:
            await branches.take(ROOM, item=city)  # Its undo is registered before it begins.
            await branches.take(FLIGHT, item=city)
            await branches.take(CAR, item=city)
            return f"to {city}"

        return await all_or_nothing(story)
