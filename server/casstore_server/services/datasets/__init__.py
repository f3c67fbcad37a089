"""Datasets on the wire of OSMO 6.2."""
