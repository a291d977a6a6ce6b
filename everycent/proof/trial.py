"""A declared participant on trial: `assert_participant(Trial(coupons, engine, request))`."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from everycent.database.participant import Participant
from everycent.domain.participant import BranchRequest, CancelBranch, ConfirmBranch
from everycent.proof.conformance import Call, one_by_one
from everycent.proof.conformance_participant import Steps
from everycent.proof.conformance_state import read_tables


class Trial:
    """A participant and one request it can grant some 300 times, on a database of its own.

    What it holds is read as the sums of all whole numbers in all tables but the fence, or by
    `state`, where some of them are no parts of a resource (a version that only counts up).
    """

    def __init__(
        self,
        participant: Participant[Any, Any],
        engine: AsyncEngine,
        request: BranchRequest,
        *,
        state: Callable[[], Awaitable[Mapping[str, int]]] | None = None,
    ) -> None:
        kind = type(participant)
        self.engine = engine
        self.has_confirm = (kind.confirm, kind.confirm_all) != (
            Participant.confirm,
            Participant.confirm_all,
        )
        self.try_: Call = one_by_one(engine.begin, participant.tries)
        self.confirm: Call = one_by_one(engine.begin, participant.confirms)
        self.cancel: Call = one_by_one(engine.begin, participant.cancels)
        self._request = request
        self._fence = participant.table.name
        self._state = state

    def requests(self, number: int) -> Steps:
        """Return the three requests of a fresh order."""
        tenant, order_id, branch = self._request.key.split("/", 2)
        key = f"{tenant}/{order_id}-{number}/{branch}"
        step = {"key": key, "at": self._request.at, "opened_on": self._request.opened_on}
        return Steps(
            self._request.model_copy(update={"key": key}),
            ConfirmBranch.model_validate(step),
            CancelBranch.model_validate(step),
        )

    async def state(self) -> Mapping[str, int]:
        """Return how much there is of everything that is counted."""
        if self._state is not None:
            return await self._state()
        sums = (await read_tables(self.engine)).sums
        return {place: n for place, n in sums.items() if not place.startswith(f"{self._fence}.")
                and not place.endswith(" rows")}  # fmt: skip
