"""Double entry: accounts, transfers whose legs sum to zero, and the entries they post.

Amounts are integer minor units, debit positive and credit negative. docs/ledger.md names the
invariants. A transfer is pending, posted, voided or refused; its fence row says TRIED, CONFIRMED,
CANCELLED or REFUSED.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, model_validator

from everycent.domain.message import Currency, Key, Message, StepRequest, Told
from everycent.domain.outcome import Refusal

Place = tuple[str, str, str]  # (tenant, account, currency): where a leg goes.


def _not_zero(amount_minor: int) -> int:
    assert amount_minor != 0, "a leg of nothing is no leg"
    return amount_minor


AccountName = Annotated[
    str, StringConstraints(pattern=r"\A[A-Za-z0-9._~-]{1,64}(:[A-Za-z0-9._~-]{1,64}){0,3}\z")
]
SignedMinorUnits = Annotated[
    int, Field(strict=True, ge=-(10**15), le=10**15), AfterValidator(_not_zero)
]


class AccountKind(StrEnum):
    """What an account stands for; one that its first transfer made says nothing yet."""

    ASSET = "asset"
    LIABILITY = "liability"
    EQUITY = "equity"
    REVENUE = "revenue"
    EXPENSE = "expense"
    UNCLASSIFIED = "unclassified"


class LimitRule(StrEnum):
    """Which side of an account may not outgrow the other; pending counts like posted."""

    NONE = "none"
    DEBITS_NOT_OVER_CREDITS = "debits_not_over_credits"
    CREDITS_NOT_OVER_DEBITS = "credits_not_over_debits"


class Leg(Message):
    """So much on one account: a debit above zero, a credit below."""

    account: AccountName
    amount_minor: SignedMinorUnits
    currency: Currency


class _Balanced(StepRequest):
    """A request whose entries sum to zero per currency; another cannot be made."""

    entries: tuple[Leg, ...] = Field(min_length=2, max_length=1000)

    @model_validator(mode="after")
    def _is_balanced(self) -> Self:
        assert_balanced(self.entries)
        return self


class PostTransfer(_Balanced):
    """Post these entries at once, once per `key`."""

    HASHED: ClassVar = ("operation", "entries")

    operation: Literal["post"] = "post"  # In the hash: a held key is not repeated by a post.


class HoldTransfer(_Balanced):
    """Try: make these entries pending, once per `key`; they count against the limits."""

    HASHED: ClassVar = ("operation", "entries")

    operation: Literal["hold"] = "hold"


class SettleTransfer(StepRequest):
    """Confirm: what is pending is posted."""


class VoidTransfer(StepRequest):
    """Cancel: what is pending, if anything, is dropped; a hold that comes later is refused."""

    reason: Told


class ReverseTransfer(StepRequest):
    """Post the opposite of a posted transfer, once per original; the amounts come from its rows."""

    HASHED: ClassVar = ("operation", "original_key")

    operation: Literal["reverse"] = "reverse"
    original_key: Key

    @model_validator(mode="after")
    def _stays_in_its_shop(self) -> Self:
        assert self.original_key.split("/", 1)[0] == self.tenant, "the original is another shop's"
        assert self.original_key != self.key, "a reversal has a key of its own"
        return self


class OpenAccount(StepRequest):
    """Give an account its kind and its limit, once per `key`; transfers open accounts without."""

    HASHED: ClassVar = ("account", "currency", "account_kind", "limit_rule")

    account: AccountName
    currency: Currency
    account_kind: AccountKind
    limit_rule: LimitRule = LimitRule.NONE


class AccountBalance(Message):
    """An account as one transfer left it; `balance_minor` is debits minus credits, posted only."""

    account: str
    currency: str
    debits_posted: int
    credits_posted: int
    debits_pending: int
    credits_pending: int
    balance_minor: int


class _WithBalances(Message):
    """An answer that carries every account it touched, in the order of the legs."""

    balances: tuple[AccountBalance, ...]


class TransferPosted(_WithBalances):
    """The entries are posted."""

    kind: Literal["transfer_posted"] = "transfer_posted"


class TransferPending(_WithBalances):
    """The entries are pending and count against the limits."""

    kind: Literal["transfer_pending"] = "transfer_pending"


class TransferVoided(_WithBalances):
    """What was pending is dropped; no balances if nothing was."""

    kind: Literal["transfer_voided"] = "transfer_voided"


class AccountOpened(Message):
    """The account has this kind and limit."""

    kind: Literal["account_opened"] = "account_opened"
    account_kind: AccountKind
    limit_rule: LimitRule
    balance: AccountBalance


class LimitExceeded(Refusal):
    """The account's limit leaves less than the transfer needs; in minor units."""

    kind: Literal["limit_exceeded"] = "limit_exceeded"
    account: str
    currency: str
    needed_minor: int
    available_minor: int


