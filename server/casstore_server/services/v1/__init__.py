"""What ``/api/v1`` does."""
