"""The process that runs one placed group and outlives the server that started it."""
