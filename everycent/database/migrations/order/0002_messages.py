"""The messages of this service: what it tells others, and what it is told."""

from alembic import op

from everycent.database.messages_ddl import message_tables

revision = "order_0002"
down_revision = "order_0001"


def upgrade() -> None:
    for statement in message_tables():
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("messages are never dropped by a command; restore a backup")