class NotPosted(Refusal):
    """There is nothing to reverse: the original is in this state, or there is none."""

    kind: Literal["not_posted"] = "not_posted"
    original_key: str
    state: str | None


class AlreadyReversed(Refusal):
    """The original was reversed before, by the transfer of another key."""

    kind: Literal["already_reversed"] = "already_reversed"
    original_key: str
    reversed_by: str


class AccountTaken(Refusal):
    """The account was opened before, with another kind or limit; neither ever changes."""

    kind: Literal["account_taken"] = "account_taken"
    account: str
    currency: str
    account_kind: AccountKind
    limit_rule: LimitRule


PostAnswer = TransferPosted | LimitExceeded
HoldAnswer = TransferPending | LimitExceeded
ReverseAnswer = TransferPosted | LimitExceeded | NotPosted | AlreadyReversed
OpenAnswer = AccountOpened | AccountTaken | LimitExceeded
POST_ANSWERS: TypeAdapter[PostAnswer] = TypeAdapter(PostAnswer)
HOLD_ANSWERS: TypeAdapter[HoldAnswer] = TypeAdapter(HoldAnswer)
SETTLE_ANSWERS = TypeAdapter(TransferPosted)
VOID_ANSWERS = TypeAdapter(TransferVoided)
REVERSE_ANSWERS: TypeAdapter[ReverseAnswer] = TypeAdapter(ReverseAnswer)
OPEN_ANSWERS: TypeAdapter[OpenAnswer] = TypeAdapter(OpenAnswer)

A = TypeVar("A")


def assert_balanced(legs: Sequence[Leg]) -> None:
    """Stop if the legs of one transfer do not sum to zero in every currency.

    Raises AssertionError: nothing has been written yet, so crashing is the safe answer. Source:
    docs/ledger.md, invariant L1.
    """
    sums: dict[str, int] = {}
    for leg in legs:
        sums[leg.currency] = sums.get(leg.currency, 0) + leg.amount_minor
    for currency, sum_minor in sums.items():
        assert sum_minor == 0, f"{currency} is off by {sum_minor} minor units"


@dataclass(frozen=True)
class Movement:
    """What a step does to the posted and the pending side of each leg's account."""

    posted: int
    pending: int


POST = Movement(posted=1, pending=0)
HOLD = Movement(posted=0, pending=1)
SETTLE = Movement(posted=1, pending=-1)
VOID = Movement(posted=0, pending=-1)


@dataclass(frozen=True)
class Account:
    """The totals of one account, in minor units; none of them ever falls below zero."""

    kind: AccountKind = AccountKind.UNCLASSIFIED
    limit_rule: LimitRule = LimitRule.NONE
    debits_posted: int = 0
    credits_posted: int = 0
    debits_pending: int = 0
    credits_pending: int = 0
    version: int = 0

    @property
    def balance_minor(self) -> int:
        """What is posted: debits minus credits."""
        return self.debits_posted - self.credits_posted

    def moved(self, amount_minor: int, movement: Movement) -> "Account":
        """Return the account after one leg."""
        debit, credit = max(amount_minor, 0), max(-amount_minor, 0)
        return replace(
            self,
            debits_posted=self.debits_posted + debit * movement.posted,
            credits_posted=self.credits_posted + credit * movement.posted,
            debits_pending=self.debits_pending + debit * movement.pending,
            credits_pending=self.credits_pending + credit * movement.pending,
        )

    def room_minor(self) -> int:
        """Return what the limited side may still grow by; below zero the limit is broken."""
        if self.limit_rule is LimitRule.DEBITS_NOT_OVER_CREDITS:
            return self.credits_posted - self.debits_posted - self.debits_pending
        if self.limit_rule is LimitRule.CREDITS_NOT_OVER_DEBITS:
            return self.debits_posted - self.credits_posted - self.credits_pending
        return 0


