"""A payment's talk with the provider: which call comes next, and what is known of each after it."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import TypeVar

from everycent.database.payment import Due
from everycent.database.provider_call import Heard
from everycent.domain.message import StepRequest
from everycent.domain.payment import (
    AuthorisePayment,
    CallName,
    CallPlan,
    CapturePayment,
    PaymentRow,
    ProviderSays,
    RefundPayment,
    RefundSays,
    VoidPayment,
)
from everycent.errors import Bug, EverycentError, Transient, Unknown
from everycent.gateways.payment_provider import (
    Declined,
    Intent,
    NotFound,
    PaymentProvider,
    Refund,
    Refused,
    Several,
)

R = TypeVar("R", bound=StepRequest)
T = TypeVar("T")
Answer = Intent | Declined | Refused


class Talk:
    """The calls of one item: each within its deadline, each noted as answered, open or unsent."""

    def __init__(
        self,
        provider: PaymentProvider,
        row: PaymentRow,
        *,
        plans: Mapping[CallName, CallPlan],
        now: Callable[[], datetime],
        until: datetime,
        call_seconds: float,
    ) -> None:
        self._provider = provider
        self._row = row
        self._plans = plans
        self._now = now
        self._until = until
        self._call_seconds = call_seconds
        self.answers: dict[CallName, ProviderSays | RefundSays] = {}
        self.sent: set[CallName] = set()

    async def create(self) -> ProviderSays:
        """Open the payment at the provider, or get the one that is open under our key."""
        row = self._row
        answer = await self._send(
            "create",
            lambda seconds: self._provider.create_intent(
                row.key,
                amount_minor=row.amount_minor,
                currency=row.currency,
                method=row.method,
                card_token=row.card_token,
                capture="manual" if row.method == "card" else "automatic",
                deadline_seconds=seconds,
            ),
        )
        return await self._understand("create", answer, None)

    async def confirm(self, provider_id: str) -> ProviderSays:
        """Ask for the money, or for the page where the customer pays."""
        answer = await self._send(
            "confirm",
            lambda seconds: self._provider.confirm(
                provider_id, key=self._row.key, deadline_seconds=seconds
            ),
        )
        return await self._understand("confirm", answer, provider_id)

    async def capture(self, provider_id: str) -> ProviderSays:
        """Take the whole amount."""
        answer = await self._send(
            "capture",
            lambda seconds: self._provider.capture(
                provider_id,
                key=self._row.key,
                amount_minor=self._row.amount_minor,
                deadline_seconds=seconds,
            ),
        )
        return await self._understand("capture", answer, provider_id)

    async def void(self, provider_id: str) -> ProviderSays:
        """Give the payment up; whatever the answer, what counts is how it stands then."""
        answer = await self._send(
            "void",
            lambda seconds: self._provider.void(
                provider_id, key=self._row.key, deadline_seconds=seconds
            ),
        )
        if isinstance(answer, Declined):  # The void was declined, not the payment.
            answer = Refused(code=answer.code)
        return await self._understand("void", answer, provider_id)

    async def refund(self, provider_id: str, request: RefundPayment) -> RefundSays:
        """Give money back."""
        answer = await self._send(
            "refund",
            lambda seconds: self._provider.refund(
                provider_id,
                key=request.key,
                amount_minor=request.amount_minor,
                deadline_seconds=seconds,
            ),
        )
        if isinstance(answer, Refund):
            says = refund_says(answer)
        else:
            says = RefundSays(state="failed", code=answer.code)
        if says.state != "pending":  # A refund on its way has no answer yet.
            self.answers["refund"] = says
        return says

    async def find(self) -> ProviderSays | None:
        """Look the payment up by our key; None if there is none yet."""
        found = await self._provider.look_up(self._row.key, deadline_seconds=self._seconds())
        if isinstance(found, Several):
            raise Bug(f"{self._row.key}: the provider has {len(found.intents)} payments of it")
        return None if isinstance(found, NotFound) else says_of(found)

    async def find_refund(self, key: str) -> RefundSays | None:
        """Look a refund up by our key."""
        found = await self._provider.look_up_refund(key, deadline_seconds=self._seconds())
        return None if isinstance(found, NotFound) else refund_says(found)

    async def read(self, provider_id: str, code: str = "") -> ProviderSays:
        """Return how the payment stands now."""
        found = await self._provider.read_intent(provider_id, deadline_seconds=self._seconds())
        if isinstance(found, NotFound):
            raise Bug(f"{self._row.key}: the provider no longer knows {provider_id}")
        return says_of(found, code)

    @property
    def can_look_up(self) -> bool:
        """Whether the provider finds things by our key."""
        return self._provider.can_look_up

    async def _send(self, name: CallName, call: Callable[[float], Awaitable[T]]) -> T:
        if self._plans.get(name) is CallPlan.LOOK_ONLY:
            raise Unknown(f"{self._row.key}: an earlier {name} may still arrive, none is sent now")
        seconds = self._seconds()
        self.sent.add(name)
        try:
            return await call(seconds)
        except Transient:
            self.sent.discard(name)
            raise

    async def _understand(
        self, name: CallName, answer: Answer, provider_id: str | None
    ) -> ProviderSays:
        """Turn a call's answer into how the payment stands.

        A kept answer and a refusal may be older than the payment's last move: it is read again.
        """
        intent = answer if isinstance(answer, Intent) else answer.intent
        known = provider_id if intent is None else intent.provider_id
        code = "" if isinstance(answer, Intent) else answer.code
        stale = isinstance(answer, Refused) or (isinstance(answer, Intent) and answer.replayed)
        if stale and known is not None:
            says = await self.read(known, code)
        elif intent is not None:
            says = says_of(intent, code)
        else:  # Refused before there was anything: a definite no.
            says = ProviderSays(state="declined", code=code)
        self.answers[name] = says
        return says

    def _seconds(self) -> float:
        """Return the next call's deadline; nothing is sent later than its intent row promises."""
        left = (self._until - self._now()).total_seconds()
        if left <= 0:
            raise Transient(f"{self._row.key}: no time left to call the provider")
        return min(left, self._call_seconds)


