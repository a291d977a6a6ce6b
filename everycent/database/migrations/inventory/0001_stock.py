"""Stock rows, reservations with their lines, and bookings of goods in and out."""

from alembic import op

from everycent.database.fence_ddl import fence_table

revision = "inventory_0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
CREATE TABLE stock (
    tenant text COLLATE "C" NOT NULL,
    sku text COLLATE "C" NOT NULL,
    received bigint NOT NULL DEFAULT 0,
    free bigint NOT NULL DEFAULT 0,
    held bigint NOT NULL DEFAULT 0,
    sold bigint NOT NULL DEFAULT 0,
    written_off bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    CONSTRAINT stock_pkey PRIMARY KEY (tenant, sku),
    CONSTRAINT stock_free_not_negative CHECK (free >= 0),
    CONSTRAINT stock_held_not_negative CHECK (held >= 0),
    CONSTRAINT stock_sold_not_negative CHECK (sold >= 0),
    CONSTRAINT stock_written_off_not_negative CHECK (written_off >= 0),
    CONSTRAINT stock_adds_up CHECK (received = free + held + sold + written_off)
) WITH (fillfactor = 50)""")
    for statement in fence_table("reservation"):
        op.execute(statement)
    op.execute("""
CREATE TABLE reservation_line (
    key text COLLATE "C" NOT NULL,
    line int NOT NULL,
    sku text COLLATE "C" NOT NULL,
    units bigint NOT NULL,
    CONSTRAINT reservation_line_pkey PRIMARY KEY (key, line),
    CONSTRAINT reservation_line_units_positive CHECK (units > 0)
)""")
    for statement in fence_table("stock_booking", {"sku": 'text COLLATE "C"'}):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("money tables are never dropped by a command; restore a backup")
