"""A participant behind a URL, in any language: three POSTs and a look-up.

The wire format is docs/participant-protocol.md. No intent row is written before a call (design rule
10 asks for one where the other side keeps no fence of ours): a service that speaks this protocol
keeps each key's answer as long as its rows live and refuses a Try after its Cancel, so what is
unknown is settled by sending the same call again. Who cannot promise that is not put behind this
gateway; `everycent conformance URL` tries it.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final, Literal
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from everycent.domain.message import HASH_VERSION, request_hash
from everycent.domain.participant import (
    NAMES,
    BranchRequest,
    CancelBranch,
    Cancelled,
    ConfirmBranch,
    Confirmed,
    RemoteParticipant,
)
from everycent.errors import Bug, InvalidRequest, Transient, Unknown, Unreachable, by_name

DEADLINE_SECONDS: Final = 10.0
_ENVELOPE = {"key", "at", "opened_on"}
State = Literal["absent", "held", "refused", "confirmed", "cancelled"]


class Answer(BaseModel):
    """What a service answers to a call, as it stands in the body."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    outcome: Literal["held", "refused", "confirmed", "cancelled", "error"]
    answer: JsonValue = None
    held: bool = False
    error: str = ""
    detail: str = ""


class BranchState(BaseModel):
    """What a service says of a key: where its row stands, and what the Try answered."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: State
    answer: JsonValue = None


class UrlParticipant:
    """A participant that is called over HTTP; its client's `base_url` is the participant's.

    Each call has a deadline in seconds. Raises what the service names (`AlreadyCancelled`, …),
    Unreachable where the call was surely not sent, and Unknown for everything else that is no
    definite answer: send the same call again.
    """

    def __init__(
        self,
        declared: RemoteParticipant,
        client: httpx.AsyncClient,
        *,
        guard: Callable[[], None] = lambda: None,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """Take what the flow knows too; `guard` raises when a database transaction is open."""
        self.name = NAMES.validate_python(declared.name)
        self.service, self.request = declared.service, declared.request
        self._client, self._guard, self._deadline = client, guard, deadline_seconds
        self._answers: TypeAdapter[Any] = TypeAdapter(declared.answers)

    async def try_(self, request: BranchRequest) -> Any:
        """Ask the service to hold; it answers what it holds, or refuses with its facts."""
        answer = await self.tried(request, request.model_dump(mode="json", exclude=_ENVELOPE))
        try:
            return self._answers.validate_python(answer.answer)
        except ValidationError as error:
            raise Bug(f"{self.name}.try answered what its flow does not know: {error}") from error

    async def tried(self, request: BranchRequest, body: dict[str, Any]) -> Answer:
        """Send a Try with this body and return what came, as it came."""
        hash_ = f"v{HASH_VERSION}:{request_hash(request, request.HASHED)}"
        answer = await self._call("try", request, body, {"Everycent-Request-Hash": hash_})
        _expect(answer, "try", "held", "refused")
        return answer

    async def confirm(self, request: ConfirmBranch) -> Confirmed:
        """Ask the service to make final what it holds."""
        _expect(await self._call("confirm", request, {}, {}), "confirm", "confirmed")
        return Confirmed()

    async def cancel(self, request: CancelBranch) -> Cancelled:
        """Ask the service to give back what it holds, and to refuse a Try that comes later."""
        answer = await self._call("cancel", request, {"reason": request.reason}, {})
        _expect(answer, "cancel", "cancelled")
        return Cancelled(held=answer.held)

    async def look_up(self, key: str) -> BranchState:
        """Ask where a key stands; absent proves nothing about a call that is still under way."""
        sent = self._client.build_request("GET", quote(key, safe=""), timeout=self._deadline)
        try:
            response = await self._send(sent)
            response.raise_for_status()
            return BranchState.model_validate_json(response.content)
        except (Unknown, httpx.HTTPStatusError, ValidationError) as error:
            raise Transient(f"the look-up of {key} at {self.name} failed: {error}") from error

    async def _call(
        self, operation: str, request: BranchRequest, body: Any, headers: dict[str, str]
    ) -> Answer:
        sent = self._client.build_request(
            "POST",
            operation,
            content=json.dumps(body),
            headers={**headers_of(request), **headers},
            timeout=httpx.Timeout(
                self._deadline, connect=self._deadline * 0.9, pool=self._deadline * 0.9
            ),
        )
        return _read(operation, await self._send(sent))

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """Send once within the deadline; tell "surely not sent" from "sent, fate unknown"."""
        self._guard()
        what = f"{request.method} {request.url}"
        try:
            async with asyncio.timeout(self._deadline):
                return await self._client.send(request, follow_redirects=False)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreachable(f"{what}: {type(error).__name__} {error}") from error
        except httpx.UnsupportedProtocol as error:
            raise InvalidRequest(f"{what}: {error}") from error
        except (httpx.RequestError, TimeoutError) as error:
            raise Unknown(f"{what}: {type(error).__name__} {error}") from error


def headers_of(request: BranchRequest) -> dict[str, str]:
    """Return what names the branch; the body holds the business alone."""
    return {
        "Content-Type": "application/json",
        "Everycent-Key": request.key,
        "Everycent-Xid": request.xid,
        "Everycent-Branch": request.branch,
        "Everycent-Tenant": request.tenant,
        "Everycent-At": request.at.isoformat(),
        "Everycent-Opened-On": request.opened_on.isoformat(),
    }


def _read(operation: str, response: httpx.Response) -> Answer:
    """Return a definite answer; an error that the service names is raised, all else is Unknown."""
    told = f"{operation}: {response.status_code}"
    try:
        answer = Answer.model_validate_json(response.content)
    except ValidationError as error:
        # Also a 503 of a proxy that has passed the call on: answered, and no "no".
        raise Unknown(f"{told} with a body that is no answer") from error
    if answer.outcome != "error":
        if response.status_code != 200:
            raise Unknown(f"{told} with outcome {answer.outcome}")
        return answer
    named = by_name(answer.error)
    if named is None:
        raise Unknown(f"{told} {answer.error} {answer.detail}")
    raise named(f"{told} {answer.detail}")


def _expect(answer: Answer, operation: str, *outcomes: str) -> None:
    if answer.outcome not in outcomes:
        raise Bug(f"{operation} answered {answer.outcome}")
