"""Customers' points, the holds on them, and what was granted, restored and revoked."""

from alembic import op

from everycent.database.fence_ddl import fence_table

revision = "points_0001"
down_revision = None


def upgrade() -> None:
    op.execute("""
CREATE TABLE points_account (
    tenant text COLLATE "C" NOT NULL,
    customer text COLLATE "C" NOT NULL,
    available bigint NOT NULL DEFAULT 0,
    frozen bigint NOT NULL DEFAULT 0,
    debt bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    CONSTRAINT points_account_pkey PRIMARY KEY (tenant, customer),
    CONSTRAINT points_account_available_not_negative CHECK (available >= 0),
    CONSTRAINT points_account_frozen_not_negative CHECK (frozen >= 0),
    CONSTRAINT points_account_debt_not_negative CHECK (debt >= 0),
    CONSTRAINT points_account_debt_is_paid_first CHECK (debt = 0 OR available = 0)
) WITH (fillfactor = 50)""")
    for statement in fence_table("points_hold", _moves_points("points_hold")):
        op.execute(statement)
    booking = {
        **_moves_points("points_booking"),
        "kind": "text CONSTRAINT points_booking_kind_is_known"
        " CHECK (kind IN ('grant', 'restore', 'revoke'))",
    }
    for statement in fence_table("points_booking", booking):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("points tables are never dropped by a command; restore a backup")


def _moves_points(table: str) -> dict[str, str]:
    return {
        "customer": 'text COLLATE "C"',
        "points": f"bigint CONSTRAINT {table}_points_positive CHECK (points > 0)",
    }
