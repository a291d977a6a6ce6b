"""The truth of every effect: SQL, one file per noun."""
