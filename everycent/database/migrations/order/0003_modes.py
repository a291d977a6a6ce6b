"""The mode of an order, the rules that choose it, and the decisions of flows without an order."""

from alembic import op

from everycent.database.decision_ddl import decision_table

revision = "order_0003"
down_revision = "order_0002"


def upgrade() -> None:
    op.execute("""
ALTER TABLE shop_order ADD COLUMN mode text NOT NULL DEFAULT 'saga',
    ADD CONSTRAINT shop_order_mode_is_known
        CHECK (mode IN ('saga', 'tcc', 'mixed', 'choreographed'))""")
    op.execute("""
CREATE FUNCTION shop_order_mode() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.mode <> OLD.mode THEN
        RAISE EXCEPTION 'order % would change its mode', OLD.order_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'shop_order_mode_is_fixed';
    END IF;
    RETURN NEW;
END $$""")
    op.execute("""
CREATE TRIGGER shop_order_mode BEFORE UPDATE OF mode ON shop_order
    FOR EACH ROW EXECUTE FUNCTION shop_order_mode()""")
    op.execute("""
CREATE TABLE routing_rule (
    flow text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    number int NOT NULL,
    mode text,
    percentage smallint NOT NULL,
    rest text NOT NULL,
    before int,
    request_id text COLLATE "C" NOT NULL,
    set_by text NOT NULL,
    reason text NOT NULL,
    set_at timestamptz NOT NULL,
    CONSTRAINT routing_rule_pkey PRIMARY KEY (flow, tenant, number),
    CONSTRAINT routing_rule_once_per_request UNIQUE (flow, tenant, request_id),
    CONSTRAINT routing_rule_mode_is_known
        CHECK (mode IN ('saga', 'tcc', 'mixed', 'choreographed')),
    CONSTRAINT routing_rule_rest_is_known
        CHECK (rest IN ('saga', 'tcc', 'mixed', 'choreographed')),
    CONSTRAINT routing_rule_percentage_is_one CHECK (percentage BETWEEN 0 AND 100),
    CONSTRAINT routing_rule_before_is_earlier CHECK (before < number)
)""")
    for statement in decision_table("decision"):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never dropped by a command; restore a backup")
