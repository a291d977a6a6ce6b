"""One Alembic history per service database."""
