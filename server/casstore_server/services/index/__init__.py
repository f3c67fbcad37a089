"""The index of what is in the buckets."""
