"""What the server does for a request: the policy, without HTTP."""
