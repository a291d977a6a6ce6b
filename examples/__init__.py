"""Small programs on the parts of everycent; each is type-checked and run by a test."""
