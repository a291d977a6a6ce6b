"""Does a participant behind a URL keep its promises? The same orders of calls, over HTTP."""

import asyncio
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import httpx
from pydantic import JsonValue

from everycent.domain.message import Message
from everycent.domain.outcome import Refusal
from everycent.domain.participant import (
    BranchRequest,
    CancelBranch,
    ConfirmBranch,
    RemoteParticipant,
)
from everycent.errors import InvalidRequest, KeyReused
from everycent.gateways.url_participant import UrlParticipant, headers_of
from everycent.proof.conformance import BrokenPromise, said_by, same_answer
from everycent.proof.conformance_participant import ORDERS, Orders, Steps

NOT_LOOKED_AT = "not looked at: how much is free and held, the service has no GET parts"


class AnyRequest(BranchRequest):
    """A request whose business fields are whatever the service wants."""

    HASHED = ("fields",)
    fields: dict[str, JsonValue]


class AnyHeld(Message):
    """What a service holds, whatever it says of it."""

    kind: Literal["held"] = "held"
    answer: JsonValue


class AnyRefusal(Refusal):
    """A service's no, whatever it says of it."""

    kind: Literal["refused"] = "refused"
    answer: JsonValue


async def assert_url_participant(
    url: str,
    fields: dict[str, JsonValue],
    *,
    name: str,
    at: datetime,
    tenant: str = "conformance",
    at_once: int = 20,
) -> list[str]:
    """Call a service's Try, Confirm and Cancel in all their orders, one by one and at once.

    `fields` are the business fields of a Try that it can grant some 150 times, `name` is the
    participant's. What it holds is told by its look-ups, and by `GET parts` if it has that: an
    object of whole numbers. Returns in words what was looked at. Raises BrokenPromise.
    """
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, trust_env=False, limits=limits) as http:
        trial = _UrlTrial(http, name, tenant, at, fields)
        await trial.find_parts()
        orders = Orders(trial)
        await orders.learn()
        for order in ORDERS:
            await orders.one_after_the_other(order)
        for order in ORDERS:
            await orders.all_at_once(order)
        more = _More(trial, orders)
        await more.many_at_once(at_once)
        await more.another_request()
        await more.look_ups()
        await more.without_a_header(http)
    looked = [f"{2 * len(ORDERS)} orders of five calls, {at_once} calls at once, another request"
              " under a key, look-ups, calls without their headers"]  # fmt: skip
    return looked if trial.has_parts else [*looked, NOT_LOOKED_AT]


class _UrlTrial:
    """A service on trial; each number is an order of this trial's own."""

    engine: Any = None

    def __init__(
        self,
        http: httpx.AsyncClient,
        name: str,
        tenant: str,
        at: datetime,
        fields: dict[str, JsonValue],
    ) -> None:
        self.participant = UrlParticipant(RemoteParticipant(name, AnyRequest, AnyHeld), http)
        self.confirm, self.cancel = self.participant.confirm, self.participant.cancel
        self.has_parts = False
        self._http, self._at, self._fields = http, at, fields
        self._xid = f"{tenant}/{uuid.uuid4().hex[:8]}"
        self._states: dict[str, str] = {}
        self._latest = ""

    async def try_(self, request: AnyRequest) -> AnyHeld | AnyRefusal:
        said = await self.participant.tried(request, dict(request.fields))
        kind = AnyHeld if said.outcome == "held" else AnyRefusal
        return kind(answer=said.answer)

    def requests(self, number: int) -> Steps:
        branch = (f"{self._xid}-{number}", self.participant.name)
        self._latest = "/".join(branch)
        return Steps(
            AnyRequest.of(*branch, at=self._at, fields=self._fields),
            ConfirmBranch.of(*branch, at=self._at),
            CancelBranch.of(*branch, at=self._at),
        )

    async def state(self) -> Mapping[str, int]:
        if self._latest:  # The others have had their last call.
            self._states[self._latest] = (await self.participant.look_up(self._latest)).state
        told = list(self._states.values())
        rows = {f"rows {state}": told.count(state) for state in ("held", "confirmed")}
        return {**rows, **(await self._parts() if self.has_parts else {})}

    async def find_parts(self) -> None:
        """Ask once whether the service tells its parts; to others it is an unknown key."""
        answer = await self._http.get("parts")
        self.has_parts = answer.status_code == 200 and "state" not in answer.json()

    async def _parts(self) -> dict[str, int]:
        return {f"parts {k}": v for k, v in (await self._http.get("parts")).json().items()}


class _More:
    """What the orders of calls do not try."""

    def __init__(self, trial: _UrlTrial, orders: Orders) -> None:
        self._trial = trial
        self._orders = orders

    def _fresh(self) -> Steps:
        return self._trial.requests(next(self._orders.numbers))

    async def many_at_once(self, number: int) -> None:
        """Send one Try, then its Confirm, many times at once."""
        before, steps = await self._trial.state(), self._fresh()
        calls = (
            ("Try", self._trial.try_, steps.try_),
            ("Confirm", self._trial.confirm, steps.confirm),
        )
        for called, call, request in calls:
            said = await asyncio.gather(*(said_by(call, request) for _ in range(number)))
            for each in said:
                if each.error is not None:
                    raise BrokenPromise(f"{number} times {called} at once all succeed: one {each}")
                same_answer(f"{number} times {called} at once get one answer", said[0], each)
        await self._orders.check_end("confirmed", before, f"{number} times each at once")

    async def another_request(self) -> None:
        """Send another request under a key that is taken."""
        before, steps = await self._trial.state(), self._fresh()
        await self._trial.try_(steps.try_)
        other = steps.try_.model_copy(update={"fields": {**steps.try_.fields, "other": "request"}})
        said = await said_by(self._trial.try_, other)
        if not isinstance(said.error, KeyReused):
            raise BrokenPromise(f"another request under a key is told KeyReused: it {said}")
        await self._trial.cancel(steps.cancel)
        await self._orders.check_end("cancelled", before, "after another request")

    async def look_ups(self) -> None:
        """Ask where a key stands before and after each call."""
        calls = {"held": ("try_",), "confirmed": ("try_", "confirm"), "cancelled": ("cancel",)}
        for wanted, operations in {"absent": (), **calls}.items():
            steps = self._fresh()
            for operation in operations:
                await getattr(self._trial, operation)(getattr(steps, operation))
            state = (await self._trial.participant.look_up(steps.try_.key)).state
            if state != wanted:
                how = " then ".join(operations) or "nothing"
                raise BrokenPromise(f"a look-up after {how} tells {wanted}: it told {state}")
            await said_by(self._trial.cancel, steps.cancel)

    async def without_a_header(self, http: httpx.AsyncClient) -> None:
        """Leave out each header that names the branch: such a call is refused (AC6.1)."""
        for left_out in ("Everycent-Key", "Everycent-Xid", "Everycent-Branch"):
            steps = self._fresh()
            headers = headers_of(steps.try_) | {"Everycent-Request-Hash": "v1:none"}
            del headers[left_out]
            answer = await http.post("try", json=steps.try_.fields, headers=headers)
            if answer.status_code != 400 or answer.json().get("error") != InvalidRequest.__name__:
                raise BrokenPromise(
                    f"a call without {left_out} is told InvalidRequest with 400:"
                    f" it answered {answer.status_code} {answer.text[:200]}"
                )