Accounts = dict[Place, Account]
Balances = tuple[AccountBalance, ...]  # In the order of the legs.


@dataclass(frozen=True)
class Transfer:
    """One transfer that is about to move: its legs come from the request or from its rows."""

    key: str
    at: datetime
    legs: tuple[Leg, ...]

    def places(self) -> list[Place]:
        """Return where each leg goes, in the order of the legs."""
        tenant = self.key.split("/", 1)[0]
        return [(tenant, leg.account, leg.currency) for leg in self.legs]


@dataclass(frozen=True)
class Entry:
    """One posted leg, and the posted balance of its account right after it."""

    key: str
    number: int
    leg: Leg
    balance_after_minor: int
    posted_at: datetime


@dataclass(frozen=True)
class Decision(Generic[A]):
    """The answers of a batch by key, the accounts it changes, the entries it posts in order."""

    answers: dict[str, A] = field(default_factory=dict)
    changed: Accounts = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)


def post(
    accounts: Mapping[Place, Account], transfers: Sequence[Transfer]
) -> Decision[TransferPosted | LimitExceeded]:
    """Post each transfer within the limits or refuse it whole, in the order given."""
    decision: Decision[TransferPosted | LimitExceeded] = Decision()
    for transfer in transfers:
        done = _try(accounts, decision, transfer, POST)
        decision.answers[transfer.key] = (
            done if isinstance(done, LimitExceeded) else TransferPosted(balances=done)
        )
    return decision


def hold(
    accounts: Mapping[Place, Account], transfers: Sequence[Transfer]
) -> Decision[TransferPending | LimitExceeded]:
    """Make each transfer pending within the limits or refuse it whole, in the order given."""
    decision: Decision[TransferPending | LimitExceeded] = Decision()
    for transfer in transfers:
        done = _try(accounts, decision, transfer, HOLD)
        decision.answers[transfer.key] = (
            done if isinstance(done, LimitExceeded) else TransferPending(balances=done)
        )
    return decision


def settle(
    accounts: Mapping[Place, Account], transfers: Sequence[Transfer]
) -> Decision[TransferPosted]:
    """Post what is pending. It cannot be refused: its hold has counted against the limits."""
    decision: Decision[TransferPosted] = Decision()
    for transfer in transfers:
        balances = _end(accounts, decision, transfer, SETTLE)
        decision.answers[transfer.key] = TransferPosted(balances=balances)
    return decision


def void(
    accounts: Mapping[Place, Account], transfers: Sequence[Transfer]
) -> Decision[TransferVoided]:
    """Drop what is pending."""
    decision: Decision[TransferVoided] = Decision()
    for transfer in transfers:
        balances = _end(accounts, decision, transfer, VOID)
        decision.answers[transfer.key] = TransferVoided(balances=balances)
    return decision


@dataclass(frozen=True)
class Original:
    """What a reversal found under the original's key; `legs` only if it is posted."""

    state: str
    legs: tuple[Leg, ...] | None

    def opposite(self) -> tuple[Leg, ...]:
        """Return the legs that take the original back."""
        return tuple(
            leg.model_copy(update={"amount_minor": -leg.amount_minor}) for leg in self.legs or ()
        )


def reverse(
    accounts: Mapping[Place, Account],
    requests: Sequence[ReverseTransfer],
    originals: Mapping[str, Original],
    reversed_by: Mapping[str, str],
) -> Decision[ReverseAnswer]:
    """Post the opposite of each original, unless it is not posted or has been reversed already."""
    decision: Decision[ReverseAnswer] = Decision()
    taken = dict(reversed_by)
    for request in requests:
        name = request.original_key
        original = originals.get(name)
        if original is None or original.legs is None:
            state = original.state if original else None
            decision.answers[request.key] = NotPosted(original_key=name, state=state)
        elif name in taken:
            decision.answers[request.key] = AlreadyReversed(
                original_key=name, reversed_by=taken[name]
            )
        else:
            transfer = Transfer(request.key, request.at, original.opposite())
            done = _try(accounts, decision, transfer, POST)
            if isinstance(done, LimitExceeded):
                decision.answers[request.key] = done
            else:
                decision.answers[request.key] = TransferPosted(balances=done)
                taken[name] = request.key
    return decision


