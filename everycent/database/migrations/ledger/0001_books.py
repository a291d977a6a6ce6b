"""Accounts with their limits, transfers with their legs, entries and reversals.

All but accounts and fences is append-only, for everybody; legs and entries balance by trigger.
"""

from alembic import op

from everycent.database.fence_ddl import fence_table

revision = "ledger_0001"
down_revision = None


def upgrade() -> None:
    _accounts()
    for statement in (*fence_table("transfer"), *fence_table("account_opening")):
        op.execute(statement)
    _legs_and_entries()
    op.execute("""
CREATE TABLE reversal (
    key text COLLATE "C" NOT NULL,
    original_key text COLLATE "C" NOT NULL,
    CONSTRAINT reversal_pkey PRIMARY KEY (key),
    CONSTRAINT reversal_once_per_original UNIQUE (original_key),
    CONSTRAINT reversal_not_of_itself CHECK (key <> original_key)
)""")
    for table in ("transfer_leg", "entry"):
        _must_balance(table)
    for table in ("transfer_leg", "entry", "reversal"):
        _append_only(table)


def downgrade() -> None:
    raise NotImplementedError("money tables are never dropped by a command; restore a backup")


def _accounts() -> None:
    op.execute("""
CREATE TABLE ledger_account (
    tenant text COLLATE "C" NOT NULL,
    account text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    kind text NOT NULL DEFAULT 'unclassified',
    limit_rule text NOT NULL DEFAULT 'none',
    debits_posted bigint NOT NULL DEFAULT 0,
    credits_posted bigint NOT NULL DEFAULT 0,
    debits_pending bigint NOT NULL DEFAULT 0,
    credits_pending bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    CONSTRAINT ledger_account_pkey PRIMARY KEY (tenant, account, currency),
    CONSTRAINT ledger_account_currency_is_a_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT ledger_account_kind_is_known CHECK (kind IN
        ('asset', 'liability', 'equity', 'revenue', 'expense', 'unclassified')),
    CONSTRAINT ledger_account_limit_rule_is_known CHECK (limit_rule IN
        ('none', 'debits_not_over_credits', 'credits_not_over_debits')),
    CONSTRAINT ledger_account_debits_posted_not_negative CHECK (debits_posted >= 0),
    CONSTRAINT ledger_account_credits_posted_not_negative CHECK (credits_posted >= 0),
    CONSTRAINT ledger_account_debits_pending_not_negative CHECK (debits_pending >= 0),
    CONSTRAINT ledger_account_credits_pending_not_negative CHECK (credits_pending >= 0),
    CONSTRAINT ledger_account_debits_not_over_credits CHECK
        (limit_rule <> 'debits_not_over_credits'
         OR debits_posted + debits_pending <= credits_posted),
    CONSTRAINT ledger_account_credits_not_over_debits CHECK
        (limit_rule <> 'credits_not_over_debits'
         OR credits_posted + credits_pending <= debits_posted)
) WITH (fillfactor = 50)""")


def _legs_and_entries() -> None:
    # The tenant is worked out of the key, so that it cannot say anything else.
    op.execute("""
CREATE TABLE transfer_leg (
    key text COLLATE "C" NOT NULL,
    leg int NOT NULL,
    tenant text COLLATE "C" NOT NULL GENERATED ALWAYS AS (split_part(key, '/', 1)) STORED,
    account text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    amount_minor bigint NOT NULL,
    CONSTRAINT transfer_leg_pkey PRIMARY KEY (key, leg),
    CONSTRAINT transfer_leg_currency_is_a_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT transfer_leg_amount_not_zero CHECK (amount_minor <> 0)
)""")
    op.execute("""
CREATE TABLE entry (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    key text COLLATE "C" NOT NULL,
    leg int NOT NULL,
    tenant text COLLATE "C" NOT NULL GENERATED ALWAYS AS (split_part(key, '/', 1)) STORED,
    account text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    amount_minor bigint NOT NULL,
    balance_after_minor bigint NOT NULL,
    posted_at timestamptz NOT NULL,
    CONSTRAINT entry_pkey PRIMARY KEY (key, leg),
    CONSTRAINT entry_in_order_of_its_account UNIQUE (tenant, account, currency, seq),
    CONSTRAINT entry_currency_is_a_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT entry_amount_not_zero CHECK (amount_minor <> 0)
)""")


def _must_balance(table: str) -> None:
    """Refuse a statement that leaves a transfer unbalanced; a transfer comes in one statement."""
    op.execute(f"""
CREATE FUNCTION {table}_balances() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong record;
BEGIN
    SELECT key, currency, sum(amount_minor) AS off INTO wrong FROM added
        GROUP BY key, currency HAVING sum(amount_minor) <> 0 ORDER BY key, currency LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION '% is off by % minor units of %', wrong.key, wrong.off, wrong.currency
            USING ERRCODE = 'check_violation', CONSTRAINT = '{table}_balances';
    END IF;
    RETURN NULL;
END $$""")
    op.execute(f"""
CREATE TRIGGER {table}_balances AFTER INSERT ON {table}
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION {table}_balances()""")


def _append_only(table: str) -> None:
    """Refuse every change of what is written, for the owner too; corrections are new rows."""
    op.execute(f"""
CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on {table}: it is append-only, correct it by a reversal', TG_OP
        USING ERRCODE = 'check_violation', CONSTRAINT = '{table}_append_only';
END $$""")
    op.execute(f"""
CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()""")
    # ALWAYS: a session that plays the replica is refused as well.
    op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")
