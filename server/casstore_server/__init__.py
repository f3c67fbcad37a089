"""The workflow server: one process with the API, the scheduler and the executor in it."""
