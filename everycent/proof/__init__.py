"""The proof kit: invariants over live databases."""
