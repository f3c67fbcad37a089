"""Versions as an fsspec file system: ``osmo://[bucket/]name[:tag]/path``.

fsspec finds ``OsmoFileSystem`` by its protocol; ``pip install "casstore[fs]"`` brings what it needs.
"""

from __future__ import annotations

from casstore.fs.filesystem import OsmoFileSystem

__all__ = ["OsmoFileSystem"]
