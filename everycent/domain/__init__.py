"""Pure models, state machines and decisions: no I/O, clock or random."""
