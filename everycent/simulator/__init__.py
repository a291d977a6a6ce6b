"""A payment provider to develop and test against: its own process and its own store."""
