"""Payments, refunds, and the calls to the provider that are written down before they are made."""

from alembic import op

from everycent.database.fence_ddl import fence_table

revision = "payment_0001"
down_revision = None


def upgrade() -> None:
    _payment()
    _refund()
    _provider_call()


def _payment() -> None:
    columns = {
        "amount_minor": "bigint",
        "currency": "text",
        "method": "text",
        "card_token": "text",
    }
    for statement in fence_table("payment", columns):
        op.execute(statement)
    op.execute("""
ALTER TABLE payment
    ADD COLUMN status text NOT NULL DEFAULT 'NEW',
    ADD COLUMN provider_id text,
    ADD COLUMN captured_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN refunded_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN cancelling boolean NOT NULL DEFAULT false,
    ADD COLUMN cancelling_since timestamptz,
    ADD COLUMN capture_refusal jsonb,
    ADD CONSTRAINT payment_status_is_known CHECK (status IN
        ('NEW', 'SENT', 'AUTHORISED', 'CAPTURED', 'VOIDED', 'REFUSED', 'UNKNOWN')),
    ADD CONSTRAINT payment_has_terms CHECK ((amount_minor IS NOT NULL AND currency IS NOT NULL
        AND method IS NOT NULL) OR state = 'CANCELLED'),
    ADD CONSTRAINT payment_amount_positive CHECK (amount_minor > 0),
    ADD CONSTRAINT payment_method_is_known CHECK (method IN ('card', 'redirect')),
    ADD CONSTRAINT payment_captured_within_amount
        CHECK (0 <= captured_minor AND captured_minor <= coalesce(amount_minor, 0)),
    ADD CONSTRAINT payment_refunded_within_captured
        CHECK (0 <= refunded_minor AND refunded_minor <= captured_minor),
    ADD CONSTRAINT payment_captured_has_status
        CHECK ((status = 'CAPTURED') = (captured_minor > 0)),
    ADD CONSTRAINT payment_confirmed_is_captured
        CHECK (state <> 'CONFIRMED' OR captured_minor = amount_minor),
    ADD CONSTRAINT payment_cancelling_is_tried
        CHECK (NOT cancelling OR (state = 'TRIED' AND cancelling_since IS NOT NULL)),
    ADD CONSTRAINT payment_refused_takes_nothing
        CHECK (capture_refusal IS NULL OR state <> 'CONFIRMED')""")
    op.execute("""
CREATE FUNCTION payment_facts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.provider_id IS NOT NULL AND NEW.provider_id IS DISTINCT FROM OLD.provider_id)
        OR (OLD.capture_refusal IS NOT NULL
            AND NEW.capture_refusal IS DISTINCT FROM OLD.capture_refusal)
        OR NEW.captured_minor < OLD.captured_minor THEN
        RAISE EXCEPTION '% would change what the provider said', OLD.key
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_facts_are_fixed';
    END IF;
    RETURN NEW;
END $$""")
    op.execute("""
CREATE TRIGGER payment_facts BEFORE UPDATE ON payment
    FOR EACH ROW EXECUTE FUNCTION payment_facts()""")
    op.execute("""
CREATE INDEX payment_in_doubt ON payment (tried_at)
    WHERE state = 'TRIED' AND (status = 'UNKNOWN' OR cancelling)""")


def _refund() -> None:
    columns = {
        "payment_key": 'text COLLATE "C"',
        "amount_minor": "bigint",
        "currency": "text",
    }
    for statement in fence_table("refund", columns):
        op.execute(statement)
    op.execute("""
ALTER TABLE refund
    ADD CONSTRAINT refund_has_terms CHECK ((payment_key IS NOT NULL AND amount_minor IS NOT NULL
        AND currency IS NOT NULL) OR state = 'CANCELLED'),
    ADD CONSTRAINT refund_amount_positive CHECK (amount_minor > 0)""")
    op.execute("CREATE INDEX refund_of_payment ON refund (payment_key)")


def _provider_call() -> None:
    op.execute("""
CREATE TABLE provider_call (
    key text COLLATE "C" NOT NULL,
    provider_key text NOT NULL,
    request_hash text NOT NULL,
    sent_at timestamptz NOT NULL,
    may_arrive_until timestamptz NOT NULL,
    open_sends int NOT NULL,
    answer jsonb,
    answered_at timestamptz,
    CONSTRAINT provider_call_pkey PRIMARY KEY (key),
    CONSTRAINT provider_call_provider_key_unique UNIQUE (provider_key),
    CONSTRAINT provider_call_arrives_after_sending CHECK (may_arrive_until >= sent_at),
    CONSTRAINT provider_call_open_sends_not_negative CHECK (open_sends >= 0),
    CONSTRAINT provider_call_answer_has_time
        CHECK ((answer IS NULL) = (answered_at IS NULL))
)""")
    op.execute("""
CREATE FUNCTION provider_call_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.answer IS NOT NULL OR NEW.key <> OLD.key OR NEW.provider_key <> OLD.provider_key
        OR NEW.request_hash <> OLD.request_hash THEN
        RAISE EXCEPTION 'the call % would change', OLD.key
            USING ERRCODE = 'check_violation', CONSTRAINT = 'provider_call_answer_is_fixed';
    END IF;
    RETURN NEW;
END $$""")
    op.execute("""
CREATE TRIGGER provider_call_once BEFORE UPDATE ON provider_call
    FOR EACH ROW EXECUTE FUNCTION provider_call_once()""")
    op.execute("""
CREATE INDEX provider_call_unanswered ON provider_call (may_arrive_until) WHERE answer IS NULL""")


def downgrade() -> None:
    raise NotImplementedError("money tables are never dropped by a command; restore a backup")
