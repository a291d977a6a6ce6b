"""The steps of a checkout: each with its way back, which the start of a worker checks."""

from activities.account import AccountActivities
from activities.inventory import InventoryActivities
from activities.ledger import LedgerActivities
from activities.order import OrderActivities
from activities.payment import PaymentActivities
from activities.points import PointsActivities
from workers.queues import finishes, tries
from workflows.options import (
    DATABASE_MUST,
    DATABASE_STEP,
    POLL_STEP,
    PROVIDER_MUST,
    PROVIDER_STEP,
)
from workflows.steps import Step

# -- the order's own row

OPEN = Step(
    "open the order",
    OrderActivities.open_order,
    tries("order"),
    DATABASE_STEP,
    irreversible="the row is the record of the order; closing it ends it",
)
ADD_ATTEMPT = Step(
    "note a payment",
    OrderActivities.add_attempt,
    tries("order"),
    DATABASE_STEP,
    irreversible="a note of what the customer asked for",
)
DECIDE = Step(
    "decide",
    OrderActivities.decide,
    finishes("order"),
    DATABASE_MUST,
    irreversible="the row decides; who loses adopts the winner's decision",
)
MARK = Step(
    "say what the order waits for",
    OrderActivities.mark_order,
    finishes("order"),
    DATABASE_STEP,
    irreversible="a note for people",
)
CLOSE = Step(
    "close the order",
    OrderActivities.close_order,
    finishes("order"),
    DATABASE_MUST,
    irreversible="the end of the order",
)
PARK = Step(
    "open a case",
    OrderActivities.park_step,
    finishes("order"),
    DATABASE_STEP,
    irreversible="a note for people",
)
SETTLE = Step(
    "settle a case",
    OrderActivities.settle_case,
    finishes("order"),
    DATABASE_STEP,
    irreversible="a note for people",
)

# -- stock

SELL_STOCK = Step(
    "sell the stock",
    InventoryActivities.commit_stock,
    finishes("inventory"),
    DATABASE_MUST,
    key="reserve",
)
RELEASE_STOCK = Step(
    "release the stock",
    InventoryActivities.release_stock,
    finishes("inventory"),
    DATABASE_MUST,
    key="reserve",
)
HOLD_STOCK = Step(
    "hold the stock",
    InventoryActivities.reserve_stock,
    tries("inventory"),
    DATABASE_STEP,
    key="reserve",
    holds=True,
    confirm=SELL_STOCK,
    undo=RELEASE_STOCK,
)

# -- points

USE_POINTS = Step(
    "use the points",
    PointsActivities.redeem_points,
    finishes("points"),
    DATABASE_MUST,
    key="points",
)
RELEASE_POINTS = Step(
    "release the points",
    PointsActivities.unfreeze_points,
    finishes("points"),
    DATABASE_MUST,
    key="points",
)
HOLD_POINTS = Step(
    "hold the points",
    PointsActivities.freeze_points,
    tries("points"),
    DATABASE_STEP,
    key="points",
    holds=True,
    confirm=USE_POINTS,
    undo=RELEASE_POINTS,
)
TAKE_EARNED_POINTS_BACK = Step(
    "take earned points back",
    PointsActivities.revoke_points,
    finishes("points"),
    DATABASE_MUST,
    key="unearn",
)
EARN_POINTS = Step(
    "earn points",
    PointsActivities.grant_points,
    finishes("points"),
    DATABASE_MUST,
    key="earn",
    forward=True,
    undo=TAKE_EARNED_POINTS_BACK,
)
GIVE_POINTS_BACK = Step(
    "give used points back",
    PointsActivities.restore_points,
    finishes("points"),
    DATABASE_MUST,
    key="points-refund",
    irreversible="what was given back belongs to the customer",
)

# -- payment by a provider: two transactions with calls between, and an authorise may void

CAPTURE = Step(
    "capture the payment",
    PaymentActivities.capture,
    finishes("payment"),
    PROVIDER_MUST,
    key="pay",
    pivot=True,
    transactions=2,
    talks=1,
)
VOID = Step(
    "void the payment",
    PaymentActivities.void,
    finishes("payment"),
    PROVIDER_MUST,
    key="pay",
    transactions=2,
    talks=1,
)
AUTHORISE = Step(
    "authorise the payment",
    PaymentActivities.authorise,
    tries("payment"),
    PROVIDER_STEP,
    key="pay",
    holds=True,
    confirm=CAPTURE,
    undo=VOID,
    transactions=2,
    talks=2,
)
AWAIT_CUSTOMER = Step(
    "ask whether the customer has paid",
    PaymentActivities.await_customer,
    tries("payment"),
    POLL_STEP,
    key="pay",
    irreversible="it only asks",
    talks=1,
)
REFUND = Step(
    "refund the payment",
    PaymentActivities.refund,
    finishes("payment"),
    PROVIDER_MUST,
    key="refund",
    irreversible="what was given back belongs to the customer",
    transactions=2,
    talks=1,
)

# -- payment from the stored balance

DEBIT_BALANCE = Step(
    "debit the balance",
    AccountActivities.debit_balance,
    finishes("account"),
    DATABASE_MUST,
    key="pay",
)
RELEASE_BALANCE = Step(
    "release the balance",
    AccountActivities.unfreeze_balance,
    finishes("account"),
    DATABASE_MUST,
    key="pay",
)
HOLD_BALANCE = Step(
    "hold the balance",
    AccountActivities.freeze_balance,
    tries("account"),
    DATABASE_STEP,
    key="pay",
    holds=True,
    confirm=DEBIT_BALANCE,
    undo=RELEASE_BALANCE,
)
CREDIT_BALANCE = Step(
    "refund to the balance",
    AccountActivities.credit_balance,
    finishes("account"),
    DATABASE_MUST,
    key="refund",
    irreversible="what was given back belongs to the customer",
)

# -- ledger

REVERSE_SALE = Step(
    "book the sale back",
    LedgerActivities.reverse_transfer,
    finishes("ledger"),
    DATABASE_MUST,
    key="ledger-reversal",
)
BOOK_SALE = Step(
    "book the sale",
    LedgerActivities.post_transfer,
    finishes("ledger"),
    DATABASE_MUST,
    key="ledger",
    forward=True,
    undo=REVERSE_SALE,
)
