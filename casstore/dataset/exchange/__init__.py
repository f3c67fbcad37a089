"""Versions on their way from and to clients that know another layout than ours."""
