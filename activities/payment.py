"""The payment service's activities: written, called, written again (design rule 10)."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio import activity

from activities.boundary import errors_for_temporal
from activities.payment_talk import (
    Talk,
    hear,
    talk_authorise,
    talk_capture,
    talk_refund,
    talk_void,
)
from everycent import clock
from everycent.database import payment
from everycent.database.engine import Database
from everycent.database.payment import Due, Loaded
from everycent.database.provider_call import Heard, Sending
from everycent.domain.fence import FenceState, unwrap
from everycent.domain.message import StepRequest
from everycent.domain.payment import (
    AUTHORISE_ANSWERS,
    CAPTURE_ANSWERS,
    REFUND_ANSWERS,
    VOID_ANSWERS,
    AuthoriseAnswer,
    AuthorisePayment,
    AwaitCustomer,
    CallName,
    CallPlan,
    CaptureAnswer,
    CapturePayment,
    CustomerAnswer,
    PaymentDeclined,
    PaymentRow,
    ProviderSays,
    RefundAnswer,
    RefundPayment,
    RefundSays,
    VoidAnswer,
    VoidPayment,
    answer_customer,
)
from everycent.errors import (
    AlreadyCancelled,
    Bug,
    EverycentError,
    NothingTried,
    NotPaidYet,
    Transient,
    Unknown,
)
from everycent.gateways.payment_provider import PaymentProvider

R = TypeVar("R", bound=StepRequest)
A = TypeVar("A")


@dataclass(frozen=True)
class CallTimes:
    """How long one call may take, how long all calls of an item, and how late one may still arrive.

    The provider must remember a key for longer than an item's calls may arrive, or nothing could
    ever be sent again.
    """

    call: timedelta = timedelta(seconds=10)
    item: timedelta = timedelta(seconds=20)
    arrival: timedelta = timedelta(seconds=30)


@dataclass(frozen=True)
class Operation(Generic[R]):
    """What is written before, said between, and written after; and the stored answers' types."""

    load: Callable[[AsyncConnection, Sequence[R], Sending], Awaitable[Loaded[R]]]
    talk: Callable[[Talk, Due[R]], Awaitable[ProviderSays | RefundSays]]
    store: Callable[
        [AsyncConnection, Sequence[Due[R]], Mapping[str, Heard], datetime],
        Awaitable[dict[str, Any]],
    ]
    answers: TypeAdapter[Any]


AUTHORISE = Operation(
    payment.load_authorise, talk_authorise, payment.store_authorise, AUTHORISE_ANSWERS
)
CAPTURE = Operation(payment.load_capture, talk_capture, payment.store_capture, CAPTURE_ANSWERS)
VOID = Operation(payment.load_void, talk_void, payment.store_void, VOID_ANSWERS)
REFUND = Operation(payment.load_refund, talk_refund, payment.store_refund, REFUND_ANSWERS)


