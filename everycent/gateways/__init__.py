"""The outside world: a Protocol each, and its real clients."""
