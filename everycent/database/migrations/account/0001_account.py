"""Accounts with their balances, the holds on them, and what was paid in."""

from alembic import op

from everycent.database.fence_ddl import fence_table

revision = "account_0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
CREATE TABLE account (
    tenant text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    balance bigint NOT NULL DEFAULT 0,
    available bigint NOT NULL DEFAULT 0,
    frozen bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    CONSTRAINT account_pkey PRIMARY KEY (tenant, account, currency),
    CONSTRAINT account_currency_is_a_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT account_balance_not_negative CHECK (balance >= 0),
    CONSTRAINT account_available_not_negative CHECK (available >= 0),
    CONSTRAINT account_frozen_not_negative CHECK (frozen >= 0),
    CONSTRAINT account_adds_up CHECK (balance = available + frozen)
) WITH (fillfactor = 50)""")
    for statement in fence_table("balance_hold", _moves_on_account("balance_hold")):
        op.execute(statement)
    credit = {
        **_moves_on_account("balance_credit"),
        "kind": "text CONSTRAINT balance_credit_kind_is_known"
        " CHECK (kind IN ('deposit', 'refund'))",
    }
    for statement in fence_table("balance_credit", credit):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never dropped by a command; restore a backup")


def _moves_on_account(table: str) -> dict[str, str]:
    return {
        "account": 'text COLLATE "C"',
        "currency": 'text COLLATE "C"',
        "amount_minor": f"bigint CONSTRAINT {table}_amount_positive CHECK (amount_minor > 0)",
    }
