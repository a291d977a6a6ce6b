"""The order row with its decision, the payment attempts, and the repair cases."""

from alembic import op

revision = "order_0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
CREATE TABLE shop_order (
    tenant text COLLATE "C" NOT NULL,
    order_id text COLLATE "C" NOT NULL,
    customer text,
    currency text,
    total_minor bigint,
    request jsonb,
    request_hash text,
    hash_version smallint,
    decision text NOT NULL DEFAULT 'OPEN',
    attempt text,
    abort_status text,
    reason text NOT NULL DEFAULT '',
    pivot_refusal jsonb,
    status text NOT NULL DEFAULT 'PENDING',
    waits_for text NOT NULL DEFAULT 'nothing',
    driver text NOT NULL,
    run text NOT NULL,
    shared boolean NOT NULL DEFAULT false,
    opened_at timestamptz NOT NULL,
    opened_on date NOT NULL,
    window_ends_at timestamptz NOT NULL,
    decided_at timestamptz,
    closed_at timestamptz,
    moved_at timestamptz NOT NULL,
    result jsonb,
    CONSTRAINT shop_order_pkey PRIMARY KEY (tenant, order_id),
    CONSTRAINT shop_order_total_not_negative CHECK (total_minor >= 0),
    CONSTRAINT shop_order_is_asked_for_or_withdrawn
        CHECK (CASE num_nonnulls(customer, currency, total_minor, request, request_hash,
            hash_version) WHEN 6 THEN true WHEN 0 THEN decision = 'ABORTED' ELSE false END),
    CONSTRAINT shop_order_decision_is_known
        CHECK (decision IN ('OPEN', 'COMMITTING', 'COMMITTED', 'ABORTING', 'ABORTED')),
    CONSTRAINT shop_order_status_is_known
        CHECK (status IN ('PENDING', 'CONFIRMED', 'REJECTED', 'EXPIRED', 'CANCELLED', 'REFUNDED')),
    CONSTRAINT shop_order_waits_for_is_known
        CHECK (waits_for IN ('nothing', 'payment', 'stock', 'provider', 'repair')),
    CONSTRAINT shop_order_final_has_result
        CHECK ((decision IN ('COMMITTED', 'ABORTED')) = (result IS NOT NULL)),
    CONSTRAINT shop_order_status_fits_decision
        CHECK (CASE decision
            WHEN 'COMMITTED' THEN status IN ('CONFIRMED', 'REFUNDED')
            WHEN 'ABORTED' THEN status IN ('REJECTED', 'EXPIRED', 'CANCELLED', 'REFUNDED')
            ELSE true END)
)""")
    op.execute("""
CREATE INDEX shop_order_unfinished ON shop_order (moved_at)
    WHERE decision IN ('OPEN', 'COMMITTING', 'ABORTING')""")
    op.execute("""
CREATE INDEX shop_order_newest ON shop_order (tenant, opened_at DESC)""")
    op.execute("""
CREATE FUNCTION shop_order_arrows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.tenant <> OLD.tenant OR NEW.order_id <> OLD.order_id
        OR NEW.request_hash <> OLD.request_hash OR NEW.total_minor <> OLD.total_minor
        OR NEW.currency <> OLD.currency OR NEW.customer <> OLD.customer
        OR NEW.opened_on <> OLD.opened_on
        OR (NEW.request IS NULL) <> (OLD.request IS NULL) THEN
        RAISE EXCEPTION 'order % would change what was asked for', OLD.order_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'shop_order_request_is_fixed';
    END IF;
    IF OLD.result IS NOT NULL AND NEW.result IS DISTINCT FROM OLD.result THEN
        RAISE EXCEPTION 'order % would change its result', OLD.order_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'shop_order_result_is_fixed';
    END IF;
    IF NOT (NEW.decision = OLD.decision
        OR (OLD.decision = 'OPEN' AND NEW.decision IN ('COMMITTING', 'ABORTING'))
        OR (OLD.decision = 'COMMITTING' AND NEW.decision = 'COMMITTED')
        OR (OLD.decision = 'COMMITTING' AND NEW.decision = 'ABORTING'
            AND NEW.pivot_refusal IS NOT NULL)
        OR (OLD.decision = 'ABORTING' AND NEW.decision = 'ABORTED')) THEN
        RAISE EXCEPTION 'order % cannot go from % to %', OLD.order_id, OLD.decision, NEW.decision
            USING ERRCODE = 'check_violation', CONSTRAINT = 'shop_order_decision_moves_forward';
    END IF;
    RETURN NEW;
END $$""")
    op.execute("""
CREATE TRIGGER shop_order_arrows BEFORE UPDATE ON shop_order
    FOR EACH ROW EXECUTE FUNCTION shop_order_arrows()""")
    op.execute("""
CREATE TABLE payment_attempt (
    tenant text COLLATE "C" NOT NULL,
    order_id text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    number smallint NOT NULL,
    payment jsonb NOT NULL,
    added_at timestamptz NOT NULL,
    CONSTRAINT payment_attempt_pkey PRIMARY KEY (tenant, order_id, request_id),
    CONSTRAINT payment_attempt_one_per_number UNIQUE (tenant, order_id, number),
    CONSTRAINT payment_attempt_at_most_three CHECK (number BETWEEN 1 AND 3)
)""")
    op.execute("""
CREATE TABLE repair_case (
    case_key text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    order_id text COLLATE "C" NOT NULL,
    step text NOT NULL,
    error_class text NOT NULL,
    error text NOT NULL,
    attempts int NOT NULL DEFAULT 1,
    proposals jsonb NOT NULL,
    owner text NOT NULL,
    state text NOT NULL DEFAULT 'OPEN',
    opened_at timestamptz NOT NULL,
    failed_at timestamptz NOT NULL,
    resolved_at timestamptz,
    resolved_by text,
    resolution text,
    by_hand boolean NOT NULL DEFAULT false,
    CONSTRAINT repair_case_pkey PRIMARY KEY (case_key),
    CONSTRAINT repair_case_state_is_known CHECK (state IN ('OPEN', 'RESOLVED')),
    CONSTRAINT repair_case_resolved_says_who_and_why
        CHECK (state = 'OPEN' OR (resolved_at IS NOT NULL AND resolved_by IS NOT NULL
            AND resolution IS NOT NULL)),
    CONSTRAINT repair_case_attempts_positive CHECK (attempts > 0)
)""")
    op.execute("CREATE INDEX repair_case_of_order ON repair_case (tenant, order_id)")


def downgrade() -> None:
    raise NotImplementedError("money tables are never dropped by a command; restore a backup")
