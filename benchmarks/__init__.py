"""What each thing costs."""
