"""Content-defined chunking: ``FastCDCChunker`` cuts, ``ChunkerParams`` says how large."""

from casstore.chunking.base import Chunker
from casstore.chunking.fastcdc import FastCDCChunker
from casstore.chunking.params import ChunkerParams

__all__ = ["Chunker", "ChunkerParams", "FastCDCChunker"]
