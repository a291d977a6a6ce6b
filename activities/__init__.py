"""The thin edge between Temporal and a service, one file per noun."""
