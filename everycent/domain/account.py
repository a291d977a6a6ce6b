"""Stored balance: available -> frozen -> spent. Integer minor units of one currency per account."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, TypeAdapter

from everycent.domain.message import Currency, Id, Message, StepRequest, Told
from everycent.domain.outcome import Refusal

A = TypeVar("A", covariant=True)
AmountMinor = Annotated[int, Field(strict=True, gt=0, le=10**15)]
AccountId = tuple[str, str, str]  # (tenant, account, currency)


class _OnAccount(StepRequest):
    """What every request that names its own amount carries."""

    HASHED: ClassVar[tuple[str, ...]] = ("account", "currency", "amount_minor")

    account: Id
    currency: Currency
    amount_minor: AmountMinor

    @property
    def account_id(self) -> AccountId:
        """The row of the account: of the key's tenant, in the request's currency."""
        return self.tenant, self.account, self.currency


class FreezeBalance(_OnAccount):
    """Try: freeze the amount, so that nobody else can spend it, once per `key`."""


class DebitBalance(StepRequest):
    """Confirm: the frozen amount leaves the account."""


class UnfreezeBalance(StepRequest):
    """Cancel: the frozen amount, if any, is available again; a Try that comes later is refused."""

    reason: Told


class Deposit(_OnAccount):
    """Put money into an account, once per `key`; an account that is new is opened."""

    HASHED: ClassVar = (*_OnAccount.HASHED, "kind")

    kind: Literal["deposit"] = "deposit"


class CreditBalance(_OnAccount):
    """Pay a debited amount back into its account (a refund), once per `key`."""

    HASHED: ClassVar = (*_OnAccount.HASHED, "kind")

    kind: Literal["refund"] = "refund"


class BalanceFrozen(Message):
    """The amount is frozen; `available_minor` is what is left to spend."""

    kind: Literal["balance_frozen"] = "balance_frozen"
    amount_minor: int
    available_minor: int


class InsufficientBalance(Refusal):
    """Less is available than wanted; only a deposit or an unfreeze helps."""

    kind: Literal["insufficient_balance"] = "insufficient_balance"
    needed_minor: int
    available_minor: int


class AccountUnknown(Refusal):
    """The tenant has no such account in this currency."""

    kind: Literal["account_unknown"] = "account_unknown"
    account: str
    currency: str


class BalanceDebited(Message):
    """The frozen amount is spent."""

    kind: Literal["balance_debited"] = "balance_debited"
    amount_minor: int
    available_minor: int
    balance_minor: int


class BalanceUnfrozen(Message):
    """What was frozen is available again; 0, and no balance, if nothing was frozen."""

    kind: Literal["balance_unfrozen"] = "balance_unfrozen"
    amount_minor: int
    available_minor: int | None = None


class BalanceCredited(Message):
    """The amount is in the account and available."""

    kind: Literal["balance_credited"] = "balance_credited"
    amount_minor: int
    available_minor: int
    balance_minor: int


FreezeAnswer = BalanceFrozen | InsufficientBalance | AccountUnknown
CreditAnswer = BalanceCredited | AccountUnknown
FREEZE_ANSWERS: TypeAdapter[FreezeAnswer] = TypeAdapter(FreezeAnswer)
CREDIT_ANSWERS: TypeAdapter[CreditAnswer] = TypeAdapter(CreditAnswer)
DEBIT_ANSWERS = TypeAdapter(BalanceDebited)
UNFREEZE_ANSWERS = TypeAdapter(BalanceUnfrozen)
DEPOSIT_ANSWERS = TypeAdapter(BalanceCredited)


@dataclass(frozen=True)
class Funds:
    """What an account has."""

    available_minor: int
    frozen_minor: int

    @property
    def balance_minor(self) -> int:
        """All of it: a frozen amount is still the customer's."""
        return self.available_minor + self.frozen_minor


