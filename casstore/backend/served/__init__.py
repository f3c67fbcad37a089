"""A store behind a server."""

from casstore.backend.served.backend import ServedBackend
from casstore.backend.served.http import Headers, Http

__all__ = ["Headers", "Http", "ServedBackend"]
