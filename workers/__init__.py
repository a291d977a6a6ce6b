"""Worker processes: what runs where."""
