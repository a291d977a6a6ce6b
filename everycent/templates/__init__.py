"""What `everycent new` writes: a participant or a flow with tests that pass at once."""
