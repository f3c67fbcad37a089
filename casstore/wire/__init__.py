"""What the workflow server and its clients say to each other over HTTP, shared by both sides.

Decided here and only here: the shapes of requests and replies (OSMO 6.2's, and our own under ``/api/v1``).
Nothing here performs I/O, and nothing beyond msgspec is imported: the command pays for this package at every
start.
"""
