"""The orchestrator's own code under a virtual clock: what a pool would do with a week of work, in minutes."""
