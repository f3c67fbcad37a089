"""What was read from stores before, on this machine's disk."""
