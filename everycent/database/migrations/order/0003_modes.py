"""The mode in which an order is kept consistent."""

from alembic import op

revision = "order_0003"
down_revision = "order_0001"


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


def downgrade() -> None:
    raise NotImplementedError("money tables are never dropped by a command; restore a backup")
