"""Plain HTTP for adapters that have no library of their service's.

Decided here and only here: how long a connection and an answer are waited for, how many connections are kept, and that
the proxies of the environment are used.
"""

from __future__ import annotations

import urllib.request
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3

from casstore.remote.pace import paced

__all__ = ["make_pool"]

CONNECT: Final = 10.0
READ: Final = 60.0
"""Seconds without a byte until a connection, or an answer, is given up; ``pace`` has those of an answer in all."""
CONNECTIONS: Final = 64


def make_pool(endpoint: str) -> urllib3.PoolManager:
    """Return connections to ``endpoint``, through the environment's proxy where one is set for it."""
    options: dict[str, Any] = {
        "num_pools": 4,
        "maxsize": CONNECTIONS,
        "timeout": urllib3.Timeout(connect=CONNECT, read=READ),
    }
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    bypassed = urllib.request.proxy_bypass_environment(host, proxies)  # type: ignore[attr-defined]
    if not proxy or bypassed:
        return _paced(urllib3.PoolManager(**options))
    url = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
    headers = urllib3.make_headers(proxy_basic_auth=url.auth) if url.auth else None
    return _paced(urllib3.ProxyManager(url._replace(auth=None).url, proxy_headers=headers, **options))


def _paced(pool: urllib3.PoolManager) -> urllib3.PoolManager:
    pool.pool_classes_by_scheme = paced(pool.pool_classes_by_scheme)
    return pool
