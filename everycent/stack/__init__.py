"""The embedded stack: PostgreSQL, Temporal and our processes under one supervisor."""