async def talk_authorise(talk: Talk, due: Due[AuthorisePayment]) -> ProviderSays:
    """Find or open the payment, then confirm it unless that was done."""
    says = await _find_or_create(talk, due)
    if says.state == "requires_confirmation" and says.provider_id is not None:
        return await talk.confirm(says.provider_id)
    return says


async def talk_capture(talk: Talk, due: Due[CapturePayment]) -> ProviderSays:
    """Take the money; a repeat looks first, and what was paid by redirect is only looked at."""
    provider_id = due.row.provider_id
    assert provider_id is not None, f"{due.row.key} was authorised without a provider's id"
    if due.plans.get("capture") is not CallPlan.FIRST:
        says = await talk.read(provider_id)
        if due.row.method == "redirect" or says.state != "authorised":
            return says
    return await talk.capture(provider_id)


async def talk_void(talk: Talk, due: Due[VoidPayment]) -> ProviderSays:
    """Make the provider refuse whatever still comes for this payment.

    When it has none yet, a create on its way could still open one: we open it ourselves, under the
    same key, and give it up, so that the late call gets a payment that is over.
    """
    provider_id, in_doubt = due.row.provider_id, due.row.try_answer is None
    if provider_id is not None and due.plans["void"] is CallPlan.FIRST and not in_doubt:
        return await talk.void(provider_id)
    says = await _find_or_create(talk, due)
    if says.state == "captured" or says.is_over_without_money or says.provider_id is None:
        return says
    after = await talk.void(says.provider_id)
    return after.model_copy(update={"held": says.state == "authorised"})


async def talk_refund(talk: Talk, due: Due[RefundPayment]) -> RefundSays:
    """Give the money back; a repeat looks first."""
    provider_id = due.row.provider_id
    assert provider_id is not None, f"{due.row.key} was captured without a provider's id"
    plan = due.plans["refund"]
    if plan is not CallPlan.FIRST:
        found = await _look(talk, plan, lambda: talk.find_refund(due.request.key))
        if found is not None:
            return found
    return await talk.refund(provider_id, due.request)


async def _find_or_create(
    talk: Talk, due: Due[AuthorisePayment] | Due[VoidPayment]
) -> ProviderSays:
    """Look first if anything was sent; `absent` if a Cancel finds nothing and nothing can come."""
    plan = due.plans["create"]
    if due.row.provider_id is not None:
        return await talk.read(due.row.provider_id)
    if plan is not CallPlan.FIRST:
        found = await _look(talk, plan, talk.find)
        if found is not None:
            return found
        if plan is CallPlan.FORGOTTEN and isinstance(due.request, VoidPayment):
            return ProviderSays(state="absent")
    return await talk.create()


async def _look(talk: Talk, plan: CallPlan, look: Callable[[], Awaitable[T | None]]) -> T | None:
    """Look up what an earlier attempt may have done, if the provider can; never guess without."""
    if talk.can_look_up:
        return await look()
    if plan is CallPlan.SAME_KEY:
        return None
    raise Unknown("the provider cannot look up and may have forgotten the key: a person has to")


async def hear(talk: Talk, outcome: Awaitable[ProviderSays | RefundSays], due: Due[R]) -> Heard:
    """Hold the talk and note what came of it; an error is a note too.

    Transient says that nothing happened. That is true only while no call is open: neither one of
    this attempt nor one of an earlier.
    """
    says: ProviderSays | RefundSays | EverycentError
    try:
        says = await outcome
    except EverycentError as error:
        says = error
    except AssertionError as error:  # One broken item must not leave the others unanswered.
        says = Bug(str(error))
    written = {name for name, plan in due.plans.items() if plan is not CallPlan.LOOK_ONLY}
    open_now = talk.sent - set(talk.answers)
    if isinstance(says, Transient) and (open_now or due.is_repeat):
        says = Unknown(f"an earlier call may have happened: {says}")
    return Heard(says, talk.answers, frozenset(written - talk.sent))


def says_of(intent: Intent, code: str = "") -> ProviderSays:
    """Translate the provider's payment into our words; a decline's own code goes before `code`."""
    return ProviderSays(
        state=intent.state,
        provider_id=intent.provider_id,
        currency=intent.currency,
        amount_minor=intent.amount_minor,
        captured_minor=intent.captured_minor,
        code=intent.decline_code or code,
        url=intent.redirect_url,
    )


def refund_says(refund: Refund) -> RefundSays:
    """Translate the provider's refund into our words."""
    return RefundSays(state=refund.state, provider_refund_id=refund.provider_id)