class PaymentActivities:
    """Payments through the provider: Try, Confirm, Cancel and refund, each safe to be sent again.

    `calls_at_once` bounds the calls of this process that are under way; `now` is the edge's clock.
    """

    def __init__(
        self,
        database: Database,
        provider: PaymentProvider,
        *,
        times: CallTimes | None = None,
        calls_at_once: int = 32,
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self._database = database
        self._provider = provider
        self._times = times or CallTimes()
        self._gate = asyncio.Semaphore(calls_at_once)
        self._now = now
        window = self._times.item + self._times.arrival
        if provider.idempotency_lifetime <= window:
            raise Bug(f"the provider forgets a key before a call under it can arrive ({window})")

    @activity.defn(name="payment.authorise")
    async def authorise(self, request: AuthorisePayment) -> AuthoriseAnswer:
        """Try: hold the amount on the card, or open a page where the customer pays."""
        with errors_for_temporal():
            return await answer_one(request, self.authorise_all)

    @activity.defn(name="payment.await_customer")
    async def await_customer(self, request: AwaitCustomer) -> CustomerAnswer:
        """Look whether the customer has paid; raises NotPaidYet, so that the retry policy polls."""
        with errors_for_temporal():
            return await answer_one(request, self.await_customers)

    @activity.defn(name="payment.capture")
    async def capture(self, request: CapturePayment) -> CaptureAnswer:
        """Confirm, and the pivot: take the money, or say for good why not."""
        with errors_for_temporal():
            return await answer_one(request, self.capture_all)

    @activity.defn(name="payment.void")
    async def void(self, request: VoidPayment) -> VoidAnswer:
        """Cancel: the attempt can take no money any more; or it already had, and here it is."""
        with errors_for_temporal():
            return await answer_one(request, self.void_all)

    @activity.defn(name="payment.refund")
    async def refund(self, request: RefundPayment) -> RefundAnswer:
        """Give captured money back, once per key."""
        with errors_for_temporal():
            return await answer_one(request, self.refund_all)

    async def authorise_all(
        self, requests: Sequence[AuthorisePayment]
    ) -> list[AuthoriseAnswer | EverycentError]:
        """Authorise a batch; what was cancelled meanwhile is given up before it is answered."""
        return await self._twice(requests, AUTHORISE)

    async def capture_all(
        self, requests: Sequence[CapturePayment]
    ) -> list[CaptureAnswer | EverycentError]:
        """Capture a batch."""
        return await self._twice(requests, CAPTURE)

    async def void_all(self, requests: Sequence[VoidPayment]) -> list[VoidAnswer | EverycentError]:
        """Void a batch."""
        return await self._twice(requests, VOID)

    async def refund_all(
        self, requests: Sequence[RefundPayment]
    ) -> list[RefundAnswer | EverycentError]:
        """Refund a batch."""
        return await self._twice(requests, REFUND)

    async def await_customers(
        self, requests: Sequence[AwaitCustomer]
    ) -> list[CustomerAnswer | EverycentError]:
        """Look at a batch of redirect payments; nothing is written."""
        async with self._database.transaction() as tx:
            rows = await payment.read_payments(tx, requests)
        return list(await asyncio.gather(*(self._look(r, rows.get(r.key)) for r in requests)))

    async def _twice(self, requests: Sequence[R], operation: Operation[R]) -> list[Any]:
        """Write what is about to be called, call it in no transaction, write what came of it."""
        begun = self._now()
        sending = Sending(
            at=begun,
            until=begun + self._times.item + self._times.arrival,
            key_lifetime=self._provider.idempotency_lifetime,
        )
        async with self._database.transaction() as tx:
            loaded = await operation.load(tx, requests, sending)
        answers = dict(loaded.done)
        if loaded.due:
            heard = await self._hear_all(loaded.due, operation, begun + self._times.item)
            with _calls_were_made():
                async with self._database.transaction() as tx:
                    stored = await operation.store(tx, loaded.due, heard, self._now())
            answers |= {k: _as_answer(a, operation.answers) for k, a in stored.items()}
            answers |= await self._give_up(loaded.due, heard, answers)
        return loaded.claims.in_order(requests, answers, operation.answers)

    async def _hear_all(
        self, due: Sequence[Due[R]], operation: Operation[R], until: datetime
    ) -> dict[str, Heard]:
        """Hold the talks of a batch side by side, as many at once as the gate lets through."""

        async def one(item: Due[R]) -> Heard:
            async with self._gate:
                talk = self._talk(item.row, until, item.plans)
                return await hear(talk, operation.talk(talk, item), item)

        heard = await asyncio.gather(*(one(item) for item in due))
        return {item.request.key: h for item, h in zip(due, heard, strict=True)}

    async def _give_up(
        self, due: Sequence[Due[R]], heard: Mapping[str, Heard], answers: Mapping[str, Any]
    ) -> dict[str, EverycentError]:
        """Void what came back for a payment that was cancelled meanwhile, before it is answered."""
        errors: dict[str, EverycentError] = {}
        for item in due:
            key, says = item.request.key, heard[item.request.key].outcome
            if isinstance(answers[key], AlreadyCancelled) and isinstance(says, ProviderSays):
                error = await self._void_late(item.row, says)
                if error is not None:
                    errors[key] = error
        return errors

    async def _void_late(self, row: PaymentRow, says: ProviderSays) -> EverycentError | None:
        if says.provider_id is None or says.is_over_without_money:
            return None
        talk = self._talk(row, self._now() + self._times.item)
        try:
            after = await talk.void(says.provider_id)
        except EverycentError as error:
            return error
        if after.is_over_without_money or row.method == "redirect":
            return None  # Money paid by redirect is found, and told, by the Cancel itself.
        return Bug(f"{row.key} is {after.state} at the provider although it was cancelled")

    async def _look(
        self, request: AwaitCustomer, row: PaymentRow | None
    ) -> CustomerAnswer | EverycentError:
        if row is None:
            return NothingTried(f"{request.key} was never tried")
        if row.method != "redirect" and row.state is not FenceState.CANCELLED:
            return Bug(f"{request.key} is paid by card, no customer is awaited")
        if row.cancelling or row.state is FenceState.CANCELLED:
            return AlreadyCancelled(f"{request.key} is being cancelled")
        if row.state is FenceState.REFUSED:
            return PaymentDeclined.model_validate(row.try_answer)
        if row.provider_id is None:
            return NotPaidYet(f"{request.key} has no page yet")
        talk = self._talk(row, self._now() + self._times.item)
        try:
            async with self._gate:
                answer = answer_customer(row, await talk.read(row.provider_id))
        except EverycentError as error:
            return error
        return answer or NotPaidYet(f"{request.key} waits for its customer")

    def _talk(
        self, row: PaymentRow, until: datetime, plans: Mapping[CallName, CallPlan] | None = None
    ) -> Talk:
        return Talk(
            self._provider,
            row,
            plans=plans or {},
            now=self._now,
            until=until,
            call_seconds=self._times.call.total_seconds(),
        )


async def answer_one(
    request: R, batch: Callable[[Sequence[R]], Awaitable[list[A | EverycentError]]]
) -> A:
    """Run a batch of one and return its answer, or raise the error that stands in its place."""
    [answer] = await batch([request])
    return unwrap(answer)


def _as_answer(stored: Any, answers: TypeAdapter[Any]) -> Any:
    """Return what this attempt decided, or the first answer of another that was quicker."""
    if isinstance(stored, BaseModel | EverycentError):
        return stored
    return answers.validate_python(stored)


@contextlib.contextmanager
def _calls_were_made() -> Iterator[None]:
    """Tell a failure to write the answer as Unknown: the call itself did happen."""
    try:
        yield
    except Transient as error:
        raise Unknown(f"the provider was called and its answer not stored: {error}") from error
