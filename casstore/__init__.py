"""casstore: versioned, deduplicated, verified datasets on a folder or a bucket."""

__version__ = "0.1.0"
