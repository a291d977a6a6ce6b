"""What reconciliation finds, and which failure of a case was the one that opened it."""

from alembic import op

revision = "order_0004"
down_revision = "order_0003"


def upgrade() -> None:
    op.execute("ALTER TABLE repair_case ADD COLUMN opened_attempt int NOT NULL DEFAULT 1")
    op.execute("""
CREATE TABLE statement (
    tenant text COLLATE "C" NOT NULL,
    digest text COLLATE "C" NOT NULL,
    name text NOT NULL,
    lines bigint NOT NULL,
    begins_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    read_at timestamptz NOT NULL,
    read_by text NOT NULL,
    CONSTRAINT statement_pkey PRIMARY KEY (tenant, digest),
    CONSTRAINT statement_ends_after_it_begins CHECK (begins_at <= ends_at)
)""")
    op.execute("""
CREATE TABLE statement_break (
    key text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    order_id text COLLATE "C" NOT NULL,
    kind text NOT NULL,
    movement text NOT NULL,
    reference text COLLATE "C" NOT NULL,
    line jsonb,
    booked jsonb,
    says text NOT NULL,
    happened_at timestamptz NOT NULL,
    found_at timestamptz NOT NULL,
    run text NOT NULL,
    looks int NOT NULL DEFAULT 1,
    gone_at timestamptz,
    CONSTRAINT statement_break_pkey PRIMARY KEY (key),
    CONSTRAINT statement_break_kind_is_known CHECK (kind IN ('missing here', 'missing there',
        'amount', 'currency', 'status', 'twice', 'order', 'stock')),
    CONSTRAINT statement_break_has_a_side CHECK (line IS NOT NULL OR booked IS NOT NULL),
    CONSTRAINT statement_break_looks_positive CHECK (looks > 0)
)""")
    op.execute("""
CREATE INDEX statement_break_open ON statement_break (tenant, key) WHERE gone_at IS NULL""")


def downgrade() -> None:
    raise NotImplementedError("money tables are never dropped by a command; restore a backup")
