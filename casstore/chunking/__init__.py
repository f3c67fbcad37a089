"""Content-defined chunking: ``fastcdc.FastCDCChunker`` cuts, ``params.ChunkerParams`` says how large.

Nothing is imported here: opening a store needs the parameters alone, and the library that cuts is slow to load.
"""