def open_accounts(
    accounts: Mapping[Place, Account], requests: Sequence[OpenAccount]
) -> Decision[OpenAnswer]:
    """Give each account its kind and limit; one that has others already, or is over, says no."""
    decision: Decision[OpenAnswer] = Decision()
    for request in requests:
        place = (request.tenant, request.account, request.currency)
        account = decision.changed.get(place, accounts[place])
        answer, after = _opened(place, account, request)
        decision.answers[request.key] = answer
        if after != account:
            decision.changed[place] = after
    return decision


def balance_of(place: Place, account: Account) -> AccountBalance:
    """Return an account's totals as an answer shows them."""
    return AccountBalance(
        account=place[1],
        currency=place[2],
        debits_posted=account.debits_posted,
        credits_posted=account.credits_posted,
        debits_pending=account.debits_pending,
        credits_pending=account.credits_pending,
        balance_minor=account.balance_minor,
    )


def _opened(place: Place, account: Account, request: OpenAccount) -> tuple[OpenAnswer, Account]:
    wanted = replace(account, kind=request.account_kind, limit_rule=request.limit_rule)
    fresh = account.kind is AccountKind.UNCLASSIFIED
    if not fresh and wanted != account:
        return (
            AccountTaken(
                account=place[1],
                currency=place[2],
                account_kind=account.kind,
                limit_rule=account.limit_rule,
            ),
            account,
        )
    if wanted.room_minor() < 0:
        return _exceeded(place, Account(), wanted), account
    balance = balance_of(place, wanted)
    return (
        AccountOpened(account_kind=wanted.kind, limit_rule=wanted.limit_rule, balance=balance),
        wanted,
    )


def _try(
    accounts: Mapping[Place, Account],
    decision: Decision[Any],
    transfer: Transfer,
    movement: Movement,
) -> Balances | LimitExceeded:
    """Move one transfer if every limit allows it; a refusal names the first that does not."""
    after, entries = _step(accounts, decision.changed, transfer, movement)
    for place, account in after.items():
        if account.room_minor() < 0:
            before = decision.changed.get(place, accounts[place])
            return _exceeded(place, before, account)
    return _keep(decision, after, entries)


def _end(
    accounts: Mapping[Place, Account],
    decision: Decision[Any],
    transfer: Transfer,
    movement: Movement,
) -> Balances:
    after, entries = _step(accounts, decision.changed, transfer, movement)
    assert all(a.room_minor() >= 0 for a in after.values()), "a hold was not counted"
    return _keep(decision, after, entries)


def _step(
    accounts: Mapping[Place, Account],
    changed: Mapping[Place, Account],
    transfer: Transfer,
    movement: Movement,
) -> tuple[Accounts, list[Entry]]:
    """Return the accounts as one transfer would leave them, and what it would post."""
    assert transfer.legs, f"{transfer.key} has no legs"
    assert_balanced(transfer.legs)
    after: Accounts = {}
    entries: list[Entry] = []
    for number, (place, leg) in enumerate(zip(transfer.places(), transfer.legs, strict=True)):
        before = after.get(place) or changed.get(place) or accounts[place]
        account = after[place] = before.moved(leg.amount_minor, movement)
        if movement.posted:
            entries.append(Entry(transfer.key, number, leg, account.balance_minor, transfer.at))
    return after, entries


def _keep(decision: Decision[Any], after: Accounts, entries: list[Entry]) -> Balances:
    decision.changed.update(after)
    decision.entries.extend(entries)
    return tuple(balance_of(place, account) for place, account in after.items())


def _exceeded(place: Place, before: Account, after: Account) -> LimitExceeded:
    """Say what the limited side would have grown by, and what it may grow by at most."""
    if after.limit_rule is LimitRule.DEBITS_NOT_OVER_CREDITS:
        grown = after.debits_posted + after.debits_pending
        needed = grown - before.debits_posted - before.debits_pending
    else:
        grown = after.credits_posted + after.credits_pending
        needed = grown - before.credits_posted - before.credits_pending
    return LimitExceeded(
        account=place[1],
        currency=place[2],
        needed_minor=needed,
        available_minor=needed + after.room_minor(),
    )
