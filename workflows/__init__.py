"""The business stories: deterministic, no SQL, no network."""
