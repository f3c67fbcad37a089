"""Versions as folders: the tree of a version behind the kernel's FUSE protocol."""