@dataclass(frozen=True)
class Hold:
    """What the stored row of a Try froze, and where."""

    key: str
    account_id: AccountId
    amount_minor: int


@dataclass(frozen=True)
class Moves(Generic[A]):
    """The answers of a batch, and the sum that each account moves for all of them."""

    answers: dict[str, A]
    moved: dict[AccountId, int]


def freeze(
    funds: Mapping[AccountId, Funds], requests: Sequence[FreezeBalance]
) -> Moves[FreezeAnswer]:
    """Freeze each amount or refuse it, first come, first served; never more than is available."""
    available = {account: found.available_minor for account, found in funds.items()}
    answers: dict[str, FreezeAnswer] = {}
    for request in requests:
        answers[request.key] = answer = _freeze_one(available.get(request.account_id), request)
        if isinstance(answer, BalanceFrozen):
            available[request.account_id] = answer.available_minor
    frozen = (r for r in requests if isinstance(answers[r.key], BalanceFrozen))
    return Moves(answers, _sums((r.account_id, r.amount_minor) for r in frozen))


def debit(funds: Mapping[AccountId, Funds], holds: Sequence[Hold]) -> Moves[BalanceDebited]:
    """Spend each hold; a Confirm cannot refuse."""
    balance = {account: found.balance_minor for account, found in funds.items()}
    answers: dict[str, BalanceDebited] = {}
    for hold in holds:
        balance[hold.account_id] -= hold.amount_minor
        answers[hold.key] = BalanceDebited(
            amount_minor=hold.amount_minor,
            available_minor=funds[hold.account_id].available_minor,
            balance_minor=balance[hold.account_id],
        )
    return Moves(answers, _sums((hold.account_id, hold.amount_minor) for hold in holds))


def unfreeze(funds: Mapping[AccountId, Funds], holds: Sequence[Hold]) -> Moves[BalanceUnfrozen]:
    """Give each hold back to what is available."""
    available = {account: found.available_minor for account, found in funds.items()}
    answers: dict[str, BalanceUnfrozen] = {}
    for hold in holds:
        available[hold.account_id] += hold.amount_minor
        answers[hold.key] = BalanceUnfrozen(
            amount_minor=hold.amount_minor, available_minor=available[hold.account_id]
        )
    return Moves(answers, _sums((hold.account_id, hold.amount_minor) for hold in holds))


def credit(
    funds: Mapping[AccountId, Funds], requests: Sequence[Deposit] | Sequence[CreditBalance]
) -> Moves[CreditAnswer]:
    """Put each amount into its account; one that does not exist cannot take any."""
    after = dict(funds)
    answers: dict[str, CreditAnswer] = {}
    for r in requests:
        if r.account_id not in after:
            answers[r.key] = AccountUnknown(account=r.account, currency=r.currency)
            continue
        before = after[r.account_id]
        now = Funds(before.available_minor + r.amount_minor, before.frozen_minor)
        after[r.account_id] = now
        answers[r.key] = BalanceCredited(
            amount_minor=r.amount_minor,
            available_minor=now.available_minor,
            balance_minor=now.balance_minor,
        )
    credited = (r for r in requests if isinstance(answers[r.key], BalanceCredited))
    return Moves(answers, _sums((r.account_id, r.amount_minor) for r in credited))


def _freeze_one(available_minor: int | None, request: FreezeBalance) -> FreezeAnswer:
    if available_minor is None:
        return AccountUnknown(account=request.account, currency=request.currency)
    if available_minor < request.amount_minor:
        return InsufficientBalance(
            needed_minor=request.amount_minor, available_minor=available_minor
        )
    return BalanceFrozen(
        amount_minor=request.amount_minor, available_minor=available_minor - request.amount_minor
    )


def _sums(amounts: Iterable[tuple[AccountId, int]]) -> dict[AccountId, int]:
    total: dict[AccountId, int] = {}
    for account_id, amount_minor in amounts:
        total[account_id] = total.get(account_id, 0) + amount_minor
    return total
